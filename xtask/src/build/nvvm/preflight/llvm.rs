//! LLVM 19 or 7: its `llvm-config`, and behind that the libraries that the backend links.

use super::{Checked, Machine};
use crate::build::nvvm::form::Form;
use crate::workspace;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `rustc_codegen_nvvm`'s build script asks `llvm-config` for.
const COMPONENTS: [&str; 5] = ["ipo", "bitreader", "bitwriter", "lto", "nvptx"];
/// The names in `PATH`, in this order: who has an LLVM 7 has built it for this.
const PROGRAMS: [&str; 3] = ["llvm-config-7", "llvm-config-19", "llvm-config"];
const HELP: &str = "install LLVM 19 (Debian: llvm-19-dev, libpolly-19-dev, libzstd-dev, zlib1g-dev) or build LLVM 7 \
    (docs/codegen.md says how), and set LLVM_CONFIG to its llvm-config";

/// An LLVM that the backend can be built with.
#[derive(Debug)]
pub struct Llvm {
    /// Its `llvm-config`.
    pub config: PathBuf,
    /// What the backend is built as with it.
    pub form: Form,
}

/// The form of the LLVM that is there, whatever else is wrong with it.
pub fn form(machine: &Machine) -> Option<Form> {
    Form::of_llvm(&ask(&config(machine)?, &["--version"]).ok()?)
}

/// The LLVM that is there, if the backend can be built with it.
pub fn find(machine: &Machine) -> Checked<Llvm> {
    let Some(path) = config(machine) else {
        return Err(vec![format!("LLVM 19 or 7: LLVM_CONFIG is not set and no llvm-config is in PATH; {HELP}")]);
    };
    let form = check(machine, &path).map_err(|fault| vec![format!("LLVM 19 or 7: {} {fault}", path.display())])?;
    match path.canonicalize() {
        Ok(config) => Ok(Llvm { config, form }),
        Err(error) => Err(vec![format!("LLVM 19 or 7: {}: {error}", path.display())]),
    }
}

/// `$LLVM_CONFIG`, else the first of [`PROGRAMS`] in `PATH`.
fn config(machine: &Machine) -> Option<PathBuf> {
    let in_path = || PROGRAMS.iter().find_map(|name| machine.program(name));
    machine.path_variable("LLVM_CONFIG").or_else(in_path)
}

/// What `llvm-config` answers.
fn ask(config: &Path, args: &[&str]) -> Result<String, String> {
    match workspace::capture(Command::new(config).args(args)) {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Err(error) => Err(format!("does not run ({error:#}); {HELP}")),
    }
}

/// Which form `llvm-config` is of, or what is wrong with it, as the rest of a sentence about it.
fn check(machine: &Machine, path: &Path) -> Result<Form, String> {
    let version = ask(path, &["--version"])?;
    let form = Form::of_llvm(&version).ok_or_else(|| format!("is of version {version}; {HELP}"))?;
    let has = ask(path, &["--components"])?;
    let lacking: Vec<_> =
        COMPONENTS.into_iter().filter(|name| !has.split_whitespace().any(|component| component == *name)).collect();
    if !lacking.is_empty() {
        let lacking = lacking.join(", ");
        return Err(format!(
            "has no {lacking}; configure LLVM with -DLLVM_TARGETS_TO_BUILD=NVPTX (more targets do no harm)"
        ));
    }
    let link = if machine.variable("LLVM_LINK_SHARED").is_some() { "--link-shared" } else { "--link-static" };
    let libraries = |kind: &str| match Command::new(path).args([link, kind]).args(COMPONENTS).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let absent = unbuilt(&String::from_utf8_lossy(&output.stderr));
            Err(format!("belongs to an LLVM whose libraries are not all built ({absent}); build them"))
        }
        Err(error) => Err(format!("does not run ({error}); {HELP}")),
    };
    let needed = libraries("--libs")? + " " + &libraries("--system-libs")?;
    let folder = PathBuf::from(ask(path, &["--libdir"])?);
    let lacking: BTreeSet<_> = others(&needed).filter(|name| !is_there(machine, &folder, name)).collect();
    if !lacking.is_empty() {
        let lacking: Vec<_> = lacking.into_iter().collect();
        let lacking = lacking.join(", ");
        return Err(format!("names libraries that are not there ({lacking}); {HELP}"));
    }
    // the intrinsics that LLVM 7 needs are upstream's in its bitcode; LLVM 19's are assembled
    if form == Form::Llvm19 && !assembler(path).is_some_and(|file| file.is_file()) {
        return Err(format!("has no llvm-as beside it (Debian: llvm-19); {HELP}"));
    }
    Ok(form)
}

/// The libraries besides LLVM's own in a list for the linker.
fn others(flags: &str) -> impl Iterator<Item = &str> {
    flags.split_whitespace().filter_map(|flag| flag.strip_prefix("-l")).filter(|name| !name.starts_with("LLVM"))
}

/// Whether the linker would find a library: in LLVM's folder, or in one of the C++ compiler's.
fn is_there(machine: &Machine, folder: &Path, name: &str) -> bool {
    let files = [format!("lib{name}.so"), format!("lib{name}.a")];
    files.iter().any(|file| {
        let by_compiler = super::compiler(machine).ok().and_then(|compiler| {
            let asked = Command::new(compiler).arg(format!("-print-file-name={file}")).output().ok()?;
            // what it does not find it gives back as it was
            Some(Path::new(String::from_utf8_lossy(&asked.stdout).trim()).is_absolute())
        });
        folder.join(file).is_file() || by_compiler == Some(true)
    })
}

/// `llvm-as` of the LLVM whose `llvm-config` this is: the build script wants it in the same folder, with the same suffix.
fn assembler(config: &Path) -> Option<PathBuf> {
    let config = config.canonicalize().ok()?;
    let suffix = config.file_name()?.to_str()?.strip_prefix("llvm-config")?.to_owned();
    Some(config.with_file_name(format!("llvm-as{suffix}")))
}

/// The file names in `llvm-config: error: missing: /path/libLLVMCore.a` lines.
fn unbuilt(errors: &str) -> String {
    let names = errors.lines().filter_map(|line| line.split_once("missing: "));
    let names: Vec<_> = names.map(|(_, path)| path.rsplit('/').next().unwrap_or(path)).collect();
    if names.is_empty() { errors.trim().to_owned() } else { names.join(" ") }
}
