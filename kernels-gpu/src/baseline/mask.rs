//! Which keys a row sees: the end of the sequence, and the causal diagonal aligned to the bottom right.

use super::scores::Scores;
use super::{Args, Place};
use crate::ptx::math::mul_rn_f32;

/// The mask of one CTA, for blocks of `KEYS` keys.
#[derive(Clone, Copy)]
pub(crate) struct Mask<const KEYS: usize> {
    /// Blocks of keys that any row of the CTA sees.
    pub blocks: u32,
    /// Blocks that every row sees whole: they run without a mask.
    pub full_blocks: u32,
    seqlen_kv: u32,
    /// Keys that row 0 sees; row i sees i more. Negative where the first rows see none.
    first_row_keys: i64,
}

impl<const KEYS: usize> Mask<KEYS> {
    #[inline(always)]
    pub(crate) fn new<const CAUSAL: bool>(args: &Args, cta_row: u32, tile_m: u32) -> Self {
        let seqlen_kv = i64::from(args.seqlen_kv);
        let first_row_keys = if CAUSAL { seqlen_kv - i64::from(args.seqlen_q) + 1 } else { seqlen_kv };
        let (first, last) = if CAUSAL {
            let first = i64::from(cta_row) + first_row_keys;
            let rows = if args.seqlen_q - cta_row < tile_m { args.seqlen_q - cta_row } else { tile_m };
            (clamp(first, seqlen_kv), clamp(first + i64::from(rows) - 1, seqlen_kv))
        } else {
            (args.seqlen_kv, args.seqlen_kv)
        };
        let block = KEYS as u32;
        // Not `div_ceil`: lengths near 2^32 must not wrap.
        let blocks = last / block + u32::from(!last.is_multiple_of(block));
        Self {
            blocks,
            full_blocks: first / block,
            seqlen_kv: args.seqlen_kv,
            first_row_keys: if CAUSAL { first_row_keys } else { i64::MAX / 2 },
        }
    }

    /// Keys of block `block` that row `row` sees, counted from the block's first.
    #[inline(always)]
    fn keys(&self, row: u32, block: u32) -> i32 {
        let keys = clamp(i64::from(row) + self.first_row_keys, i64::from(self.seqlen_kv));
        let rest = i64::from(keys) - (u64::from(block) * KEYS as u64) as i64;
        if rest > KEYS as i64 { KEYS as i32 } else { rest as i32 }
    }

    /// Scales the scores of a block and hides those of unseen keys behind minus infinity (after the scale, which may be zero or
    /// negative).
    #[inline(always)]
    pub(crate) fn apply<const MT: usize>(&self, s: &mut Scores<MT>, scale: f32, block: u32, place: &Place) {
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let keys =
                    self.keys(place.row + (16 * mt + 8 * half) as u32 + place.group, block) - 2 * place.quad as i32;
                unroll!(0..KEYS / 8, |tile| {
                    unroll!(0..2, |i| {
                        let score = &mut s[mt][tile][2 * half + i];
                        *score =
                            if ((8 * tile + i) as i32) < keys { mul_rn_f32(*score, scale) } else { f32::NEG_INFINITY };
                    });
                });
            });
        });
    }
}

#[inline(always)]
fn clamp(keys: i64, seqlen_kv: i64) -> u32 {
    let keys = if keys < 0 { 0 } else { keys };
    (if keys < seqlen_kv { keys } else { seqlen_kv }) as u32
}
