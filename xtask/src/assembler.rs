//! ptxas on one module for one architecture.

use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder for files in between, which goes when this value does.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A folder of this process for this purpose.
    pub fn new(purpose: &str) -> Result<Self> {
        let folder = workspace::target().join(purpose).join(std::process::id().to_string());
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What ptxas made.
pub struct Assembled {
    /// The file with the machine code.
    pub file: PathBuf,
    /// Its bytes.
    pub cubin: Vec<u8>,
    /// What `ptxas -v` said.
    pub report: String,
}

/// Assembles a PTX file. Always with the same options: ptxas writes them into the cubin, and machine code is compared.
pub fn assemble(ptxas: &Path, ptx: &Path, arch: &str, scratch: &Scratch) -> Result<Assembled> {
    let module = ptx.file_stem().unwrap_or_default().to_string_lossy();
    let file = scratch.path().join(format!("{module}.{arch}.cubin"));
    let mut command = Command::new(ptxas);
    command.arg("-v").arg(format!("-arch={arch}")).arg("-o").args([&file, ptx]);
    let output = workspace::capture(&mut command)
        .with_context(|| format!("{} does not assemble for {arch}", workspace::shown(ptx)))?;
    let report = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let cubin = fs::read(&file).with_context(|| format!("ptxas wrote no {}", file.display()))?;
    Ok(Assembled { file, cubin, report })
}
