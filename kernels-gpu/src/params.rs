//! What the host hands to an attention kernel: one structure by value, the kernel's only parameter.
//!
//! The host fills it, the kernels read it and the tests' PTX machine is given its bytes, all from this definition
//! (docs/kernel-abi.md has the shapes). An optional array or output that is not there has address zero.

mod append;
mod convert;
mod decode;
mod gather;

pub use append::AppendParams;
pub use convert::{ConvertParams, PAIRS};
pub use decode::{DecodeParams, MergeSplitsParams, MergeStatesParams, MergedParams, SplitParams};
pub use gather::GatherParams;

use core::fmt;
use core::marker::PhantomData;

/// The address of the first of some `T` in the GPU's global memory; zero where there are none.
#[repr(transparent)]
pub struct Global<T> {
    address: u64,
    pointee: PhantomData<fn() -> T>,
}

impl<T> Global<T> {
    /// No array.
    pub const NULL: Self = Self::new(0);

    /// The array at an address.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self { address, pointee: PhantomData }
    }

    /// The address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }
}

impl<T> Clone for Global<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Global<T> {}

impl<T> fmt::Debug for Global<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

#[cfg(target_arch = "nvptx64")]
impl<T> Global<T> {
    /// The address as a pointer.
    #[inline(always)]
    pub(crate) fn ptr(self) -> *const T {
        self.address as *const T
    }

    /// Whether there is no array.
    #[inline(always)]
    pub(crate) fn is_null(self) -> bool {
        self.address == 0
    }
}

/// A `[batch][head][token][head_dim]` tensor whose last dimension is contiguous; strides in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Strided {
    /// The first element.
    pub data: Global<u8>,
    /// From one batch to the next.
    pub stride_b: i64,
    /// From one head to the next.
    pub stride_h: i64,
    /// From one token to the next.
    pub stride_n: i64,
}

/// `o_dtype`: the element type of an output.
pub mod dtype {
    /// IEEE binary16.
    pub const F16: u32 = 0;
    /// bfloat16.
    pub const BF16: u32 = 1;
    /// IEEE binary32.
    pub const F32: u32 = 2;
}

/// `operand` of the dequantization: layout, and what a scale belongs to.
pub mod operand {
    /// Queries: row-major, one scale a token.
    pub const Q: u32 = 0;
    /// Keys: packed, one scale a token.
    pub const K: u32 = 1;
    /// Values: packed and transposed, one scale a token.
    pub const V: u32 = 2;
}

/// `window_left` or `window_right` of a window that has no end on that side.
pub const UNLIMITED: u32 = u32::MAX;

/// Where the tokens of sequences of unlike lengths lie. Without any of the arrays, all sequences have the parameter's lengths.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SeqLens {
    /// Where queries are packed: where those of each sequence begin, and behind the last where they end, one more than sequences.
    pub cu_seqlens_q: Global<u32>,
    /// The same of keys and values.
    pub cu_seqlens_kv: Global<u32>,
    /// The keys of each sequence, where it has fewer than there are; null where all count.
    pub seqlens_kv: Global<u32>,
    /// Query tokens of a head of the tensors: of one sequence, or of all that are packed.
    pub total_q: u32,
    /// Key and value tokens of a head of the tensors.
    pub total_kv: u32,
    /// Not 0 where the queries of all sequences are packed.
    pub packed_q: u32,
    /// Not 0 where keys and values are.
    pub packed_kv: u32,
}

/// The parameter of every INT8 attention kernel, of both families.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Codes, row-major.
    pub q: Global<u8>,
    /// Codes, packed blocks.
    pub k: Global<u8>,
    /// Codes plus [`V_OFFSET`](crate::layout::V_OFFSET), packed blocks.
    pub v: Global<u8>,
    /// A scale a query.
    pub q_scale: Global<f32>,
    /// The product of each query with K's offset; null where K has none.
    pub q_bias: Global<f32>,
    /// A scale a key, padded to whole blocks.
    pub k_scale: Global<f32>,
    /// The largest scale of a block's keys.
    pub k_block_scale: Global<f32>,
    /// A scale a value, padded to whole blocks.
    pub v_scale: Global<f32>,
    /// The scale that a block's values share, or NaN.
    pub v_block_scale: Global<f32>,
    /// A power of two a head, near the scales of V.
    pub v_unit: Global<f32>,
    /// The output, of [`o_dtype`](Self::o_dtype).
    pub o: Strided,
    /// The log-sum-exp of each query; null where it is not wanted.
    pub lse: Global<f32>,
    /// Sequences.
    pub batch: u32,
    /// Heads of Q and of the output.
    pub heads_q: u32,
    /// Heads of K and V.
    pub heads_kv: u32,
    /// Query heads of one head of K and V, `heads_q / heads_kv`.
    pub group: u32,
    /// Query tokens of a sequence, the most of them.
    pub seqlen_q: u32,
    /// Key and value tokens of a sequence, the most of them.
    pub seqlen_kv: u32,
    /// How many keys before its own a query sees, or [`UNLIMITED`].
    pub window_left: u32,
    /// How many keys behind its own a query sees, or [`UNLIMITED`]; 0 is the causal mask.
    pub window_right: u32,
    /// One of [`dtype`].
    pub o_dtype: u32,
    /// Factor of the scores before the softmax.
    pub softmax_scale: f32,
    /// Dims of a row of the output: those of V before it was padded.
    pub o_dims: u32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
    /// Where sequences have lengths of their own.
    pub seqlens: SeqLens,
    /// What changes a score, beside the window.
    pub score: ScoreParams,
    /// Where blocks of K and V are.
    pub blocks: BlockParams,
}

/// Where the blocks of K and V of a sequence are: one behind the other in the operands, or pages of a cache (docs/kernel-abi.md, "Attention on a
/// paged cache"), of which `k`, `v`, `k_scale` and `v_scale` are those of the first head of the first page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BlockParams {
    /// The page of each block of a sequence; anything may stand there. Null where blocks are no pages.
    pub block_table: Global<u32>,
    /// From one sequence to the next in the block table, and no less than the longest one has blocks.
    pub table_stride: u32,
    /// Pages of the pool, which has `pages * heads_kv` heads, fewer than `2^32`; 0 where blocks are no pages.
    pub pages: u32,
    /// Bytes from a block of K to the next, or from a head of a page to the next.
    pub k_bytes: u32,
    /// The same of V.
    pub v_bytes: u32,
    /// The same of the keys' scales and of the values'.
    pub scale_bytes: u32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
}

/// `mask_kind`: how a mask has the keys of a row.
pub mod mask_kind {
    /// A byte each.
    pub const BYTES: u32 = 0;
    /// A bit each, the first in the lowest bit of the first byte.
    pub const BITS: u32 = 1;
}

/// What changes a score, beside the window (docs/kernel-abi.md, "What changes a score"); all zero is nothing. All attention kernels
/// know sinks, those of [`Kind::General`](crate::config::Kind) the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ScoreParams {
    /// A logit a query head, in natural units, that is in every row's sum; null where there are none.
    pub sinks: Global<f32>,
    /// A slope a query head; null where there are none.
    pub alibi_slopes: Global<f32>,
    /// Elements that are not 0 keep their key; null where there is no mask.
    pub mask: Global<u8>,
    /// What is added to the scores, of [`bias_dtype`](Self::bias_dtype); null where nothing is.
    pub bias: Global<u8>,
    /// From one batch, head and query of the mask to the next, in bytes.
    pub mask_strides: [i64; 3],
    /// From one batch, head and query of the bias to the next, in elements.
    pub bias_strides: [i64; 3],
    /// Slopes from one batch to the next.
    pub alibi_stride_b: u32,
    /// One of [`mask_kind`].
    pub mask_kind: u32,
    /// One of [`dtype`].
    pub bias_dtype: u32,
    /// The largest score in powers of two, `cap * log2(e)`; 0 where there is no cap.
    pub softcap: f32,
    /// `2 / cap`.
    pub softcap_argument: f32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
}

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
    /// Where sequences have lengths of their own.
    pub seqlens: SeqLens,
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
    /// As of [`AttentionParams`].
    pub window_left: u32,
    /// As of [`AttentionParams`].
    pub window_right: u32,
    /// Factor of the scores before the softmax.
    pub softmax_scale: f32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
}

/// The parameter of the kernels for short K and V (`attention_short_*`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ShortParams {
    /// Output, lengths, window; its operands are null.
    pub attention: AttentionParams,
    /// Queries.
    pub q: Strided,
    /// Keys.
    pub k: Strided,
    /// Values.
    pub v: Strided,
    /// Element type of all three, one of [`dtype`].
    pub dtype: u32,
    /// CTAs that share the rows of a head of K and V.
    pub parts: u32,
}

/// A kernel's parameter: a structure whose every byte is part of a field.
///
/// # Safety
/// `repr(C)`, without padding.
pub unsafe trait Params: Copy {
    /// The bytes, as a launch passes them.
    fn bytes(&self) -> &[u8] {
        // SAFETY: every byte belongs to a field.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

impl Strided {
    /// No tensor.
    pub const NONE: Self = Self { data: Global::NULL, stride_b: 0, stride_h: 0, stride_n: 0 };
}

impl SeqLens {
    /// All sequences have the same lengths, which are zero.
    pub const NONE: Self = Self {
        cu_seqlens_q: Global::NULL,
        cu_seqlens_kv: Global::NULL,
        seqlens_kv: Global::NULL,
        total_q: 0,
        total_kv: 0,
        packed_q: 0,
        packed_kv: 0,
    };
}

impl AttentionParams {
    /// Nothing: no arrays, lengths of zero, a window that every row sees through whole.
    pub const NONE: Self = Self {
        q: Global::NULL,
        k: Global::NULL,
        v: Global::NULL,
        q_scale: Global::NULL,
        q_bias: Global::NULL,
        k_scale: Global::NULL,
        k_block_scale: Global::NULL,
        v_scale: Global::NULL,
        v_block_scale: Global::NULL,
        v_unit: Global::NULL,
        o: Strided::NONE,
        lse: Global::NULL,
        batch: 0,
        heads_q: 0,
        heads_kv: 0,
        group: 0,
        seqlen_q: 0,
        seqlen_kv: 0,
        window_left: UNLIMITED,
        window_right: UNLIMITED,
        o_dtype: dtype::F16,
        softmax_scale: 0.0,
        o_dims: 0,
        reserved: 0,
        seqlens: SeqLens::NONE,
        score: ScoreParams::NONE,
        blocks: BlockParams::NONE,
    };
}

impl BlockParams {
    /// No blocks.
    pub const NONE: Self = Self {
        block_table: Global::NULL,
        table_stride: 0,
        pages: 0,
        k_bytes: 0,
        v_bytes: 0,
        scale_bytes: 0,
        reserved: 0,
    };
}

impl ScoreParams {
    /// Nothing.
    pub const NONE: Self = Self {
        sinks: Global::NULL,
        alibi_slopes: Global::NULL,
        mask: Global::NULL,
        bias: Global::NULL,
        mask_strides: [0; 3],
        bias_strides: [0; 3],
        alibi_stride_b: 0,
        mask_kind: mask_kind::BYTES,
        bias_dtype: dtype::F16,
        softcap: 0.0,
        softcap_argument: 0.0,
        reserved: 0,
    };
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
        seqlens: SeqLens::NONE,
    };
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

const _: () = assert!(size_of::<Strided>() == 4 * 8);
const _: () = assert!(size_of::<ScoreParams>() == 4 * 8 + 6 * 8 + 6 * 4);
const _: () = assert!(
    size_of::<AttentionParams>()
        == 11 * 8
            + size_of::<Strided>()
            + 12 * 4
            + size_of::<SeqLens>()
            + size_of::<ScoreParams>()
            + size_of::<BlockParams>()
);
const _: () = assert!(size_of::<BlockParams>() == 8 + 6 * 4);
const _: () = assert!(size_of::<SeqLens>() == 3 * 8 + 4 * 4);
const _: () = assert!(size_of::<QuantizeParams>() == 3 * size_of::<Strided>() + 12 * 8 + 14 * 4 + size_of::<SeqLens>());
const _: () = assert!(size_of::<DequantizeParams>() == 3 * 8 + size_of::<Strided>() + 8 * 4 + size_of::<SeqLens>());
const _: () = assert!(size_of::<ShortParams>() == size_of::<AttentionParams>() + 3 * size_of::<Strided>() + 2 * 4);
const _: () = assert!(size_of::<BaselineParams>() == 4 * size_of::<Strided>() + 8 + 8 * 4);

// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for AttentionParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for QuantizeParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for DequantizeParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for BaselineParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for ShortParams {}
