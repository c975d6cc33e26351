//! O = acc / l * v_scale + v_mean, and the log-sum-exp.

use super::output::Accumulator;
use super::{Args, Place, Softmax};
use crate::ptx::global::ld_global_nc_v2_f32;
use crate::ptx::math::{cvt_rn_bf16x2_f32, cvt_rn_f16x2_f32, fma_rn_f32};
use crate::ptx::select::selp_b32;

/// Tiles whose scales are in registers together.
const CHUNK: usize = 4;

/// Where the output goes.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub o: *mut u8,
    pub stride_b: i64,
    pub stride_h: i64,
    pub stride_n: i64,
    pub lse: *mut f32,
    /// 0 float16, 1 bfloat16, 2 float32. A run-time value: the choice costs one uniform branch a CTA, and a const
    /// parameter would triple the kernels that the driver compiles.
    pub dtype: u32,
}

/// Scales and means of the channels `channel` and `channel + 1` of the head.
#[inline(always)]
pub(crate) unsafe fn channels<const D: usize>(args: &Args, head_kv: u64, channel: usize) -> [[f32; 2]; 2] {
    let at = head_kv as usize * D + channel;
    unsafe { [ld_global_nc_v2_f32(args.v_scale.add(at)), ld_global_nc_v2_f32(args.v_mean.add(at))] }
}

/// Writes the rows of a warp. `channels` gives the scales and means of two channels.
#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<MT>,
    channels: impl Fn(usize) -> [[f32; 2]; 2],
) {
    let column = place.member as usize * (D / TEAM) + 2 * place.quad as usize;
    unroll!(0..MT, |mt| {
        let row = place.row + (16 * mt) as u32 + place.group;
        // The shuffles inside need the whole warp.
        let finished = unsafe { [softmax.finish(mt, 0), softmax.finish(mt, 1)] };
        // The scales of some tiles at a time: loads between stores would wait for one another.
        unroll!(0..D / 8 / TEAM / CHUNK, |chunk| {
            let mut scale = [[[0.0; 2]; 2]; CHUNK];
            unroll!(0..CHUNK, |i| {
                scale[i] = channels(8 * (CHUNK * chunk + i) + column);
            });
            unroll!(0..2, |half| {
                let row = row + 8 * half as u32;
                if row < args.seqlen_q {
                    let factor = finished[half].map_or(0.0, |(factor, _)| factor);
                    let seen = if finished[half].is_some() { 1.0 } else { 0.0 };
                    let offset = i64::from(place.batch) * args.out.stride_b
                        + i64::from(place.head_q) * args.out.stride_h
                        + i64::from(row) * args.out.stride_n
                        + (8 * CHUNK * chunk + column) as i64;
                    let mut o = [[0.0; 2]; CHUNK];
                    unroll!(0..CHUNK, |i| {
                        let acc = acc.o[mt][CHUNK * chunk + i];
                        unroll!(0..2, |j| {
                            o[i][j] = fma_rn_f32(acc[2 * half + j] * factor, scale[i][0][j], scale[i][1][j] * seen);
                        });
                    });
                    unsafe { store_chunk(&args.out, offset, &o) };
                }
            });
        });
        unroll!(0..2, |half| {
            let row = row + 8 * half as u32;
            if row < args.seqlen_q && place.quad == 0 && place.member == 0 && !args.out.lse.is_null() {
                let lse = finished[half].map_or(f32::NEG_INFINITY, |(_, lse)| lse);
                let index = place.head as usize * args.seqlen_q as usize + row as usize;
                let bias = if args.q_bias.is_null() { 0.0 } else { unsafe { *args.q_bias.add(index) } };
                unsafe {
                    *args.out.lse.add(index) = fma_rn_f32(lse, core::f32::consts::LN_2, bias * args.softmax_scale)
                };
            }
        });
    });
}

/// Stores pairs of neighbouring elements, eight elements apart, from element `offset` on. The host guarantees an element's
/// alignment; in pairs the elements go where the first pair is aligned, and then all are.
#[inline(always)]
unsafe fn store_chunk(out: &Out, offset: i64, o: &[[f32; 2]; CHUNK]) {
    if out.dtype == 2 {
        let address = unsafe { out.o.cast::<f32>().offset(offset as isize) };
        unroll!(0..CHUNK, |i| {
            unsafe {
                *address.add(8 * i) = o[i][0];
                *address.add(8 * i + 1) = o[i][1];
            }
        });
        return;
    }
    let address = unsafe { out.o.cast::<u16>().offset(offset as isize) };
    let aligned = (address as usize).is_multiple_of(4);
    unroll!(0..CHUNK, |i| {
        let (f16, bf16) = (cvt_rn_f16x2_f32(o[i][1], o[i][0]), cvt_rn_bf16x2_f32(o[i][1], o[i][0]));
        let pair = selp_b32(out.dtype == 0, f16, bf16);
        unsafe {
            let address = address.add(8 * i);
            if aligned {
                *address.cast::<u32>() = pair;
            } else {
                *address = pair as u16;
                *address.add(1) = (pair >> 16) as u16;
            }
        }
    });
}
