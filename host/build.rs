//! Writes the table of modules that the library is built with: their PTX, and the machine code that is there.
//!
//! Machine code is not kept in the repository (docs/decisions/0004-machine-code-beside-the-ptx.md): the published package has it, and
//! `cargo xtask machine-code` makes it. What was made of other PTX than that beside it is left out.

use int_flash_attention_kernels::config::{MODULES, Module, shipping::checksum};
use std::collections::HashMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in ["build.rs", "ptx", "machine-code"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    let machine_code = MachineCode::in_folder(package.join("machine-code"));
    let mut table = String::from("&[\n");
    for module in MODULES.iter().filter(|module| module.features().all(is_on)) {
        let path = package.join("ptx").join(format!("{}.ptx", module.name));
        let ptx = match fs::read(&path) {
            Ok(ptx) => ptx,
            // The kernel of a row that has just been added: `cargo xtask build` needs this library to be built without it.
            Err(error) if error.kind() == ErrorKind::NotFound && package.join("../kernels-gpu").is_dir() => {
                println!("cargo:warning={} is not there yet; `cargo xtask build` makes it", path.display());
                continue;
            }
            Err(error) => panic!("{}", unreadable(module, &path, &error)),
        };
        let code = if is_on("machine-code") { machine_code.of(module, &ptx) } else { Vec::new() };
        let _ =
            writeln!(table, "    Embedded {{ name: {:?}, ptx: include_str!({path:?}), machine_code: &[", module.name);
        for (architecture, file) in code {
            let _ =
                writeln!(table, "        Code {{ architecture: {architecture:?}, lzma: include_bytes!({file:?}) }},");
        }
        table.push_str("    ] },\n");
    }
    table.push_str("]\n");
    fs::write(out.join("modules.rs"), table).expect("cargo's output folder can be written");
}

/// Whether a feature of the library is on.
fn is_on(feature: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{}", feature.to_uppercase().replace('-', "_"))).is_some()
}

fn unreadable(module: &Module, path: &Path, error: &std::io::Error) -> String {
    let why = if module.ships() {
        "the package is not whole"
    } else {
        "the published package leaves it out; the feature that asks for it is for builds in the project's repository"
    };
    format!("cannot read {} ({error}): {why}", path.display())
}

/// What `cargo xtask machine-code` wrote.
struct MachineCode {
    folder: PathBuf,
    /// A module's name and the checksum of the PTX that its machine code was made of.
    made_of: HashMap<String, String>,
}

impl MachineCode {
    /// The folder's `index` has a line for each module.
    fn in_folder(folder: PathBuf) -> Self {
        let index = fs::read_to_string(folder.join("index")).unwrap_or_default();
        let line = |line: &str| line.split_once(' ').map(|(name, checksum)| (name.to_owned(), checksum.to_owned()));
        Self { folder, made_of: index.lines().filter_map(line).collect() }
    }

    /// Architectures and files of a module's machine code; none where it was made of other PTX.
    fn of(&self, module: &Module, ptx: &[u8]) -> Vec<(&'static str, PathBuf)> {
        let Some(made_of) = self.made_of.get(module.name) else { return Vec::new() };
        if *made_of != format!("{:016x}", checksum(ptx)) {
            println!(
                "cargo:warning=machine-code/{}.* is of other PTX than ptx/{0}.ptx and is left out; `cargo xtask machine-code` makes it anew",
                module.name
            );
            return Vec::new();
        }
        let file = |name: &'static str| (name, self.folder.join(format!("{}.{name}.lzma", module.name)));
        module.architectures().map(|architecture| file(architecture.name)).filter(|(_, file)| file.is_file()).collect()
    }
}
