//! The modules of a context, each loaded when a plan first needs a kernel of it.

use super::Gpu;
use super::embedded;
use crate::error::{Error, RefusedCode, Result};
use int_flash_attention_driver::{Driver, DriverError, Function, Library, Module};
use int_flash_attention_kernels::config::{self, Family};
use int_flash_attention_kernels::quantize::launch::{Bounds, V_AMAX};
use std::borrow::Cow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The modules loaded so far, and where they come from.
#[derive(Default)]
pub(super) struct Modules {
    /// PTX files in place of what is embedded.
    folder: Option<PathBuf>,
    loaded: Mutex<Vec<Loaded>>,
}

struct Loaded {
    name: &'static str,
    /// The architecture whose machine code it is; `None` where the driver compiled PTX.
    architecture: Option<&'static str>,
    code: Code,
    /// Those that a plan has asked for.
    functions: Vec<(&'static str, Function)>,
}

/// How the driver has it.
#[derive(Clone, Copy)]
enum Code {
    Module(Module),
    /// PTX that was compiled at the same time as another.
    Library(Library),
}

impl Code {
    /// # Safety
    /// It is loaded, and the context is current.
    unsafe fn function(self, driver: Driver, entry: &str) -> std::result::Result<Function, DriverError> {
        // SAFETY: the caller's promise.
        match self {
            Self::Module(module) => unsafe { driver.function(module, entry) },
            Self::Library(library) => unsafe { driver.library_function(library, entry) },
        }
    }

    /// # Safety
    /// It is loaded, no function of it is used any more, and the context is current.
    unsafe fn unload(self, driver: Driver) {
        // An error means that the context went before.
        // SAFETY: the caller's promise.
        let _ = match self {
            Self::Module(module) => unsafe { driver.unload_module(module) },
            Self::Library(library) => unsafe { driver.unload_library(library) },
        };
    }
}

impl Modules {
    /// None loaded, the PTX in a folder.
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::default() }
    }

    /// Whether this build, or the folder, has kernels of a family.
    pub(super) fn has(&self, family: Family) -> bool {
        match family {
            Family::Sm80 => true,
            Family::Sm90a => cfg!(feature = "sm90a") || self.folder.is_some(),
        }
    }

    /// # Safety
    /// No function of a module is used any more; the context is current.
    pub(super) unsafe fn unload(&mut self, driver: Driver) {
        for loaded in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: the caller's promise.
            unsafe { loaded.code.unload(driver) };
        }
    }
}

/// The PTX of a module in a folder.
fn read_ptx(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(format!("{name}.ptx"));
    std::fs::read_to_string(&path).map_err(|why| Error::PtxFile { path, why: why.to_string() })
}

/// That a module is not embedded: either a feature is off, or there is none of the name.
fn left_out(name: &'static str) -> Error {
    let module = config::MODULES.iter().find(|module| module.name == name);
    let features: Vec<_> = module.into_iter().flat_map(config::Module::features).collect();
    if features.is_empty() {
        Error::MissingKernel { module: name, kernel: "" }
    } else {
        Error::LeftOut { module: name, features }
    }
}

/// A kernel and its module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) module: &'static str,
    pub(super) entry: &'static str,
}

impl Wanted {
    /// The only kernel of a module, of the same name.
    pub(super) const fn alone(name: &'static str) -> Self {
        Self { module: name, entry: name }
    }

    /// The module with this kernel of it; without the kernel, what was loaded is given back. A driver that loads lazily looks at
    /// machine code only now, and compiles only now.
    fn found_in(
        self,
        driver: Driver,
        code: Code,
        architecture: Option<&'static str>,
    ) -> std::result::Result<Loaded, DriverError> {
        // SAFETY: it has just been loaded, and nothing has been launched from it.
        unsafe {
            match code.function(driver, self.entry) {
                Ok(function) => {
                    Ok(Loaded { name: self.module, architecture, code, functions: vec![(self.entry, function)] })
                }
                Err(error) => {
                    code.unload(driver);
                    Err(error)
                }
            }
        }
    }

    /// Why the kernel was not found.
    fn missing(self, error: DriverError) -> Error {
        match error {
            // CUDA_ERROR_NOT_FOUND
            DriverError::Call { code: 500, .. } => Error::MissingKernel { module: self.module, kernel: self.entry },
            other => other.into(),
        }
    }
}

impl From<&Bounds> for Wanted {
    fn from(&Bounds { module, entry, .. }: &Bounds) -> Self {
        Self { module, entry }
    }
}

/// What the driver has to compile.
struct Source {
    wanted: Wanted,
    ptx: Cow<'static, str>,
    /// What it did not take before.
    refused: Option<RefusedCode>,
}

impl Source {
    /// Compiled as a module: with the compiler's log in an error. Threads that do this wait for each other.
    fn module(&self, driver: Driver) -> Result<Loaded> {
        let (module, _notes) = driver.load_module(&self.ptx).map_err(|why| Error::ModuleLoad {
            module: self.wanted.module,
            why,
            machine_code: self.refused.clone().map(Box::new),
        })?;
        self.wanted.found_in(driver, Code::Module(module), None).map_err(|error| self.wanted.missing(error))
    }

    /// Compiled as a library: threads that do this do not wait for each other. As a module where the driver has no such library, which says
    /// why; and which there is all the same where a driver that loads eagerly (`CUDA_MODULE_LOADING`) refuses PTX that is not for every GPU in the process.
    fn library(&self, driver: Driver) -> Result<Loaded> {
        let library = driver.load_library(&self.ptx);
        let library = library.and_then(|library| self.wanted.found_in(driver, Code::Library(library), None));
        library.or_else(|_| self.module(driver))
    }
}

/// A module that is there, or has to be compiled.
enum Found {
    Loaded(Loaded),
    Source(Source),
}

impl Gpu {
    /// Loads the modules of these kernels, of those that are not loaded: machine code where there is some for this GPU and the driver takes it,
    /// else PTX, which the driver compiles for up to seconds. It compiles several at the same time, so a plan asks for all that it needs at once.
    pub(super) fn load(&self, wanted: &[Wanted]) -> Result<()> {
        let mut modules = self.0.modules.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = wanted.iter().enumerate().filter(|(i, one)| {
            let is_it = |name| name == one.module;
            !modules.iter().any(|loaded| is_it(loaded.name)) && !wanted[..*i].iter().any(|other| is_it(other.module))
        });
        let missing: Vec<_> = missing.map(|(_, one)| *one).collect();
        if missing.is_empty() {
            return Ok(());
        }
        self.0.context.beside_recordings(|driver| {
            let mut sources = Vec::new();
            for one in missing {
                match self.find(driver, one)? {
                    Found::Loaded(loaded) => modules.push(loaded),
                    Found::Source(source) => sources.push(source),
                }
            }
            let mut done = Ok(());
            for compiled in self.compile(driver, &sources) {
                // The first error of them, and all that have none.
                match compiled {
                    Ok(loaded) => modules.push(loaded),
                    Err(error) => done = done.and(Err(error)),
                }
            }
            done
        })
    }

    /// A module's machine code, loaded, or its PTX.
    fn find(&self, driver: Driver, wanted: Wanted) -> Result<Found> {
        let source = |ptx, refused| Ok(Found::Source(Source { wanted, ptx, refused }));
        if let Some(folder) = &self.0.modules.folder {
            return source(read_ptx(folder, wanted.module)?.into(), None);
        }
        let embedded = embedded::find(wanted.module).ok_or_else(|| left_out(wanted.module))?;
        let Some(code) = embedded.machine_code(self.0.capability) else { return source(embedded.ptx.into(), None) };
        let architecture = code.architecture;
        // SAFETY: a whole cubin, which xtask had from ptxas.
        let loaded = unsafe { driver.load_machine_code(&code.cubin()) };
        let loaded = loaded.and_then(|module| wanted.found_in(driver, Code::Module(module), Some(architecture)));
        // A driver from before the toolkit that made the code refuses it, and may still know the PTX.
        loaded.map(Found::Loaded).or_else(|why| source(embedded.ptx.into(), Some(RefusedCode { architecture, why })))
    }

    /// Each compiled, several at the same time on threads of their own.
    fn compile(&self, driver: Driver, sources: &[Source]) -> Vec<Result<Loaded>> {
        if let [one] = sources {
            return vec![one.module(driver)];
        }
        // A new thread has no current context, and forbids to recordings of other libraries what this one has been allowed.
        let library = |source: &Source| self.0.context.beside_recordings(|driver| source.library(driver));
        thread::scope(|scope| {
            let start = |source| thread::Builder::new().spawn_scoped(scope, move || library(source));
            let threads: Vec<_> = sources.iter().map(start).collect();
            let done = |(thread, source): (std::io::Result<thread::ScopedJoinHandle<'_, _>>, &Source)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // No more threads than these.
                Err(_) => source.module(driver),
            };
            threads.into_iter().zip(sources).map(done).collect()
        })
    }

    /// A function, after loading its module where that has not been done.
    pub(super) fn function(&self, wanted: Wanted) -> Result<Function> {
        self.load(&[wanted])?;
        let mut modules = self.0.modules.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = modules.iter_mut().find(|loaded| loaded.name == wanted.module);
        let loaded = loaded.expect("what is loaded stays as long as this object lives");
        if let Some(&(_, function)) = loaded.functions.iter().find(|(name, _)| *name == wanted.entry) {
            return Ok(function);
        }
        let function = self.0.context.beside_recordings(|driver| {
            // SAFETY: it is loaded as long as this object lives.
            unsafe { loaded.code.function(driver, wanted.entry) }.map_err(|error| wanted.missing(error))
        })?;
        loaded.functions.push((wanted.entry, function));
        Ok(function)
    }

    /// Loads the module that is compiled soonest, to see whether this driver can.
    pub(super) fn load_any(&self) -> Result<()> {
        self.load(&[Wanted::from(&V_AMAX[0])])
    }

    /// The modules that plans have needed so far, each with the architecture whose machine code was loaded (`sm_86`), or `None` where the
    /// driver compiled its PTX.
    #[must_use]
    pub fn loaded_modules(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let modules = self.0.modules.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        modules.iter().map(|loaded| (loaded.name, loaded.architecture)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_place_of_what_is_embedded() {
        let folder = std::env::temp_dir().join(format!("int-flash-ptx-{}", std::process::id()));
        let missing = read_ptx(&folder, "quantize_f16").unwrap_err();
        assert!(
            matches!(&missing, Error::PtxFile { path, .. } if *path == folder.join("quantize_f16.ptx")),
            "{missing}"
        );
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("quantize_f16.ptx"), "other").unwrap();
        let read = read_ptx(&folder, "quantize_f16");
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!(read.unwrap(), "other");
    }

    #[test]
    fn what_is_left_out_names_the_feature_that_brings_it() {
        let baseline = left_out(config::BASELINE[0].name).to_string();
        assert!(baseline.contains("baseline_f16") && baseline.contains("feature"), "{baseline}");
        assert!(matches!(left_out("none"), Error::MissingKernel { module: "none", .. }));
        assert!(Modules::in_folder(PathBuf::new()).has(Family::Sm90a));
        assert_eq!(Modules::default().has(Family::Sm90a), cfg!(feature = "sm90a"));
    }
}
