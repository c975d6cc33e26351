//! The package for candle: the types of its CUDA side without a CUDA toolkit.

use crate::workspace;
use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package.
pub const PACKAGE: &str = "candle-int-flash-attention";

/// In nvcc's place: tells a version, and writes empty files where kernels are asked for. Types do not depend on what is in them.
const NO_NVCC: &str = r#"#!/bin/sh
[ "$1" = --version ] && { printf '\n\n\nCuda compilation tools, release 13.0, V13.0.0\n'; exit; }
while [ $# -gt 0 ]; do
    case $1 in
        -o) printf '!<arch>\n' > "$2"; shift ;;
        --output-directory) folder=$2; shift ;;
        *.cu) source=$1 ;;
    esac
    shift
done
[ -z "$folder" ] || : > "$folder/$(basename "$source" .cu).ptx"
"#;

/// Where cargo keeps what it has looked at without making code of it. Apart from what is built, because candle's CUDA side has no kernels in it here.
pub fn looks_dir() -> PathBuf {
    workspace::target().join("looked-at")
}

/// Lints of the CUDA side, on the sources of candle-core with its feature `cuda`, candle-kernels and cudarc. Nothing is linked.
pub fn check_cuda() -> Result<()> {
    let folder = looks_dir();
    let tools = folder.join("bin");
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let nvcc = tools.join("nvcc");
    fs::write(&nvcc, NO_NVCC)?;
    fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["clippy", "--quiet", "--package", PACKAGE, "--features", "cuda", "--all-targets"]);
    command.args(["--target-dir".as_ref(), folder.as_os_str()]).args(["--", "-D", "warnings"]);
    command.envs([("NVCC", nvcc.as_os_str()), ("PATH", &first(&tools)?)]).env("CUDA_COMPUTE_CAP", "80");
    workspace::capture(command.current_dir(workspace::root())).map(|_| ())
}

/// The oldest compiler that the package's manifest promises; candle-core asks for a newer one than the library.
pub fn oldest_rust() -> Result<String> {
    let manifest = fs::read_to_string(workspace::root().join("candle/Cargo.toml")).context("candle/Cargo.toml")?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.split('"').next());
    version.map(str::to_owned).context("candle/Cargo.toml has no rust-version")
}

/// The search path with this folder before all others.
fn first(folder: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths([folder.to_path_buf()].into_iter().chain(env::split_paths(&path)))?)
}
