//! rust-cuda's checkout: the caller's, or the form's revision with what it lacks.

use super::{Checked, Machine};
use crate::build::nvvm::REPOSITORY;
use crate::build::nvvm::form::Form;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a reader finds [`Form::patch`].
const PATCH: &str = "xtask/src/build/nvvm/rust-cuda-llvm19.patch";

const FILES: [&str; 4] = [
    "Cargo.lock",
    "crates/cuda_builder/Cargo.toml",
    "crates/cuda_std/Cargo.toml",
    "crates/rustc_codegen_nvvm/Cargo.toml",
];

/// `checkout`, or the form's revision in a folder of `work`, where it is fetched the first time.
pub fn find(machine: &Machine, toolchain: &str, form: Form, checkout: Option<&Path>, work: &Path) -> Checked<PathBuf> {
    let revision = &form.revision()[..7];
    let path = match checkout {
        Some(path) => path.to_owned(),
        None => {
            let path = work.join(format!("rust-cuda-{revision}"));
            if !path.is_dir() {
                fetch(machine, form, &path).map_err(|error| {
                    vec![format!(
                        "rust-cuda: cannot fetch revision {revision} of {REPOSITORY} ({error:#}); \
                         check it out and pass --rust-cuda PATH or set RUST_CUDA"
                    )]
                })?;
            }
            path
        }
    };
    let Ok(path) = path.canonicalize() else {
        return Err(vec![format!(
            "rust-cuda: there is no folder {}; pass a checkout of {REPOSITORY} at {revision}",
            path.display()
        )]);
    };
    let lacking: Vec<_> = FILES.into_iter().filter(|file| !path.join(file).is_file()).collect();
    if !lacking.is_empty() {
        return Err(vec![format!(
            "rust-cuda: {} is no checkout of {REPOSITORY} (it has no {}); check out revision {revision}",
            path.display(),
            lacking.join(", ")
        )]);
    }
    let pinned = fs::read_to_string(path.join("rust-toolchain.toml")).unwrap_or_default();
    if !pinned.contains(&format!("\"{toolchain}\"")) {
        return Err(vec![format!(
            "rust-cuda: {} is for another toolchain than {toolchain}; check out revision {revision}",
            path.display()
        )]);
    }
    let manifest = fs::read_to_string(path.join("crates/rustc_codegen_nvvm/Cargo.toml")).unwrap_or_default();
    if let Some(feature) = form.feature()
        && !manifest.lines().any(|line| line.starts_with(feature))
    {
        return Err(vec![format!(
            "rust-cuda: {} cannot be built with the LLVM that is there (rustc_codegen_nvvm has no feature {feature}); \
             check out revision {revision}, or set LLVM_CONFIG to LLVM 7's",
            path.display()
        )]);
    }
    if form.patch().is_some_and(|patch| lacks(machine, &path, patch)) {
        return Err(vec![format!(
            "rust-cuda: {} lacks the lines of {PATCH}; run `git apply` with that file there",
            path.display()
        )]);
    }
    Ok(path)
}

/// Whether a checkout is without the lines that a patch adds: it could be applied. Without git nobody knows.
fn lacks(machine: &Machine, checkout: &Path, patch: &str) -> bool {
    machine.program("git").is_some_and(|git| apply(&git, checkout, patch, &["--check"]).is_ok())
}

/// `git apply` of a patch in a folder.
fn apply(git: &Path, folder: &Path, patch: &str, options: &[&str]) -> Result<()> {
    let mut child = Command::new(git)
        .current_dir(folder)
        // in a folder of another repository git would take the patch to be about that one
        .env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap_or(folder))
        .arg("apply")
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("git does not start")?;
    // a git that ends before it has read everything says why below
    let _ = child.stdin.take().context("git has no input")?.write_all(patch.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("git apply: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The form's revision without its history, patched; the folder appears whole or not at all.
fn fetch(machine: &Machine, form: Form, into: &Path) -> Result<()> {
    let program = machine.program("git").context("no git in PATH")?;
    let part = into.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part)?;
    let git = |args: &[&str]| {
        let mut command = Command::new(&program);
        workspace::capture(command.current_dir(&part).env("GIT_TERMINAL_PROMPT", "0").args(args)).map(drop)
    };
    let fetched = git(&["init", "--quiet"])
        .and_then(|()| git(&["fetch", "--quiet", "--depth", "1", REPOSITORY, form.revision()]))
        .and_then(|()| git(&["checkout", "--quiet", "FETCH_HEAD"]))
        .and_then(|()| form.patch().map_or(Ok(()), |patch| apply(&program, &part, patch, &[])))
        .and_then(|()| Ok(fs::rename(&part, into)?));
    if fetched.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    fetched
}
