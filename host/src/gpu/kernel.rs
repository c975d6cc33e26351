//! Modules, each loaded when a plan first needs a kernel of it, and launches.

use super::Gpu;
use super::embedded;
use crate::error::{Error, RefusedCode, Result};
use int_flash_attention_driver::{
    Driver, DriverError, Function, FunctionAttribute, Graph, GraphExec, GraphNode, LaunchShape, Module, StreamHandle,
};
use int_flash_attention_kernels::config::{self, Family};
use int_flash_attention_kernels::params::Params;
use int_flash_attention_kernels::quantize::launch::QUANTIZE;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Shared memory that a block has without asking.
const SHARED_BYTES_UNASKED: usize = 48 << 10;

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
    module: Module,
    /// Those that a plan has asked for.
    functions: Vec<(&'static str, Function)>,
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
            // SAFETY: the caller's promise. An error means that the context went before.
            let _ = unsafe { driver.unload_module(loaded.module) };
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

/// A module that has just been loaded, with a kernel of it; without that the module is given back. A driver that loads lazily
/// looks at machine code only now.
fn with_kernel(
    driver: Driver,
    name: &'static str,
    architecture: Option<&'static str>,
    module: Module,
    entry: &'static str,
) -> std::result::Result<Loaded, DriverError> {
    // SAFETY: the module is loaded.
    match unsafe { driver.function(module, entry) } {
        Ok(function) => Ok(Loaded { name, architecture, module, functions: vec![(entry, function)] }),
        Err(error) => {
            // SAFETY: nothing has been launched from it.
            let _ = unsafe { driver.unload_module(module) };
            Err(error)
        }
    }
}

/// Why a module's function was not found.
fn missing(module: &'static str, entry: &'static str, error: DriverError) -> Error {
    match error {
        // CUDA_ERROR_NOT_FOUND
        DriverError::Call { code: 500, .. } => Error::MissingKernel { module, kernel: entry },
        other => other.into(),
    }
}

/// The arguments of a kernel whose only parameter is a structure. The driver copies that and does not write to it.
fn pointers<P: Params>(params: &P) -> [*mut c_void; 1] {
    [std::ptr::from_ref(params).cast_mut().cast()]
}

/// A kernel and the blocks and threads of its launches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) entry: &'static str,
    function: Function,
    shape: LaunchShape,
    overlapping: bool,
}

impl Kernel {
    /// The same, whose blocks may start while the launch before in the stream still runs: it waits itself before it reads what that writes.
    pub(super) const fn overlapping(self) -> Self {
        Self { overlapping: true, ..self }
    }
}

impl Kernel {
    /// The same with a grid of so many blocks.
    pub(super) const fn with_ctas(self, ctas: u32) -> Self {
        Self { shape: LaunchShape { grid: [ctas, 1, 1], ..self.shape }, ..self }
    }

    /// Adds the kernel to a graph, behind others of it.
    ///
    /// # Safety
    /// As of [`launch`](Self::launch) but for the addresses; graph and nodes are alive.
    pub(super) unsafe fn add_to<P: Params>(
        &self,
        driver: Driver,
        graph: Graph,
        after: &[GraphNode],
        params: &P,
    ) -> Result<GraphNode> {
        // SAFETY: the caller's promise.
        Ok(unsafe { driver.add_kernel_node(graph, after, self.function, self.shape, &mut pointers(params)) }?)
    }

    /// Sets what the kernel is given in a graph's launches from now on.
    ///
    /// # Safety
    /// As of [`launch`](Self::launch); the node is the kernel's, its graph is alive, and no other thread uses `exec`.
    #[inline]
    pub(super) unsafe fn set<P: Params>(
        &self,
        driver: Driver,
        exec: GraphExec,
        node: GraphNode,
        params: &P,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        Ok(unsafe { driver.set_kernel_node(exec, node, self.function, self.shape, &mut pointers(params)) }?)
    }

    /// Gives the kernel, whose only parameter is a structure, to a stream: one call of the driver.
    ///
    /// # Safety
    /// The kernel's context is current, and the stream is alive and of it. The kernel's parameter is such a structure, and its addresses have
    /// the sizes that docs/kernel-abi.md says.
    #[inline]
    pub(super) unsafe fn launch<P: Params>(&self, driver: Driver, stream: StreamHandle, params: &P) -> Result<()> {
        let (mut pointers, Self { function, shape, overlapping, .. }) = (pointers(params), *self);
        // SAFETY: the caller's promise; the driver copies the structure and does not write to it. A kernel that is said to overlap waits.
        unsafe {
            if overlapping {
                driver.launch_overlapping(function, shape, stream, &mut pointers)?;
            } else {
                driver.launch(function, shape, stream, &mut pointers)?;
            }
        }
        Ok(())
    }
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
            // All that there is, whatever this plan needs: another plan of the kernel may need less, and this one is launched after it.
            unsafe { self.bind()?.set_function_attribute(function, attribute, self.0.shared_bytes as i32) }?;
        }
        let shape = LaunchShape { grid, block: [threads as u32, 1, 1], shared_bytes: shared_bytes as u32 };
        Ok(Kernel { entry, function, shape, overlapping: false })
    }

    /// The modules that plans have needed so far, each with the architecture whose machine code was loaded (`sm_86`), or `None` where the
    /// driver compiled its PTX.
    #[must_use]
    pub fn loaded_modules(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let modules = self.0.modules.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        modules.iter().map(|loaded| (loaded.name, loaded.architecture)).collect()
    }

    /// Loads a module that jobs need, to see whether this driver can.
    pub(super) fn load_quantization(&self) -> Result<()> {
        self.function(QUANTIZE[0].module, QUANTIZE[0].entry).map(|_| ())
    }

    /// A function, after loading its module where that has not been done.
    fn function(&self, module: &'static str, entry: &'static str) -> Result<Function> {
        let mut modules = self.0.modules.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(loaded) = modules.iter_mut().find(|loaded| loaded.name == module) else {
            let loaded = self.0.context.beside_recordings(|driver| self.load(driver, module, entry))?;
            let function = loaded.functions[0].1;
            modules.push(loaded);
            return Ok(function);
        };
        if let Some(&(_, function)) = loaded.functions.iter().find(|(name, _)| *name == entry) {
            return Ok(function);
        }
        let function = self.0.context.beside_recordings(|driver| {
            // SAFETY: the module is loaded as long as this object lives.
            unsafe { driver.function(loaded.module, entry) }.map_err(|error| missing(module, entry, error))
        })?;
        loaded.functions.push((entry, function));
        Ok(function)
    }

    /// Loads a module and looks one kernel of it up: machine code where there is some for this GPU and the driver takes it, else PTX,
    /// which the driver compiles.
    fn load(&self, driver: Driver, name: &'static str, entry: &'static str) -> Result<Loaded> {
        let compile = |ptx: &str, refused: Option<RefusedCode>| {
            let (module, _notes) = driver.load_module(ptx).map_err(|why| Error::ModuleLoad {
                module: name,
                why,
                machine_code: refused.map(Box::new),
            })?;
            with_kernel(driver, name, None, module, entry).map_err(|error| missing(name, entry, error))
        };
        if let Some(folder) = &self.0.modules.folder {
            return compile(&read_ptx(folder, name)?, None);
        }
        let embedded = embedded::find(name).ok_or_else(|| left_out(name))?;
        let Some(code) = embedded.machine_code(self.0.capability) else { return compile(embedded.ptx, None) };
        // SAFETY: a whole cubin, which xtask had from ptxas.
        let loaded = unsafe { driver.load_machine_code(&code.cubin()) };
        let loaded = loaded.and_then(|module| with_kernel(driver, name, Some(code.architecture), module, entry));
        // A driver from before the toolkit that made the code refuses it, and may still know the PTX.
        loaded.or_else(|why| compile(embedded.ptx, Some(RefusedCode { architecture: code.architecture, why })))
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
