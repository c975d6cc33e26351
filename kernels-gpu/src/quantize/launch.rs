//! How the quantization kernels are launched: blocks, grids, shared memory. The host and the kernels read the same functions.

use crate::layout::STATS_CHUNK;

/// Entry points of the module and what ptxas may assume of their launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entry point in the module's PTX.
    pub entry: &'static str,
    /// Most threads of a block over all head dims (`.maxntid`).
    pub threads: usize,
    /// Blocks of that size which an SM should hold (`.minnctapersm`).
    pub min_ctas: usize,
}

/// All entry points of the module `quantize`.
pub const BOUNDS: &[Bounds] = &[
    Bounds { entry: "quantize_f16", threads: QUANTIZE_THREADS, min_ctas: 5 },
    Bounds { entry: "quantize_bf16", threads: QUANTIZE_THREADS, min_ctas: 5 },
    Bounds { entry: "quantize_f32", threads: QUANTIZE_THREADS, min_ctas: 5 },
];

/// Bits of `flags`.
pub mod flags {
    /// Take the mean out of K.
    pub const SMOOTH_K: u32 = 1;
    /// Take the mean out of V.
    pub const SMOOTH_V: u32 = 2;
    /// One scale for all channels of a head of V, the paper's.
    pub const V_SCALE_PER_HEAD: u32 = 4;
    /// Round Q's scale up to a fraction of 10 bits.
    pub const SHORT_Q_SCALE: u32 = 8;
}

/// Threads of a CTA of `quantize_*`.
pub const QUANTIZE_THREADS: usize = 128;
/// CTAs of `quantize_*` that an SM holds where shared memory allows (ptxas, asked for five, leaves registers for six); the
/// statistics come so many CTAs before the tiles.
pub const QUANTIZE_CTAS: usize = 6;

/// Bytes of the caller's tensors that a CTA of `quantize_*` keeps in shared memory.
pub const TILE_BYTES: usize = 32 << 10;

/// Bytes of a row that one CTA takes the statistics of, over a whole chunk of tokens.
pub const SLICE_BYTES: usize = 64;

const _: () = assert!(SLICE_BYTES * STATS_CHUNK == TILE_BYTES);

/// Tokens that one CTA of `quantize_*` quantizes: a power of two from 32 to 512.
#[must_use]
pub const fn tile_tokens(head_dim: usize, element_bytes: usize) -> usize {
    // 32 bits: rust-cuda counts the zeros of 64 wrongly.
    TILE_BYTES >> ((head_dim * element_bytes) as u32).next_power_of_two().trailing_zeros()
}

/// Dynamic shared memory of a CTA of `quantize_*`: the tile, and two floats a channel, or three of a slice.
#[must_use]
pub const fn quantize_shared_bytes(head_dim: usize) -> usize {
    let floats = if head_dim < 64 { 3 * head_dim } else { 2 * head_dim };
    TILE_BYTES + 4 * floats
}

/// Words of counters for an operand, K or V of a head: its slices that are done, the bits of its largest `amax`, and for each
/// slice the chunks that are done.
#[must_use]
pub const fn operand_counters(slices: usize) -> usize {
    2 + slices
}

/// Words of the workspace of `quantize_*` that are zero before the launch, for `heads` of K and V over all batches.
#[must_use]
pub const fn counters(heads: usize, slices: usize) -> usize {
    (2 * heads * operand_counters(slices)).next_multiple_of(4)
}

/// Words of the workspace of `quantize_*`: counters, and partial statistics `[heads][2][slices][chunks][3][channels of a slice]`.
/// `None` on overflow.
#[must_use]
pub const fn workspace_len(
    batch: usize,
    heads_kv: usize,
    seqlen_kv: usize,
    head_dim: usize,
    element_bytes: usize,
) -> Option<usize> {
    match grid(batch, heads_kv, seqlen_kv.div_ceil(STATS_CHUNK)) {
        Some(chunks) => match (chunks as usize).checked_mul(2 * 3 * head_dim) {
            Some(partial) => partial.checked_add(counters(batch * heads_kv, head_dim * element_bytes / SLICE_BYTES)),
            None => None,
        },
        None => None,
    }
}

/// Largest x of a grid (CUDA programming guide, technical specifications per compute capability).
pub(crate) const MAX_GRID: usize = i32::MAX as usize;

pub(crate) const fn grid(batch: usize, heads: usize, each: usize) -> Option<u32> {
    match batch.checked_mul(heads) {
        Some(all_heads) => match all_heads.checked_mul(each) {
            Some(blocks) if blocks <= MAX_GRID => Some(blocks as u32),
            _ => None,
        },
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HEAD_DIMS;

    #[test]
    fn tiles_hold_whole_panels_and_fit() {
        for (d, bytes) in HEAD_DIMS.into_iter().flat_map(|d| [(d, 2), (d, 4)]) {
            let tokens = tile_tokens(d, bytes);
            assert!(tokens * d * bytes <= TILE_BYTES && 2 * tokens * d * bytes > TILE_BYTES);
            assert!((32..=512).contains(&tokens) && (d * bytes).is_multiple_of(SLICE_BYTES));
        }
    }

    #[test]
    fn grids_that_do_not_fit_are_none() {
        assert_eq!(workspace_len(2, 3, 513, 64, 2), Some(2 * 6 * 4 + 2 * 6 * 2 * 3 * 64));
        assert_eq!(workspace_len(1 << 16, 1 << 16, 1, 64, 2), None);
    }
}
