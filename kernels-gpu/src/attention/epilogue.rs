//! O = acc / l * v_scale + v_mean, and the log-sum-exp.

use super::output::{Accumulator, MAX_TILES};
use super::softmax::{Finished, Softmax};
use super::{Args, Place};
use crate::element::{Bf16, Element, F16, F32, store_elements};
use crate::layout::V_GROUP;
use crate::ptx::global::{ld_global_nc_v4_f32, st_global_v4_u32};
use crate::ptx::math::fma_rn_f32;

/// Groups of dims of the widest head.
const MAX_GROUPS: usize = MAX_TILES / TILES;

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

/// Dims of a lane that are neighbours (`layout::v_row`), and n8 tiles that have them.
pub(crate) const NEIGHBOURS: usize = 8;
pub(crate) const TILES: usize = 4;

/// Rows of the output in registers.
pub(crate) trait OutputRows {
    /// Stores them, by [`store_neighbours`].
    unsafe fn store<E: Element, const WHOLE: bool>(&self);
}

impl Out {
    /// Stores rows in the type that is wanted. One branch, in front of everything: one for each store, and an address, cost as
    /// much as two blocks of keys.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, rows: &impl OutputRows) {
        // Whether eight neighbouring 16-bit elements of every row are 16-byte aligned.
        let whole = (self.stride_b | self.stride_h | self.stride_n) % 8 == 0 && (self.o as usize).is_multiple_of(16);
        unsafe {
            match (self.dtype, whole) {
                (0, true) => rows.store::<F16, true>(),
                (1, true) => rows.store::<Bf16, true>(),
                (0, false) => rows.store::<F16, false>(),
                (1, false) => rows.store::<Bf16, false>(),
                _ => rows.store::<F32, false>(),
            }
        }
    }

    /// The address of dim `dim` of a row.
    #[inline(always)]
    pub(crate) fn address<E: Element>(&self, place: &Place, row: u32, dim: usize) -> *mut u8 {
        let offset = i64::from(place.batch) * self.stride_b
            + i64::from(place.head_q) * self.stride_h
            + i64::from(row) * self.stride_n
            + dim as i64;
        self.o.wrapping_offset((offset * E::BYTES as i64) as isize)
    }
}

/// Stores neighbouring elements where `inside`: zeros in a row that sees no key. `WHOLE` says that 16 bytes are aligned.
///
/// # Safety
/// Where `inside`, `address` is that of the elements in the output.
#[inline(always)]
pub(crate) unsafe fn store_neighbours<E: Element, const WHOLE: bool>(
    inside: bool,
    address: *mut u8,
    o: &[f32; NEIGHBOURS],
    seen: u32,
) {
    unroll!(0..NEIGHBOURS / E::LANES, |piece| {
        let mut values = [0.0; NEIGHBOURS];
        unroll!(0..E::LANES, |i| {
            values[i] = o[E::LANES * piece + i];
        });
        let vector = E::pack(&values).map(|word| word & seen);
        let address = address.wrapping_add(16 * piece);
        unsafe {
            if WHOLE {
                st_global_v4_u32(inside, address, vector);
            } else {
                store_elements::<E>(inside, address, &vector);
            }
        }
    });
}

/// The rows of a warp.
struct Warp<'a, const D: usize, const MT: usize, const TEAM: usize> {
    out: &'a Out,
    place: &'a Place,
    acc: &'a Accumulator<MT>,
    seqlen_q: u32,
    finished: [[Finished; 2]; MT],
    channels: Channels,
}

#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<MT>,
) {
    let mut finished = [[Finished::UNSEEN; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            // The shuffles inside need the whole warp.
            finished[mt][half] = unsafe { softmax.finish(mt, half) };
            let row = row(place, mt, half);
            if row < args.seqlen_q && place.quad == 0 && place.member == 0 {
                unsafe { store_lse(args, place, row, finished[mt][half].lse) };
            }
        });
    });
    let channels = unsafe { Channels::load::<D, TEAM>(args, place.head_kv as usize * D + first_dim::<D, TEAM>(place)) };
    let warp = Warp::<D, MT, TEAM> { out: &args.out, place, acc, seqlen_q: args.seqlen_q, finished, channels };
    unsafe { args.out.store(&warp) };
}

/// Row `(mt, half)` of the lane.
#[inline(always)]
fn row(place: &Place, mt: usize, half: usize) -> u32 {
    place.row + (16 * mt + 8 * half) as u32 + place.group
}

/// First of the lane's dims.
#[inline(always)]
fn first_dim<const D: usize, const TEAM: usize>(place: &Place) -> usize {
    place.member as usize * (D / TEAM) + NEIGHBOURS * place.quad as usize
}

impl<const D: usize, const MT: usize, const TEAM: usize> OutputRows for Warp<'_, D, MT, TEAM> {
    #[inline(always)]
    unsafe fn store<E: Element, const WHOLE: bool>(&self) {
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let (row, finished) = (row(self.place, mt, half), &self.finished[mt][half]);
                let first = self.out.address::<E>(self.place, row, first_dim::<D, TEAM>(self.place));
                unroll!(0..D / V_GROUP / TEAM, |group| {
                    let mut o = [0.0; NEIGHBOURS];
                    unroll!(0..NEIGHBOURS, |i| {
                        let acc = self.acc.o[mt][TILES * group + i / 2][2 * half + i % 2];
                        o[i] = finished.output(acc, self.channels.scale[group][i], self.channels.mean[group][i]);
                    });
                    let address = first.wrapping_add(V_GROUP * group * E::BYTES);
                    unsafe { store_neighbours::<E, WHOLE>(row < self.seqlen_q, address, &o, finished.seen) };
                });
            });
        });
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
    scale: [[f32; NEIGHBOURS]; MAX_GROUPS],
    mean: [[f32; NEIGHBOURS]; MAX_GROUPS],
}

impl Channels {
    #[inline(always)]
    unsafe fn load<const D: usize, const TEAM: usize>(args: &Args, first: usize) -> Self {
        let mut channels = Self { scale: [[0.0; NEIGHBOURS]; MAX_GROUPS], mean: [[0.0; NEIGHBOURS]; MAX_GROUPS] };
        unroll!(0..D / V_GROUP / TEAM, |group| {
            unroll!(0..2, |half| {
                let at = first + V_GROUP * group + 4 * half;
                let (scale, mean) =
                    unsafe { (ld_global_nc_v4_f32(args.v_scale.add(at)), ld_global_nc_v4_f32(args.v_mean.add(at))) };
                unroll!(0..4, |i| {
                    channels.scale[group][4 * half + i] = scale[i];
                    channels.mean[group][4 * half + i] = mean[i];
                });
            });
        });
        channels
    }
}
