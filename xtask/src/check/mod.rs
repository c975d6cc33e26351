//! `cargo xtask check`: every committed PTX through ptxas for every architecture, and a look at the SASS.

mod ptxas;
mod sass;

use crate::build::modules;
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Context, Result, bail};
use ptxas::Resources;
use rayon::prelude::*;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Architectures a module is assembled for; one with a suffix (`sm_90a`) is assembled for itself only.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_86", "sm_89", "sm_90"];

#[derive(clap::Args)]
pub struct Args {
    /// Write the table as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Check the PTX in this folder instead of the committed one
    #[arg(long, value_name = "DIR")]
    ptx: Option<PathBuf>,
    /// Show spills and stack frames without failing
    #[arg(long)]
    allow_spills: bool,
}

/// One kernel on one architecture.
#[derive(Serialize)]
struct Row {
    module: String,
    arch: String,
    #[serde(flatten)]
    resources: Resources,
    instructions: u32,
    sass: sass::Counts,
    /// What breaks a rule; empty where all is well.
    faults: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let tools = Tools::find()?;
    let folder = args.ptx.clone().unwrap_or_else(workspace::ptx_dir);
    let work = workspace::target().join("check").join(std::process::id().to_string());
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let jobs: Vec<_> =
        modules().into_iter().flat_map(|m| architectures(m.target).map(move |arch| (m.name, arch))).collect();
    let outcome: Vec<Result<Vec<Row>>> =
        jobs.par_iter().map(|(module, arch)| assemble(&tools, &folder, &work, module, arch)).collect();
    let _ = fs::remove_dir_all(&work);
    let (assembled, refused): (Vec<_>, Vec<_>) = outcome.into_iter().partition(Result::is_ok);
    let mut rows: Vec<Row> = assembled.into_iter().flatten().flatten().collect();
    for row in &mut rows {
        row.faults = faults(&row.resources, &row.sass, args.allow_spills);
    }
    println!("{}", tools.version()?);
    print_table(&rows);
    if let Some(file) = &args.json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    let faults: Vec<_> = rows.iter().flat_map(|row| row.faults.iter().map(move |fault| (row, fault))).collect();
    for (row, fault) in &faults {
        eprintln!("error: {} on {}: {fault}", row.resources.kernel, row.arch);
    }
    for error in refused.iter().filter_map(|outcome| outcome.as_ref().err()) {
        eprintln!("error: {error:#}");
    }
    if faults.len() + refused.len() > 0 {
        bail!("{} faults in {} kernels, {} modules that do not assemble", faults.len(), rows.len(), refused.len());
    }
    let spills = if args.allow_spills { "" } else { " no spills, no stack frames in attention kernels," };
    println!("{} kernels x architectures assembled,{spills} IMMA in every int8 one", rows.len());
    Ok(())
}

fn architectures(target: &'static str) -> impl Iterator<Item = &'static str> {
    let specific = target.ends_with(|c: char| c.is_ascii_alphabetic());
    let own = specific.then_some(target);
    own.into_iter().chain(ARCHITECTURES.into_iter().filter(move |arch| !specific && *arch >= target))
}

fn assemble(tools: &Tools, folder: &Path, work: &Path, module: &str, arch: &str) -> Result<Vec<Row>> {
    let ptx = folder.join(format!("{module}.ptx"));
    let cubin = work.join(format!("{module}.{arch}.cubin"));
    let mut ptxas = Command::new(&tools.ptxas);
    let output = workspace::capture(ptxas.arg(format!("-arch={arch}")).arg("-v").arg("-o").args([&cubin, &ptx]))
        .with_context(|| format!("{} does not assemble for {arch}", workspace::shown(&ptx)))?;
    let report = [output.stdout, output.stderr].concat();
    let resources = ptxas::parse(&String::from_utf8_lossy(&report));
    if resources.is_empty() {
        bail!("{} has no kernel", workspace::shown(&ptx));
    }
    let listing = workspace::capture(Command::new(&tools.nvdisasm).arg("-c").arg(&cubin))?;
    let mut counts = sass::count(&String::from_utf8_lossy(&listing.stdout));
    let row = |resources: Resources| {
        let sass = counts.remove(&resources.kernel).unwrap_or_default();
        let instructions = sass.iter().filter(|(opcode, _)| *opcode != "NOP").map(|(_, n)| n).sum();
        Row { module: module.to_owned(), arch: arch.to_owned(), resources, instructions, sass, faults: Vec::new() }
    };
    Ok(resources.into_iter().map(row).collect())
}

/// The rules: no spill anywhere; in attention kernels no stack frame; in int8 attention kernels IMMA.
fn faults(kernel: &Resources, sass: &sass::Counts, allow_spills: bool) -> Vec<String> {
    let mut faults = Vec::new();
    if kernel.spill_stores + kernel.spill_loads > 0 && !allow_spills {
        faults.push(format!("spills {} bytes out, {} in", kernel.spill_stores, kernel.spill_loads));
    }
    if kernel.kernel.starts_with("attention") && kernel.stack > 0 && !allow_spills {
        faults.push(format!("has a stack frame of {} bytes", kernel.stack));
    }
    let matrix = |opcode: &str| sass.get(opcode).copied().unwrap_or(0);
    if kernel.kernel.starts_with("attention_int8") && matrix("IMMA") + matrix("IGMMA") == 0 {
        faults.push("holds no IMMA".to_owned());
    }
    if kernel.kernel.starts_with("attention_f16") && matrix("HMMA") + matrix("HGMMA") == 0 {
        faults.push("holds no HMMA".to_owned());
    }
    if sass.is_empty() {
        faults.push("is not in the disassembly".to_owned());
    }
    faults
}

fn print_table(rows: &[Row]) {
    let width = rows.iter().map(|row| row.resources.kernel.len()).max().unwrap_or(6);
    println!(
        "{:width$} {:6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "kernel", "arch", "regs", "stack", "spills", "instr", "IMMA", "HMMA", "LDSM", "MUFU"
    );
    for row in rows {
        let count = |opcode: &str| row.sass.get(opcode).copied().unwrap_or(0);
        let r = &row.resources;
        println!(
            "{:width$} {:6} {:5} {:6} {:6} {:6} {:6} {:6} {:6} {:6}{}",
            r.kernel,
            row.arch,
            r.registers,
            r.stack,
            r.spill_stores + r.spill_loads,
            row.instructions,
            count("IMMA"),
            count("HMMA"),
            count("LDSM"),
            count("MUFU"),
            if row.faults.is_empty() { "" } else { "  FAULT" }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_can_fail() {
        let imma = sass::Counts::from([("IMMA".to_owned(), 1)]);
        let good = Resources { kernel: "attention_int8_default_d64".into(), ..Resources::default() };
        assert!(faults(&good, &imma, false).is_empty());
        assert_eq!(faults(&Resources { spill_loads: 4, ..good.clone() }, &imma, false).len(), 1);
        assert_eq!(faults(&Resources { stack: 8, ..good.clone() }, &imma, false).len(), 1);
        assert_eq!(faults(&good, &sass::Counts::from([("HMMA".to_owned(), 1)]), false).len(), 1);
        assert_eq!(faults(&good, &sass::Counts::new(), false).len(), 2);
        assert!(faults(&Resources { stack: 8, spill_loads: 4, ..good.clone() }, &imma, true).is_empty());
        let quantize = Resources { kernel: "quantize_f16".into(), stack: 8, ..Resources::default() };
        assert!(faults(&quantize, &sass::Counts::from([("FADD".to_owned(), 1)]), false).is_empty());
    }

    #[test]
    fn suffixed_targets_are_assembled_for_themselves_only() {
        assert_eq!(architectures("sm_80").collect::<Vec<_>>(), ARCHITECTURES);
        assert_eq!(architectures("sm_89").collect::<Vec<_>>(), ["sm_89", "sm_90"]);
        assert_eq!(architectures("sm_90a").collect::<Vec<_>>(), ["sm_90a"]);
    }
}
