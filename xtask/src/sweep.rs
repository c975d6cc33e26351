//! `cargo xtask sweep`: rows side by side, to choose between shapes of a kernel.
//!
//! To try shapes, add a row for each to the variant table, `cargo xtask build --module NAME --out DIR`, and sweep that folder.

use crate::build::ptx_text;
use crate::check::{Depth, assemble_all, jobs, print_sweep};
use crate::tools::Tools;
use crate::workspace;
use anyhow::{Context, Result, bail};
use int_flash_attention_kernels::config::Module;
use int_flash_attention_kernels::config::shipping::ARCHITECTURES;
use std::fs;
use std::path::{Path, PathBuf};

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
    let folder = args.ptx.clone().unwrap_or_else(workspace::ptx_dir);
    let jobs = chosen(&folder, &args.arch, &args.kernel)?;
    let tools = Tools::find()?;
    let (mut rows, refused) = assemble_all(&tools, &folder, &jobs, Depth::Loops, |_, _, _| Ok(()))?;
    rows.retain(|row| has(&args.kernel, &row.resources.kernel));
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

/// Whether a kernel is one of those that are asked for by parts of their names; without any part every kernel is.
fn has(parts: &[String], kernel: &str) -> bool {
    parts.is_empty() || parts.iter().any(|part| kernel.contains(part))
}

/// The modules of a folder that have such kernels, for these architectures. Names of which there are none are refused here, before anything
/// is assembled.
fn chosen(folder: &Path, arches: &[String], parts: &[String]) -> Result<Vec<(&'static Module, &'static str)>> {
    if let Some(unknown) = arches.iter().find(|name| !ARCHITECTURES.iter().any(|there| there.name == **name)) {
        let there = ARCHITECTURES.map(|architecture| architecture.name);
        bail!("there are no kernels for {unknown}; the architectures are {}", there.join(", "));
    }
    let mut kernels = Vec::new();
    for (module, arch) in jobs(|name| arches.iter().any(|arch| arch == name)) {
        let file = folder.join(format!("{}.ptx", module.name));
        if file.is_file() {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let names: Vec<String> = ptx_text::entries(&text).map(str::to_owned).collect();
            kernels.push((module, arch, names));
        }
    }
    if kernels.is_empty() {
        bail!("{} holds no module for {}", folder.display(), arches.join(", "));
    }
    for part in parts {
        if !kernels.iter().any(|(.., names)| names.iter().any(|name| name.contains(part))) {
            let (folder, arches) = (folder.display(), arches.join(", "));
            bail!("no kernel in {folder} for {arches} has {part} in its name; without --kernel there are all");
        }
    }
    kernels.retain(|(.., names)| names.iter().any(|name| has(parts, name)));
    Ok(kernels.into_iter().map(|(module, arch, _)| (module, arch)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arches: &[&str], parts: &[&str]) -> Result<Vec<(&'static Module, &'static str)>> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        chosen(&workspace::ptx_dir(), &owned(arches), &owned(parts))
    }

    #[test]
    fn modules_without_the_kernels_are_left_out() {
        let all = of(&["sm_80", "sm_90a"], &[]).unwrap();
        let some = of(&["sm_80", "sm_90a"], &["attention_sm90a_d64_default", "decode_d256"]).unwrap();
        assert!(!some.is_empty() && some.len() < all.len() / 4, "{} of {}", some.len(), all.len());
        let names = |(module, arch): &(&Module, &'static str)| (module.name.to_owned(), *arch);
        let of_hopper = some.iter().map(names).find(|(name, _)| name == "attention_sm90a_d64_default");
        assert_eq!(of_hopper.map(|(_, arch)| arch), Some("sm_90a"));
    }

    #[test]
    fn names_that_nothing_has_are_refused() {
        for (arches, parts, expected) in [
            (&["sm_80"][..], &["decode_d256", "nosuch"][..], "has nosuch in its name"),
            (&["sm_80"], &["attention_sm90a_d64_default"], "for sm_80 has attention_sm90a_d64_default in its name"),
            (&["sm_80", "sm_75"], &[], "there are no kernels for sm_75; the architectures are sm_80, "),
        ] {
            let error = of(arches, parts).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
