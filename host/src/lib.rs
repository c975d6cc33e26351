//! INT8 FlashAttention (arXiv 2409.16997) in pure Rust, on NVIDIA GPUs (Ampere and later) and on the CPU.
//!
//! [`attention`] does the whole job on host tensors:
//!
//! ```
//! use int_flash_attention::{DType, Device, HostTensor, Options, Shape, TensorLayout, attention};
//! let layout = TensorLayout::bhnd(Shape::new(1, 4, 256, 64)?); // batch, heads, tokens, head_dim
//! let x = HostTensor::from_fn(DType::F16, layout, |_, h, n, d| ((h + n * d) as f32).cos())?;
//! let (device, why_not_a_gpu) = Device::auto();
//! let output = attention(device, &x, &x, &x, &Options::default())?;
//! println!("on {device}: {:?} {:?}", output.o.shape(), why_not_a_gpu);
//! # Ok::<(), int_flash_attention::Error>(())
//! ```
//!
//! On tensors that are on the GPU already, [`Gpu`] makes plans once and launches them without allocating or waiting; the
//! memory may be this crate's, `cust`'s or `cudarc`'s (features of their names) or any other library's (raw addresses). The steps are
//! an [`AttentionProblem`] (plain data), a plan (everything checked), a launch.
//!
//! [`mod@reference`] has the exact answer and the INT8 algorithm bit by bit, with bounds for how far apart results may be.
//!
//! The kernels are Rust compiled to PTX, which is part of this crate: neither a CUDA toolkit nor a nightly compiler is
//! needed to use it, and the NVIDIA driver, one for CUDA 12.1 or later, is looked for when a GPU is asked for, not when the program starts.
//!
//! # Features
//! On by default, and left out by `default-features = false` where a program is to be small:
//! * `machine-code`: machine code of the kernels that a first job is likely to load, which so need not wait for the driver's compiler.
//! * `sm90a`: attention on Hopper's own instructions; without it Hopper runs the kernels for all GPUs.
//! * `paper`: the kernels of [`Scheme::Paper`]; the CPU has it in any case.
//!
//! Off by default:
//! * `cust`: `cust`'s buffers, slices, pointers and streams wherever this crate takes its own. Programs still link and start
//!   without a toolkit or a driver; only cust's build script asks for a toolkit's folder, and is content with
//!   `CUDA_LIBRARY_PATH=/` (see [`driver`]).
//! * `cudarc`: `CudarcSlice` and `CudarcSliceMut` make views of `cudarc`'s memory, and its streams are taken.
//! * `nccl`: [`ranks`] over NVIDIA's NCCL, which is looked for when a communicator is made.
//! * `baseline`: attention in float16, to measure against; in the project's repository alone.
//!
//! Words: a *scheme* is how Q, K, V and P become 8 bits ([`Scheme`]); a *layout* is where a tensor's elements lie ([`TensorLayout`]);
//! a *mixed* block of V is one whose tokens have a scale each. Shapes are written `[batch][head][token][dim]`.
#![deny(missing_docs)]

mod attention;
mod cache;
#[cfg(feature = "cudarc")]
mod cudarc_interop;
#[cfg(feature = "cust")]
mod cust_interop;
mod decode;
mod device;
mod dtype;
mod error;
pub mod gpu;
mod prefill;
mod problem;
mod progress;
mod quantized;
pub mod ranks;
pub mod reference;
mod resources;
mod round;
mod scores;
mod shape;
mod tensor;
mod view;

pub use attention::{Options, Output, attention};
#[doc(hidden)]
pub use cache::PageCopy;
pub use cache::{AppendProblem, CacheFormat, CacheShape, GatherProblem, HostCache, HostTables, KvCache, PageTables};
#[cfg(feature = "cudarc")]
pub use cudarc_interop::{CudarcSlice, CudarcSliceMut};
pub use decode::{DecodeHeads, DecodeProblem, DecodeResult, HostPagedKv, PagedKv, Split, ViewPagedKv, merged_params};
pub use device::Device;
pub use dtype::{DType, Element};
pub use error::{Error, RefusedCode, Result};
pub use gpu::{
    AnySlice, AnySliceMut, AppendPlan, Appended, AttentionOutput, AttentionPlan, DecodePlan, DequantizePlan,
    DeviceBuffer, DeviceCache, DeviceK, DeviceOperands, DeviceQ, DeviceRows, DeviceSeqLens, DeviceSlice,
    DeviceSliceMut, DeviceTables, DeviceV, Event, Family, GatherPlan, Gpu, Graph, JobPath, JobPlan, MergePlan,
    NewTokens, Operand, PrefillPlan, PrefillQueries, QuantizeKvPlan, QuantizeLayouts, QuantizePlan, QuantizeQPlan,
    ScoreViews, Slots, States, Stream, StreamRef, ViewCache, ViewK, ViewMutCache, ViewMutK, ViewMutOperands, ViewMutQ,
    ViewMutV, ViewOperands, ViewQ, ViewTables, ViewV,
};
pub use int_flash_attention_driver::{self as driver, DriverError};
pub use prefill::PrefillProblem;
pub use problem::{
    Alibi, AttentionProblem, BiasLayout, HostSeqLens, MaskKind, MaskLayout, Scheme, ScoreMod, SeqLens, Sequences, Span,
    Window,
};
pub use progress::{Progress, ProgressFn};
pub use quantized::{HostK, HostQ, HostQuantized, HostV, PackedFormat, Quantized, QuantizedK, QuantizedQ, QuantizedV};
pub use scores::{HostBias, HostMask, HostScores, ScoreTensors, Scored};
pub use shape::{Order, Shape, TensorLayout};
pub use tensor::{HostData, HostTensor};
pub use view::{HostSlice, HostView};
