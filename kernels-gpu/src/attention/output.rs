//! O += w * (P V) on the int8 tensor cores, with float sums across blocks.

use super::scores::panel_row;
use super::{KEY_STEPS, MAX_PAIRS, Softmax, pairs};
use crate::layout::ROW_BYTES;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::fma_rn_f32;
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;

/// n8 tiles of the widest head.
pub(crate) const MAX_TILES: usize = 32;

/// Their product is 2^149, which no float is.
///
/// P and the bytes of V are unsigned, so a sum of P V is from 0 to `255 * 255 * 128 < 2^23`, and its bits, read as a float, are
/// the sum times 2^-149: floats next to zero (subnormal) have that step, and the arithmetic takes them at full speed. In the
/// default scheme the sums so go into `fma` as they are; converting them would be an instruction of half the rate for each.
/// What V's bytes have too much (`layout::V_OFFSET`) leaves the output at the end.
pub(crate) const SUBNORMAL: [f32; 2] = [(1_u128 << 100) as f32, (1_u64 << 49) as f32];

const _: () = assert!(255 * 255 * crate::layout::KV_BLOCK < 1 << 23);

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
        let mut pv = [[[[0; 4]; 2]; MT]; MAX_PAIRS];
        unroll!(0..KEY_STEPS, |step| {
            unroll!(0..pairs(MT), |i| {
                let b = unsafe {
                    ldmatrix_x4(
                        panels[step / steps]
                            + (step % steps * D * ROW_BYTES + (group * pairs(MT) + i) * 16 * ROW_BYTES) as u32,
                    )
                };
                unroll!(0..MT, |mt| {
                    pv[i][mt][0] = unsafe { mma_m16n8k32_s32_u8_u8(p[mt][step], [b[0], b[1]], pv[i][mt][0]) };
                    pv[i][mt][1] = unsafe { mma_m16n8k32_s32_u8_u8(p[mt][step], [b[2], b[3]], pv[i][mt][1]) };
                });
            });
        });
        unroll!(0..pairs(MT), |i| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |n| {
                    unroll!(0..4, |j| {
                        let o = &mut acc.o[mt][2 * (group * pairs(MT) + i) + n][j];
                        *o = S::accumulate(*o, pv[i][mt][n][j], row, mt, j / 2);
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
