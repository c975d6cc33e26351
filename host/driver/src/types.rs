//! The driver's types and constants (cuda.h), as far as this crate uses them.

use std::ffi::c_void;

/// `CUdevice`: an ordinal.
pub type DeviceOrdinal = i32;
/// `CUdeviceptr`: an address in a GPU's memory.
pub type DevicePtr = u64;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub *mut c_void);

        // SAFETY: the driver's handles may be used from any thread.
        unsafe impl Send for $name {}
        // SAFETY: as above; the driver locks.
        unsafe impl Sync for $name {}

        impl $name {
            /// No object (for a stream: the default stream).
            pub const NULL: Self = Self(std::ptr::null_mut());

            /// Whether this is no object.
            #[must_use]
            pub const fn is_null(self) -> bool {
                self.0.is_null()
            }
        }
    )*};
}

handles! {
    /// `CUcontext`.
    Context;
    /// `CUmodule`.
    Module;
    /// `CUfunction`.
    Function;
    /// `CUlibrary`.
    Library;
    /// `CUstream`.
    StreamHandle;
    /// `CUevent`.
    EventHandle;
    /// `CUgraph`.
    Graph;
    /// `CUgraphNode`.
    GraphNode;
    /// `CUgraphExec`.
    GraphExec;
}

/// `CUdevice_attribute`: the numbers of cuda.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DeviceAttribute {
    /// Shared memory of a block without asking for more, in bytes.
    MaxSharedMemoryPerBlock = 8,
    /// Clock in kHz.
    ClockRate = 13,
    /// Streaming multiprocessors.
    MultiprocessorCount = 16,
    /// Clock of the memory in kHz.
    MemoryClockRate = 36,
    /// Width of the memory bus in bits.
    GlobalMemoryBusWidth = 37,
    /// Size of the L2 cache in bytes.
    L2CacheSize = 38,
    /// Major compute capability.
    ComputeCapabilityMajor = 75,
    /// Minor compute capability.
    ComputeCapabilityMinor = 76,
    /// Shared memory of a multiprocessor, in bytes.
    MaxSharedMemoryPerMultiprocessor = 81,
    /// Shared memory that a block may ask for, in bytes.
    MaxSharedMemoryPerBlockOptin = 97,
}

/// `CUfunction_attribute`: the numbers of cuda.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum FunctionAttribute {
    /// Most threads of a block.
    MaxThreadsPerBlock = 0,
    /// Static shared memory in bytes.
    SharedSizeBytes = 1,
    /// Local memory of a thread in bytes (spills).
    LocalSizeBytes = 3,
    /// Registers of a thread.
    NumRegs = 4,
    /// Most dynamic shared memory a launch may ask for, in bytes.
    MaxDynamicSharedSizeBytes = 8,
}

/// What a stream being recorded forbids elsewhere (`CUstreamCaptureMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum CaptureMode {
    /// Unsafe calls in any thread.
    Global = 0,
    /// Unsafe calls in this thread.
    ThreadLocal = 1,
    /// Nothing.
    Relaxed = 2,
}

impl CaptureMode {
    /// The mode with this number.
    pub(crate) const fn from_raw(mode: i32) -> Self {
        match mode {
            1 => Self::ThreadLocal,
            2 => Self::Relaxed,
            _ => Self::Global,
        }
    }
}

/// `CU_STREAM_NON_BLOCKING`: the stream does not wait for the default stream.
pub(crate) const STREAM_NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DEFAULT`.
pub(crate) const EVENT_DEFAULT: u32 = 0;

/// Properties of an address (`CUpointer_attribute`).
pub(crate) mod pointer_attribute {
    pub(crate) const CONTEXT: i32 = 1;
    pub(crate) const DEVICE_ORDINAL: i32 = 9;
}

/// `CU_STREAM_CAPTURE_STATUS_NONE`.
pub(crate) const CAPTURE_STATUS_NONE: i32 = 0;

/// Options of `cuModuleLoadDataEx` (`CUjit_option`).
pub(crate) mod jit {
    pub(crate) const INFO_LOG_BUFFER: i32 = 3;
    pub(crate) const INFO_LOG_BUFFER_SIZE_BYTES: i32 = 4;
    pub(crate) const ERROR_LOG_BUFFER: i32 = 5;
    pub(crate) const ERROR_LOG_BUFFER_SIZE_BYTES: i32 = 6;
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

/// `CUlaunchAttribute`: a number and its value, of at most 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: i32,
    pub(crate) pad: i32,
    pub(crate) value: [i32; 16],
}

impl LaunchAttribute {
    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: blocks may start while the launch before still runs.
    pub(crate) const OVERLAPPING: Self =
        Self { id: 6, pad: 0, value: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] };
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) stream: StreamHandle,
    pub(crate) attributes: *const LaunchAttribute,
    pub(crate) attribute_count: u32,
}

const _: () = assert!(size_of::<LaunchAttribute>() == 72 && size_of::<LaunchConfig>() == 56);

/// `CUDA_KERNEL_NODE_PARAMS`, as the functions without a version in their names take it.
#[repr(C)]
pub(crate) struct KernelNode {
    pub(crate) function: Function,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) arguments: *mut *mut c_void,
    pub(crate) extra: *mut *mut c_void,
}

const _: () = assert!(size_of::<KernelNode>() == 56);

/// `CUDA_MEMCPY3D_PEER`: rows of bytes from a place on a GPU to one on another.
#[repr(C)]
pub(crate) struct MemcpyPeer {
    pub(crate) from: MemcpyPeerSide,
    pub(crate) to: MemcpyPeerSide,
    pub(crate) bytes: usize,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Either side of it.
#[repr(C)]
pub(crate) struct MemcpyPeerSide {
    /// `XInBytes`, `Y`, `Z`, `LOD`
    start: [usize; 4],
    memory_type: u32,
    host: *const c_void,
    device: DevicePtr,
    array: *const c_void,
    context: Context,
    pitch: usize,
    height: usize,
}

impl MemcpyPeerSide {
    /// Memory of a context, with so many bytes from a row to the next.
    pub(crate) const fn new(device: DevicePtr, context: Context, pitch: usize) -> Self {
        /// `CU_MEMORYTYPE_DEVICE`
        const DEVICE: u32 = 2;
        let (host, array) = (std::ptr::null(), std::ptr::null());
        Self { start: [0; 4], memory_type: DEVICE, host, device, array, context, pitch, height: 0 }
    }
}

// cuda.h: eleven words a side, the fifth a 32-bit number, and three more.
const _: () = assert!(size_of::<MemcpyPeer>() == 25 * 8);
