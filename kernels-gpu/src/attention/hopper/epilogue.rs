//! O = acc / l * v_scale + v_mean, and the log-sum-exp.
//!
//! A warp's next exponentials wait behind this, and those of the other warps behind them: what nearly all rows need is a straight
//! line without branches, and the channels' scales are in shared memory.

use crate::attention::epilogue::{Out, store_lse};
use crate::attention::output::Accumulator;
use crate::attention::{Args, Place, Softmax};
use crate::ptx::math::{cvt_rn_bf16x2_f32, cvt_rn_f16x2_f32, fma_rn_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::ld_shared_v2_u32;

/// Writes the 16 rows of a warp; the channels' scales and then their means are at shared address `v_scale`.
#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, 1>, const D: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<1>,
    v_scale: u32,
) {
    let v_scale = v_scale + 8 * place.quad;
    let row = place.row + place.group;
    // The shuffles inside need the whole warp.
    let finished = unsafe { [softmax.finish(0, 0), softmax.finish(0, 1)] };
    // A row without keys: zero, and minus infinity.
    let seen = finished.map(|row| row.is_some());
    let factor = finished.map(|row| row.map_or(0.0, |(factor, _)| factor));
    let lse = finished.map(|row| row.map_or(f32::NEG_INFINITY, |(_, lse)| lse));
    let offset = [0, 8].map(|below: u32| {
        i64::from(place.batch) * args.out.stride_b
            + i64::from(place.head_q) * args.out.stride_h
            + i64::from(row + below) * args.out.stride_n
            + i64::from(2 * place.quad)
    });
    let inside = row + 8 < args.seqlen_q;
    unsafe {
        // Elements in pairs: where the first is aligned, all are.
        let pairs = offset.map(|offset| args.out.o.cast::<u16>().offset(offset as isize));
        let aligned = (pairs[0] as usize | pairs[1] as usize).is_multiple_of(4);
        match (inside && aligned && seen[0] && seen[1], args.out.dtype) {
            (true, 0) => {
                rows::<D>(acc, factor, v_scale, pairs, cvt_rn_f16x2_f32);
            }
            (true, 1) => {
                rows::<D>(acc, factor, v_scale, pairs, cvt_rn_bf16x2_f32);
            }
            _ => {
                unroll!(0..2, |half| {
                    if row + (8 * half as u32) < args.seqlen_q {
                        any_row::<D>(&args.out, acc, half, factor[half], seen[half], v_scale, offset[half]);
                    }
                });
            }
        }
        unroll!(0..2, |half| {
            let row = row + 8 * half as u32;
            if row < args.seqlen_q && place.quad == 0 {
                store_lse(args, place, row, lse[half]);
            }
        });
    }
}

/// Two channels' scales, or means, at shared address `at`.
#[inline(always)]
unsafe fn pair(at: u32) -> [f32; 2] {
    unsafe { ld_shared_v2_u32(at) }.map(f32::from_bits)
}

/// Stores both rows of a lane as pairs of 16-bit elements, eight elements apart.
#[inline(always)]
unsafe fn rows<const D: usize>(
    acc: &Accumulator<1>,
    factor: [f32; 2],
    v_scale: u32,
    o: [*mut u16; 2],
    round: impl Fn(f32, f32) -> u32,
) {
    unroll!(0..D / 8, |tile| {
        let at = v_scale + (32 * tile) as u32;
        unsafe {
            let (scale, mean) = (pair(at), pair(at + 4 * D as u32));
            unroll!(0..2, |half| {
                let acc = &acc.o[0][tile];
                let low = fma_rn_f32(acc[2 * half] * factor[half], scale[0], mean[0]);
                let high = fma_rn_f32(acc[2 * half + 1] * factor[half], scale[1], mean[1]);
                *o[half].add(8 * tile).cast::<u32>() = round(high, low);
            });
        }
    });
}

/// Stores a lane's part of a row, element by element, from element `offset` on.
#[inline(always)]
unsafe fn any_row<const D: usize>(
    out: &Out,
    acc: &Accumulator<1>,
    half: usize,
    factor: f32,
    seen: bool,
    v_scale: u32,
    offset: i64,
) {
    let seen = if seen { 1.0 } else { 0.0 };
    unroll!(0..D / 8, |tile| {
        let at = v_scale + (32 * tile) as u32;
        unsafe {
            let (scale, mean) = (pair(at), pair(at + 4 * D as u32));
            let acc = &acc.o[0][tile];
            unroll!(0..2, |j| {
                let o = fma_rn_f32(acc[2 * half + j] * factor, scale[j], mean[j] * seen);
                let index = (offset + (8 * tile + j) as i64) as isize;
                if out.dtype == 2 {
                    *out.o.cast::<f32>().offset(index) = o;
                } else {
                    let element = selp_b32(out.dtype == 0, cvt_rn_f16x2_f32(o, o), cvt_rn_bf16x2_f32(o, o));
                    *out.o.cast::<u16>().offset(index) = element as u16;
                }
            });
        }
    });
}
