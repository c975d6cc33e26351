//! Memory of the current context.

use crate::types::{Context, DeviceOrdinal, DevicePtr, MemcpyPeer, MemcpyPeerSide, StreamHandle, pointer_attribute};
use crate::{Driver, Result};
use std::ffi::c_void;

impl Driver {
    /// Free and total bytes of the GPU's memory.
    ///
    /// # Errors
    /// What `cuMemGetInfo` says.
    pub fn memory_info(self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the function stores two integers.
        self.check("cuMemGetInfo", unsafe { (self.0.mem_get_info)(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// The GPU and the context that an address belongs to; memory of a pool belongs to none ([`Context::NULL`]).
    ///
    /// # Errors
    /// What `cuPointerGetAttribute` says, for instance that the address is no memory of a GPU.
    pub fn pointer_home(self, pointer: DevicePtr) -> Result<(DeviceOrdinal, Context)> {
        let (mut device, mut context) = (0, Context::NULL);
        let query = |to: *mut c_void, attribute| {
            // SAFETY: the function stores what the attribute is, an integer or a handle; it looks the address up in a table.
            self.check("cuPointerGetAttribute", unsafe { (self.0.pointer_get_attribute)(to, attribute, pointer) })
        };
        query((&raw mut device).cast(), pointer_attribute::DEVICE_ORDINAL)?;
        query((&raw mut context).cast(), pointer_attribute::CONTEXT)?;
        Ok((device, context))
    }

    /// Allocates `bytes` (at least one), uninitialized, at a multiple of 256 bytes.
    ///
    /// # Errors
    /// What `cuMemAlloc` says, for instance that there is not so much memory.
    pub fn alloc(self, bytes: usize) -> Result<DevicePtr> {
        let mut pointer = 0;
        // SAFETY: the function stores one address.
        self.check("cuMemAlloc", unsafe { (self.0.mem_alloc)(&mut pointer, bytes.max(1)) })?;
        Ok(pointer)
    }

    /// Frees an allocation, after the work that was given to the GPU before.
    ///
    /// # Safety
    /// `pointer` is from [`alloc`](Self::alloc) in this context, and not used any more.
    ///
    /// # Errors
    /// What `cuMemFree` says.
    pub unsafe fn free(self, pointer: DevicePtr) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemFree", unsafe { (self.0.mem_free)(pointer) })
    }

    /// Copies to the GPU, and waits.
    ///
    /// # Safety
    /// `to` has room for `from`, and nothing on the GPU uses it meanwhile.
    ///
    /// # Errors
    /// What `cuMemcpyHtoD` says.
    pub unsafe fn copy_to_device(self, to: DevicePtr, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyHtoD", unsafe { (self.0.memcpy_htod)(to, from.as_ptr().cast(), from.len()) })
    }

    /// Copies from the GPU, and waits.
    ///
    /// # Safety
    /// `from` has as many bytes as `to`, and nothing on the GPU writes them meanwhile.
    ///
    /// # Errors
    /// What `cuMemcpyDtoH` says.
    pub unsafe fn copy_to_host(self, to: &mut [u8], from: DevicePtr) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyDtoH", unsafe { (self.0.memcpy_dtoh)(to.as_mut_ptr().cast(), from, to.len()) })
    }

    /// Copies between places on the GPU.
    ///
    /// # Safety
    /// Both have `bytes` bytes and do not overlap, and nothing else uses them meanwhile.
    ///
    /// # Errors
    /// What `cuMemcpyDtoD` says.
    pub unsafe fn copy_on_device(self, to: DevicePtr, from: DevicePtr, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyDtoD", unsafe { (self.0.memcpy_dtod)(to, from, bytes) })
    }

    /// Copies from a GPU to another one, or on one, in the stream's order. Addresses are of the contexts beside them.
    ///
    /// # Safety
    /// Both have `bytes` bytes and do not overlap, and nothing else uses them until the stream has come there; contexts and stream are alive.
    ///
    /// # Errors
    /// What `cuMemcpyPeerAsync` says.
    pub unsafe fn copy_to_peer_async(
        self,
        (to, to_context): (DevicePtr, Context),
        (from, from_context): (DevicePtr, Context),
        bytes: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.0.memcpy_peer_async)(to, to_context, from, from_context, bytes, stream) };
        self.check("cuMemcpyPeerAsync", code)
    }

    /// Copies rows of bytes from a GPU to another one, or on one, in the stream's order. Beside an address, its context and the bytes from a row
    /// to the next.
    ///
    /// # Safety
    /// As [`copy_to_peer_async`](Self::copy_to_peer_async), of so many rows.
    ///
    /// # Errors
    /// What `cuMemcpy3DPeerAsync` says.
    pub unsafe fn copy_rows_to_peer_async(
        self,
        (to, to_context, to_pitch): (DevicePtr, Context, usize),
        (from, from_context, from_pitch): (DevicePtr, Context, usize),
        (rows, bytes): (usize, usize),
        stream: StreamHandle,
    ) -> Result<()> {
        let from = MemcpyPeerSide::new(from, from_context, from_pitch);
        let to = MemcpyPeerSide::new(to, to_context, to_pitch);
        let copy = MemcpyPeer { from, to, bytes, rows, depth: 1 };
        // SAFETY: the caller's promise; the function reads the structure before it returns.
        self.check("cuMemcpy3DPeerAsync", unsafe { (self.0.memcpy_3d_peer_async)(&raw const copy, stream) })
    }

    /// Copies to the GPU in the stream's order.
    ///
    /// # Safety
    /// As [`copy_to_device`](Self::copy_to_device), with `bytes` readable bytes at `from` until the stream has come there.
    ///
    /// # Errors
    /// What `cuMemcpyHtoDAsync` says.
    pub unsafe fn copy_to_device_async(
        self,
        to: DevicePtr,
        from: *const c_void,
        bytes: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyHtoDAsync", unsafe { (self.0.memcpy_htod_async)(to, from, bytes, stream) })
    }

    /// Copies from the GPU in the stream's order.
    ///
    /// # Safety
    /// As [`copy_to_host`](Self::copy_to_host), with `bytes` writable bytes at `to` until the stream has come there.
    ///
    /// # Errors
    /// What `cuMemcpyDtoHAsync` says.
    pub unsafe fn copy_to_host_async(
        self,
        to: *mut c_void,
        from: DevicePtr,
        bytes: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyDtoHAsync", unsafe { (self.0.memcpy_dtoh_async)(to, from, bytes, stream) })
    }

    /// Copies between places on the GPU in the stream's order.
    ///
    /// # Safety
    /// As [`copy_on_device`](Self::copy_on_device), until the stream has come there.
    ///
    /// # Errors
    /// What `cuMemcpyDtoDAsync` says.
    pub unsafe fn copy_on_device_async(
        self,
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemcpyDtoDAsync", unsafe { (self.0.memcpy_dtod_async)(to, from, bytes, stream) })
    }

    /// Fills with a byte.
    ///
    /// # Safety
    /// `to` has `bytes` bytes that nothing else uses meanwhile.
    ///
    /// # Errors
    /// What `cuMemsetD8` says.
    pub unsafe fn fill(self, to: DevicePtr, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemsetD8", unsafe { (self.0.memset_d8)(to, byte, bytes) })
    }

    /// Fills with a byte in the stream's order.
    ///
    /// # Safety
    /// As [`fill`](Self::fill), until the stream has come there.
    ///
    /// # Errors
    /// What `cuMemsetD8Async` says.
    pub unsafe fn fill_async(self, to: DevicePtr, byte: u8, bytes: usize, stream: StreamHandle) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuMemsetD8Async", unsafe { (self.0.memset_d8_async)(to, byte, bytes, stream) })
    }
}
