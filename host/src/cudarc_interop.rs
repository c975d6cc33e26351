//! `cudarc`'s slices, views and streams where this crate takes its own.

use crate::gpu::{DeviceSlice, DeviceSliceMut, StreamRef};
use bytemuck::Pod;
use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop};
use int_flash_attention_driver::StreamHandle;
use std::marker::PhantomData;

mod sealed {
    /// `cudarc`'s own types, whose addresses and lengths are right. Anyone can implement its traits:
    ///
    /// ```compile_fail,E0277
    /// use cudarc::driver::{CudaStream, DevicePtr, DeviceSlice, SyncOnDrop};
    /// use std::sync::Arc;
    /// struct Forged(Arc<CudaStream>);
    /// impl DeviceSlice<f32> for Forged {
    ///     fn len(&self) -> usize {
    ///         1 << 40
    ///     }
    ///     fn stream(&self) -> &Arc<CudaStream> {
    ///         &self.0
    ///     }
    /// }
    /// impl DevicePtr<f32> for Forged {
    ///     fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
    ///         (0x1000, SyncOnDrop::sync_stream(stream))
    ///     }
    /// }
    /// fn take(forged: &Forged) {
    ///     let _ = int_flash_attention::CudarcSlice::new(forged, &forged.0);
    /// }
    /// ```
    pub trait Memory {}
}

impl<T> sealed::Memory for CudaSlice<T> {}
impl<T> sealed::Memory for CudaView<'_, T> {}
impl<T> sealed::Memory for CudaViewMut<'_, T> {}

/// `cudarc` memory to be read by launches on a stream; those on other streams are refused.
///
/// `cudarc` orders the use of a slice on several streams by events, which it records when the address has been used. This object therefore lives from before the launch until after it,
/// and is dropped and not forgotten:
///
/// ```no_run
/// use cudarc::driver::CudaContext;
/// use int_flash_attention::{CudarcSlice, CudarcSliceMut, Gpu};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let context = CudaContext::new(0)?;
/// let stream = context.default_stream();
/// let (scores, mut copy) = (stream.clone_htod(&[1.0_f32, 2.0])?, stream.alloc_zeros::<f32>(2)?);
/// let gpu = Gpu::new(0)?; // the primary context, as `CudaContext::new` has it
/// let (scores, mut copy) = (CudarcSlice::new(&scores, &stream), CudarcSliceMut::new(&mut copy, &stream));
/// let (_read, _written) = (scores.view(), copy.view_mut()); // for a plan's `launch(&*stream, ...)`
/// # let _ = gpu;
/// # Ok(()) }
/// ```
pub struct CudarcSlice<'a, T> {
    address: u64,
    len: usize,
    stream: StreamHandle,
    /// Marks the end of the use when it is dropped.
    _used: SyncOnDrop<'a>,
    elements: PhantomData<&'a [T]>,
}

impl<'a, T: Pod> CudarcSlice<'a, T> {
    /// A `CudaSlice`, `CudaView` or `CudaViewMut`; the stream waits for what writes it.
    #[must_use]
    pub fn new(memory: &'a (impl DevicePtr<T> + sealed::Memory), stream: &'a CudaStream) -> Self {
        let len = memory.len();
        let (address, used) = memory.device_ptr(stream);
        Self { address, len, stream: handle(stream), _used: used, elements: PhantomData }
    }

    /// To be read by a kernel.
    #[must_use]
    pub fn view(&self) -> DeviceSlice<'_, T> {
        // SAFETY: the slice's own address and length, borrowed as long as the view; `cudarc` waits for the stream before others have it.
        unsafe { DeviceSlice::foreign_on(self.address, self.len, self.stream) }
    }
}

/// `cudarc` memory to be written by launches on a stream; as [`CudarcSlice`].
pub struct CudarcSliceMut<'a, T> {
    address: u64,
    len: usize,
    stream: StreamHandle,
    /// Marks the end of the use when it is dropped.
    _used: SyncOnDrop<'a>,
    elements: PhantomData<&'a mut [T]>,
}

impl<'a, T: Pod> CudarcSliceMut<'a, T> {
    /// A `CudaSlice` or `CudaViewMut`; the stream waits for what uses it.
    #[must_use]
    pub fn new(memory: &'a mut (impl DevicePtrMut<T> + sealed::Memory), stream: &'a CudaStream) -> Self {
        let len = memory.len();
        let (address, used) = memory.device_ptr_mut(stream);
        Self { address, len, stream: handle(stream), _used: used, elements: PhantomData }
    }

    /// To be written by a kernel.
    #[must_use]
    pub fn view_mut(&mut self) -> DeviceSliceMut<'_, T> {
        // SAFETY: the slice's own address and length, borrowed as long as the view; `cudarc` waits for the stream before others have it.
        unsafe { DeviceSliceMut::foreign_on(self.address, self.len, self.stream) }
    }
}

fn handle(stream: &CudaStream) -> StreamHandle {
    StreamHandle(stream.cu_stream().cast())
}

impl<'a> From<&'a CudaStream> for StreamRef<'a> {
    fn from(stream: &'a CudaStream) -> Self {
        // SAFETY: the stream is borrowed as long as the reference.
        unsafe { Self::foreign(stream.cu_stream().cast()) }
    }
}
