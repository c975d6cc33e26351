//! `cargo xtask machine-code`: the committed PTX through the pinned ptxas, compressed, into `host/machine-code`, from where the
//! library and its package take it. Nothing of it is committed (docs/decisions/0004-machine-code-beside-the-ptx.md).

use crate::assembler::{Scratch, assemble};
use crate::tools;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use int_flash_attention_kernels::config::shipping::checksum;
use int_flash_attention_kernels::config::{MODULES, Module};
use lzma_rust2::{LzmaOptions, LzmaReader, LzmaWriter};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// LZMA at its best level.
fn pack(cubin: &[u8]) -> Result<Vec<u8>> {
    // No cubin is larger than the dictionary.
    let options = LzmaOptions { nice_len: 273, dict_size: 1 << 20, ..LzmaOptions::with_preset(9) };
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(cubin.len() as u64))?;
    writer.write_all(cubin)?;
    Ok(writer.finish()?)
}

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail where what is there is not whole, or not what ptxas makes of the committed PTX
    #[arg(long)]
    check: bool,
    /// Another ptxas than the pinned one, to compare them; `cargo xtask package` refuses what it makes
    #[arg(long, value_name = "FILE")]
    ptxas: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let ptxas = args.ptxas.clone().map_or_else(tools::pinned_ptxas, Ok)?;
    if args.check { check(&ptxas) } else { write(&ptxas) }
}

/// An error where what is there is not exactly what this ptxas makes of the committed PTX.
pub fn check(ptxas: &Path) -> Result<()> {
    let version = tools::ptxas_version(ptxas)?;
    let kept = Kept::read()?.context("host/machine-code is empty; `cargo xtask machine-code` fills it")?;
    ensure!(kept.ptxas == version, "host/machine-code is by {}, not by {version}", kept.ptxas);
    let made = make(ptxas, |_| true)?;
    kept.compare(&made)?;
    println!("{} files as {version} makes them of host/ptx", made.len());
    Ok(())
}

/// Makes what is not there yet of the PTX as it is now.
fn write(ptxas: &Path) -> Result<()> {
    let version = tools::ptxas_version(ptxas)?;
    let kept = Kept::read()?.filter(|kept| kept.ptxas == version);
    let current = |module: &Module| {
        let ptx = fs::read(ptx_file(module)).map(|ptx| checksum(&ptx));
        kept.as_ref()
            .is_some_and(|kept| ptx.is_ok_and(|sum| kept.made_of.get(module.name) == Some(&sum)) && kept.whole(module))
    };
    keep(&version, &make(ptxas, |module| !current(module))?)
}

/// Writes these files of machine code by this version of ptxas; those that are not among them are there and as they should be.
pub fn keep(version: &str, made: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let folder = folder();
    // While files change there is no index, so that the library takes none of them.
    let _ = fs::remove_file(folder.join("index"));
    made.par_iter().try_for_each(|(name, cubin)| workspace::write_atomically(&folder.join(name), &pack(cubin)?))?;
    let wanted: Vec<String> = shipped().flat_map(file_names).collect();
    for stray in files()?.into_iter().filter(|name| !wanted.contains(name)) {
        fs::remove_file(folder.join(stray))?;
    }
    let mut index = format!("ptxas {version}\n");
    for module in shipped() {
        index += &format!("{} {:016x}\n", module.name, checksum(&fs::read(ptx_file(module))?));
    }
    workspace::write_atomically(&folder.join("index"), index.as_bytes())?;
    let (raw, small) = sizes(&wanted)?;
    let of = wanted.len();
    println!("{version}\n{} of {of} files made; {raw} bytes of machine code, {small} compressed", made.len());
    Ok(())
}

/// File names and machine code of these modules.
fn make(ptxas: &Path, wanted: impl Fn(&Module) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let scratch = Scratch::new("machine-code")?;
    let wanted: Vec<&Module> = shipped().filter(|module| wanted(module)).collect();
    let jobs: Vec<_> = wanted.iter().flat_map(|module| module.machine_code().map(|a| (*module, a.name))).collect();
    let one = |&(module, arch): &(&Module, &str)| {
        Ok((file_name(module.name, arch), assemble(ptxas, &ptx_file(module), arch, &scratch)?.cubin))
    };
    jobs.par_iter().map(one).collect()
}

/// What an earlier run left.
pub struct Kept {
    /// The version of the ptxas that made it.
    pub ptxas: String,
    /// Checksums of the PTX.
    made_of: BTreeMap<String, u64>,
}

impl Kept {
    /// What `host/machine-code` holds; `None` where it is empty.
    pub fn read() -> Result<Option<Self>> {
        let Ok(index) = fs::read_to_string(folder().join("index")) else { return Ok(None) };
        let mut lines = index.lines();
        let ptxas = lines.next().and_then(|line| line.strip_prefix("ptxas "));
        let ptxas = ptxas.context("host/machine-code/index has no version of ptxas")?.to_owned();
        let line = |line: &str| -> Option<(String, u64)> {
            let (name, checksum) = line.split_once(' ')?;
            Some((name.to_owned(), u64::from_str_radix(checksum, 16).ok()?))
        };
        let made_of: Option<_> = lines.map(line).collect();
        Ok(Some(Self { ptxas, made_of: made_of.context("host/machine-code/index is damaged")? }))
    }

    /// Whether each of a module's files is there.
    fn whole(&self, module: &Module) -> bool {
        file_names(module).all(|name| folder().join(name).is_file())
    }

    /// Whether the machine code of a module for an architecture is this; `None` where it does not ship, and where
    /// the index does not speak of this PTX.
    pub fn equals(&self, module: &Module, arch: &str, ptx: &[u8], cubin: &[u8]) -> Option<Result<bool>> {
        file_of(module, arch)?;
        (self.made_of.get(module.name) == Some(&checksum(ptx)))
            .then(|| Ok(unpack(&file_name(module.name, arch))? == cubin))
    }

    /// An error where it is not exactly this machine code of the committed PTX.
    fn compare(&self, made: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        for module in shipped() {
            let ptx = fs::read(ptx_file(module))?;
            ensure!(
                self.made_of.get(module.name) == Some(&checksum(&ptx)),
                "host/machine-code is of another host/ptx/{}.ptx; run `cargo xtask machine-code`",
                module.name
            );
        }
        let there = files()?;
        if let Some(stray) = there.iter().find(|name| !made.contains_key(*name)) {
            bail!("host/machine-code/{stray} belongs to no module");
        }
        for (name, cubin) in made {
            ensure!(there.contains(name), "host/machine-code/{name} is missing; run `cargo xtask machine-code`");
            ensure!(unpack(name)? == *cubin, "host/machine-code/{name} is not what ptxas makes of its PTX");
        }
        Ok(())
    }
}

/// Bytes before and after compression; says how fast they unpack.
fn sizes(names: &[String]) -> Result<(usize, usize)> {
    let start = Instant::now();
    let mut sizes = (0, 0);
    for name in names {
        sizes.0 += unpack(name)?.len();
        sizes.1 += fs::metadata(folder().join(name))?.len() as usize;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("unpacked at {:.0} MB/s", sizes.0 as f64 / seconds * 1e-6);
    Ok(sizes)
}

fn unpack(name: &str) -> Result<Vec<u8>> {
    let path = folder().join(name);
    let packed = fs::read(&path).with_context(|| format!("cannot read {}", workspace::shown(&path)))?;
    let mut cubin = Vec::new();
    LzmaReader::new_mem_limit(&packed[..], u32::MAX, None)
        .and_then(|mut reader| reader.read_to_end(&mut cubin))
        .with_context(|| format!("{} is damaged", workspace::shown(&path)))?;
    Ok(cubin)
}

/// The compressed files that are there.
fn files() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".lzma") {
            names.push(name);
        }
    }
    Ok(names)
}

/// The modules that machine code is made of.
pub fn shipped() -> impl Iterator<Item = &'static Module> {
    MODULES.iter().filter(|module| module.ships())
}

/// The name of a module's file for an architecture, where there is to be one.
pub fn file_of(module: &Module, arch: &str) -> Option<String> {
    let wanted = module.ships() && module.machine_code().any(|architecture| architecture.name == arch);
    wanted.then(|| file_name(module.name, arch))
}

/// The files of a module, in the order of its architectures.
pub fn file_names(module: &Module) -> impl Iterator<Item = String> + use<> {
    let name = module.name;
    module.machine_code().map(move |architecture| file_name(name, architecture.name))
}

/// As `host/build.rs` looks for it.
fn file_name(module: &str, arch: &str) -> String {
    format!("{module}.{arch}.lzma")
}

fn ptx_file(module: &Module) -> PathBuf {
    workspace::ptx_dir().join(format!("{}.ptx", module.name))
}

fn folder() -> PathBuf {
    workspace::root().join("host/machine-code")
}
