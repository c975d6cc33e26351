//! The repository on disk: where things lie, and programs that run in it.

pub use crate::output::write_atomically;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository root: the folder above this package's.
pub fn root() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), Path::to_path_buf)
}

/// Cargo's target folder, for what a command keeps between runs.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The toolchain that the repository pins.
pub fn toolchain() -> Result<String> {
    let file = root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let channel =
        text.lines().find_map(|line| line.trim().strip_prefix("channel")?.split('"').nth(1).map(str::to_owned));
    channel.context("rust-toolchain.toml names no channel")
}

/// The committed PTX.
pub fn ptx_dir() -> PathBuf {
    root().join("host/ptx")
}

/// Where the test data lies.
pub fn data_dir() -> PathBuf {
    root().join("tests/data")
}

/// Shows `path` from the root where it lies below it.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Runs `command` with its output captured; a failure to start or a non-zero exit is an error that shows stderr.
pub fn capture(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start `{program}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{program}` ended with {}:\n{}", output.status, stderr.trim_end());
    }
    Ok(output)
}
