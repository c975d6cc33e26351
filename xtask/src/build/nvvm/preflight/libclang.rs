//! libclang, which bindgen loads at run time to read the CUDA headers.

use super::{Checked, Machine};
use crate::workspace;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where bindgen looks besides `LIBCLANG_PATH`, the loader's path and `/usr/lib/llvm*/lib`.
const FOLDERS: [&str; 5] =
    ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
const INSTALL: &str = "install it (Debian: libclang-dev; PyPI: libclang) and set LIBCLANG_PATH to its folder";

pub fn find(machine: &Machine) -> Checked<()> {
    if let Some(given) = machine.path_variable("LIBCLANG_PATH") {
        if given.is_file() || holds_libclang(&given) {
            return Ok(());
        }
        return Err(vec![format!(
            "libclang: LIBCLANG_PATH is {}, which has no libclang.so; {INSTALL}",
            given.display()
        )]);
    }
    let fixed = FOLDERS.map(|folder| machine.system(folder));
    let loader = machine.folders(crate::build::nvvm::LOADER_PATH);
    if versions(machine).into_iter().chain(fixed).chain(loader).any(|folder| holds_libclang(&folder)) {
        return Ok(());
    }
    Err(vec![format!("libclang: not found; {INSTALL}")])
}

/// A libclang without clang has no `stddef.h` of its own; the C compiler's will do.
pub fn extra_args(machine: &Machine) -> Option<OsString> {
    if machine.variable("BINDGEN_EXTRA_CLANG_ARGS").is_some() || machine.program("clang").is_some() {
        return None;
    }
    let output = workspace::capture(Command::new(machine.program("cc")?).arg("-print-file-name=include")).ok()?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    folder.is_absolute().then(|| format!("-I{}", folder.display()).into())
}

/// `/usr/lib/llvm-18/lib` and the like.
fn versions(machine: &Machine) -> Vec<PathBuf> {
    let entries = ["/usr/lib", "/usr/lib64"].into_iter().filter_map(|dir| fs::read_dir(machine.system(dir)).ok());
    let llvm = entries.flatten().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm"));
    llvm.map(|entry| entry.path().join("lib")).collect()
}

fn holds_libclang(folder: &Path) -> bool {
    let is_libclang =
        |name: &str| name.starts_with("libclang.so") || (name.starts_with("libclang-") && name.contains(".so"));
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(|file| is_libclang(&file.file_name().to_string_lossy())))
}
