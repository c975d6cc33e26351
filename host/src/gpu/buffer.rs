//! Memory of a GPU that this crate owns.

use super::memory::Home;
use super::one_buffer::{Arrays, Taken};
use super::{DeviceSlice, DeviceSliceMut, Gpu, Stream};
use crate::error::{Error, Result};
use bytemuck::Pod;
use int_flash_attention_driver::{DevicePtr, Driver};
use std::marker::PhantomData;
use std::sync::Arc;

/// An allocation.
#[derive(Debug)]
pub(super) struct Memory {
    gpu: Gpu,
    ptr: DevicePtr,
}

impl Memory {
    pub(super) const fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `uninitialized_bytes`; what shares it has a clone of the `Arc`; views borrow their buffer, and graphs keep a clone as well.
        unsafe { self.gpu.0.context.free(self.ptr) };
    }
}

/// Memory of a GPU that this object owns, or part of an allocation that it shares. A graph that was recorded with it keeps the memory as
/// well.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    memory: Arc<Memory>,
    ptr: DevicePtr,
    len: usize,
    elements: PhantomData<T>,
}

impl Gpu {
    /// Room for `len` elements, all bytes zero. Works beside a recording, and waits for nothing else.
    ///
    /// # Errors
    /// More bytes than 63 bits hold, or what the driver says, for instance that there is not so much memory.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        let buffer = self.uninitialized(len)?;
        // SAFETY: just allocated with so many bytes. Waiting makes it ready for every stream.
        self.0
            .context
            .transfer(|driver, stream| unsafe { driver.fill_async(buffer.ptr(), 0, len * size_of::<T>(), stream) })?;
        Ok(buffer)
    }

    /// A copy of `values`. Works beside a recording, and waits for nothing else.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.uninitialized(values.len())?;
        buffer.transfer_from(values)?;
        Ok(buffer)
    }

    fn uninitialized<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| i64::try_from(bytes).is_ok());
        let bytes = bytes.ok_or_else(|| Error::Overflow { what: "the bytes", shape: format!("{len} elements") })?;
        let memory = self.uninitialized_bytes(bytes)?;
        Ok(DeviceBuffer { ptr: memory.ptr, memory, len, elements: PhantomData })
    }

    /// An allocation.
    pub(super) fn uninitialized_bytes(&self, bytes: usize) -> Result<Arc<Memory>> {
        self.0.context.free_given_up();
        let ptr = self.0.context.beside_recordings(|driver| Ok(driver.alloc(bytes)?))?;
        Ok(Arc::new(Memory { gpu: self.clone(), ptr }))
    }
}

/// An allocation that buffers share, in the order in which they are taken. It is large enough for them.
pub(super) struct Parts {
    memory: Arc<Memory>,
    taken: Taken,
}

impl Parts {
    pub(super) fn of(memory: Arc<Memory>) -> Self {
        Self { memory, taken: Taken::default() }
    }

    fn next<T>(&mut self, len: usize) -> DeviceBuffer<T> {
        let ptr = self.memory.ptr + self.taken.take::<T>(len) as u64;
        DeviceBuffer { memory: self.memory.clone(), ptr, len, elements: PhantomData }
    }
}

impl Arrays for Parts {
    type Codes = DeviceBuffer<i8>;
    type Floats = DeviceBuffer<f32>;
    fn codes(&mut self, len: usize) -> Self::Codes {
        self.next(len)
    }
    fn floats(&mut self, len: usize) -> Self::Floats {
        self.next(len)
    }
}

impl<T: Pod> DeviceBuffer<T> {
    /// Elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element's address on the GPU.
    #[must_use]
    pub const fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    /// To be read by a kernel.
    #[must_use]
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice::of(self.ptr(), self.len, Home::Buffer(&self.memory))
    }

    /// To be written by a kernel.
    #[must_use]
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut::of(self.ptr(), self.len, Home::Buffer(&self.memory))
    }

    /// Copies all elements from the host, after everything that the GPU was given, and waits.
    ///
    /// # Errors
    /// Another number of elements; [`Error::Recording`] while a graph is being recorded on the GPU, where
    /// [`copy_from_on`](Self::copy_from_on) works; what the driver says.
    pub fn copy_from(&mut self, values: &[T]) -> Result<()> {
        self.check_len(values.len())?;
        self.gpu().synchronize()?;
        self.transfer_from(values)
    }

    /// Copies all elements from the host in the stream's order, and waits for the stream.
    ///
    /// # Errors
    /// Another number of elements; a stream of another context, or one that is being recorded; what the driver says.
    pub fn copy_from_on(&mut self, stream: &Stream, values: &[T]) -> Result<()> {
        self.check_len(values.len())?;
        let stream = self.gpu().launching(stream.into())?.not_recorded("a copy from the host")?;
        let copy = |driver: Driver, stream| {
            // SAFETY: the buffer has as many bytes, and the values are borrowed until the stream has come there.
            unsafe { driver.copy_to_device_async(self.ptr(), values.as_ptr().cast(), size_of_val(values), stream) }
        };
        self.gpu().0.context.on_stream(stream, copy)
    }

    /// Into memory that nothing on the GPU uses.
    fn transfer_from(&mut self, values: &[T]) -> Result<()> {
        // SAFETY: the buffer has as many bytes; they are borrowed until the copy is done.
        self.gpu().0.context.transfer(|driver, stream| unsafe {
            driver.copy_to_device_async(self.ptr(), values.as_ptr().cast(), size_of_val(values), stream)
        })
    }

    /// Copies all elements to the host, after everything that the GPU was given.
    ///
    /// # Errors
    /// Another number of elements; [`Error::Recording`] while a graph is being recorded on the GPU, where
    /// [`to_vec_on`](Self::to_vec_on) works; what the driver says, which includes errors of earlier launches.
    pub fn copy_to(&self, values: &mut [T]) -> Result<()> {
        self.check_len(values.len())?;
        self.gpu().synchronize()?;
        // SAFETY: the buffer has as many bytes; they are borrowed until the copy is done.
        self.gpu().0.context.transfer(|driver, stream| unsafe {
            driver.copy_to_host_async(values.as_mut_ptr().cast(), self.ptr(), size_of_val(values), stream)
        })
    }

    /// All elements, after everything that the GPU was given.
    ///
    /// # Errors
    /// As [`copy_to`](Self::copy_to).
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.len];
        self.copy_to(&mut values)?;
        Ok(values)
    }

    /// All elements, after everything that the stream was given.
    ///
    /// # Errors
    /// A stream of another context, or one that is being recorded; what the driver says, which includes errors of earlier
    /// launches.
    pub fn to_vec_on(&self, stream: &Stream) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.len];
        let stream = self.gpu().launching(stream.into())?.not_recorded("a copy to the host")?;
        let bytes = size_of_val(&*values);
        let to = values.as_mut_ptr();
        // SAFETY: the buffer has as many bytes, and the values are there until the stream has come there.
        let copy = |driver: Driver, stream| unsafe { driver.copy_to_host_async(to.cast(), self.ptr(), bytes, stream) };
        self.gpu().0.context.on_stream(stream, copy)?;
        Ok(values)
    }

    fn check_len(&self, given: usize) -> Result<()> {
        if given == self.len {
            return Ok(());
        }
        Err(Error::Length { name: "the host's slice", given, expected: self.len })
    }
}
