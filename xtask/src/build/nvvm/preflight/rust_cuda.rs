//! rust-cuda's checkout: the caller's, or the pinned revision.

use super::{Checked, Machine};
use crate::build::nvvm::{REPOSITORY, REVISION};
use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILES: [&str; 4] = [
    "Cargo.lock",
    "crates/cuda_builder/Cargo.toml",
    "crates/cuda_std/Cargo.toml",
    "crates/rustc_codegen_nvvm/Cargo.toml",
];

/// `checkout`, or the pinned revision in a folder of `work`, where it is fetched the first time.
pub fn find(machine: &Machine, toolchain: &str, checkout: Option<&Path>, work: &Path) -> Checked<PathBuf> {
    let revision = &REVISION[..7];
    let path = match checkout {
        Some(path) => path.to_owned(),
        None => {
            let path = work.join(format!("rust-cuda-{revision}"));
            if !path.is_dir() {
                fetch(machine, &path).map_err(|error| {
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
    Ok(path)
}

/// The pinned revision without its history; the folder appears whole or not at all.
fn fetch(machine: &Machine, into: &Path) -> Result<()> {
    let program = machine.program("git").context("no git in PATH")?;
    let part = into.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part)?;
    let git = |args: &[&str]| {
        let mut command = Command::new(&program);
        workspace::capture(command.current_dir(&part).env("GIT_TERMINAL_PROMPT", "0").args(args)).map(drop)
    };
    let fetched = git(&["init", "--quiet"])
        .and_then(|()| git(&["fetch", "--quiet", "--depth", "1", REPOSITORY, REVISION]))
        .and_then(|()| git(&["checkout", "--quiet", "FETCH_HEAD"]))
        .and_then(|()| Ok(fs::rename(&part, into)?));
    if fetched.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    fetched
}
