//! What `quantize_*` and `dequantize_*` are handed.

use super::{Global, Params, SeqLens, Strided, operand};
use crate::quantize::work::Work;

/// The parameter of `quantize_*`: Q, K and V, or K and V alone (`heads_q` 0), or Q alone (`quantize_kv` 0).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QuantizeParams {
    /// Queries.
    pub q: Strided,
    /// Keys.
    pub k: Strided,
    /// Values.
    pub v: Strided,
    /// What is taken out of a head of K. Written with K; read where Q is quantized alone, and where K goes on.
    pub k_offset: Global<f32>,
    /// Codes of Q, row-major.
    pub q_out: Global<u8>,
    /// A scale a query.
    pub q_scale: Global<f32>,
    /// The product of each query with K's offset; null in the paper's scheme.
    pub q_bias: Global<f32>,
    /// Codes of K, packed blocks.
    pub k_out: Global<u8>,
    /// A scale a key, padded to whole blocks.
    pub k_scale: Global<f32>,
    /// The largest scale of a block's keys.
    pub k_block_scale: Global<f32>,
    /// Codes of V plus [`V_OFFSET`](crate::layout::V_OFFSET), packed blocks.
    pub v_out: Global<u8>,
    /// A scale a value, padded to whole blocks.
    pub v_scale: Global<f32>,
    /// The scale that a block's values share, or NaN.
    pub v_block_scale: Global<f32>,
    /// A power of two a head. Not written where V goes on.
    pub v_unit: Global<f32>,
    /// The paper's scheme: bits of the largest magnitude of each head of V, which `v_amax_*` found. Null in the default scheme.
    pub v_amax: Global<u32>,
    /// Sequences.
    pub batch: u32,
    /// Heads of Q; 0 where Q is not quantized.
    pub heads_q: u32,
    /// Heads of K and V.
    pub heads_kv: u32,
    /// Query tokens of a sequence, the most of them.
    pub seqlen_q: u32,
    /// Key and value tokens of a sequence, the most of them.
    pub seqlen_kv: u32,
    /// Dims of a head of Q and K as they are packed (`layout::packed_dim`).
    pub head_dim: u32,
    /// Not 0 where K and V are quantized.
    pub quantize_kv: u32,
    /// Not 0 in the default scheme.
    pub rotate: u32,
    /// Dims of a head of Q and K in the tensors; zeros are packed behind them.
    pub dims: u32,
    /// Dims of a head of V as they are packed, no more than `head_dim`.
    pub head_dim_v: u32,
    /// Dims of a head of V in the tensor.
    pub dims_v: u32,
    /// Not 0 where the tokens of K and V go on heads whose first ones were quantized elsewhere, which gave `k_offset`. Of the default scheme,
    /// of sequences that are not packed.
    pub goes_on: u32,
    /// Not 0 where the tokens of a block of K share a scale if they are about as large, for kernels that take narrow blocks. Of the default scheme.
    pub share_k: u32,
    /// Zero.
    pub reserved: u32,
    /// Which CTA does what: [`Work::new`] of the rest.
    pub work: Work,
    /// Where sequences have lengths of their own.
    pub seqlens: SeqLens,
}

impl QuantizeParams {
    /// Nothing: no arrays, lengths of zero.
    pub const NONE: Self = Self {
        q: Strided::NONE,
        k: Strided::NONE,
        v: Strided::NONE,
        k_offset: Global::NULL,
        q_out: Global::NULL,
        q_scale: Global::NULL,
        q_bias: Global::NULL,
        k_out: Global::NULL,
        k_scale: Global::NULL,
        k_block_scale: Global::NULL,
        v_out: Global::NULL,
        v_scale: Global::NULL,
        v_block_scale: Global::NULL,
        v_unit: Global::NULL,
        v_amax: Global::NULL,
        batch: 0,
        heads_q: 0,
        heads_kv: 0,
        seqlen_q: 0,
        seqlen_kv: 0,
        head_dim: 0,
        quantize_kv: 0,
        rotate: 0,
        dims: 0,
        head_dim_v: 0,
        dims_v: 0,
        goes_on: 0,
        share_k: 0,
        reserved: 0,
        work: Work::NONE,
        seqlens: SeqLens::NONE,
    };
}

/// The parameter of `dequantize_*`: one operand.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DequantizeParams {
    /// Codes.
    pub data: Global<u8>,
    /// A scale a token; of K and V padded to whole blocks.
    pub scale: Global<f32>,
    /// What is added to every token of a head of K, a channel each; null where nothing is.
    pub offset: Global<f32>,
    /// The tensor to write.
    pub out: Strided,
    /// Tokens of a sequence, the most of them.
    pub seqlen: u32,
    /// Heads.
    pub heads: u32,
    /// Dims of a head as it is packed.
    pub head_dim: u32,
    /// One of [`operand`].
    pub operand: u32,
    /// Not 0 where the codes are of a rotated tensor.
    pub rotated: u32,
    /// Sequences.
    pub batch: u32,
    /// Dims of a row of the output.
    pub dims: u32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
    /// Where sequences have lengths of their own.
    pub seqlens: SeqLens,
}

impl DequantizeParams {
    /// Nothing: no arrays, lengths of zero.
    pub const NONE: Self = Self {
        data: Global::NULL,
        scale: Global::NULL,
        offset: Global::NULL,
        out: Strided::NONE,
        seqlen: 0,
        heads: 0,
        head_dim: 0,
        operand: operand::Q,
        rotated: 0,
        batch: 0,
        dims: 0,
        reserved: 0,
        seqlens: SeqLens::NONE,
    };
}

const _: () = assert!(
    size_of::<QuantizeParams>()
        == 3 * size_of::<Strided>() + 12 * 8 + 14 * 4 + size_of::<Work>() + size_of::<SeqLens>()
);
const _: () = assert!(size_of::<DequantizeParams>() == 3 * 8 + size_of::<Strided>() + 8 * 4 + size_of::<SeqLens>());

// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for QuantizeParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for DequantizeParams {}
