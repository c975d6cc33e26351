//! O += w * (P V), 64 query rows a warpgroup.

use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::{KEY_STEPS, Softmax};
use crate::layout::ROW_BYTES;
use crate::ptx::math::cvt_rn_f32_s32;
use crate::ptx::wgmma::{self, Products};

/// Starts the products of P with the dims of part `part` of a V block, as a group.
#[inline(always)]
pub(crate) unsafe fn start<S: Softmax<D, 1>, P: Products, const D: usize>(
    p: &Probabilities<1>,
    v: u32,
    part: usize,
) -> P {
    let v = wgmma::descriptor(v + (part * 8 * P::TILES * ROW_BYTES) as u32);
    let panel = (D * ROW_BYTES / 16) as u64;
    unsafe {
        wgmma::fence();
        let mut sums = if S::SIGNED { P::registers_s8_s8(p[0][0], v) } else { P::registers_u8_s8(p[0][0], v) };
        unroll!(1..KEY_STEPS, |step| {
            let v = v + step as u64 * panel;
            if S::SIGNED {
                sums.add_registers_s8_s8(p[0][step], v);
            } else {
                sums.add_registers_u8_s8(p[0][step], v);
            }
        });
        wgmma::commit_group();
        sums
    }
}

/// Adds a part's sums to the output.
#[inline(always)]
pub(crate) fn add<S: Softmax<D, 1>, P: Products, const D: usize>(
    acc: &mut Accumulator<1>,
    sums: &P,
    part: usize,
    row: &S::Row,
) {
    let sums = sums.tiles();
    unroll!(0..P::TILES, |tile| {
        unroll!(0..4, |j| {
            let o = &mut acc.o[0][part * P::TILES + tile][j];
            *o = S::accumulate(*o, cvt_rn_f32_s32(sums[tile][j]), row, 0, j / 2);
        });
    });
}
