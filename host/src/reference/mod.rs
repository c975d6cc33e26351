//! Attention on the CPU: the exact answer, and the INT8 algorithm bit by bit.
//!
//! * [`exact`] is softmax attention in float64.
//! * [`quantize`] and [`int8`] are what the kernels do, block by block with the same roundings (docs/kernel-abi.md). It is
//!   also what [`Device::Cpu`](crate::Device::Cpu) runs.
//! * [`gpu_bounds`] says how far a GPU may be from [`int8`], [`exact_bounds`] how far [`int8`] may be from [`exact`], and
//!   [`dequantized_bounds`] how much of that is due to P; all are derived from the arithmetic, row by row, not measured.
//!
//! * [`sequences`] has them for sequences of unlike lengths: each is a problem of its own.
//!
//! A function of a problem takes `&problem`, or [`Scored`](crate::Scored): the problem and the tensors that change its scores.
//!
//! Every function works on all cores.

mod append;
mod codes;
mod compare;
mod decode;
mod dequantize;
mod exact;
mod exact_bounds;
mod gpu_bounds;
mod head;
mod int8;
mod merge;
mod narrow;
mod packed;
mod prefill;
mod quantize;
mod rows;
mod score;
pub mod sequences;
mod simd;
mod softmax;

pub use crate::resources::start_threads;
pub(crate) use append::append;
pub use compare::{Excess, Figures, compare, first_excess};
pub use decode::{decode, decode_bounds};
pub use dequantize::{dequantize_k, dequantize_q, dequantize_v};
pub use exact::{Exact, exact, exact_rows};
pub use exact_bounds::{dequantized_bounds, exact_bounds, exact_bounds_rows};
pub use gpu_bounds::{gpu_bounds, gpu_bounds_rows, ideal_bounds};
pub(crate) use int8::int8_with_progress;
pub use int8::{Int8, int8, int8_rows};
pub use merge::{HostState, merge, merge_bounds};
pub use prefill::prefill;
pub use quantize::{quantize, quantize_k, quantize_k_on, quantize_q, quantize_v, quantize_v_on};

/// How far each element may be from a reference, absolutely.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bounds {
    /// Of the output, `[batch][heads_q][rows][head_dim]`.
    pub o: Vec<f64>,
    /// Of the log-sum-exp, `[batch][heads_q][rows]`.
    pub lse: Vec<f64>,
}
