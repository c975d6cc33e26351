//! How the quantization kernels are launched: blocks, grids, shared memory. The host and the kernels read the same functions.

use crate::layout::{KV_BLOCK, STATS_CHUNK, STATS_LANES, block_bytes};

/// Tokens that one CTA of `quantize_*` and `dequantize_*` handles: one packed block.
pub const TOKENS: usize = KV_BLOCK;

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
    Bounds { entry: "kv_stats_f16", threads: stats_threads(256, 2), min_ctas: 3 },
    Bounds { entry: "kv_stats_bf16", threads: stats_threads(256, 2), min_ctas: 3 },
    Bounds { entry: "kv_stats_f32", threads: stats_threads(256, 4), min_ctas: 2 },
    Bounds { entry: "kv_stats_finish", threads: finish_threads(256), min_ctas: 1 },
    Bounds { entry: "quantize_f16", threads: MAX_THREADS, min_ctas: 5 },
    Bounds { entry: "quantize_bf16", threads: MAX_THREADS, min_ctas: 5 },
    Bounds { entry: "quantize_f32", threads: MAX_THREADS, min_ctas: 5 },
    Bounds { entry: "dequantize_f16", threads: MAX_THREADS, min_ctas: 5 },
    Bounds { entry: "dequantize_bf16", threads: MAX_THREADS, min_ctas: 5 },
    Bounds { entry: "dequantize_f32", threads: MAX_THREADS, min_ctas: 5 },
];

/// Threads of a CTA of `quantize_*` and `dequantize_*`: up to 64 dims, eight 16-byte vectors of a float16 block each;
/// beyond that they take several rounds, so that an SM's registers hold blocks in different phases.
///
/// No `next_power_of_two`: of a `usize` it becomes 0 in rust-cuda's code generator (docs/codegen.md).
#[must_use]
pub const fn threads(head_dim: usize) -> usize {
    if head_dim < MAX_THREADS / 2 { MAX_THREADS / 2 } else { MAX_THREADS }
}

/// Most threads of a CTA of `quantize_*` and `dequantize_*`.
const MAX_THREADS: usize = 128;

/// Dynamic shared memory of a CTA of `quantize_*` and `dequantize_*`: one packed block, in which V is transposed.
#[must_use]
pub const fn shared_bytes(head_dim: usize) -> usize {
    block_bytes(head_dim)
}

/// CTAs for one operand: one for each [`TOKENS`] tokens of a head. `None` where the count leaves the grid's range.
#[must_use]
pub const fn token_blocks(batch: usize, heads: usize, seqlen: usize) -> Option<u32> {
    grid(batch, heads, seqlen.div_ceil(TOKENS))
}

/// Grid of `quantize_*` from [`token_blocks`] of Q and of K (V has as many).
#[must_use]
pub const fn quantize_grid(q_blocks: u32, kv_blocks: u32) -> Option<u32> {
    match kv_blocks.checked_mul(2) {
        Some(kv) => match kv.checked_add(q_blocks) {
            Some(blocks) if blocks <= MAX_GRID => Some(blocks),
            _ => None,
        },
        None => None,
    }
}

/// Chunks in which the statistics of `seqlen_kv` tokens are taken.
#[must_use]
pub const fn stats_chunks(seqlen_kv: usize) -> usize {
    seqlen_kv.div_ceil(STATS_CHUNK)
}

/// Threads of a CTA of `kv_stats_*`: one for each accumulator and 16-byte column of a row.
#[must_use]
pub const fn stats_threads(head_dim: usize, element_bytes: usize) -> usize {
    STATS_LANES * head_dim * element_bytes / 16
}

/// Dynamic shared memory of a CTA of `kv_stats_*`: one float for each accumulator and channel.
#[must_use]
pub const fn stats_shared_bytes(head_dim: usize) -> usize {
    STATS_LANES * head_dim * 4
}

/// Grid of `kv_stats_*`, x; y is 2 (K, V). `None` where the count leaves the grid's range.
#[must_use]
pub const fn stats_grid(batch: usize, heads_kv: usize, seqlen_kv: usize) -> Option<u32> {
    grid(batch, heads_kv, stats_chunks(seqlen_kv))
}

/// Floats of `partial`, `[2][batch * heads_kv][chunks][3][head_dim]`. `None` on overflow.
#[must_use]
pub const fn stats_partial_len(batch: usize, heads_kv: usize, seqlen_kv: usize, head_dim: usize) -> Option<usize> {
    match stats_grid(batch, heads_kv, seqlen_kv) {
        Some(chunks) => (chunks as usize).checked_mul(2 * 3 * head_dim),
        None => None,
    }
}

/// Threads of a CTA of `kv_stats_finish`: one a channel. Its grid is `(batch * heads_kv, 2)`.
#[must_use]
pub const fn finish_threads(head_dim: usize) -> usize {
    head_dim
}

/// Dynamic shared memory of a CTA of `kv_stats_finish`: one float for each warp that there can be.
pub const FINISH_SHARED_BYTES: usize = 32;

/// Largest x of a grid (CUDA programming guide, technical specifications per compute capability).
const MAX_GRID: u32 = i32::MAX as u32;

const fn grid(batch: usize, heads: usize, each: usize) -> Option<u32> {
    match batch.checked_mul(heads) {
        Some(all_heads) => match all_heads.checked_mul(each) {
            Some(blocks) if blocks <= MAX_GRID as usize => Some(blocks as u32),
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
    fn blocks_are_whole_warps_within_the_bounds() {
        let bound = |entry| BOUNDS.iter().find(|b| b.entry == entry).unwrap().threads;
        for d in HEAD_DIMS {
            for (bytes, stats) in [(2, "kv_stats_f16"), (4, "kv_stats_f32")] {
                assert!(stats_threads(d, bytes).is_multiple_of(32));
                assert!(stats_threads(d, bytes) >= d && stats_threads(d, bytes) <= bound(stats));
            }
            assert!(threads(d).is_multiple_of(32) && threads(d) <= bound("quantize_f16"));
            assert!(finish_threads(d).is_multiple_of(32) && finish_threads(d) / 8 <= FINISH_SHARED_BYTES);
        }
    }

    #[test]
    fn grids_that_do_not_fit_are_none() {
        assert_eq!(token_blocks(4, 32, 16385), Some(4 * 32 * 129));
        assert_eq!(token_blocks(1 << 16, 1 << 16, 1), None);
        assert_eq!(token_blocks(usize::MAX, 2, 1), None);
        assert_eq!(quantize_grid(1, u32::MAX / 2), None);
        assert_eq!(stats_partial_len(2, 3, 513, 64), Some(2 * 6 * 2 * 3 * 64));
    }
}
