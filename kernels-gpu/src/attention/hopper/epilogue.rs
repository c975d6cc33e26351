//! O = acc / l * v_scale + v_mean, and the log-sum-exp.
//!
//! All warps of a CTA come here at about the same time, and nobody is left to hide what they wait for: the channels' scales
//! are in shared memory, and each row's address and alignment are found once.

use crate::attention::epilogue::{Out, store_lse};
use crate::attention::output::Accumulator;
use crate::attention::{Args, Place, Softmax};
use crate::ptx::math::{cvt_rn_bf16x2_f32, cvt_rn_f16x2_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::ld_shared_v2_u32;

/// Tiles whose scales are in registers together.
const CHUNK: usize = 4;

/// Writes the 16 rows of a warp; the channels' scales and then their means are at shared address `v_scale`.
#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, 1>, const D: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<1>,
    v_scale: u32,
) {
    let row = place.row + place.group;
    // The shuffles inside need the whole warp.
    let finished = unsafe { [softmax.finish(0, 0), softmax.finish(0, 1)] };
    unroll!(0..D / 8 / CHUNK, |chunk| {
        let column = 8 * CHUNK * chunk + 2 * place.quad as usize;
        let mut channels = [[[0.0; 2]; 2]; CHUNK];
        unroll!(0..CHUNK, |i| {
            let at = v_scale + 4 * (8 * i + column) as u32;
            channels[i] = unsafe { [ld_shared_v2_u32(at), ld_shared_v2_u32(at + 4 * D as u32)] }
                .map(|pair| pair.map(f32::from_bits));
        });
        unroll!(0..2, |half| {
            let row = row + 8 * half as u32;
            if row < args.seqlen_q {
                let offset = i64::from(place.batch) * args.out.stride_b
                    + i64::from(place.head_q) * args.out.stride_h
                    + i64::from(row) * args.out.stride_n
                    + column as i64;
                let mut o = [[0.0; 2]; CHUNK];
                unroll!(0..CHUNK, |i| {
                    let acc = acc.o[0][CHUNK * chunk + i];
                    let [scale, mean] = channels[i];
                    unroll!(0..2, |j| {
                        o[i][j] = finished[half].output(acc[2 * half + j], scale[j], mean[j]);
                    });
                });
                unsafe { store_chunk(&args.out, offset, &o) };
            }
        });
    });
    unroll!(0..2, |half| {
        let row = row + 8 * half as u32;
        if row < args.seqlen_q && place.quad == 0 {
            unsafe { store_lse(args, place, row, finished[half].lse) };
        }
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
