//! P and O in registers.

use super::KEY_STEPS;

/// n8 tiles of the widest head.
pub(crate) const MAX_TILES: usize = 32;

/// P as A fragments: `[mt][step of 32 keys][register]`, four keys a register in the order of `layout::key_slot`. A warp's
/// own keys come first, then those of the member 1, 2, ... away (by exclusive or) where warps share rows.
pub(crate) type Probabilities<const MT: usize> = [[[u32; 4]; KEY_STEPS]; MT];

/// The output rows of a warp in accumulator fragments, not yet divided by the row sum.
pub(crate) struct Accumulator<const MT: usize> {
    pub o: [[[f32; 4]; MAX_TILES]; MT],
}

impl<const MT: usize> Accumulator<MT> {
    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { o: [[[0.0; 4]; MAX_TILES]; MT] }
    }

    /// Multiplies each row of the `tiles` n8 tiles in use: `factor[mt][half]`.
    #[inline(always)]
    pub(crate) fn scale(&mut self, tiles: usize, factor: &[[f32; 2]; MT]) {
        unroll!(0..MT, |mt| {
            unroll!(0..MAX_TILES, |tile| {
                if tile < tiles {
                    unroll!(0..4, |i| {
                        self.o[mt][tile][i] *= factor[mt][i / 2];
                    });
                }
            });
        });
    }
}
