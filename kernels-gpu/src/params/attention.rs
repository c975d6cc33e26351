//! What the attention kernels are handed.

use super::{Global, Params, SeqLens, Strided, UNLIMITED, dtype};

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
    /// Whether sequences are the grid's first dimension and heads the second, and not the other way round: 1 or 0.
    pub sequences_first: u32,
    /// Not read.
    pub reserved: u32,
}

const _: () = assert!(
    size_of::<AttentionParams>()
        == 11 * 8
            + size_of::<Strided>()
            + 12 * 4
            + size_of::<SeqLens>()
            + size_of::<ScoreParams>()
            + size_of::<BlockParams>()
);
const _: () = assert!(size_of::<ScoreParams>() == 4 * 8 + 6 * 8 + 6 * 4);
const _: () = assert!(size_of::<BlockParams>() == 8 + 6 * 4);
const _: () = assert!(size_of::<ShortParams>() == size_of::<AttentionParams>() + 3 * size_of::<Strided>() + 4 * 4);

// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for AttentionParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for ShortParams {}
