//! The GPU: a context with its kernels, memory, and the plans that launch them.
//!
//! ```no_run
//! use int_flash_attention::{AttentionOutput, AttentionProblem, DType, DeviceOperands, Gpu, QuantizeLayouts, TensorLayout};
//! # fn main() -> int_flash_attention::Result<()> {
//! # let [q_host, k_host, v_host] = [const { &[half::f16::ZERO; 2 * 12 * 512 * 64] }; 3];
//! let gpu = Gpu::new(0)?;
//! let problem = AttentionProblem::new(2, 12, 12, 512, 512, 64);
//! let (q, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
//!
//! // once: check everything, allocate everything
//! let quantize = gpu.plan_quantize(&problem, &QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 })?;
//! let attention = gpu.plan_attention(&problem, &AttentionOutput { layout: q, dtype: DType::F16, lse: false })?;
//! let mut operands = DeviceOperands::alloc(&gpu, &problem)?;
//! let mut workspace = gpu.alloc::<f32>(quantize.workspace_len())?;
//! let mut o = gpu.alloc::<half::f16>(q.span())?;
//! let (q, k, v) = (gpu.upload(q_host)?, gpu.upload(k_host)?, gpu.upload(v_host)?);
//!
//! // as often as needed: nothing but launches
//! let stream = gpu.stream()?;
//! quantize.launch(&stream, (&q).into(), (&k).into(), (&v).into(), workspace.slice_mut(), &mut operands.view_mut())?;
//! attention.launch(&stream, &operands.view(), (&mut o).into(), None)?;
//! stream.synchronize()?;
//! let result = o.to_vec()?;
//! # Ok(()) }
//! ```
//!
//! # Memory and streams
//! A launch returns at once; the GPU works later, in the order of the stream. A view borrows its buffer only for the call:
//! do not use a buffer on another stream, or copy it, before this one has come there ([`Stream::synchronize`], an
//! [`Event`]). What the types do guarantee is that no kernel leaves its buffers: every length is checked at each launch.
//! Dropping a [`DeviceBuffer`] waits for the GPU, as `cuMemFree` does.

mod append;
mod attention;
#[cfg(feature = "baseline")]
mod baseline;
mod buffer;
mod cache;
mod chain;
mod context;
mod decode;
mod dequantize;
mod embedded;
mod exchange;
mod gather;
mod int8_rate;
mod job;
mod kernel;
mod launch;
mod memory;
mod merge;
mod modules;
mod one_buffer;
mod operands;
mod prefill;
mod quantize;
mod scores;
mod seqlens;
mod stream;
mod workspace;

#[cfg(feature = "baseline")]
pub use baseline::{BaselineLayouts, BaselinePlan};

pub use append::{AppendPlan, Appended, NewTokens, Slots};
pub use attention::{AttentionOutput, AttentionPlan};
pub use buffer::DeviceBuffer;
pub use cache::{DeviceCache, DeviceTables, ViewCache, ViewMutCache, ViewTables};
pub use decode::DecodePlan;
pub use dequantize::{DequantizePlan, Operand};
#[doc(hidden)]
pub use embedded::embedded_ptx;
pub use exchange::DeviceRows;
pub(crate) use exchange::{Checked, End, PostedEnd};
pub use gather::GatherPlan;
pub use int_flash_attention_kernels::config::Family;
pub use job::{JobPath, JobPlan};
pub use memory::{AnySlice, AnySliceMut, DeviceSlice, DeviceSliceMut};
pub use merge::{MergePlan, States};
pub use operands::{
    DeviceK, DeviceOperands, DeviceQ, DeviceV, ViewK, ViewMutK, ViewMutOperands, ViewMutQ, ViewMutV, ViewOperands,
    ViewQ, ViewV,
};
pub use prefill::{PrefillPlan, PrefillQueries};
pub use quantize::{QuantizeKvPlan, QuantizeLayouts, QuantizePlan, QuantizeQPlan};
pub use scores::ScoreViews;
pub use seqlens::DeviceSeqLens;
pub use stream::{Event, Graph, Stream, StreamRef};

use crate::error::{Error, Result};
use context::SharedContext;
use int_flash_attention_driver::{DeviceAttribute, DeviceOrdinal, Driver};
use modules::Modules;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A GPU's context and the kernels loaded into it. Clones share them; any thread may use any clone.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    modules: Modules,
    context: Arc<SharedContext>,
    name: String,
    capability: (u32, u32),
    /// The CUDA version that the driver supports.
    cuda: u32,
    shared_bytes: usize,
}

/// Those with the embedded kernels, so that a context's modules are loaded once.
static GPUS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Gpu {
    /// GPU number `ordinal`, in the primary context, which a process's libraries share.
    ///
    /// Methods make the context current on the thread that calls them, as `cudaSetDevice` does.
    ///
    /// # Errors
    /// No driver, no such GPU, or one older than compute capability 8.0.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::shared(Self::open(ordinal)?)
    }

    /// [`new`](Self::new), with the PTX in a folder, `MODULE.ptx` each, in place of what is embedded: for kernels that
    /// another code generator made of the same source. A file is read when a plan first needs it.
    ///
    /// # Errors
    /// As [`new`](Self::new); making a plan fails where its file cannot be read, does not load or lacks the kernel.
    ///
    /// # Safety
    /// The kernels keep to what `docs/kernel-abi.md` says of this version's: parameters, blocks, shared memory, and which
    /// memory they access.
    pub unsafe fn with_ptx(ordinal: usize, folder: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self(Arc::new(Inner::describe(Self::open(ordinal)?, Modules::in_folder(folder.into()))?)))
    }

    fn open(ordinal: usize) -> Result<Arc<SharedContext>> {
        let driver = Driver::load()?;
        let count = driver.device_count()?;
        if ordinal >= count {
            return Err(Error::NoSuchDevice { given: ordinal, count });
        }
        let device = driver.device(ordinal as i32)?;
        // Before the context is made, which takes memory and time.
        Inner::check_capability(driver, device)?;
        SharedContext::primary(driver, device)
    }

    /// The thread's current context, which some library has made current (`cust`, `cudarc`): the primary context of its GPU,
    /// which is held as [`new`](Self::new) holds it, whatever becomes of the other library's object.
    ///
    /// # Errors
    /// No driver; no current context; one that is not the primary context of its GPU and so cannot be held; a GPU older than
    /// compute capability 8.0.
    pub fn current() -> Result<Self> {
        let context = SharedContext::current_primary(Driver::load()?)?.ok_or(Error::NotPrimary)?;
        Self::shared(context)
    }

    /// The thread's current context, whoever made it and however (`cuCtxCreate`), without holding it.
    ///
    /// # Errors
    /// No driver, no current context, or a GPU older than compute capability 8.0.
    ///
    /// # Safety
    /// The context outlives this object, its clones and what they made.
    pub unsafe fn borrow_current() -> Result<Self> {
        // SAFETY: the caller's promise.
        let context = unsafe { SharedContext::current_borrowed(Driver::load()?) }?;
        Ok(Self(Arc::new(Inner::describe(context, Modules::default())?)))
    }

    /// With the embedded kernels, which are loaded once for each context.
    fn shared(context: Arc<SharedContext>) -> Result<Self> {
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        gpus.retain(|gpu| gpu.strong_count() > 0);
        if let Some(inner) = gpus.iter().filter_map(Weak::upgrade).find(|gpu| Arc::ptr_eq(&gpu.context, &context)) {
            return Ok(Self(inner));
        }
        let inner = Arc::new(Inner::describe(context, Modules::default())?);
        gpus.push(Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// GPU number `ordinal` as [`crate::attention`] uses it: it stays until the process ends, so that its kernels are loaded
    /// once.
    pub(crate) fn of_process(ordinal: usize) -> Result<Self> {
        static KEPT: Mutex<Vec<(usize, Gpu)>> = Mutex::new(Vec::new());
        // In a forked child the GPUs of the parent are of no use, and this says so.
        Driver::load()?;
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gpu)) = kept.iter().find(|(number, _)| *number == ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Self::new(ordinal)?;
        // A GPU whose driver cannot compile or load the kernels is of no use.
        gpu.load_any()?;
        kept.push((ordinal, gpu.clone()));
        Ok(gpu)
    }

    /// The number of the first GPU that runs the kernels, which is found out by loading some.
    pub(crate) fn first_usable() -> Result<usize> {
        let count = Driver::load()?.device_count()?;
        let mut reasons = Vec::new();
        for ordinal in 0..count {
            match Self::of_process(ordinal) {
                Ok(_) => return Ok(ordinal),
                Err(error) => reasons.push(error),
            }
        }
        match <[Error; 1]>::try_from(reasons) {
            Ok([error]) => Err(error),
            Err(reasons) => Err(Error::NoUsableGpu { reasons }),
        }
    }

    /// The GPU's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Major and minor compute capability.
    #[must_use]
    pub fn compute_capability(&self) -> (u32, u32) {
        self.0.capability
    }

    /// The peak rate of the GPU's INT8 tensor cores, as a multiple of that of float16 with float32 sums: what INT8 attention can
    /// be worth there. 2 on most, 4 on GeForce cards (which this does not tell from others of their compute capability), 1/15 on
    /// compute capability 10.3. `None` where it is not known. The figures and their sources are in docs/gpus.md.
    #[must_use]
    pub fn int8_rate(&self) -> Option<f32> {
        int8_rate::of(self.0.capability)
    }

    /// Streaming multiprocessors.
    ///
    /// # Errors
    /// What the driver says.
    pub fn multiprocessors(&self) -> Result<usize> {
        Ok(self.attribute(DeviceAttribute::MultiprocessorCount)? as usize)
    }

    /// Any property of the GPU.
    ///
    /// # Errors
    /// What the driver says.
    pub fn attribute(&self, attribute: DeviceAttribute) -> Result<i32> {
        Ok(self.0.context.driver.device_attribute(attribute, self.0.context.device)?)
    }

    /// The CUDA version that the driver supports, `1000 * major + 10 * minor`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn driver_version(&self) -> Result<u32> {
        Ok(self.0.context.driver.version()?)
    }

    /// Free and total bytes of the GPU's memory.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize)> {
        Ok(self.bind()?.memory_info()?)
    }

    /// Waits for everything that was given to the GPU in this context.
    ///
    /// # Errors
    /// [`Error::Recording`] while a graph is being recorded on the GPU; what the driver says, which includes errors of earlier
    /// launches.
    pub fn synchronize(&self) -> Result<()> {
        self.0.context.synchronize()
    }

    /// The driver, with this context current on the calling thread.
    #[inline]
    pub(crate) fn bind(&self) -> Result<Driver> {
        self.0.context.bind()
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.0.capability;
        write!(f, "Gpu({}, sm_{major}{minor})", self.0.name)
    }
}

impl Inner {
    /// What the driver says of the GPU.
    fn describe(context: Arc<SharedContext>, modules: Modules) -> Result<Self> {
        let SharedContext { driver, device, .. } = *context;
        let capability = Self::check_capability(driver, device)?;
        let shared_bytes = driver.device_attribute(DeviceAttribute::MaxSharedMemoryPerBlockOptin, device)? as usize;
        Ok(Self {
            modules,
            context,
            name: driver.device_name(device)?,
            capability,
            cuda: driver.version()?,
            shared_bytes,
        })
    }

    /// The compute capability, if the kernels run there.
    fn check_capability(driver: Driver, device: DeviceOrdinal) -> Result<(u32, u32)> {
        let major = driver.device_attribute(DeviceAttribute::ComputeCapabilityMajor, device)? as u32;
        let minor = driver.device_attribute(DeviceAttribute::ComputeCapabilityMinor, device)? as u32;
        if major < 8 {
            return Err(Error::ComputeCapability { device: driver.device_name(device)?, major, minor });
        }
        Ok((major, minor))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let modules = &mut self.modules;
        // An error means that the context is gone already, and the modules with it.
        let _ = self.context.beside_recordings(|driver| {
            // SAFETY: plans, buffers, streams and graphs hold a clone, so this is the last use.
            unsafe { modules.unload(driver) };
            Ok(())
        });
    }
}
