//! The parameter of `append_*`.

use super::{Global, Params, Strided};

/// The parameter of `append_*`: new tokens into the pages of a cache, and their queries beside (docs/kernel-abi.md, "Paged cache").
///
/// The tensors are `[token][head][head_dim]`, their strides of a batch not read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AppendParams {
    /// New queries.
    pub q: Strided,
    /// New keys.
    pub k: Strided,
    /// New values.
    pub v: Strided,
    /// A slot a token, of [`slot_bytes`](Self::slot_bytes) each.
    pub slot: Global<u8>,
    /// The pages.
    pub pool: Global<u8>,
    /// What is taken out of a head of K, `[head][head_dim]`; null where nothing is.
    pub k_offset: Global<f32>,
    /// Codes of Q, row-major, `[token / seqlen_q][head][token % seqlen_q]`.
    pub q_out: Global<u8>,
    /// A scale a query, in the same order.
    pub q_scale: Global<f32>,
    /// The product of each query with K's offset.
    pub q_bias: Global<f32>,
    /// New tokens, of all sequences.
    pub tokens: u32,
    /// Heads of Q; 0 where Q is not quantized.
    pub heads_q: u32,
    /// Heads of K and V.
    pub heads_kv: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Query tokens of a sequence.
    pub seqlen_q: u32,
    /// Pages of the pool.
    pub pages: u32,
    /// 4, or 8 where slots are signed words of that many bytes.
    pub slot_bytes: u32,
    /// From which of them on V has 4 bits: all of them, where none has.
    pub v8_pages: u32,
}

impl AppendParams {
    /// Nothing: no arrays, no tokens.
    pub const NONE: Self = Self {
        q: Strided::NONE,
        k: Strided::NONE,
        v: Strided::NONE,
        slot: Global::NULL,
        pool: Global::NULL,
        k_offset: Global::NULL,
        q_out: Global::NULL,
        q_scale: Global::NULL,
        q_bias: Global::NULL,
        tokens: 0,
        heads_q: 0,
        heads_kv: 0,
        head_dim: 0,
        seqlen_q: 1,
        pages: 0,
        slot_bytes: 4,
        v8_pages: 0,
    };
}

const _: () = assert!(size_of::<AppendParams>() == 3 * size_of::<Strided>() + 6 * 8 + 8 * 4);

// SAFETY: the size above is the sum of the fields'.
unsafe impl Params for AppendParams {}
