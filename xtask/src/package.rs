//! `cargo xtask package`: the packages as they would be published, the library's with machine code that this run made, and its size.

use crate::machine_code;
use crate::tools;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the compressed package may have.
const MOST_BYTES: u64 = 6_000_000;

/// All that is published, in the order in which it can be.
pub const PACKAGES: [&str; 4] =
    ["int-flash-attention-driver", "int-flash-attention-kernels", LIBRARY, "candle-int-flash-attention"];

/// The package whose files are looked at.
const LIBRARY: &str = "int-flash-attention";

#[derive(clap::Args)]
pub struct Args {
    /// Package what is not committed as well
    #[arg(long)]
    allow_dirty: bool,
    /// `cargo xtask check` has just made the machine code, or compared it with what ptxas makes: do not do it again
    #[arg(long)]
    checked: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if !args.checked {
        machine_code::check(&tools::pinned_ptxas()?)
            .context("the package needs the machine code of the PTX as it is")?;
    }
    make(args.allow_dirty)?;
    let file = file(LIBRARY);
    let bytes = fs::metadata(&file).with_context(|| format!("cargo wrote no {}", file.display()))?.len();
    let names = contents(&file)?;
    complete(&names)?;
    println!("{}: {} files, {bytes} bytes compressed of {MOST_BYTES}", workspace::shown(&file), names.len());
    ensure!(bytes <= MOST_BYTES, "the package has {bytes} bytes; at most {MOST_BYTES} are allowed");
    Ok(())
}

/// Packages everything that is published. (`cargo xtask test` builds what comes out in a project of its own.)
pub fn make(allow_dirty: bool) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["package", "--no-verify", "--quiet"]).current_dir(workspace::root());
    command.args(PACKAGES.iter().flat_map(|name| ["--package", name]));
    command.args(allow_dirty.then_some("--allow-dirty"));
    workspace::capture(&mut command).map(|_| ())
}

/// What `make` writes for a package.
pub fn file(name: &str) -> PathBuf {
    workspace::target().join("package").join(format!("{name}-{}.crate", env!("CARGO_PKG_VERSION")))
}

/// Whether PTX and machine code of every module that ships are in the package, and of no other.
fn complete(names: &[String]) -> Result<()> {
    let mut wanted = vec!["machine-code/index".to_owned()];
    for module in machine_code::shipped() {
        wanted.push(format!("ptx/{}.ptx", module.name));
        wanted.extend(machine_code::file_names(module).map(|name| format!("machine-code/{name}")));
    }
    let there = || names.iter().filter(|name| name.starts_with("ptx/") || name.starts_with("machine-code/"));
    if let Some(missing) = wanted.iter().find(|name| !there().any(|there| there == *name)) {
        bail!("the package lacks {missing}");
    }
    if let Some(stray) = there().find(|name| !wanted.contains(name)) {
        bail!("the package holds {stray}, which does not ship");
    }
    Ok(())
}

/// The files of a package, below its folder.
fn contents(file: &Path) -> Result<Vec<String>> {
    let listing = workspace::capture(Command::new("tar").arg("-tzf").arg(file))?;
    let names = String::from_utf8_lossy(&listing.stdout).into_owned();
    Ok(names.lines().filter_map(|line| line.split_once('/')).map(|(_, name)| name.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_every_file_that_ships_and_no_other() {
        let mut names: Vec<String> = vec!["src/lib.rs".into(), "machine-code/index".into()];
        for module in machine_code::shipped() {
            names.push(format!("ptx/{}.ptx", module.name));
            names.extend(machine_code::file_names(module).map(|name| format!("machine-code/{name}")));
        }
        complete(&names).unwrap();
        names.push("ptx/baseline_f16.ptx".into());
        assert!(complete(&names).unwrap_err().to_string().contains("baseline"));
        names.truncate(names.len() - 2);
        assert!(complete(&names).unwrap_err().to_string().contains("lacks"));
    }
}
