//! `cargo xtask check`: every committed PTX through ptxas for every architecture, and a look at the SASS.

mod against;
mod cubin;
mod occupancy;
mod ptxas;
mod rows;
mod rules;
mod sass;
mod table;

pub use rows::{Depth, assemble_all, jobs};
pub use table::print_sweep;

use crate::assembler::Assembled;
use crate::machine_code::{self, Kept};
use crate::tools::{self, Tools};
use crate::workspace;
use anyhow::{Result, bail, ensure};
use int_flash_attention_kernels::config::Module;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

#[derive(clap::Args)]
pub struct Args {
    /// Write the table as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Check the PTX in this folder instead of the committed one
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
    /// Keep the machine code that the library embeds, as `machine-code` does, instead of comparing with it
    #[arg(long, conflicts_with = "ptx")]
    machine_code: bool,
    /// Show spills and stack frames without failing
    #[arg(long)]
    allow_spills: bool,
    /// Show as well what differs from the PTX of this commit: HEAD, a branch, a hash
    #[arg(long, value_name = "REV")]
    against: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let before = match args.against.as_deref() {
        Some(revision) => Some((revision, against::files(revision)?)),
        None => None,
    };
    let mut tools = Tools::find()?;
    if args.machine_code {
        tools.ptxas = tools::pinned_ptxas()?;
    }
    let version = tools.version()?;
    let folder = args.ptx.clone().unwrap_or_else(workspace::ptx_dir);
    let kept = Kept::read()?.filter(|kept| args.ptx.is_none() && !args.machine_code && kept.ptxas == version);
    let made = Mutex::new(BTreeMap::new());
    let compared = AtomicUsize::new(0);
    let look = |module: &Module, arch: &str, assembled: &Assembled| -> Result<()> {
        if args.machine_code {
            let file = machine_code::file_of(module, arch).map(|name| (name, assembled.cubin.clone()));
            made.lock().unwrap_or_else(PoisonError::into_inner).extend(file);
        }
        let ptx = fs::read(folder.join(format!("{}.ptx", module.name)))?;
        if let Some(same) = kept.as_ref().and_then(|kept| kept.equals(module, arch, &ptx, &assembled.cubin)) {
            ensure!(same?, "host/machine-code has other machine code of {} for {arch} than ptxas makes", module.name);
            compared.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    // Loops are compared, and not checked.
    let depth = if args.json.is_some() || before.is_some() { Depth::Loops } else { Depth::Counts };
    let (mut rows, refused) = assemble_all(&tools, &folder, &jobs(|_| true), depth, look)?;
    for row in &mut rows {
        row.faults = rules::faults(row, args.allow_spills);
    }
    println!("{version}");
    table::print_check(&rows);
    if let Some(file) = &args.json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    if let Some((revision, there)) = &before {
        against::print(&tools, revision, there, &folder, &rows)?;
    }
    let faults: Vec<_> = rows.iter().flat_map(|row| row.faults.iter().map(move |fault| (row, fault))).collect();
    for (row, fault) in &faults {
        eprintln!("error: {} on {}: {fault}", row.resources.kernel, row.arch);
    }
    for error in &refused {
        eprintln!("error: {error:#}");
    }
    let stale: Vec<_> = if refused.is_empty() { rules::stale(&rows, args.allow_spills) } else { Vec::new() };
    for fault in &stale {
        eprintln!("error: {fault}");
    }
    let faults = faults.len() + stale.len();
    if faults + refused.len() > 0 {
        bail!("{faults} faults in {} kernels, {} modules that are refused", rows.len(), refused.len());
    }
    println!("{} kernels x architectures assembled, IMMA or IGMMA in every int8 one", rows.len());
    if !args.allow_spills {
        let spills = rows.iter().filter(|row| rules::known_spills(row).is_some()).count();
        println!(
            "no spills, no stack frames in attention kernels, but for {spills} that are known (xtask/src/check/rules.rs)"
        );
    }
    println!("CTAs as planned on each class of GPUs");
    if args.machine_code {
        return machine_code::keep(&version, &made.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    match compared.into_inner() {
        0 if args.ptx.is_none() => println!(
            "SKIPPED: no machine code of this PTX by this ptxas to compare with; `cargo xtask machine-code` makes it"
        ),
        0 => {}
        files => println!("{files} files of machine code are what ptxas makes"),
    }
    Ok(())
}
