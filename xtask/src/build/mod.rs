//! `cargo xtask build`: the kernels' Rust source to PTX, of which `llvm`'s is committed in `host/ptx/`.
//!
//! A [`CodeGenerator`] turns one module into raw PTX; everything else (launch bounds, normal form, comparing with what
//! is committed) is the same for all of them.

mod libnvvm;
mod llvm;
mod nvvm;
pub mod ptx_text;
mod table;

use crate::workspace;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use int_flash_attention_kernels::config::{self, Module};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the tables of kernels.
pub fn modules() -> Vec<Module> {
    config::MODULES.to_vec()
}

/// What selects a module's part of the crate, and of that its entry points.
pub fn cfgs(module: &Module) -> impl Iterator<Item = String> {
    [format!("kernels=\"{}\"", module.part), module.name.to_owned()].into_iter()
}

/// Where `--codegen nvvm` writes.
pub fn nvvm_dir() -> PathBuf {
    workspace::target().join("ptx-nvvm")
}

/// Where `--codegen libnvvm` writes.
pub fn libnvvm_dir() -> PathBuf {
    workspace::target().join("ptx-libnvvm")
}

/// A way from Rust to PTX.
pub trait CodeGenerator: Sync {
    /// Finds out what is missing before anything is compiled, and says in one message what to install or set.
    fn preflight(&self) -> Result<()>;
    /// The module's raw PTX.
    fn compile(&self, module: &Module) -> Result<String>;
}

#[derive(Clone, Copy, ValueEnum)]
enum Codegen {
    /// rustc's own NVPTX backend; writes host/ptx
    Llvm,
    /// rust-cuda's rustc_codegen_nvvm: LLVM 19 or 7 and libNVVM; writes target/ptx-nvvm
    Nvvm,
    /// rustc's LLVM IR through libNVVM, without rust-cuda; writes target/ptx-libnvvm
    Libnvvm,
    /// llvm and nvvm, one after the other
    Both,
}

#[derive(clap::Args)]
pub struct Args {
    /// Code generator
    #[arg(long, value_enum, default_value = "llvm")]
    codegen: Codegen,
    /// rust-cuda checkout for nvvm; without it $RUST_CUDA, without that the pinned revision is fetched
    #[arg(long, value_name = "PATH")]
    rust_cuda: Option<PathBuf>,
    /// Write nothing; fail where the committed PTX is not what the source gives
    #[arg(long)]
    check: bool,
    /// Build these modules only
    #[arg(long = "module", value_name = "NAME")]
    only: Vec<String>,
    /// Write to (or, with --check, compare with) this folder; with `--codegen both`, its folders llvm and nvvm
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let toolchain = workspace::toolchain()?;
    let modules = selected(&args.only)?;
    let llvm = || Box::new(llvm::Llvm::new(toolchain.clone()));
    let nvvm = || Box::new(nvvm::Nvvm::new(toolchain.clone(), args.rust_cuda.clone()));
    let folder = |default: PathBuf| args.out.clone().unwrap_or(default);
    let generators: Vec<(Box<dyn CodeGenerator>, PathBuf)> = match (args.codegen, &args.out) {
        (Codegen::Llvm, _) => vec![(llvm(), folder(workspace::ptx_dir()))],
        (Codegen::Nvvm, _) => vec![(nvvm(), folder(nvvm_dir()))],
        (Codegen::Libnvvm, _) => {
            vec![(Box::new(libnvvm::LibNvvm::new(toolchain.clone())), folder(libnvvm_dir()))]
        }
        (Codegen::Both, None) => vec![(llvm(), workspace::ptx_dir()), (nvvm(), nvvm_dir())],
        (Codegen::Both, Some(out)) => vec![(llvm(), out.join("llvm")), (nvvm(), out.join("nvvm"))],
    };
    for (generator, _) in &generators {
        generator.preflight()?;
    }
    for (generator, folder) in &generators {
        build_all(generator.as_ref(), &modules, folder, args)?;
    }
    Ok(())
}

fn build_all(generator: &dyn CodeGenerator, modules: &[Module], folder: &Path, args: &Args) -> Result<()> {
    println!("{}", workspace::shown(folder));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let outcome: Vec<Result<String>> =
        modules.par_iter().map(|module| build_one(generator, module, folder, args.check)).collect();
    let mut failed = 0;
    for line in outcome {
        match line {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("error: {error:#}");
                failed += 1;
            }
        }
    }
    let strays = if args.check && args.only.is_empty() { strays(folder, modules)? } else { Vec::new() };
    for stray in &strays {
        eprintln!("error: {stray} belongs to no module of the variant table");
    }
    if failed + strays.len() > 0 {
        bail!("{} of {} modules failed", failed + strays.len(), modules.len());
    }
    Ok(())
}

fn selected(only: &[String]) -> Result<Vec<Module>> {
    let mut modules = modules();
    if let Some(unknown) = only.iter().find(|name| !modules.iter().any(|m| m.name == **name)) {
        let known: Vec<_> = modules.iter().map(|m| m.name).collect();
        bail!("there is no module {unknown}; the modules are {}", known.join(", "));
    }
    modules.retain(|m| only.is_empty() || only.iter().any(|name| name == m.name));
    Ok(modules)
}

fn build_one(generator: &dyn CodeGenerator, module: &Module, folder: &Path, check: bool) -> Result<String> {
    let ptx = ptx_text::normalise(&generator.compile(module)?, module, table::launch_bounds)?;
    let missing: Vec<_> = table::expected_entries(module.name)
        .into_iter()
        .filter(|name| !ptx_text::entries(&ptx).any(|entry| entry == *name))
        .collect();
    if !missing.is_empty() {
        bail!("module {} lacks the kernels {}", module.name, missing.join(", "));
    }
    let path = folder.join(format!("{}.ptx", module.name));
    let (kernels, lines) = (ptx_text::entries(&ptx).count(), ptx.lines().count());
    let unchanged = fs::read_to_string(&path).is_ok_and(|old| old == ptx);
    if check {
        compare(&path, &ptx)?;
    } else if !unchanged || folder != workspace::ptx_dir() {
        // What ships keeps its time where it can, so that cargo builds no more than it must; elsewhere the time says
        // which source the PTX is of.
        workspace::write_atomically(&path, ptx.as_bytes())?;
    }
    let done = match (check, unchanged) {
        (true, _) => "as committed",
        (false, true) => "unchanged",
        (false, false) => "written",
    };
    Ok(format!("{:<28} {kernels:3} kernels {lines:7} lines  {done}", module.name))
}

fn compare(path: &Path, built: &str) -> Result<()> {
    let shown = workspace::shown(path);
    let committed = fs::read_to_string(path).with_context(|| format!("{shown} is missing; run `cargo xtask build`"))?;
    match ptx_text::first_difference(&committed, built) {
        None => Ok(()),
        Some((line, has, gives)) => {
            bail!(
                "{shown} is not what the source gives (run `cargo xtask build`); line {line} has {has}, the build gives {gives}"
            )
        }
    }
}

/// Committed PTX files that no module accounts for.
fn strays(folder: &Path, modules: &[Module]) -> Result<Vec<String>> {
    let mut strays = Vec::new();
    for file in fs::read_dir(folder)? {
        let path: PathBuf = file?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|e| e == "ptx") && !modules.iter().any(|m| m.name == name) {
            strays.push(workspace::shown(&path));
        }
    }
    Ok(strays)
}
