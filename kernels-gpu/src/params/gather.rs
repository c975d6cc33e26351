//! The parameter of `gather_pages` and `page_scales`.

use super::{Global, Params};

/// The parameter of `gather_pages`: what a paged cache has of some sequences, as the operands that attention reads; and of `page_scales`, which writes
/// of these `k_block_scale`, `v_block_scale` and `v_unit` alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GatherParams {
    /// The pages.
    pub pool: Global<u8>,
    /// `[sequence][table_stride]`.
    pub block_table: Global<u32>,
    /// `[sequence]`.
    pub seqlens_kv: Global<u32>,
    /// What was taken out of a head of K; null where nothing was.
    pub cache_k_offset: Global<f32>,
    /// Codes of K, packed blocks.
    pub k_out: Global<u8>,
    /// A scale a key, padded to whole blocks.
    pub k_scale: Global<f32>,
    /// The largest scale of a block's keys.
    pub k_block_scale: Global<f32>,
    /// What was taken out of a head of K, for each sequence.
    pub k_offset: Global<f32>,
    /// Codes of V plus [`V_OFFSET`](crate::layout::V_OFFSET), packed blocks.
    pub v_out: Global<u8>,
    /// A scale a value, padded to whole blocks.
    pub v_scale: Global<f32>,
    /// The scale that a block's values share, or NaN.
    pub v_block_scale: Global<f32>,
    /// 1 for each head.
    pub v_unit: Global<f32>,
    /// Pages of the pool.
    pub pages: u32,
    /// From one sequence to the next in the block table, and no less than there are blocks.
    pub table_stride: u32,
    /// Key and value tokens of an operand's sequence.
    pub seqlen_kv: u32,
    /// Heads of K and V.
    pub heads_kv: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// From which of them on V has 4 bits: all of them, where none has.
    pub v8_pages: u32,
}

impl GatherParams {
    /// Nothing: no arrays, no tokens.
    pub const NONE: Self = Self {
        pool: Global::NULL,
        block_table: Global::NULL,
        seqlens_kv: Global::NULL,
        cache_k_offset: Global::NULL,
        k_out: Global::NULL,
        k_scale: Global::NULL,
        k_block_scale: Global::NULL,
        k_offset: Global::NULL,
        v_out: Global::NULL,
        v_scale: Global::NULL,
        v_block_scale: Global::NULL,
        v_unit: Global::NULL,
        pages: 0,
        table_stride: 0,
        seqlen_kv: 0,
        heads_kv: 0,
        head_dim: 0,
        v8_pages: 0,
    };
}

const _: () = assert!(size_of::<GatherParams>() == 12 * 8 + 6 * 4);

// SAFETY: the size above is the sum of the fields'.
unsafe impl Params for GatherParams {}
