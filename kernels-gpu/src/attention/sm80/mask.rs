//! The mask on a block's scores.

use super::{Args, Place, Softmax};
use crate::layout::KV_BLOCK;
use crate::ptx::opaque::opaque;

/// The mask of one CTA.
pub(crate) type Mask<const CAUSAL: bool> = crate::mask::Mask<CAUSAL, KV_BLOCK>;

impl<const CAUSAL: bool> Mask<CAUSAL> {
    #[inline(always)]
    pub(crate) fn new(args: &Args, cta_row: u32, tile_m: u32) -> Self {
        Self::of_rows(args.seqlen_q, args.seqlen_kv, cta_row, tile_m)
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
                // Opaque: how many keys a row sees would be in a register across the loop.
                let keys = self.keys(opaque(place.row) + place.group + (16 * mt + 8 * half) as u32, block)
                    - (place.member * (KV_BLOCK / TEAM) as u32 + 2 * place.quad) as i32;
                S::hide::<TEAM>(scores, mt, half, keys);
            });
        });
    }
}
