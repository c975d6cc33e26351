//! What the float16 kernels are handed.

use super::{Global, Params, Strided};

/// The parameter of the float16 kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BaselineParams {
    /// Float16.
    pub q: Strided,
    /// Float16.
    pub k: Strided,
    /// Float16.
    pub v: Strided,
    /// Float16.
    pub o: Strided,
    /// The log-sum-exp of each query; null where it is not wanted.
    pub lse: Global<f32>,
    /// Heads of Q and of the output.
    pub heads_q: u32,
    /// Query heads of one head of K and V, at least 1.
    pub group: u32,
    /// Query tokens.
    pub seqlen_q: u32,
    /// Key and value tokens.
    pub seqlen_kv: u32,
    /// As of [`AttentionParams`](super::AttentionParams).
    pub window_left: u32,
    /// As of [`AttentionParams`](super::AttentionParams).
    pub window_right: u32,
    /// Factor of the scores before the softmax.
    pub softmax_scale: f32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
}

const _: () = assert!(size_of::<BaselineParams>() == 4 * size_of::<Strided>() + 8 + 8 * 4);

// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for BaselineParams {}
