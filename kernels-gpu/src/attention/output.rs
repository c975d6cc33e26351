//! O += w * (P V) on the int8 tensor cores, with float sums across blocks.

use super::scores::{MAGIC, MAGIC_BITS, panel_row};
use super::{KEY_STEPS, MAX_PAIRS, Softmax, pairs};
use crate::layout::ROW_BYTES;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::{add_rn_f32, fma_rn_f32};

/// n8 tiles of the widest head.
pub(crate) const MAX_TILES: usize = 32;

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

/// P as A fragments: `[mt][step of 32 keys][register]`, four keys a register in the order of `layout::key_slot`. A warp's
/// own keys come first, then those of the member 1, 2, ... away (by exclusive or).
pub(crate) type Probabilities<const MT: usize> = [[[u32; 4]; KEY_STEPS]; MT];

/// Adds the block at shared address `v`, in the dims of member `member`.
#[inline(always)]
pub(crate) unsafe fn update<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
    acc: &mut Accumulator<MT>,
    p: &Probabilities<MT>,
    v: u32,
    member: u32,
    row: &S::Row,
) {
    let steps = KEY_STEPS / TEAM;
    let mut panels = [panel_row(v) + member * (D / TEAM * ROW_BYTES) as u32; TEAM];
    unroll!(0..TEAM, |other| {
        panels[other] += (member ^ other as u32) * (steps * D * ROW_BYTES) as u32;
    });
    unroll!(0..D / 16 / TEAM / pairs(MT), |group| {
        let mut pv = [[[[MAGIC_BITS; 4]; 2]; MT]; MAX_PAIRS];
        unroll!(0..KEY_STEPS, |step| {
            unroll!(0..pairs(MT), |i| {
                let b = unsafe {
                    ldmatrix_x4(
                        panels[step / steps]
                            + (step % steps * D * ROW_BYTES + (group * pairs(MT) + i) * 16 * ROW_BYTES) as u32,
                    )
                };
                unroll!(0..MT, |mt| {
                    pv[i][mt][0] = unsafe { S::mma(p[mt][step], [b[0], b[1]], pv[i][mt][0]) };
                    pv[i][mt][1] = unsafe { S::mma(p[mt][step], [b[2], b[3]], pv[i][mt][1]) };
                });
            });
        });
        unroll!(0..pairs(MT), |i| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |n| {
                    unroll!(0..4, |j| {
                        let product = add_rn_f32(f32::from_bits(pv[i][mt][n][j] as u32), -MAGIC);
                        let o = &mut acc.o[mt][2 * (group * pairs(MT) + i) + n][j];
                        *o = S::accumulate(*o, product, row, mt, j / 2);
                    });
                });
            });
        });
    });
}

/// `o + w * product`.
#[inline(always)]
pub(crate) fn weighted(o: f32, product: f32, w: f32) -> f32 {
    fma_rn_f32(w, product, o)
}
