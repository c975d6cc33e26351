//! Code generator `nvvm`: rust-cuda's `rustc_codegen_nvvm` through `cuda_builder`. Rust to bitcode of LLVM 19 or 7 to libNVVM
//! to PTX; `docs/codegen.md` explains it.
//!
//! Nothing of rust-cuda is in this workspace's manifests or lock file; see [`package`].

mod form;
mod package;
mod preflight;

use super::CodeGenerator;
use crate::workspace;
use anyhow::{Context, Result, bail};
use int_flash_attention_kernels::config::Module;
use preflight::{Machine, Parts};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Where `rustc_codegen_nvvm` and `cuda_builder` come from; [`form::Form::revision`] says at which revision.
const REPOSITORY: &str = "https://github.com/Rust-GPU/rust-cuda";

/// Where the loader looks for libNVVM.
const LOADER_PATH: &str = "LD_LIBRARY_PATH";

/// Set for the workspace's own build, or by the cargo that runs this program; a cargo started from here must not see them.
const FOREIGN_VARIABLES: [&str; 9] = [
    "CUDA_LIBRARY_PATH",
    "CARGO",
    "RUSTC",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "OUT_DIR",
    "PROFILE",
    "TARGET",
];

/// `cargo xtask build --codegen nvvm`.
pub struct Nvvm {
    toolchain: String,
    /// The caller's checkout, if any.
    checkout: Option<PathBuf>,
    work: PathBuf,
    /// What preflight found.
    parts: OnceLock<Parts>,
    /// Whether the backend and the driver are built; locked for every build, as all share one target folder.
    prepared: Mutex<bool>,
}

impl Nvvm {
    /// `checkout` is `--rust-cuda`; without it `$RUST_CUDA`, without that the pinned revision is fetched.
    pub fn new(toolchain: String, checkout: Option<PathBuf>) -> Self {
        let checkout = checkout.or_else(|| std::env::var_os("RUST_CUDA").map(PathBuf::from));
        let work = workspace::target().join("nvvm");
        Self { toolchain, checkout, work, parts: OnceLock::new(), prepared: Mutex::new(false) }
    }

    fn target_dir(&self) -> PathBuf {
        self.work.join("build")
    }

    /// `program` with everything in its environment that rust-cuda's build scripts and the backend's loader look for.
    fn command(&self, program: impl Into<PathBuf>, parts: &Parts) -> Result<Command> {
        let old = std::env::var_os(LOADER_PATH).unwrap_or_default();
        let old = std::env::split_paths(&old).filter(|dir| !dir.as_os_str().is_empty());
        let loader = std::env::join_paths([parts.cuda.join("nvvm/lib64")].into_iter().chain(old))
            .with_context(|| format!("{} cannot be in {LOADER_PATH}", parts.cuda.display()))?;
        let mut command = Command::new(program.into());
        command
            .current_dir(&self.work)
            .env("RUSTUP_TOOLCHAIN", &self.toolchain)
            .env("CARGO_TARGET_DIR", self.target_dir())
            .env("CUDA_PATH", &parts.cuda)
            .env("LLVM_CONFIG", &parts.llvm.config)
            .env("LLVM_CONFIG_19", &parts.llvm.config)
            .env(LOADER_PATH, loader);
        if let Some(args) = &parts.clang_args {
            command.env("BINDGEN_EXTRA_CLANG_ARGS", args);
        }
        for name in FOREIGN_VARIABLES {
            command.env_remove(name);
        }
        Ok(command)
    }

    /// Writes the generated workspace, then builds the backend (with rust-cuda's lock file) and the driver.
    fn prepare(&self, parts: &Parts) -> Result<()> {
        package::write(&self.work, &parts.rust_cuda, parts.llvm.form)?;
        eprintln!("building rustc_codegen_nvvm and cuda_builder from {}", parts.rust_cuda.display());
        let mut backend = self.command("cargo", parts)?;
        backend.args(["build", "--release", "--locked", "--package", "rustc_codegen_nvvm", "--manifest-path"]);
        backend.arg(parts.rust_cuda.join("Cargo.toml"));
        backend.args(parts.llvm.form.feature().map(|feature| ["--features", feature]).into_iter().flatten());
        workspace::capture(&mut backend).context("rustc_codegen_nvvm does not build")?;
        let mut driver = self.command("cargo", parts)?;
        workspace::capture(driver.args(["build", "--release", "--package", package::DRIVER]))
            .context("cuda_builder does not build")?;
        Ok(())
    }
}

impl CodeGenerator for Nvvm {
    fn preflight(&self) -> Result<()> {
        let machine = Machine::this();
        match preflight::find(&machine, &self.toolchain, self.checkout.as_deref(), &self.work) {
            Ok(parts) => {
                self.parts.get_or_init(|| parts);
                Ok(())
            }
            Err(missing) => bail!(
                "--codegen nvvm cannot run here; nothing was compiled. Missing:\n  - {}\n\
                 docs/codegen.md says how to set it up; --codegen llvm needs none of this",
                missing.join("\n  - ")
            ),
        }
    }

    fn compile(&self, module: &Module) -> Result<String> {
        let parts = self.parts.get().context("preflight has not run")?;
        // one build at a time: the modules share the target folder, where core is compiled once, and the name of the PTX
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*prepared {
            self.prepare(parts)?;
            *prepared = true;
        }
        let out = self.work.join(format!("{}.ptx", module.name));
        let mut driver = self.command(self.target_dir().join("release").join(package::DRIVER), parts)?;
        driver
            .arg(self.work.join("kernels"))
            .args([package::KERNELS, parts.llvm.form.target(module)])
            .arg(&out)
            .args(super::cfgs(module));
        // warnings about the source are for `llvm` to show, which everyone can run
        workspace::capture(&mut driver).with_context(|| format!("module {} does not compile", module.name))?;
        let ptx = fs::read_to_string(&out).with_context(|| format!("cuda_builder wrote no {}", out.display()))?;
        parts.llvm.form.finish(ptx, module)
    }
}
