//! O = acc / l * v_scale + v_mean, and the log-sum-exp.

use super::output::Accumulator;
use super::{Args, Place, Softmax};
use crate::ptx::math::{cvt_rn_bf16x2_f32, cvt_rn_f16x2_f32, fma_rn_f32};

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

#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<MT>,
) {
    let column = place.member as usize * (D / TEAM) + 2 * place.quad as usize;
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = place.row + (16 * mt + 8 * half) as u32 + place.group;
            // The shuffles inside need the whole warp.
            let finished = unsafe { softmax.finish(mt, half) };
            if row < args.seqlen_q {
                let (factor, lse) = finished.unwrap_or((0.0, f32::NEG_INFINITY));
                let seen = if finished.is_some() { 1.0 } else { 0.0 };
                let offset = i64::from(place.batch) * args.out.stride_b
                    + i64::from(place.head_q) * args.out.stride_h
                    + i64::from(row) * args.out.stride_n;
                let channels = place.head_kv as usize * D + column;
                unroll!(0..D / 8 / TEAM, |tile| {
                    let mut o = [0.0; 2];
                    unroll!(0..2, |i| {
                        let (scale, mean) = unsafe {
                            (*args.v_scale.add(channels + 8 * tile + i), *args.v_mean.add(channels + 8 * tile + i))
                        };
                        o[i] = fma_rn_f32(acc.o[mt][tile][2 * half + i] * factor, scale, mean * seen);
                    });
                    unsafe { store_pair(args, offset + (8 * tile + column) as i64, o) };
                });
                if place.quad == 0 && place.member == 0 {
                    unsafe { store_lse(args, place, row, lse) };
                }
            }
        });
    });
}

/// The log-sum-exp of a row, of which `lse` is the part in base 2, where the host wants it.
#[inline(always)]
pub(crate) unsafe fn store_lse(args: &Args, place: &Place, row: u32, lse: f32) {
    if !args.out.lse.is_null() {
        let index = place.head as usize * args.seqlen_q as usize + row as usize;
        let bias = if args.q_bias.is_null() { 0.0 } else { unsafe { *args.q_bias.add(index) } };
        unsafe { *args.out.lse.add(index) = fma_rn_f32(lse, core::f32::consts::LN_2, bias * args.softmax_scale) };
    }
}

/// Two neighbouring elements at element `offset`; the host guarantees an even offset (head dims and strides are even) only
/// for 4-byte aligned stores of 16-bit types.
#[inline(always)]
unsafe fn store_pair(args: &Args, offset: i64, o: [f32; 2]) {
    let out = args.out;
    unsafe {
        match out.dtype {
            0 => store_halves(out.o, offset, cvt_rn_f16x2_f32(o[1], o[0])),
            1 => store_halves(out.o, offset, cvt_rn_bf16x2_f32(o[1], o[0])),
            _ => {
                let address = out.o.offset(offset as isize * 4).cast::<f32>();
                *address = o[0];
                *address.add(1) = o[1];
            }
        }
    }
}

#[inline(always)]
unsafe fn store_halves(o: *mut u8, offset: i64, pair: u32) {
    let address = unsafe { o.offset(offset as isize * 2).cast::<u16>() };
    unsafe {
        if offset % 2 == 0 && (address as usize).is_multiple_of(4) {
            *address.cast::<u32>() = pair;
        } else {
            *address = pair as u16;
            *address.add(1) = (pair >> 16) as u16;
        }
    }
}
