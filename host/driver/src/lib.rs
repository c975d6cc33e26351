//! The CUDA driver API, opened at run time.
//!
//! [`Driver::load`] opens `libcuda.so.1`, which is part of the NVIDIA driver. A program that uses this crate builds, links
//! and starts on a machine without a CUDA toolkit and without a driver; there `load` is an error that says so.
//!
//! ```
//! use int_flash_attention_driver::{Driver, DriverError};
//! match Driver::load() {
//!     Ok(driver) => println!("{} devices", driver.device_count()?),
//!     Err(DriverError::NotFound { library, .. }) => println!("no {library} here"),
//!     Err(other) => return Err(other),
//! }
//! # Ok::<(), DriverError>(())
//! ```
//!
//! # The feature `cust`
//!
//! The crate [`cust`](https://docs.rs/cust/0.3.2) links the driver's functions by name: its programs need `libcuda` to be
//! built, and to start. With this feature the present crate defines those functions. Each one looks the real function up
//! in `libcuda.so.1` when it is first called and jumps to it; where there is no driver it returns
//! `CUDA_ERROR_NOT_INITIALIZED`. Linux on x86-64 and AArch64.
//!
//! cust's build script wants a toolkit's folder to exist all the same; `CUDA_LIBRARY_PATH=/` satisfies it on machines that
//! have a `/lib64` (nothing is taken from there).
#![deny(missing_docs)]

mod api;
mod device;
mod error;
mod graph;
mod memory;
mod module;
mod stream;
#[cfg(all(feature = "cust", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod symbols;
#[cfg(all(feature = "cust", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod trampoline;
mod types;

pub use error::DriverError;
pub use types::{
    CaptureMode, Context, DeviceAttribute, DeviceOrdinal, DevicePtr, EventHandle, Function, FunctionAttribute, Graph,
    GraphExec, GraphNode, LaunchShape, Library, Module, StreamHandle,
};

use api::{Api, api};
use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// What every call returns.
pub type Result<T> = std::result::Result<T, DriverError>;

/// The driver: its functions as methods that return errors. Copies are free.
#[derive(Clone, Copy)]
pub struct Driver(&'static Api);

/// Which process initialized the driver, and what it said.
struct Initialized {
    process: u32,
    result: Result<()>,
}

static INITIALIZED: OnceLock<Initialized> = OnceLock::new();

/// Whether this is a child, by `fork`, of a process that had initialized the driver.
fn forked() -> bool {
    INITIALIZED.get().is_some_and(|by| by.result.is_ok() && by.process != std::process::id())
}

impl Driver {
    /// Opens and initializes the driver (once; later calls return at once).
    ///
    /// # Errors
    /// [`DriverError::NotFound`] without a driver, [`DriverError::MissingFunction`] with one from before CUDA 12.0,
    /// [`DriverError::Forked`] in the child of a process that had loaded it, or what `cuInit` says, for instance that there is
    /// no GPU.
    pub fn load() -> Result<Self> {
        let driver = Self(api()?);
        let initialize = || Initialized {
            process: std::process::id(),
            // SAFETY: the only flag that there is.
            result: driver.check("cuInit", unsafe { (driver.0.init)(0) }),
        };
        INITIALIZED.get_or_init(initialize).result.clone()?;
        if forked() { Err(DriverError::Forked) } else { Ok(driver) }
    }

    /// Takes the driver's functions from `lookup`, which gives a function's address for its name as the library exports it
    /// (`cuMemAlloc_v2`), in place of the NVIDIA driver's library: an interposer's, or those of a pretended driver in tests.
    /// Returns false, and changes nothing, where functions have been looked for already.
    ///
    /// # Safety
    /// The functions have the signatures and the effects that NVIDIA documents for them, to the end of the process.
    #[must_use]
    pub unsafe fn set_lookup(lookup: fn(&str) -> Option<NonNull<c_void>>) -> bool {
        api::set_lookup(lookup)
    }

    /// A `CUresult` as a `Result`.
    #[inline]
    fn check(self, call: &'static str, code: u32) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(self.error(call, code)) }
    }

    #[cold]
    fn error(self, call: &'static str, code: u32) -> DriverError {
        if code == error::NOT_INITIALIZED && forked() {
            return DriverError::Forked;
        }
        let (name, text) = self.describe(code);
        DriverError::Call { call, code, name, text }
    }

    /// Name and sentence of a `CUresult`.
    fn describe(self, code: u32) -> (String, String) {
        let text = |function: unsafe extern "system" fn(u32, *mut *const c_char) -> u32, unknown: &str| {
            let mut text = std::ptr::null();
            // SAFETY: the function stores a pointer to a static string, or null where it does not know the code.
            unsafe {
                if function(code, &mut text) != 0 || text.is_null() {
                    return unknown.to_owned();
                }
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        (text(self.0.get_error_name, "unknown error"), text(self.0.get_error_string, "the driver has no text for it"))
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_a_sentence() {
        match Driver::load() {
            Ok(driver) => assert!(driver.version().unwrap() >= 12000),
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.contains("libcuda.so.1") || error.code().is_some(), "{sentence}");
                println!("no GPU: {sentence}");
            }
        }
    }
}
