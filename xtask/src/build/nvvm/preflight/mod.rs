//! What `--codegen nvvm` needs, looked for before anything is compiled. Every check runs, so that one message names
//! all that is missing.

mod cuda;
mod libclang;
mod llvm;
mod rust_cuda;
#[cfg(test)]
mod tests;

use super::form::Form;
use crate::workspace;
use llvm::Llvm;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What was looked for, or a line for each thing that is missing.
type Checked<T> = Result<T, Vec<String>>;

const COMPONENTS: [&str; 3] = ["rustc-dev", "rust-src", "llvm-tools"];
const COMPILERS: [&str; 3] = ["c++", "g++", "clang++"];

/// What a build needs to know of the machine.
#[derive(Debug)]
pub struct Parts {
    /// rust-cuda's checkout.
    pub rust_cuda: PathBuf,
    /// The LLVM that the backend is built with.
    pub llvm: Llvm,
    /// CUDA folder with `include/` and `nvvm/`.
    pub cuda: PathBuf,
    /// `BINDGEN_EXTRA_CLANG_ARGS`, where libclang would not find the C headers by itself.
    pub clang_args: Option<OsString>,
}

/// Where to look: an environment and a file system.
pub struct Machine {
    variables: BTreeMap<OsString, OsString>,
    root: PathBuf,
}

impl Machine {
    /// The machine that this program runs on.
    pub fn this() -> Self {
        Self { variables: std::env::vars_os().collect(), root: PathBuf::from("/") }
    }

    fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables.get(name.as_ref() as &std::ffi::OsStr).filter(|value| !value.is_empty())
    }

    fn path_variable(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).map(PathBuf::from)
    }

    /// The folders of a variable like `PATH`.
    fn folders(&self, name: &str) -> Vec<PathBuf> {
        self.variable(name).map(|value| std::env::split_paths(value).collect()).unwrap_or_default()
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        self.folders("PATH").into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
    }

    /// A fixed folder of the system.
    fn system(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Looks for everything. `checkout` is the caller's rust-cuda; without one it is fetched into a folder of `work`.
pub fn find(machine: &Machine, toolchain: &str, checkout: Option<&Path>, work: &Path) -> Checked<Parts> {
    let mut missing = Vec::new();
    note(&mut missing, platform());
    note(&mut missing, rust_toolchain(machine, toolchain));
    let llvm = note(&mut missing, llvm::find(machine));
    // without an LLVM, what is missing is told for the one that is quickly had
    let form = llvm::form(machine).unwrap_or(Form::Llvm19);
    let rust_cuda = note(&mut missing, rust_cuda::find(machine, toolchain, form, checkout, work));
    note(&mut missing, libclang::find(machine));
    note(&mut missing, compiler(machine));
    let cuda = note(&mut missing, cuda::find(machine, form));
    match (rust_cuda, llvm, cuda) {
        (Some(rust_cuda), Some(llvm), Some(cuda)) if missing.is_empty() => {
            Ok(Parts { rust_cuda, llvm, cuda, clang_args: libclang::extra_args(machine) })
        }
        _ => Err(missing),
    }
}

/// Keeps what is there, notes what is not.
fn note<T>(missing: &mut Vec<String>, checked: Checked<T>) -> Option<T> {
    checked.map_err(|lines| missing.extend(lines)).ok()
}

fn platform() -> Checked<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    Err(vec![format!("Linux: this program knows libNVVM's place there, not on {}", std::env::consts::OS)])
}

/// The backend is a part of one rustc: it needs that compiler's libraries, and core's source to compile.
fn rust_toolchain(machine: &Machine, toolchain: &str) -> Checked<()> {
    let components = COMPONENTS.join(",");
    let install = format!("run `rustup toolchain install {toolchain} --component {components}`");
    let Some(rustc) = machine.program("rustc") else {
        return Err(vec![format!("Rust {toolchain}: no rustc in PATH; install rustup and {install}")]);
    };
    let mut command = Command::new(rustc);
    let output = workspace::capture(command.env("RUSTUP_TOOLCHAIN", toolchain).args(["--print", "sysroot"]))
        .map_err(|error| vec![format!("Rust {toolchain}: {error:#}; {install}")])?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // rustup's list; a toolchain from elsewhere has none and is taken at its word
    let Ok(installed) = fs::read_to_string(sysroot.join("lib/rustlib/components")) else { return Ok(()) };
    let lacking: Vec<_> =
        COMPONENTS.into_iter().filter(|name| !installed.lines().any(|line| line.starts_with(name))).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(vec![format!("Rust {toolchain}: it lacks {}; {install}", lacking.join(", "))])
}

/// The backend's C++ glue to LLVM.
fn compiler(machine: &Machine) -> Checked<PathBuf> {
    let in_path = || COMPILERS.iter().find_map(|name| machine.program(name));
    machine.path_variable("CXX").or_else(in_path).ok_or_else(|| {
        vec![format!("C++ compiler: none of {} is in PATH; install one or set CXX", COMPILERS.join(", "))]
    })
}
