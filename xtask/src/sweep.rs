//! `cargo xtask sweep`: rows side by side, to choose between shapes of a kernel.
//!
//! To try shapes, add a row for each to the variant table, `cargo xtask build --module NAME --out DIR`, and sweep that folder.

use crate::check::{Depth, assemble_all, jobs, print_sweep};
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Result, bail};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Kernels whose names hold one of these
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    kernel: Vec<String>,
    /// Architectures
    #[arg(long, value_delimiter = ',', default_value = "sm_80,sm_90a", value_name = "ARCH")]
    arch: Vec<String>,
    /// The PTX in this folder instead of the committed one; modules that it lacks are left out
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
    /// Write the rows as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find()?;
    let folder = args.ptx.clone().unwrap_or_else(workspace::ptx_dir);
    let mut jobs = jobs(|name| args.arch.iter().any(|arch| arch == name));
    jobs.retain(|(module, _)| folder.join(format!("{}.ptx", module.name)).is_file());
    if jobs.is_empty() {
        bail!("{} holds no module for {}", folder.display(), args.arch.join(", "));
    }
    let (mut rows, refused) = assemble_all(&tools, &folder, &jobs, Depth::Loops, |_, _, _| Ok(()))?;
    rows.retain(|row| args.kernel.is_empty() || args.kernel.iter().any(|part| row.resources.kernel.contains(part)));
    println!("{}", tools.version()?);
    print_sweep(&rows);
    if let Some(file) = &args.json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    for error in &refused {
        eprintln!("error: {error:#}");
    }
    if !refused.is_empty() {
        bail!("{} modules do not assemble", refused.len());
    }
    Ok(())
}
