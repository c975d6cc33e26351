//! `cust`'s buffers, slices, pointers and streams where this crate takes its own.
//!
//! `cust` knows `half`'s types of an older version; 16-bit floats are `u16` there, and
//! [`cast`](crate::DeviceSlice::cast) makes them `f16` or `bf16` here.

use crate::gpu::{DeviceSlice, DeviceSliceMut, StreamRef};
use bytemuck::Pod;
use cust::memory::{DeviceBuffer, DeviceCopy, DevicePointer, DeviceSlice as CustSlice};
use cust::stream::Stream;

impl<'a, T: Pod + DeviceCopy> From<&'a CustSlice<T>> for DeviceSlice<'a, T> {
    fn from(slice: &'a CustSlice<T>) -> Self {
        // SAFETY: the slice's own address and length, borrowed as long as the view.
        unsafe { Self::foreign(slice.as_device_ptr().as_raw(), slice.len()) }
    }
}

impl<'a, T: Pod + DeviceCopy> From<&'a mut CustSlice<T>> for DeviceSliceMut<'a, T> {
    fn from(slice: &'a mut CustSlice<T>) -> Self {
        // SAFETY: the slice's own address and length, borrowed as long as the view.
        unsafe { Self::foreign(slice.as_device_ptr().as_raw(), slice.len()) }
    }
}

impl<'a, T: Pod + DeviceCopy> From<&'a DeviceBuffer<T>> for DeviceSlice<'a, T> {
    fn from(buffer: &'a DeviceBuffer<T>) -> Self {
        Self::from(&**buffer)
    }
}

impl<'a, T: Pod + DeviceCopy> From<&'a mut DeviceBuffer<T>> for DeviceSliceMut<'a, T> {
    fn from(buffer: &'a mut DeviceBuffer<T>) -> Self {
        Self::from(&mut **buffer)
    }
}

impl<T: Pod + DeviceCopy> DeviceSlice<'_, T> {
    /// `len` elements at one of `cust`'s pointers.
    ///
    /// # Safety
    /// As [`from_raw`](Self::from_raw).
    #[must_use]
    pub unsafe fn from_cust(pointer: DevicePointer<T>, len: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::from_raw(pointer.as_raw(), len) }
    }
}

impl<T: Pod + DeviceCopy> DeviceSliceMut<'_, T> {
    /// `len` elements at one of `cust`'s pointers.
    ///
    /// # Safety
    /// As [`from_raw`](Self::from_raw).
    #[must_use]
    pub unsafe fn from_cust(pointer: DevicePointer<T>, len: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::from_raw(pointer.as_raw(), len) }
    }
}

impl<'a> From<&'a Stream> for StreamRef<'a> {
    fn from(stream: &'a Stream) -> Self {
        // SAFETY: the stream is borrowed as long as the reference.
        unsafe { Self::foreign(stream.as_inner().cast()) }
    }
}
