//! O = acc / l * v_scale + v_mean, and the log-sum-exp.

use super::output::{Accumulator, MAX_TILES};
use super::softmax::{Finished, Softmax};
use super::{Args, Place};
use crate::ptx::global::ld_global_nc_f32;
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

impl Out {
    /// Whether every pair of 16-bit elements that begins at an even dim is 4-byte aligned.
    #[inline(always)]
    fn whole_pairs(&self) -> bool {
        (self.stride_b | self.stride_h | self.stride_n) % 2 == 0 && (self.o as usize).is_multiple_of(4)
    }
}

/// A row of the tile: where it goes and what its accumulators are multiplied with.
#[derive(Clone, Copy)]
struct Row {
    /// Element offset of this lane's first pair.
    offset: i64,
    inside: bool,
    finished: Finished,
}

#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<MT>,
) {
    let column = place.member as usize * (D / TEAM) + 2 * place.quad as usize;
    let mut rows = [[Row { offset: 0, inside: false, finished: Finished::UNSEEN }; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = place.row + (16 * mt + 8 * half) as u32 + place.group;
            // The shuffles inside need the whole warp.
            let finished = unsafe { softmax.finish(mt, half) };
            let inside = row < args.seqlen_q;
            if inside && place.quad == 0 && place.member == 0 {
                unsafe { store_lse(args, place, row, finished.lse) };
            }
            rows[mt][half] = Row {
                offset: i64::from(place.batch) * args.out.stride_b
                    + i64::from(place.head_q) * args.out.stride_h
                    + i64::from(row) * args.out.stride_n
                    + column as i64,
                inside,
                finished,
            };
        });
    });
    let channels = unsafe { Channels::load::<D, TEAM>(args, place.head_kv as usize * D + column) };
    let o = args.out.o;
    // One branch for the type, in front of everything: a branch and an address for each pair cost as much as two blocks of keys.
    unsafe {
        match (args.out.dtype, args.out.whole_pairs()) {
            (0, true) => tiles::<D, MT, TEAM>(acc, &rows, &channels, o, 2, |at, o| *at.cast::<u32>() = halves(o)),
            (1, true) => tiles::<D, MT, TEAM>(acc, &rows, &channels, o, 2, |at, o| *at.cast::<u32>() = bfloats(o)),
            (0, false) => tiles::<D, MT, TEAM>(acc, &rows, &channels, o, 2, |at, o| store_apart(at, halves(o))),
            (1, false) => tiles::<D, MT, TEAM>(acc, &rows, &channels, o, 2, |at, o| store_apart(at, bfloats(o))),
            _ => tiles::<D, MT, TEAM>(acc, &rows, &channels, o, 4, |at, o| {
                *at.cast::<f32>() = o[0];
                *at.cast::<f32>().add(1) = o[1];
            }),
        }
    }
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

/// Scales and means of this lane's channels of V, read in one go: a load behind a store would wait for it.
struct Channels {
    scale: [[f32; 2]; MAX_TILES],
    mean: [[f32; 2]; MAX_TILES],
}

impl Channels {
    #[inline(always)]
    unsafe fn load<const D: usize, const TEAM: usize>(args: &Args, first: usize) -> Self {
        let mut channels = Self { scale: [[0.0; 2]; MAX_TILES], mean: [[0.0; 2]; MAX_TILES] };
        unroll!(0..D / 8 / TEAM, |tile| {
            unroll!(0..2, |i| {
                unsafe {
                    channels.scale[tile][i] = ld_global_nc_f32(args.v_scale.add(first + 8 * tile + i));
                    channels.mean[tile][i] = ld_global_nc_f32(args.v_mean.add(first + 8 * tile + i));
                }
            });
        });
        channels
    }
}

/// Stores every pair with `put`, elements of `bytes` bytes.
#[inline(always)]
unsafe fn tiles<const D: usize, const MT: usize, const TEAM: usize>(
    acc: &Accumulator<MT>,
    rows: &[[Row; 2]; MT],
    channels: &Channels,
    o: *mut u8,
    bytes: usize,
    put: impl Fn(*mut u8, [f32; 2]),
) {
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = rows[mt][half];
            if row.inside {
                let first = unsafe { o.offset(row.offset as isize * bytes as isize) };
                unroll!(0..D / 8 / TEAM, |tile| {
                    let mut pair = [0.0; 2];
                    unroll!(0..2, |i| {
                        let o = acc.o[mt][tile][2 * half + i];
                        pair[i] = row.finished.output(o, channels.scale[tile][i], channels.mean[tile][i]);
                    });
                    put(unsafe { first.add(8 * tile * bytes) }, pair);
                });
            }
        });
    });
}

#[inline(always)]
fn halves(o: [f32; 2]) -> u32 {
    cvt_rn_f16x2_f32(o[1], o[0])
}

#[inline(always)]
fn bfloats(o: [f32; 2]) -> u32 {
    cvt_rn_bf16x2_f32(o[1], o[0])
}

/// A pair at an address that is only 2-byte aligned.
#[inline(always)]
unsafe fn store_apart(at: *mut u8, pair: u32) {
    let at = at.cast::<u16>();
    unsafe {
        *at = pair as u16;
        *at.add(1) = (pair >> 16) as u16;
    }
}
