//! The driver's functions, looked up once.

use crate::error::DriverError;
use crate::types::{
    Context, DeviceOrdinal, DevicePtr, EventHandle, Function, Graph, GraphExec, GraphNode, KernelNode, LaunchConfig,
    Library, MemcpyPeer, Module, StreamHandle,
};
use std::ffi::{c_char, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The driver's file.
#[cfg(not(windows))]
pub(crate) const LIBRARY: &str = "libcuda.so.1";
/// The driver's file.
#[cfg(windows)]
pub(crate) const LIBRARY: &str = "nvcuda.dll";

/// A function's address by its name.
pub(crate) type Lookup = fn(&str) -> Option<NonNull<c_void>>;

/// Where the functions come from.
enum Source {
    /// The driver, opened once and never closed (its functions may be called from any thread, to the end).
    Library(libloading::Library),
    Given(Lookup),
}

static SOURCE: OnceLock<Result<Source, String>> = OnceLock::new();

/// Takes the functions from `lookup`; false where they have been looked for already.
pub(crate) fn set_lookup(lookup: Lookup) -> bool {
    SOURCE.set(Ok(Source::Given(lookup))).is_ok()
}

/// A function's address.
pub(crate) fn function(symbol: &'static str) -> Result<NonNull<c_void>, DriverError> {
    let source = SOURCE.get_or_init(|| {
        // SAFETY: the initializers of the NVIDIA driver have no preconditions.
        unsafe { libloading::Library::new(LIBRARY) }.map(Source::Library).map_err(|error| error.to_string())
    });
    let source = source.as_ref();
    let found = match source.map_err(|detail| DriverError::NotFound { library: LIBRARY, detail: detail.clone() })? {
        // SAFETY: any symbol's address is an address.
        Source::Library(library) => {
            unsafe { library.get::<*mut c_void>(symbol.as_bytes()) }.ok().and_then(|address| NonNull::new(*address))
        }
        Source::Given(lookup) => lookup(symbol),
    };
    found.ok_or(DriverError::MissingFunction { symbol })
}

macro_rules! api {
    ($($name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// Pointers to the driver's functions; each returns a `CUresult`.
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "system" fn($($argument),*) -> u32,)*
        }

        impl Api {
            fn load() -> Result<Self, DriverError> {
                $(
                    let $name = function($symbol)?.as_ptr();
                    // SAFETY: the signature is cuda.h's.
                    let $name: unsafe extern "system" fn($($argument),*) -> u32 = unsafe { std::mem::transmute($name) };
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
    device_can_access_peer = "cuDeviceCanAccessPeer" (*mut i32, DeviceOrdinal, DeviceOrdinal);
    device_primary_ctx_retain = "cuDevicePrimaryCtxRetain" (*mut Context, DeviceOrdinal);
    device_primary_ctx_release = "cuDevicePrimaryCtxRelease_v2" (DeviceOrdinal);
    device_primary_ctx_get_state = "cuDevicePrimaryCtxGetState" (DeviceOrdinal, *mut u32, *mut i32);

    ctx_get_current = "cuCtxGetCurrent" (*mut Context);
    ctx_set_current = "cuCtxSetCurrent" (Context);
    ctx_get_device = "cuCtxGetDevice" (*mut DeviceOrdinal);
    ctx_synchronize = "cuCtxSynchronize" ();
    ctx_enable_peer_access = "cuCtxEnablePeerAccess" (Context, u32);

    module_load_data_ex = "cuModuleLoadDataEx" (*mut Module, *const c_void, u32, *mut i32, *mut *mut c_void);
    module_unload = "cuModuleUnload" (Module);
    module_get_function = "cuModuleGetFunction" (*mut Function, Module, *const c_char);
    library_load_data = "cuLibraryLoadData"
        (*mut Library, *const c_void, *mut i32, *mut *mut c_void, u32, *mut i32, *mut *mut c_void, u32);
    library_unload = "cuLibraryUnload" (Library);
    library_get_kernel = "cuLibraryGetKernel" (*mut *mut c_void, Library, *const c_char);
    kernel_get_function = "cuKernelGetFunction" (*mut Function, *mut c_void);
    func_get_attribute = "cuFuncGetAttribute" (*mut i32, i32, Function);
    func_set_attribute = "cuFuncSetAttribute" (Function, i32, i32);
    launch_kernel = "cuLaunchKernel"
        (Function, u32, u32, u32, u32, u32, u32, u32, StreamHandle, *mut *mut c_void, *mut *mut c_void);
    launch_kernel_ex = "cuLaunchKernelEx" (*const LaunchConfig, Function, *mut *mut c_void, *mut *mut c_void);

    pointer_get_attribute = "cuPointerGetAttribute" (*mut c_void, i32, DevicePtr);
    mem_get_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    mem_alloc = "cuMemAlloc_v2" (*mut DevicePtr, usize);
    mem_free = "cuMemFree_v2" (DevicePtr);
    memcpy_htod = "cuMemcpyHtoD_v2" (DevicePtr, *const c_void, usize);
    memcpy_dtoh = "cuMemcpyDtoH_v2" (*mut c_void, DevicePtr, usize);
    memcpy_dtod = "cuMemcpyDtoD_v2" (DevicePtr, DevicePtr, usize);
    memcpy_htod_async = "cuMemcpyHtoDAsync_v2" (DevicePtr, *const c_void, usize, StreamHandle);
    memcpy_dtoh_async = "cuMemcpyDtoHAsync_v2" (*mut c_void, DevicePtr, usize, StreamHandle);
    memcpy_dtod_async = "cuMemcpyDtoDAsync_v2" (DevicePtr, DevicePtr, usize, StreamHandle);
    memcpy_peer_async = "cuMemcpyPeerAsync" (DevicePtr, Context, DevicePtr, Context, usize, StreamHandle);
    memcpy_3d_peer_async = "cuMemcpy3DPeerAsync" (*const MemcpyPeer, StreamHandle);
    memset_d8 = "cuMemsetD8_v2" (DevicePtr, u8, usize);
    memset_d8_async = "cuMemsetD8Async" (DevicePtr, u8, usize, StreamHandle);

    stream_create = "cuStreamCreate" (*mut StreamHandle, u32);
    stream_destroy = "cuStreamDestroy_v2" (StreamHandle);
    stream_synchronize = "cuStreamSynchronize" (StreamHandle);
    stream_wait_event = "cuStreamWaitEvent" (StreamHandle, EventHandle, u32);
    stream_get_ctx = "cuStreamGetCtx" (StreamHandle, *mut Context);
    stream_begin_capture = "cuStreamBeginCapture_v2" (StreamHandle, i32);
    stream_end_capture = "cuStreamEndCapture" (StreamHandle, *mut Graph);
    stream_get_capture_info = "cuStreamGetCaptureInfo_v2"
        (StreamHandle, *mut i32, *mut u64, *mut Graph, *mut *const c_void, *mut usize);
    thread_exchange_stream_capture_mode = "cuThreadExchangeStreamCaptureMode" (*mut i32);

    event_create = "cuEventCreate" (*mut EventHandle, u32);
    event_destroy = "cuEventDestroy_v2" (EventHandle);
    event_record = "cuEventRecord" (EventHandle, StreamHandle);
    event_synchronize = "cuEventSynchronize" (EventHandle);
    event_elapsed_time = "cuEventElapsedTime" (*mut f32, EventHandle, EventHandle);

    graph_create = "cuGraphCreate" (*mut Graph, u32);
    graph_add_kernel_node = "cuGraphAddKernelNode" (*mut GraphNode, Graph, *const GraphNode, usize, *const KernelNode);
    graph_exec_kernel_node_set_params = "cuGraphExecKernelNodeSetParams" (GraphExec, GraphNode, *const KernelNode);
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
