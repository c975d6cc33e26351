//! The driver's functions, looked up once.

use crate::error::DriverError;
use crate::types::{Context, DeviceOrdinal, DevicePtr, EventHandle, Function, Graph, GraphExec, Module, StreamHandle};
use libloading::Library;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

/// The driver's file.
#[cfg(not(windows))]
pub(crate) const LIBRARY: &str = "libcuda.so.1";
/// The driver's file.
#[cfg(windows)]
pub(crate) const LIBRARY: &str = "nvcuda.dll";

/// The driver, opened once and never closed (its functions may be called from any thread, to the end).
pub(crate) fn library() -> Result<&'static Library, DriverError> {
    static OPENED: OnceLock<Result<Library, String>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        // SAFETY: the initializers of the NVIDIA driver have no preconditions.
        unsafe { Library::new(LIBRARY) }.map_err(|error| error.to_string())
    });
    opened.as_ref().map_err(|detail| DriverError::NotFound { library: LIBRARY, detail: detail.clone() })
}

macro_rules! api {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// Pointers to the driver's functions; each returns a `CUresult`.
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "system" fn($($argument),*) -> u32,)*
        }

        impl Api {
            fn load() -> Result<Self, DriverError> {
                let library = library()?;
                $(
                    // SAFETY: the signature is cuda.h's.
                    let $name = unsafe { library.get($symbol.as_bytes()) };
                    let $name = *$name.map_err(|_| DriverError::MissingFunction { symbol: $symbol })?;
                )*
                Ok(Self { $($name,)* })
            }
        }
    };
}

api! {
    init = "cuInit" (u32);
    driver_get_version = "cuDriverGetVersion" (*mut i32);
    get_error_name = "cuGetErrorName" (u32, *mut *const c_char);
    get_error_string = "cuGetErrorString" (u32, *mut *const c_char);

    device_get = "cuDeviceGet" (*mut DeviceOrdinal, i32);
    device_get_count = "cuDeviceGetCount" (*mut i32);
    device_get_name = "cuDeviceGetName" (*mut c_char, i32, DeviceOrdinal);
    device_get_attribute = "cuDeviceGetAttribute" (*mut i32, i32, DeviceOrdinal);
    device_primary_ctx_retain = "cuDevicePrimaryCtxRetain" (*mut Context, DeviceOrdinal);
    device_primary_ctx_release = "cuDevicePrimaryCtxRelease_v2" (DeviceOrdinal);

    ctx_get_current = "cuCtxGetCurrent" (*mut Context);
    ctx_set_current = "cuCtxSetCurrent" (Context);
    ctx_get_device = "cuCtxGetDevice" (*mut DeviceOrdinal);
    ctx_synchronize = "cuCtxSynchronize" ();

    module_load_data_ex = "cuModuleLoadDataEx" (*mut Module, *const c_void, u32, *mut i32, *mut *mut c_void);
    module_unload = "cuModuleUnload" (Module);
    module_get_function = "cuModuleGetFunction" (*mut Function, Module, *const c_char);
    func_get_attribute = "cuFuncGetAttribute" (*mut i32, i32, Function);
    func_set_attribute = "cuFuncSetAttribute" (Function, i32, i32);
    launch_kernel = "cuLaunchKernel"
        (Function, u32, u32, u32, u32, u32, u32, u32, StreamHandle, *mut *mut c_void, *mut *mut c_void);

    mem_get_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    mem_alloc = "cuMemAlloc_v2" (*mut DevicePtr, usize);
    mem_free = "cuMemFree_v2" (DevicePtr);
    memcpy_htod = "cuMemcpyHtoD_v2" (DevicePtr, *const c_void, usize);
    memcpy_dtoh = "cuMemcpyDtoH_v2" (*mut c_void, DevicePtr, usize);
    memcpy_dtod = "cuMemcpyDtoD_v2" (DevicePtr, DevicePtr, usize);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2" (DevicePtr, *const c_void, usize, StreamHandle);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2" (*mut c_void, DevicePtr, usize, StreamHandle);
    memcpy_dtod_async = "cuMemcpyDtoDAsync_v2" (DevicePtr, DevicePtr, usize, StreamHandle);
    memset_d8 = "cuMemsetD8_v2" (DevicePtr, u8, usize);
    memset_d8_async = "cuMemsetD8Async" (DevicePtr, u8, usize, StreamHandle);

    stream_create = "cuStreamCreate" (*mut StreamHandle, u32);
    stream_destroy = "cuStreamDestroy_v2" (StreamHandle);
    stream_synchronize = "cuStreamSynchronize" (StreamHandle);
    stream_wait_event = "cuStreamWaitEvent" (StreamHandle, EventHandle, u32);
    stream_begin_capture = "cuStreamBeginCapture_v2" (StreamHandle, i32);
    stream_end_capture = "cuStreamEndCapture" (StreamHandle, *mut Graph);

    event_create = "cuEventCreate" (*mut EventHandle, u32);
    event_destroy = "cuEventDestroy_v2" (EventHandle);
    event_record = "cuEventRecord" (EventHandle, StreamHandle);
    event_synchronize = "cuEventSynchronize" (EventHandle);
    event_elapsed_time = "cuEventElapsedTime" (*mut f32, EventHandle, EventHandle);

    graph_instantiate = "cuGraphInstantiateWithFlags" (*mut GraphExec, Graph, u64);
    graph_launch = "cuGraphLaunch" (GraphExec, StreamHandle);
    graph_destroy = "cuGraphDestroy" (Graph);
    graph_exec_destroy = "cuGraphExecDestroy" (GraphExec);
}

/// The functions, or why there are none.
pub(crate) fn api() -> Result<&'static Api, DriverError> {
    static API: OnceLock<Result<Api, DriverError>> = OnceLock::new();
    API.get_or_init(Api::load).as_ref().map_err(Clone::clone)
}
