//! The small workspace that `--codegen nvvm` writes into `target/nvvm/`, so that this repository's own manifests need
//! nothing of rust-cuda.
//!
//! `driver` calls `cuda_builder`. `kernels` is `kernels-gpu/src/lib.rs` as the cdylib that `cuda_builder` wants, with the
//! feature `cuda-std` and the dependency behind it.

use super::form::Form;
use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Package and program that run `cuda_builder`.
pub const DRIVER: &str = "nvvm-driver";
/// Package of the kernels.
pub const KERNELS: &str = "int-flash-attention-kernels-nvvm";

const WORKSPACE_MANIFEST: &str = r#"[workspace]
resolver = "2"
members = ["driver", "kernels"]

[profile.release]
opt-level = 3
codegen-units = 1
"#;

/// Writes it. What is already there and the same keeps its time stamp, so that cargo builds no more than it must.
pub fn write(work: &Path, rust_cuda: &Path, form: Form) -> Result<()> {
    write_if_changed(&work.join("Cargo.toml"), WORKSPACE_MANIFEST)?;
    write_if_changed(&work.join("driver/Cargo.toml"), &driver_manifest(rust_cuda, form))?;
    write_if_changed(&work.join("driver/src/main.rs"), include_str!("driver.rs"))?;
    write_if_changed(&work.join("kernels/Cargo.toml"), &kernels_manifest(&workspace::root(), rust_cuda))?;
    // cargo keeps the versions that it finds there (cuda_std needs its glam) and adds the two packages
    let lock = rust_cuda.join("Cargo.lock");
    fs::copy(&lock, work.join("Cargo.lock")).with_context(|| format!("cannot copy {}", lock.display()))?;
    Ok(())
}

fn driver_manifest(rust_cuda: &Path, form: Form) -> String {
    let path = rust_cuda.join("crates/cuda_builder");
    let features: Vec<_> = form.feature().into_iter().collect();
    format!(
        r#"[package]
name = "{DRIVER}"
version = "0.0.0"
edition = "2024"
publish = false

[dependencies]
cuda_builder = {{ path = {path:?}, default-features = false, features = {features:?} }}
"#
    )
}

/// `unused_attributes`: cuda_builder adds a second `#![no_std]`. `unexpected_cfgs`: the `--cfg` that selects a module is its name.
/// A module is a part of the crate; what the others use is dead in it, and would hide an error among a hundred warnings.
fn kernels_manifest(root: &Path, rust_cuda: &Path) -> String {
    let (lib, cuda_std) = (root.join("kernels-gpu/src/lib.rs"), rust_cuda.join("crates/cuda_std"));
    format!(
        r#"[package]
name = "{KERNELS}"
version = "0.0.0"
edition = "2024"
publish = false

[lib]
path = {lib:?}
crate-type = ["cdylib"]

[features]
default = ["cuda-std"]
cuda-std = ["dep:cuda_std"]

[dependencies]
cuda_std = {{ path = {cuda_std:?}, optional = true }}

[lints.rust]
dead_code = "allow"
unused_imports = "allow"
unused_attributes = "allow"
unexpected_cfgs = "allow"
"#
    )
}

fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    workspace::write_atomically(path, text.as_bytes())
}
