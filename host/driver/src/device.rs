//! Devices and contexts.

use crate::types::{Context, DeviceAttribute, DeviceOrdinal};
use crate::{Driver, Result};
use std::ffi::{CStr, c_char};

impl Driver {
    /// The CUDA version that the driver supports, `1000 * major + 10 * minor`.
    ///
    /// # Errors
    /// What `cuDriverGetVersion` says.
    pub fn version(self) -> Result<u32> {
        let mut version = 0;
        // SAFETY: the function stores one integer.
        self.check("cuDriverGetVersion", unsafe { (self.0.driver_get_version)(&mut version) })?;
        Ok(version as u32)
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// What `cuDeviceGetCount` says.
    pub fn device_count(self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the function stores one integer.
        self.check("cuDeviceGetCount", unsafe { (self.0.device_get_count)(&mut count) })?;
        Ok(count as usize)
    }

    /// The GPU with this number.
    ///
    /// # Errors
    /// What `cuDeviceGet` says.
    pub fn device(self, ordinal: i32) -> Result<DeviceOrdinal> {
        let mut device = 0;
        // SAFETY: the function stores one integer.
        self.check("cuDeviceGet", unsafe { (self.0.device_get)(&mut device, ordinal) })?;
        Ok(device)
    }

    /// A GPU's name.
    ///
    /// # Errors
    /// What `cuDeviceGetName` says.
    pub fn device_name(self, device: DeviceOrdinal) -> Result<String> {
        let mut name = [0 as c_char; 256];
        // SAFETY: the function writes at most 256 bytes; the last one stays zero.
        self.check("cuDeviceGetName", unsafe { (self.0.device_get_name)(name.as_mut_ptr(), 255, device) })?;
        // SAFETY: the array ends in a zero byte.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// A property of a GPU.
    ///
    /// # Errors
    /// What `cuDeviceGetAttribute` says.
    pub fn device_attribute(self, attribute: DeviceAttribute, device: DeviceOrdinal) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the function stores one integer.
        let code = unsafe { (self.0.device_get_attribute)(&mut value, attribute as i32, device) };
        self.check("cuDeviceGetAttribute", code)?;
        Ok(value)
    }

    /// The context that all of a process's libraries share on a GPU; one reference to it, to be given back with
    /// [`release_primary_context`](Self::release_primary_context).
    ///
    /// # Errors
    /// What `cuDevicePrimaryCtxRetain` says.
    pub fn retain_primary_context(self, device: DeviceOrdinal) -> Result<Context> {
        let mut context = Context::NULL;
        // SAFETY: the function stores one handle.
        let code = unsafe { (self.0.device_primary_ctx_retain)(&mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(context)
    }

    /// Gives one reference to the primary context back.
    ///
    /// # Safety
    /// The reference is the caller's, and nothing of the context is used through it any more.
    ///
    /// # Errors
    /// What `cuDevicePrimaryCtxRelease` says.
    pub unsafe fn release_primary_context(self, device: DeviceOrdinal) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuDevicePrimaryCtxRelease", unsafe { (self.0.device_primary_ctx_release)(device) })
    }

    /// Whether anything in the process holds the primary context of a GPU.
    ///
    /// # Errors
    /// What `cuDevicePrimaryCtxGetState` says.
    pub fn primary_context_is_active(self, device: DeviceOrdinal) -> Result<bool> {
        let (mut flags, mut active) = (0, 0);
        // SAFETY: the function stores two integers.
        let code = unsafe { (self.0.device_primary_ctx_get_state)(device, &mut flags, &mut active) };
        self.check("cuDevicePrimaryCtxGetState", code)?;
        Ok(active != 0)
    }

    /// The thread's current context, or null.
    ///
    /// # Errors
    /// What `cuCtxGetCurrent` says.
    #[inline]
    pub fn current_context(self) -> Result<Context> {
        let mut context = Context::NULL;
        // SAFETY: the function stores one handle.
        self.check("cuCtxGetCurrent", unsafe { (self.0.ctx_get_current)(&mut context) })?;
        Ok(context)
    }

    /// Makes a context the thread's current one.
    ///
    /// # Safety
    /// The context exists, as long as it is current.
    ///
    /// # Errors
    /// What `cuCtxSetCurrent` says.
    pub unsafe fn set_current_context(self, context: Context) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuCtxSetCurrent", unsafe { (self.0.ctx_set_current)(context) })
    }

    /// The GPU of the thread's current context.
    ///
    /// # Errors
    /// What `cuCtxGetDevice` says.
    pub fn current_device(self) -> Result<DeviceOrdinal> {
        let mut device = 0;
        // SAFETY: the function stores one integer.
        self.check("cuCtxGetDevice", unsafe { (self.0.ctx_get_device)(&mut device) })?;
        Ok(device)
    }

    /// Waits for everything in the thread's current context.
    ///
    /// # Errors
    /// What `cuCtxSynchronize` says, which includes errors of earlier launches.
    pub fn synchronize(self) -> Result<()> {
        // SAFETY: no arguments.
        self.check("cuCtxSynchronize", unsafe { (self.0.ctx_synchronize)() })
    }

    /// Lets the thread's current context reach the memory of another GPU's context, where the two GPUs can: copies between them then go
    /// straight. `false` where they cannot, and copies go through the host's memory.
    ///
    /// # Safety
    /// The other context exists, and is of GPU `of`.
    ///
    /// # Errors
    /// What `cuDeviceCanAccessPeer` and `cuCtxEnablePeerAccess` say.
    pub unsafe fn reach_peer(self, other: Context, of: DeviceOrdinal) -> Result<bool> {
        let (own, mut can) = (self.current_device()?, 0);
        // SAFETY: the function stores one integer.
        self.check("cuDeviceCanAccessPeer", unsafe { (self.0.device_can_access_peer)(&mut can, own, of) })?;
        if can == 0 {
            return Ok(false);
        }
        // SAFETY: the caller's promise.
        match unsafe { (self.0.ctx_enable_peer_access)(other, 0) } {
            PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            code => self.check("cuCtxEnablePeerAccess", code).map(|()| true),
        }
    }
}

/// `CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED`.
const PEER_ACCESS_ALREADY_ENABLED: u32 = 704;
