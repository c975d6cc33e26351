//! PTX modules, loaded when first needed, and launches.

use super::{Gpu, StreamRef};
use crate::error::{Error, Result};
use int_flash_attention_driver::{Driver, DriverError, Function, FunctionAttribute, LaunchShape, Module};
use int_flash_attention_kernels::params::Params;
use int_flash_attention_kernels::{dequantize, quantize};
use std::borrow::Cow;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// A module's name and its PTX, which `cargo xtask build` makes.
struct Source {
    name: &'static str,
    ptx: &'static str,
}

macro_rules! sources {
    ($($name:ident { $($field:tt)* })*) => {
        &[$(Source {
            name: stringify!($name),
            ptx: include_str!(concat!("../../ptx/", stringify!($name), ".ptx")),
        }),*]
    };
}

/// The modules of this build, from the tables that name them.
const SOURCES: &[&[Source]] = &[
    int_flash_attention_kernels::conversion_rows!(sources),
    int_flash_attention_kernels::sm80_rows!(sources),
    int_flash_attention_kernels::sm90a_rows!(sources),
    #[cfg(feature = "baseline")]
    int_flash_attention_kernels::baseline_rows!(sources),
];

/// The module of the quantization kernels.
pub(super) const QUANTIZE: &str = "quantize";
/// The module of the dequantization kernels.
pub(super) const DEQUANTIZE: &str = "dequantize";

/// Shared memory that a block has without asking.
const SHARED_BYTES_UNASKED: usize = 48 << 10;

/// The modules loaded so far, and where their PTX is.
#[derive(Default)]
pub(super) struct Modules {
    /// In place of the embedded PTX.
    folder: Option<PathBuf>,
    loaded: Mutex<Vec<Loaded>>,
}

struct Loaded {
    name: &'static str,
    module: Module,
    functions: Vec<(&'static str, Function)>,
}

impl Modules {
    /// None loaded, the PTX in a folder.
    pub(super) fn in_folder(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::default() }
    }

    /// The PTX of a module.
    fn ptx(&self, name: &'static str) -> Result<Cow<'static, str>> {
        let source = SOURCES.iter().copied().flatten().find(|source| source.name == name);
        let source = source.ok_or(Error::MissingKernel { module: name, kernel: "" })?;
        let Some(folder) = &self.folder else { return Ok(source.ptx.into()) };
        let path = folder.join(format!("{name}.ptx"));
        let read = std::fs::read_to_string(&path);
        read.map(Cow::Owned).map_err(|why| Error::PtxFile { path, why: why.to_string() })
    }

    /// # Safety
    /// No function of a module is used any more; the context is current.
    pub(super) unsafe fn unload(&mut self, driver: Driver) {
        for loaded in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: the caller's promise. An error means that the context went before.
            let _ = unsafe { driver.unload_module(loaded.module) };
        }
    }
}

/// The entry points that a module should have.
fn entries(module: &'static str) -> Vec<&'static str> {
    match module {
        QUANTIZE => quantize::launch::bounds().map(|bounds| bounds.entry).collect(),
        DEQUANTIZE => dequantize::launch::BOUNDS.iter().map(|bounds| bounds.entry).collect(),
        // An attention kernel's module and entry point have one name.
        _ => vec![module],
    }
}

/// A kernel and the blocks and threads of its launches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) entry: &'static str,
    function: Function,
    shape: LaunchShape,
}

impl Gpu {
    /// A kernel ready for launches of this grid, block and shared memory.
    pub(super) fn kernel(
        &self,
        module: &'static str,
        entry: &'static str,
        grid: [u32; 3],
        threads: usize,
        shared_bytes: usize,
    ) -> Result<Kernel> {
        if shared_bytes > self.0.shared_bytes {
            return Err(Error::SharedMemory {
                kernel: entry,
                needed: shared_bytes,
                available: self.0.shared_bytes,
                device: self.name().to_owned(),
            });
        }
        let function = self.function(module, entry)?;
        if shared_bytes > SHARED_BYTES_UNASKED {
            let attribute = FunctionAttribute::MaxDynamicSharedSizeBytes;
            // SAFETY: the module stays loaded as long as this object lives.
            unsafe { self.bind()?.set_function_attribute(function, attribute, shared_bytes as i32) }?;
        }
        let shape = LaunchShape { grid, block: [threads as u32, 1, 1], shared_bytes: shared_bytes as u32 };
        Ok(Kernel { entry, function, shape })
    }

    /// A function, after loading its module where that has not been done.
    fn function(&self, module: &'static str, entry: &'static str) -> Result<Function> {
        let mut modules = self.0.modules.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match modules.iter().position(|loaded| loaded.name == module) {
            Some(at) => at,
            None => {
                modules.push(self.load(module)?);
                modules.len() - 1
            }
        };
        let found = modules[at].functions.iter().find(|(name, _)| *name == entry);
        found.map(|&(_, function)| function).ok_or(Error::MissingKernel { module, kernel: entry })
    }

    /// Loads a module and looks all its kernels up.
    fn load(&self, name: &'static str) -> Result<Loaded> {
        let ptx = self.0.modules.ptx(name)?;
        let driver = self.bind()?;
        let (module, _notes) = driver.load_module(&ptx).map_err(|source| Error::ModuleLoad { module: name, source })?;
        let mut functions = Vec::new();
        for entry in entries(name) {
            // SAFETY: the module has just been loaded.
            match unsafe { driver.function(module, entry) } {
                Ok(function) => functions.push((entry, function)),
                Err(error) => {
                    // SAFETY: as above, and no function of it is in use.
                    let _ = unsafe { driver.unload_module(module) };
                    return Err(match error {
                        // CUDA_ERROR_NOT_FOUND
                        DriverError::Call { code: 500, .. } => Error::MissingKernel { module: name, kernel: entry },
                        other => other.into(),
                    });
                }
            }
        }
        Ok(Loaded { name, module, functions })
    }

    /// Launches a kernel whose only parameter is a structure.
    ///
    /// # Safety
    /// The kernel's parameter is such a structure, and its addresses have the sizes that docs/kernel-abi.md says.
    #[inline]
    pub(super) unsafe fn launch_with<P: Params>(
        &self,
        kernel: &Kernel,
        stream: StreamRef<'_>,
        params: &P,
    ) -> Result<()> {
        let mut pointers = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the caller's promise; the driver copies the structure and does not write to it.
        unsafe { self.bind()?.launch(kernel.function, kernel.shape, stream.handle(), &mut pointers) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use int_flash_attention_kernels::config::MODULES;

    #[test]
    fn every_module_ships() {
        for module in MODULES.iter().filter(|module| cfg!(feature = "baseline") || module.part != "baseline") {
            assert!(SOURCES.iter().copied().flatten().any(|source| source.name == module.name), "{}", module.name);
        }
    }

    #[test]
    fn every_kernel_is_in_the_ptx() {
        for source in SOURCES.iter().copied().flatten() {
            for entry in entries(source.name) {
                let declared = source.ptx.contains(&format!(".entry {entry}("));
                assert!(declared, "host/ptx/{}.ptx has no {entry}: run `cargo xtask build`", source.name);
            }
        }
    }
    #[test]
    fn a_folder_replaces_the_embedded_ptx() {
        let folder = std::env::temp_dir().join(format!("int-flash-ptx-{}", std::process::id()));
        let modules = Modules::in_folder(folder.clone());
        let missing = modules.ptx(QUANTIZE).unwrap_err();
        assert!(matches!(&missing, Error::PtxFile { path, .. } if *path == folder.join("quantize.ptx")), "{missing}");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("quantize.ptx"), "other").unwrap();
        let read = modules.ptx(QUANTIZE);
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!(read.unwrap(), "other");
        assert!(Modules::default().ptx(QUANTIZE).unwrap().contains(".entry"));
    }
}
