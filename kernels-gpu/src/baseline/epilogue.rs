//! O = acc / l in float16, and the log-sum-exp.

use super::accumulator::Accumulator;
use super::softmax::Softmax;
use super::{Kernel, Place};
use crate::attention::sequence::token;
use crate::params::BaselineParams;
use crate::ptx::global::{st_global_f32, st_global_u32};
use crate::ptx::math::cvt_rn_f16x2_f32;

/// Rows of the output are 4-byte aligned (docs/kernel-abi.md).
#[inline(always)]
pub(crate) unsafe fn store<K: Kernel<MT>, const MT: usize>(
    params: &BaselineParams,
    place: &Place,
    softmax: &Softmax<MT>,
    acc: &Accumulator<MT>,
) {
    let Place { lane, batch, head_q, .. } = *place;
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            // The shuffles inside need the whole warp.
            let (factor, lse) = unsafe { softmax.finish(mt, half) };
            let row = lane.query(mt, half);
            if row < params.seqlen_q {
                let o = token(&params.o, 2, [batch, head_q, row], 2 * lane.quad as usize).cast_mut();
                unroll!(0..K::HEAD_DIM / 8, |tile| {
                    let [low, high] = [acc.o[mt][tile][2 * half], acc.o[mt][tile][2 * half + 1]];
                    unsafe {
                        st_global_u32(true, o.wrapping_add(16 * tile), [cvt_rn_f16x2_f32(high * factor, low * factor)])
                    };
                });
                if lane.quad == 0 && !params.lse.is_null() {
                    let head = batch as usize * params.heads_q as usize + head_q as usize;
                    let at = head * params.seqlen_q as usize + row as usize;
                    unsafe {
                        st_global_f32(true, params.lse.ptr().cast_mut().add(at), [lse * core::f32::consts::LN_2])
                    };
                }
            }
        });
    });
}
