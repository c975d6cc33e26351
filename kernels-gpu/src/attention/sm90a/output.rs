//! O += w * (P V), 64 query rows a warpgroup.

use super::Kernel;
use crate::attention::KEY_STEPS;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::softmax::Softmax;
use crate::layout::ROW_BYTES;
use crate::ptx::wgmma::{self, Products};

/// Starts the products of step `step` of P with the dims of part `part` of the V block at shared address `v`. Step 0 begins the sums. Calls `there` when
/// P is there.
#[inline(always)]
pub(crate) unsafe fn step<K: Kernel>(
    sums: &mut K::Part,
    p: &mut Probabilities<1>,
    step: usize,
    v: u32,
    part: usize,
    there: impl FnOnce(),
) {
    let v = wgmma::descriptor(v + (part * 8 * K::Part::TILES * ROW_BYTES) as u32)
        + (step * K::HEAD_DIM * ROW_BYTES / 16) as u64;
    unsafe {
        p[0][step] = wgmma::fence_behind(p[0][step]);
        there();
        let p = p[0][step];
        if step == 0 {
            *sums = K::Part::registers_u8_u8(p, v);
        } else {
            sums.add_registers_u8_u8(p, v);
        }
    }
}

/// The first `steps` steps of a part, of a P that is there, as a group.
#[inline(always)]
pub(crate) unsafe fn start<K: Kernel>(sums: &mut K::Part, p: &mut Probabilities<1>, steps: u32, v: u32, part: usize) {
    unsafe {
        unroll!(0..KEY_STEPS, |s| {
            if s == 0 || (s as u32) < steps {
                step::<K>(sums, p, s, v, part, || {});
            }
        });
        wgmma::commit_group();
    }
}

/// Adds a part's sums to the output.
#[inline(always)]
pub(crate) fn add<K: Kernel>(
    acc: &mut Accumulator<1>,
    sums: &K::Part,
    part: usize,
    row: &<K::Softmax as Softmax<1>>::Row,
) {
    unroll!(0..K::Part::TILES, |tile| {
        unroll!(0..4, |j| {
            let o = &mut acc.o[0][part * K::Part::TILES + tile][j];
            *o = K::Softmax::accumulate(*o, sums.get(tile, j), row, 0, j / 2);
        });
    });
}
