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
    /// What ptxas says it could not make fast.
    losses: Vec<String>,
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
        row.faults = faults(row, args.allow_spills);
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
    println!("{} kernels x architectures assembled,{spills} IMMA or IGMMA in every int8 one", rows.len());
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
    let report = String::from_utf8_lossy(&report);
    let resources = ptxas::parse(&report);
    let losses = ptxas::losses(&report);
    if resources.is_empty() {
        bail!("{} has no kernel", workspace::shown(&ptx));
    }
    let listing = workspace::capture(Command::new(&tools.nvdisasm).arg("-c").arg(&cubin))?;
    let mut counts = sass::count(&String::from_utf8_lossy(&listing.stdout));
    if let Some((_, loss)) = losses.iter().find(|(named, _)| !resources.iter().any(|r| r.kernel == *named)) {
        bail!("{} for {arch}: ptxas says of no kernel in particular: {loss}", workspace::shown(&ptx));
    }
    let row = |resources: Resources| {
        let of_kernel = losses.iter().filter(|(kernel, _)| *kernel == resources.kernel);
        let losses = of_kernel.map(|(_, loss)| loss.clone()).collect();
        let sass = counts.remove(&resources.kernel).unwrap_or_default();
        let instructions = sass.iter().filter(|(opcode, _)| *opcode != "NOP").map(|(_, n)| n).sum();
        let (module, arch) = (module.to_owned(), arch.to_owned());
        Row { module, arch, resources, losses, instructions, sass, faults: Vec::new() }
    };
    Ok(resources.into_iter().map(row).collect())
}

/// The rules: no spill and no known loss of speed anywhere; in attention kernels no stack frame; in int8 attention kernels IMMA,
/// and where they are for sm_90a IGMMA in its place.
fn faults(row: &Row, allow_spills: bool) -> Vec<String> {
    let Row { resources: kernel, sass, arch, losses, .. } = row;
    let mut faults: Vec<String> = losses.iter().map(|loss| format!("ptxas: {loss}")).collect();
    if kernel.spill_stores + kernel.spill_loads > 0 && !allow_spills {
        faults.push(format!("spills {} bytes out, {} in", kernel.spill_stores, kernel.spill_loads));
    }
    if (kernel.kernel.starts_with("attention") || kernel.kernel.starts_with("baseline"))
        && kernel.stack > 0
        && !allow_spills
    {
        faults.push(format!("has a stack frame of {} bytes", kernel.stack));
    }
    let matrix = |opcode: &str| sass.get(opcode).copied().unwrap_or(0);
    let (wanted, other) = if arch == "sm_90a" { ("IGMMA", "IMMA") } else { ("IMMA", "IGMMA") };
    if kernel.kernel.starts_with("attention") && matrix(wanted) == 0 {
        faults.push(format!("holds no {wanted}"));
    }
    if kernel.kernel.starts_with("attention") && matrix(other) > 0 {
        faults.push(format!("holds {other} where {wanted} belongs"));
    }
    if kernel.kernel.starts_with("baseline") && matrix("HMMA") == 0 {
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
        "{:width$} {:6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}",
        "kernel", "arch", "regs", "stack", "spills", "instr", "IMMA", "IGMMA", "HMMA", "LDSM", "MUFU"
    );
    for row in rows {
        let count = |opcode: &str| row.sass.get(opcode).copied().unwrap_or(0);
        let r = &row.resources;
        println!(
            "{:width$} {:6} {:5} {:6} {:6} {:6} {:6} {:6} {:6} {:6} {:6}{}",
            r.kernel,
            row.arch,
            r.registers,
            r.stack,
            r.spill_stores + r.spill_loads,
            row.instructions,
            count("IMMA"),
            count("IGMMA"),
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

    fn row(kernel: &str, arch: &str, opcode: &str) -> Row {
        Row {
            module: String::new(),
            arch: arch.to_owned(),
            resources: Resources { kernel: kernel.to_owned(), ..Resources::default() },
            losses: Vec::new(),
            instructions: 1,
            sass: sass::Counts::from([(opcode.to_owned(), 1)]),
            faults: Vec::new(),
        }
    }

    #[test]
    fn each_rule_can_fail() {
        let good = || row("attention_sm80_d64_default", "sm_80", "IMMA");
        let count = |change: fn(&mut Row), allow_spills| {
            let mut row = good();
            change(&mut row);
            faults(&row, allow_spills).len()
        };
        assert_eq!(count(|_| (), false), 0);
        assert_eq!(count(|row| row.resources.spill_loads = 4, false), 1);
        assert_eq!(count(|row| row.resources.stack = 8, false), 1);
        assert_eq!(count(|row| (row.resources.stack, row.resources.spill_loads) = (8, 4), true), 0);
        assert_eq!(count(|row| row.losses.push("serialized".to_owned()), true), 1);
        assert_eq!(count(|row| row.sass.clear(), false), 2);
        for (arch, opcode, faulty) in
            [("sm_90", "HMMA", 1), ("sm_90", "IGMMA", 2), ("sm_90a", "IGMMA", 0), ("sm_90a", "IMMA", 2)]
        {
            assert_eq!(
                faults(&row("attention_sm80_d64_default", arch, opcode), false).len(),
                faulty,
                "{arch} {opcode}"
            );
        }
        let quantize = row("quantize_f16", "sm_80", "FADD");
        let stack = Resources { stack: 8, ..quantize.resources.clone() };
        assert!(faults(&Row { resources: stack, ..quantize }, false).is_empty());
    }

    #[test]
    fn suffixed_targets_are_assembled_for_themselves_only() {
        assert_eq!(architectures("sm_80").collect::<Vec<_>>(), ARCHITECTURES);
        assert_eq!(architectures("sm_89").collect::<Vec<_>>(), ["sm_89", "sm_90"]);
        assert_eq!(architectures("sm_90a").collect::<Vec<_>>(), ["sm_90a"]);
    }
}
