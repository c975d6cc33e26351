//! How the dequantization kernels are launched: blocks, grids, shared memory. The host and the kernels read the same functions.

use crate::layout::{KV_BLOCK, block_bytes};
use crate::params::{DequantizeParams, operand};
use crate::quantize::launch::{Bounds, grid};

/// Tokens that one CTA of `dequantize_*` handles: one packed block.
pub const TOKENS: usize = KV_BLOCK;

/// All entry points, in the order of `params::dtype`.
pub const BOUNDS: &[Bounds] = &[
    Bounds { module: "dequantize_f16", entry: "dequantize_f16", threads: MAX_THREADS, min_ctas: 4 },
    Bounds { module: "dequantize_bf16", entry: "dequantize_bf16", threads: MAX_THREADS, min_ctas: 4 },
    Bounds { module: "dequantize_f32", entry: "dequantize_f32", threads: MAX_THREADS, min_ctas: 4 },
];

/// Threads of a CTA of `dequantize_*`: up to 64 dims, eight 16-byte vectors of a float16 block each;
/// beyond that they take several rounds, so that an SM's registers hold blocks in different phases.
///
/// No `next_power_of_two`: of a `usize` it becomes 0 in rust-cuda's code generator (docs/codegen.md).
#[must_use]
pub const fn threads(head_dim: usize) -> usize {
    if head_dim < MAX_THREADS / 2 { MAX_THREADS / 2 } else { MAX_THREADS }
}

/// Most threads of a CTA of `dequantize_*`.
const MAX_THREADS: usize = 128;

/// Dynamic shared memory of a CTA of `dequantize_*`: one packed block, in which V is transposed.
#[must_use]
pub const fn shared_bytes(head_dim: usize) -> usize {
    block_bytes(head_dim)
}

/// Grid of `dequantize_*`: a CTA for each [`TOKENS`] tokens of a head. `None` where the count leaves the grid's range.
#[must_use]
pub const fn ctas(params: &DequantizeParams) -> Option<u32> {
    let DequantizeParams { batch, heads, seqlens, operand, .. } = *params;
    let (packed, tiles) = match operand {
        operand::Q => (seqlens.packed_q, seqlens.q_tiles(batch, TOKENS as u32)),
        _ => (seqlens.packed_kv, seqlens.kv_blocks(batch)),
    };
    let batches = if packed == 0 { batch } else { 1 };
    grid(batches as usize, heads as usize, tiles as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HEAD_DIMS;
    use crate::params::SeqLens;

    #[test]
    fn blocks_are_whole_warps_within_the_bounds() {
        for (d, bounds) in HEAD_DIMS.into_iter().flat_map(|d| BOUNDS.iter().map(move |bounds| (d, bounds))) {
            assert!(threads(d).is_multiple_of(32) && threads(d) <= bounds.threads, "{} {d}", bounds.entry);
        }
    }

    #[test]
    fn grids_that_do_not_fit_are_none() {
        let params = |batch, heads, tokens| DequantizeParams {
            batch,
            heads,
            seqlens: SeqLens { total_q: tokens, ..SeqLens::NONE },
            ..DequantizeParams::NONE
        };
        assert_eq!(ctas(&params(4, 32, 16385)), Some(4 * 32 * 129));
        assert_eq!(ctas(&params(1 << 16, 1 << 16, 1)), None);
        assert_eq!(ctas(&params(u32::MAX, 2, 1)), None);
    }
}
