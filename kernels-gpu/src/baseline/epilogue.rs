//! O = acc / l in float16, and the log-sum-exp.

use super::output::Accumulator;
use super::softmax::Softmax;
use super::{Args, Place};
use crate::ptx::math::cvt_rn_f16x2_f32;
use crate::ptx::special::nctaid_y;

/// Rows of the output are 4-byte aligned (docs/kernel-abi.md).
#[inline(always)]
pub(crate) unsafe fn store<const D: usize, const MT: usize>(
    args: &Args,
    place: &Place,
    softmax: &Softmax<MT>,
    acc: &Accumulator<MT>,
) {
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            // The shuffles inside need the whole warp.
            let (factor, lse) = unsafe { softmax.finish(mt, half) };
            let row = place.row + (16 * mt + 8 * half) as u32 + place.group;
            if row < args.seqlen_q {
                let o = unsafe {
                    args.o.row(place.batch, place.head_q, row).cast_mut().cast::<u32>().add(place.quad as usize)
                };
                unroll!(0..D / 8, |tile| {
                    let [low, high] = [acc.o[mt][tile][2 * half], acc.o[mt][tile][2 * half + 1]];
                    unsafe { *o.add(4 * tile) = cvt_rn_f16x2_f32(high * factor, low * factor) };
                });
                if place.quad == 0 && !args.lse.is_null() {
                    let head = place.batch as usize * nctaid_y() as usize + place.head_q as usize;
                    unsafe {
                        *args.lse.add(head * args.seqlen_q as usize + row as usize) = lse * core::f32::consts::LN_2
                    };
                }
            }
        });
    });
}
