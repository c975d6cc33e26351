//! What the decode kernels and the merge are handed.

use super::{Global, Params, Strided, UNLIMITED, dtype};

/// How the keys of all sequences are dealt out to workers: the decode kernel and the kernel that merges what it leaves read the same.
///
/// The list of all work has, for each sequence, each head of K and V, each tile of rows, the blocks of 128 keys that some row sees; or, where
/// the split is fixed, pieces of `split_blocks` blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SplitParams {
    /// Tokens of each sequence in the cache, the new ones included.
    pub seqlens_kv: Global<u32>,
    /// Sequences.
    pub batch: u32,
    /// Heads of K and V.
    pub heads_kv: u32,
    /// Query heads of one head of K and V.
    pub group: u32,
    /// New tokens of a sequence.
    pub seqlen_q: u32,
    /// Tiles of rows of a head of K and V: `group * seqlen_q` rows in tiles of 16.
    pub row_tiles: u32,
    /// Pages of a sequence that the block table has room for; longer lengths are cut there.
    pub max_blocks: u32,
    /// CTAs of the decode kernel.
    pub workers: u32,
    /// The fewest blocks of a worker that has any.
    pub min_blocks: u32,
    /// Blocks of a piece of a sequence, or 0 where workers have equal shares.
    pub split_blocks: u32,
    /// Pieces that a sequence has at most, where the split is fixed.
    pub max_splits: u32,
    /// As of [`AttentionParams`](super::AttentionParams).
    pub window_left: u32,
    /// As of [`AttentionParams`](super::AttentionParams).
    pub window_right: u32,
}

/// The parameter of `decode_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeParams {
    /// How the work is dealt out.
    pub split: SplitParams,
    /// Codes, row-major.
    pub q: Global<u8>,
    /// A scale a query.
    pub q_scale: Global<f32>,
    /// The product of each query with K's offset; null where K has none.
    pub q_bias: Global<f32>,
    /// The pool of pages (`layout::page`).
    pub pages: Global<u8>,
    /// Page numbers, `table_stride` a sequence.
    pub block_table: Global<u32>,
    /// A slope a query head, or null.
    pub alibi_slopes: Global<f32>,
    /// Output of each piece of work, 16 rows or as many as there are each.
    pub partial_o: Global<f32>,
    /// And the log-sum-exp of each row of it.
    pub partial_lse: Global<f32>,
    /// Pages of the pool.
    pub page_count: u32,
    /// From one sequence to the next in the block table.
    pub table_stride: u32,
    /// Factor of the scores before the softmax.
    pub softmax_scale: f32,
    /// Scores stay within it, by a hyperbolic tangent; 0 where they do not.
    pub softcap: f32,
    /// From which page on V has 4 bits; read by the kernels for such pools alone.
    pub v8_pages: u32,
    /// Not read; makes the size a multiple of the alignment without bytes that are undefined.
    pub reserved: u32,
}

/// The parameter of `merge_splits`: what the decode kernel left to the output.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MergeSplitsParams {
    /// How the work was dealt out.
    pub split: SplitParams,
    /// As of [`DecodeParams`].
    pub partial_o: Global<f32>,
    /// As of [`DecodeParams`].
    pub partial_lse: Global<f32>,
    /// Where rows go.
    pub out: MergedParams,
}

/// Where merged rows go.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MergedParams {
    /// The output, of [`o_dtype`](Self::o_dtype).
    pub o: Strided,
    /// The log-sum-exp of each row; null where it is not wanted.
    pub lse: Global<f32>,
    /// A logit a query head that takes part in the softmax and has no value; null where there is none.
    pub sinks: Global<f32>,
    /// Query heads.
    pub heads_q: u32,
    /// Query tokens.
    pub seqlen_q: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// One of [`dtype`].
    pub o_dtype: u32,
    /// Dims of a CTA, a multiple of 32 that divides `head_dim`.
    pub cta_dims: u32,
    /// How many states there are; of a decode's pieces how many places.
    pub states: u32,
    /// Rows of the output.
    pub rows: u64,
}

/// The parameter of `merge_states`: states of attention over parts of the keys.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MergeStatesParams {
    /// Outputs of the first state, `[batch][heads_q][seqlen_q][head_dim]`.
    pub o: Global<f32>,
    /// Log-sum-exps of the first state, `[batch][heads_q][seqlen_q]`.
    pub lse: Global<f32>,
    /// Bytes from a state's outputs to the next one's.
    pub o_stride: i64,
    /// And log-sum-exps.
    pub lse_stride: i64,
    /// Where rows go; a state may be there too, each row in its own place, where a CTA has all dims.
    pub out: MergedParams,
}

impl SplitParams {
    /// Nothing.
    pub const NONE: Self = Self {
        seqlens_kv: Global::NULL,
        batch: 0,
        heads_kv: 0,
        group: 0,
        seqlen_q: 0,
        row_tiles: 0,
        max_blocks: 0,
        workers: 0,
        min_blocks: 1,
        split_blocks: 0,
        max_splits: 0,
        window_left: UNLIMITED,
        window_right: UNLIMITED,
    };
}

impl MergedParams {
    /// Nothing.
    pub const NONE: Self = Self {
        o: Strided::NONE,
        lse: Global::NULL,
        sinks: Global::NULL,
        heads_q: 0,
        seqlen_q: 0,
        head_dim: 0,
        o_dtype: dtype::F16,
        cta_dims: 0,
        states: 0,
        rows: 0,
    };
}

impl DecodeParams {
    /// Nothing.
    pub const NONE: Self = Self {
        split: SplitParams::NONE,
        q: Global::NULL,
        q_scale: Global::NULL,
        q_bias: Global::NULL,
        pages: Global::NULL,
        block_table: Global::NULL,
        alibi_slopes: Global::NULL,
        partial_o: Global::NULL,
        partial_lse: Global::NULL,
        page_count: 0,
        table_stride: 0,
        softmax_scale: 0.0,
        softcap: 0.0,
        v8_pages: 0,
        reserved: 0,
    };
}

const _: () = assert!(size_of::<SplitParams>() == 8 + 12 * 4);
const _: () = assert!(size_of::<MergedParams>() == size_of::<Strided>() + 3 * 8 + 6 * 4);
const _: () = assert!(size_of::<DecodeParams>() == size_of::<SplitParams>() + 8 * 8 + 6 * 4);
const _: () = assert!(size_of::<MergeSplitsParams>() == size_of::<SplitParams>() + 2 * 8 + size_of::<MergedParams>());
const _: () = assert!(size_of::<MergeStatesParams>() == 4 * 8 + size_of::<MergedParams>());

// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for DecodeParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for MergeSplitsParams {}
// SAFETY: the sizes above are the sums of the fields'.
unsafe impl Params for MergeStatesParams {}
