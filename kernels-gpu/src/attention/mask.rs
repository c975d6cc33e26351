//! Which keys a row sees: the end of the sequence, and the causal diagonal aligned to the bottom right.

use super::{Args, KEY_TILES, Place, Softmax};
use crate::layout::KV_BLOCK;

/// The mask of one CTA.
#[derive(Clone, Copy)]
pub(crate) struct Mask<const CAUSAL: bool> {
    /// Blocks of keys that any row of the CTA sees.
    pub blocks: u32,
    /// Blocks that every row sees whole: they run without a mask.
    pub full_blocks: u32,
    seqlen_q: u32,
    seqlen_kv: u32,
}

impl<const CAUSAL: bool> Mask<CAUSAL> {
    #[inline(always)]
    pub(crate) fn new(args: &Args, cta_row: u32, tile_m: u32) -> Self {
        let seqlen_kv = i64::from(args.seqlen_kv);
        let (first, last) = if CAUSAL {
            let first = i64::from(cta_row) + seqlen_kv - i64::from(args.seqlen_q) + 1;
            let rows = if args.seqlen_q - cta_row < tile_m { args.seqlen_q - cta_row } else { tile_m };
            (clamp(first, seqlen_kv), clamp(first + i64::from(rows) - 1, seqlen_kv))
        } else {
            (args.seqlen_kv, args.seqlen_kv)
        };
        let block = KV_BLOCK as u32;
        // Not `div_ceil(last + 127)`: lengths near 2^32 must not wrap.
        let blocks = last / block + u32::from(!last.is_multiple_of(block));
        Self { blocks, full_blocks: first / block, seqlen_q: args.seqlen_q, seqlen_kv: args.seqlen_kv }
    }

    /// Hides the scores of block `block` that their rows do not see.
    #[inline(always)]
    pub(crate) fn apply<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
        &self,
        scores: &mut S::Scores,
        block: u32,
        place: &Place,
    ) {
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let keys = self.keys(place.row + (16 * mt + 8 * half) as u32 + place.group, block)
                    - (place.member * (KV_BLOCK / TEAM) as u32 + 2 * place.quad) as i32;
                unroll!(0..KEY_TILES / TEAM, |tile| {
                    S::hide(scores, mt, half, tile, keys - (8 * tile) as i32);
                });
            });
        });
    }

    /// Keys of block `block` that row `row` sees, counted from the block's first.
    #[inline(always)]
    pub(crate) fn keys(&self, row: u32, block: u32) -> i32 {
        let seqlen_kv = i64::from(self.seqlen_kv);
        let keys = if CAUSAL {
            clamp(i64::from(row) + seqlen_kv - i64::from(self.seqlen_q) + 1, seqlen_kv)
        } else {
            self.seqlen_kv
        };
        let start = u64::from(block) * KV_BLOCK as u64;
        let rest = i64::from(keys) - start as i64;
        if rest > KV_BLOCK as i64 { KV_BLOCK as i32 } else { rest as i32 }
    }
}

#[inline(always)]
fn clamp(keys: i64, seqlen_kv: i64) -> u32 {
    let keys = if keys < 0 { 0 } else { keys };
    (if keys < seqlen_kv { keys } else { seqlen_kv }) as u32
}
