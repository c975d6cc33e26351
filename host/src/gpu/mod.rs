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

mod attention;
#[cfg(feature = "baseline")]
mod baseline;
mod dequantize;
mod embedded;
mod kernel;
mod memory;
mod operands;
mod quantize;
mod stream;

#[cfg(feature = "baseline")]
pub use baseline::{BaselineLayouts, BaselinePlan};

pub use attention::{AttentionOutput, AttentionPlan};
pub use dequantize::{DequantizePlan, Operand};
#[doc(hidden)]
pub use embedded::embedded_ptx;
pub use int_flash_attention_kernels::config::Family;
pub use memory::{AnySlice, AnySliceMut, DeviceBuffer, DeviceSlice, DeviceSliceMut};
pub use operands::{
    DeviceK, DeviceOperands, DeviceQ, DeviceV, ViewK, ViewMutK, ViewMutOperands, ViewMutQ, ViewMutV, ViewOperands,
    ViewQ, ViewV,
};
pub use quantize::{QuantizeKvPlan, QuantizeLayouts, QuantizePlan, QuantizeQPlan};
pub use stream::{Event, Graph, Stream, StreamRef};

use crate::error::{Error, Result};
use int_flash_attention_driver::{Context, DeviceAttribute, DeviceOrdinal, Driver};
use kernel::Modules;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A GPU's context and the kernels loaded into it. Clones share them; any thread may use any clone.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    driver: Driver,
    device: DeviceOrdinal,
    context: Context,
    /// Whether this object holds a reference to the primary context.
    retained: bool,
    name: String,
    capability: (u32, u32),
    /// The CUDA version that the driver supports.
    cuda: u32,
    shared_bytes: usize,
    modules: Modules,
}

impl Gpu {
    /// GPU number `ordinal`, in the primary context, which a process's libraries share.
    ///
    /// Methods make the context current on the thread that calls them, as `cudaSetDevice` does.
    ///
    /// # Errors
    /// No driver, no such GPU, or one older than compute capability 8.0.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, Modules::default())
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
        Self::open(ordinal, Modules::in_folder(folder.into()))
    }

    fn open(ordinal: usize, modules: Modules) -> Result<Self> {
        let driver = Driver::load()?;
        let count = driver.device_count()?;
        if ordinal >= count {
            return Err(Error::NoSuchDevice { given: ordinal, count });
        }
        let device = driver.device(ordinal as i32)?;
        let mut inner = Inner::describe(driver, device)?;
        inner.context = driver.retain_primary_context(device)?;
        inner.retained = true;
        inner.modules = modules;
        let gpu = Self(Arc::new(inner));
        gpu.bind()?;
        Ok(gpu)
    }

    /// The thread's current context, whoever made it (for instance `cust`). It has to outlive this object, its clones and
    /// what they made.
    ///
    /// # Errors
    /// No driver, no current context, or a GPU older than compute capability 8.0.
    pub fn current() -> Result<Self> {
        let driver = Driver::load()?;
        let context = driver.current_context()?;
        let mut inner = Inner::describe(driver, driver.current_device()?)?;
        inner.context = context;
        Ok(Self(Arc::new(inner)))
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
        Ok(self.0.driver.device_attribute(attribute, self.0.device)?)
    }

    /// The CUDA version that the driver supports, `1000 * major + 10 * minor`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn driver_version(&self) -> Result<u32> {
        Ok(self.0.driver.version()?)
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
    /// What the driver says, which includes errors of earlier launches.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.bind()?.synchronize()?)
    }

    /// The driver, with this context current on the calling thread.
    #[inline]
    pub(crate) fn bind(&self) -> Result<Driver> {
        let Inner { driver, context, .. } = *self.0;
        if driver.current_context()? != context {
            // SAFETY: retained by this object, or kept alive by the caller of `current`.
            unsafe { driver.set_current_context(context) }?;
        }
        Ok(driver)
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.0.capability;
        write!(f, "Gpu({}, sm_{major}{minor})", self.0.name)
    }
}

impl Inner {
    /// All but the context.
    fn describe(driver: Driver, device: DeviceOrdinal) -> Result<Self> {
        let attribute = |attribute| driver.device_attribute(attribute, device);
        let major = attribute(DeviceAttribute::ComputeCapabilityMajor)? as u32;
        let minor = attribute(DeviceAttribute::ComputeCapabilityMinor)? as u32;
        let name = driver.device_name(device)?;
        if major < 8 {
            return Err(Error::ComputeCapability { device: name, major, minor });
        }
        Ok(Self {
            driver,
            device,
            context: Context::NULL,
            retained: false,
            name,
            capability: (major, minor),
            cuda: driver.version()?,
            shared_bytes: attribute(DeviceAttribute::MaxSharedMemoryPerBlockOptin)? as usize,
            modules: Modules::default(),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Errors here mean that the context is gone already, and with it what would be given back.
        // SAFETY: plans, buffers and streams hold a clone, so this is the last use; the context was made by `new` or is
        // kept alive by the caller of `current`.
        unsafe {
            if self.driver.set_current_context(self.context).is_ok() {
                self.modules.unload(self.driver);
            }
            if self.retained {
                let _ = self.driver.release_primary_context(self.device);
            }
        }
    }
}
