//! LLVM 7: its `llvm-config`, and behind that the libraries that the backend links.

use super::{Checked, Machine};
use crate::workspace;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `rustc_codegen_nvvm`'s build script asks `llvm-config` for.
const COMPONENTS: [&str; 5] = ["ipo", "bitreader", "bitwriter", "lto", "nvptx"];
const HELP: &str = "build LLVM 7 (docs/codegen.md says how) and set LLVM_CONFIG to its bin/llvm-config";

/// `$LLVM_CONFIG`, else `llvm-config-7` or `llvm-config` in `PATH`.
pub fn find(machine: &Machine) -> Checked<PathBuf> {
    let found = machine
        .path_variable("LLVM_CONFIG")
        .or_else(|| machine.program("llvm-config-7"))
        .or_else(|| machine.program("llvm-config"));
    let Some(path) = found else {
        return Err(vec![format!("LLVM 7: LLVM_CONFIG is not set and no llvm-config is in PATH; {HELP}")]);
    };
    check(machine, &path).map_err(|fault| vec![format!("LLVM 7: {} {fault}", path.display())])?;
    path.canonicalize().map_err(|error| vec![format!("LLVM 7: {}: {error}", path.display())])
}

/// What is wrong with `llvm-config`, as the rest of a sentence about it.
fn check(machine: &Machine, path: &Path) -> Result<(), String> {
    let ask = |args: &[&str]| match workspace::capture(Command::new(path).args(args)) {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(error) => Err(format!("does not run ({error:#}); {HELP}")),
    };
    let version = ask(&["--version"])?;
    if !version.starts_with("7.") {
        return Err(format!("is of version {version}; {HELP}"));
    }
    let has = ask(&["--components"])?;
    let lacking: Vec<_> =
        COMPONENTS.into_iter().filter(|name| !has.split_whitespace().any(|component| component == *name)).collect();
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        return Err(format!(
            "has no {lacking}; configure LLVM with -DLLVM_TARGETS_TO_BUILD=NVPTX (more targets do no harm)"
        ));
    }
    let link = if machine.variable("LLVM_LINK_SHARED").is_some() { "--link-shared" } else { "--link-static" };
    let mut libraries = Command::new(path);
    match libraries.args([link, "--libs"]).args(COMPONENTS).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let absent = unbuilt(&String::from_utf8_lossy(&output.stderr));
            Err(format!("belongs to an LLVM whose libraries are not all built ({absent}); build them"))
        }
        Err(error) => Err(format!("does not run ({error}); {HELP}")),
    }
}

/// The file names in `llvm-config: error: missing: /path/libLLVMCore.a` lines.
fn unbuilt(errors: &str) -> String {
    let names = errors.lines().filter_map(|line| line.split_once("missing: "));
    let names: Vec<_> = names.map(|(_, path)| path.rsplit('/').next().unwrap_or(path)).collect();
    if names.is_empty() { errors.trim().to_owned() } else { names.join(" ") }
}
