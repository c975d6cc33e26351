//! O += w * (P V) on the int8 tensor cores, with float sums across blocks.

use super::{Kernel, MAX_PAIRS, pairs};
use crate::attention::KEY_STEPS;
use crate::attention::lane::panel_row;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::softmax::Softmax;
use crate::layout::ROW_BYTES;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;

/// Warps of the largest team.
const MAX_TEAM: usize = 4;

/// The sums of a block's P V.
pub(crate) type Sums<const MT: usize> = [[[i32; 4]; MAX_TILES]; MT];

/// n8 tiles of the output, at most, of a warp that has its rows for itself.
const MAX_TILES: usize = 32;

pub(crate) const fn no_sums<const MT: usize>() -> Sums<MT> {
    [[[0; 4]; MAX_TILES]; MT]
}

/// Adds the products of a step of P with the block at shared address `v`, of a warp that has its rows for itself: their tensor core
/// instructions fill the gaps between the exponentials of the next step.
#[inline(always)]
pub(crate) unsafe fn multiply<K: Kernel<MT>, const MT: usize>(
    sums: &mut Sums<MT>,
    p: &[[u32; 4]; MT],
    step: usize,
    v: u32,
) {
    let panel = panel_row(v);
    unroll!(0..K::HEAD_DIM_V / 16, |pair| {
        let b = unsafe { ldmatrix_x4(panel + (step * K::HEAD_DIM_V * ROW_BYTES + pair * 16 * ROW_BYTES) as u32) };
        unroll!(0..MT, |mt| {
            unroll!(0..2, |n| {
                let sum = &mut sums[mt][2 * pair + n];
                *sum = unsafe { mma_m16n8k32_s32_u8_u8(p[mt], [b[2 * n], b[2 * n + 1]], *sum) };
            });
        });
    });
}

/// Adds a block's sums to the output.
#[inline(always)]
pub(crate) fn add<K: Kernel<MT>, const MT: usize>(
    acc: &mut Accumulator<MT>,
    sums: &Sums<MT>,
    row: &<K::Softmax as Softmax<MT>>::Row,
) {
    unroll!(0..K::HEAD_DIM_V / 8, |tile| {
        unroll!(0..MT, |mt| {
            unroll!(0..4, |j| {
                let o = &mut acc.o[mt][tile][j];
                *o = K::Softmax::accumulate(*o, sums[mt][tile][j], row, mt, j / 2);
            });
        });
    });
}

/// Adds piece `piece` of a block, which is at shared address `v`, in the dims of member `member`.
#[inline(always)]
pub(crate) unsafe fn update<K: Kernel<MT>, const MT: usize>(
    acc: &mut Accumulator<MT>,
    p: &Probabilities<MT>,
    v: u32,
    piece: usize,
    member: u32,
    row: &<K::Softmax as Softmax<MT>>::Row,
) {
    let (d, steps) = (K::HEAD_DIM_V / K::PIECES, K::KEY_STEPS);
    let first = piece * (d / 8 / K::TEAM);
    let mut panels = [panel_row(v) + member * (d / K::TEAM * ROW_BYTES) as u32; MAX_TEAM];
    unroll!(0..K::TEAM, |other| {
        panels[other] += (member ^ other as u32) * (steps * d * ROW_BYTES) as u32;
    });
    unroll!(0..K::HEAD_DIM_V / K::PIECES / 16 / K::TEAM / pairs(MT), |group| {
        let mut pv = [[[[0; 4]; 2]; MT]; MAX_PAIRS];
        unroll!(0..KEY_STEPS, |step| {
            unroll!(0..pairs(MT), |i| {
                let b = unsafe {
                    ldmatrix_x4(
                        panels[step / steps]
                            + (step % steps * d * ROW_BYTES + (group * pairs(MT) + i) * 16 * ROW_BYTES) as u32,
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
                        let o = &mut acc.o[mt][first + 2 * (group * pairs(MT) + i) + n][j];
                        *o = K::Softmax::accumulate(*o, pv[i][mt][n][j], row, mt, j / 2);
                    });
                });
            });
        });
    });
}
