//! O of a warp, in registers.

/// n8 tiles of the widest head.
const MAX_TILES: usize = 32;

/// The output rows of a warp in accumulator fragments, not yet divided by the row sum.
pub(crate) struct Accumulator<const MT: usize> {
    pub o: [[[f32; 4]; MAX_TILES]; MT],
}

impl<const MT: usize> Accumulator<MT> {
    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { o: [[[0.0; 4]; MAX_TILES]; MT] }
    }

    /// Multiplies each row of the `head_dim` dims in use: `factor[mt][half]`.
    #[inline(always)]
    pub(crate) fn scale(&mut self, head_dim: usize, factor: &[[f32; 2]; MT]) {
        unroll!(0..MT, |mt| {
            unroll!(0..MAX_TILES, |tile| {
                if tile < head_dim / 8 {
                    unroll!(0..4, |i| {
                        self.o[mt][tile][i] *= factor[mt][i / 2];
                    });
                }
            });
        });
    }
}
