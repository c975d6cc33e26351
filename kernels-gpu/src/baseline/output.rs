//! O += P V on the float16 tensor cores.

use super::Kernel;
use super::accumulator::Accumulator;
use super::scores::Scores;
use super::softmax::Softmax;
use super::tile::{LaneRow, row_bytes};
use crate::ptx::ldmatrix::ldmatrix_x4_trans;
use crate::ptx::mma::mma_m16n8k16_f32_f16;

/// Adds the tile at shared address `v`, 16 keys at a time: their exponentials, then their products. The assembler moves the
/// exponentials of the next 16 keys between the products of these.
#[inline(always)]
pub(crate) unsafe fn update<K: Kernel<MT>, const MT: usize>(
    acc: &mut Accumulator<MT>,
    softmax: &mut Softmax<MT>,
    s: &Scores<MT>,
    scale: f32,
    v: u32,
) {
    let lane = LaneRow::rows_first(K::HEAD_DIM);
    unroll!(0..K::KEYS / 16, |step| {
        let p = softmax.probabilities(s, scale, step);
        unroll!(0..K::HEAD_DIM / 16, |pair| {
            let b = unsafe { ldmatrix_x4_trans(lane.address(v, pair) + 16 * step as u32 * row_bytes(K::HEAD_DIM)) };
            unroll!(0..MT, |mt| {
                unroll!(0..2, |n| {
                    let o = &mut acc.o[mt][2 * pair + n];
                    *o = unsafe { mma_m16n8k16_f32_f16(p[mt], [b[2 * n], b[2 * n + 1]], *o) };
                });
            });
        });
    });
}
