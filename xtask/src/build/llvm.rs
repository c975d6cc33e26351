//! Code generator `llvm`: rustc's own NVPTX backend. Needs nothing but the toolchain that `rust-toolchain.toml` names.

use super::CodeGenerator;
use crate::workspace;
use anyhow::{Context, Result, bail};
use int_flash_attention_kernels::config::Module;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "nvptx64-nvidia-cuda";

/// rustc with `--emit asm`; there is no link step.
pub struct Llvm {
    toolchain: String,
    work: PathBuf,
}

impl Llvm {
    /// With the toolchain of that name.
    pub fn new(toolchain: String) -> Self {
        Self { toolchain, work: workspace::target().join("ptx").join(std::process::id().to_string()) }
    }

    /// The pinned rustc, whatever toolchain this program was started with.
    fn rustc(&self) -> Command {
        let mut command = Command::new("rustc");
        command.env("RUSTUP_TOOLCHAIN", &self.toolchain).current_dir(workspace::root());
        command
    }
}

impl CodeGenerator for Llvm {
    fn preflight(&self) -> Result<()> {
        let missing = format!(
            "toolchain {} with target {TARGET} is not installed; run `rustup toolchain install` in the repository",
            self.toolchain
        );
        let output = workspace::capture(self.rustc().args(["--print", "target-libdir", "--target", TARGET]))
            .context(missing.clone())?;
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let has_core = fs::read_dir(&folder)
            .is_ok_and(|dir| dir.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")));
        if !has_core {
            bail!(missing);
        }
        Ok(())
    }

    fn compile(&self, module: &Module) -> Result<String> {
        self.emit(module, "asm", "s")
    }
}

impl Llvm {
    /// What rustc writes of a module: `asm`, which is PTX, or `llvm-ir`, in a file with this ending.
    pub fn emit(&self, module: &Module, kind: &str, ending: &str) -> Result<String> {
        // a folder each: rustc's intermediate files carry the crate's name, which all modules share
        let folder = self.work.join(module.name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let out = folder.join(format!("kernels.{ending}"));
        let remap = format!("--remap-path-prefix={}=.", workspace::root().display());
        let cpu = format!("-Ctarget-cpu={}", module.target);
        let mut command = self.rustc();
        command.args(["--edition", "2024", "--crate-name", "kernels", "--crate-type", "cdylib", "--target", TARGET]);
        command.args([cpu.as_str(), "-Copt-level=3", "-Clto=fat", "-Ccodegen-units=1", "-Cpanic=abort"]);
        // without these, LLVM leaves tile loops rolled and keeps register tiles in local memory
        command.args(["-Cllvm-args=-unroll-threshold=100000", "-Cllvm-args=-unroll-full-max-count=64"]);
        // warps branch to their part once; a table of branch targets is nothing that the PTX machine would have to know for that
        command.arg("-Cllvm-args=-min-jump-table-entries=1000");
        // a module is a part of the crate; what the others use is dead in it (`xtask test` looks at all together)
        command.args([remap.as_str(), "-Adead_code", "-Aunused_imports"]);
        command.args(super::cfgs(module).flat_map(|cfg| ["--cfg".to_owned(), cfg]));
        command.args(["--emit", kind, "--out-dir"]).arg(&folder).arg("kernels-gpu/src/lib.rs");
        let output =
            workspace::capture(&mut command).with_context(|| format!("module {} does not compile", module.name))?;
        let warnings = String::from_utf8_lossy(&output.stderr);
        if !warnings.trim().is_empty() {
            eprint!("module {}:\n{warnings}", module.name);
        }
        let text = fs::read_to_string(&out).with_context(|| format!("rustc wrote no {}", out.display()))?;
        fs::remove_dir_all(&folder)?;
        Ok(text)
    }
}
