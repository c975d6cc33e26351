//! O += w * (P V), 64 query rows a warpgroup.

use super::Kernel;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::softmax::Softmax;
use crate::layout::ROW_BYTES;
use crate::ptx::wgmma::{self, Products};

/// Dims of a part of P V: the registers of two parts are those of a block's scores.
const PART: usize = 64;
/// n8 tiles of a part.
const TILES: usize = PART / 8;

/// The sums of a part.
pub(crate) type Sums = wgmma::Sums<TILES>;

/// Of a part that has not been started.
pub(crate) const NONE: Sums = [[0; 4]; TILES];

/// Parts of a head dim.
pub(crate) const fn parts(head_dim: usize) -> usize {
    head_dim / PART
}

/// Starts the products of step `step` of P with the dims of part `part` of the V block at shared address `v`. Step 0 begins the sums.
#[inline(always)]
pub(crate) unsafe fn step<K: Kernel>(sums: &mut Sums, p: &mut Probabilities<1>, step: usize, v: u32, part: usize) {
    let v = wgmma::descriptor(v + (part * PART * ROW_BYTES) as u32) + (step * K::HEAD_DIM * ROW_BYTES / 16) as u64;
    unsafe {
        p[0][step] = wgmma::fence_behind(p[0][step]);
        let p = p[0][step];
        if step == 0 {
            *sums = Sums::registers_u8_u8(p, v);
        } else {
            sums.add_registers_u8_u8(p, v);
        }
    }
}

/// Adds a part's sums to the output.
#[inline(always)]
pub(crate) fn add<S: Softmax<1>>(acc: &mut Accumulator<1>, sums: &Sums, part: usize, row: &S::Row) {
    unroll!(0..TILES, |tile| {
        unroll!(0..4, |j| {
            let o = &mut acc.o[0][part * TILES + tile][j];
            *o = S::accumulate(*o, sums[tile][j], row, 0, j / 2);
        });
    });
}
