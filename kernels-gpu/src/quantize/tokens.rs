//! Q and K: one scale a token (arXiv 2409.16997, section 3.2: token-level quantization of Q and K).
//!
//! A row is shared by as many lanes as it has sixteens of dims; it stays in their registers between its maximum and its
//! bytes.

use super::launch::{QUANTIZE_THREADS, tile_tokens};
use super::pack::quantize4;
use super::scale::{reciprocal, round_up, scale};
use super::tile::{Tile, tile_address};
use crate::element::Element;
use crate::layout::{KV_BLOCK, block_bytes, k_offset};
use crate::ptx::global::{ld_global_v4_f32, st_global_cs_v4_u32, st_global_f32};
use crate::ptx::math::{fma_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::ld_shared_v4_u32;
use crate::ptx::shuffle::{shfl_sync_bfly_add_f32, shfl_sync_bfly_b32};
use crate::ptx::special::tid_x;

/// Dims of a row that a lane holds.
const DIMS: usize = 16;
/// Rows of a warp in one step at most.
pub(crate) const ROWS: u32 = 16;
const WARPS: usize = QUANTIZE_THREADS / 32;

/// Where a tile goes.
pub(crate) struct Output {
    /// The head's bytes.
    pub bytes: *mut u8,
    /// The head's scales.
    pub scale: *mut f32,
    /// The head's `q_bias`, or null.
    pub bias: *mut f32,
    /// Dims of a row.
    pub head_dim: u32,
    /// Low bits that no scale has.
    pub scale_beyond: u32,
}

/// The lane's place in a row.
struct Place {
    /// Lanes that share a row: a power of two, for the reduction.
    lanes: u32,
    /// The lane's number among them.
    lane: u32,
    /// Rows of a warp in one step.
    rows: u32,
    /// The lane's row among these.
    row: u32,
    /// First of the lane's dims; idle lanes repeat the last ones.
    dim: u32,
    /// Whether the lane has dims of its own.
    has: bool,
}

impl Place {
    #[inline(always)]
    fn new(head_dim: u32) -> Self {
        let sixteens = head_dim / DIMS as u32;
        let lanes = sixteens.next_power_of_two();
        let lane = tid_x() & (lanes - 1);
        let log = lanes.trailing_zeros();
        let (rows, row) = (32 >> log, tid_x() % 32 >> log);
        Self { lanes, lane, rows, row, dim: DIMS as u32 * lane.min(sixteens - 1), has: lane < sixteens }
    }

    /// The largest of a value over the lanes that share a row; all of them get it.
    #[inline(always)]
    unsafe fn max(&self, mut value: f32) -> f32 {
        let mut meet = |step| {
            // halves of the row's lanes, and in the end none: the lane meets itself
            value = value.max(f32::from_bits(unsafe { shfl_sync_bfly_b32(value.to_bits(), self.lanes >> step) }));
        };
        (meet(1), meet(2));
        if self.lanes > 4 {
            (meet(3), meet(4));
        }
        value
    }

    /// The sum of a value over the lanes that share a row; all of them get it.
    #[inline(always)]
    unsafe fn sum(&self, mut value: f32) -> f32 {
        let mut meet = |step| value = unsafe { shfl_sync_bfly_add_f32(value, self.lanes >> step) };
        (meet(1), meet(2));
        if self.lanes > 4 {
            (meet(3), meet(4));
        }
        value
    }
}

/// The means that K has, or that Q meets: 0 where the lane of Q is idle, so that it adds nothing to the row's `q_bias`.
#[inline(always)]
unsafe fn lane_mean<const KEYS: bool>(place: &Place, mean: *const f32) -> [f32; DIMS] {
    let mut out = [0.0; DIMS];
    unroll!(0..DIMS / 4, |quad| {
        let four = unsafe { ld_global_v4_f32(mean.wrapping_add(place.dim as usize + 4 * quad)) };
        unroll!(0..4, |i| {
            out[4 * quad + i] = f32::from_bits(selp_b32(KEYS || place.has, four[i].to_bits(), 0));
        });
    });
    out
}

/// Quantizes a tile: of K (centred, packed, padded) where `KEYS`, else of Q (row-major).
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, const KEYS: bool>(tile: &Tile, mean: *const f32, out: &Output) {
    unsafe {
        let place = Place::new(out.head_dim);
        let mean = lane_mean::<KEYS>(&place, mean);
        // each warp has rows of its own that follow one another; they are all of one packed block
        let each = (tile_tokens(out.head_dim as usize, E::BYTES) / WARPS) as u32;
        let first = tid_x() / 32 * each;
        let end = (first + each).min(tile.padded);
        let mut row = first;
        while row < end {
            quantize_row::<E, KEYS>(&place, tile, row + place.row, &mean, out);
            row += place.rows;
        }
    }
}

#[inline(always)]
unsafe fn quantize_row<E: Element, const KEYS: bool>(
    place: &Place,
    tile: &Tile,
    row: u32,
    mean: &[f32; DIMS],
    out: &Output,
) {
    unsafe {
        let inside = row < tile.count;
        let x = lane_row::<E, KEYS>(place, row, mean, out.head_dim);
        // as a tree: the rows of other warps do not hide sixteen steps
        let mut largest = [x[0].abs(), x[1].abs(), x[2].abs(), x[3].abs()];
        unroll!(4..DIMS, |i| {
            largest[i % 4] = largest[i % 4].max(x[i].abs());
        });
        let largest = place.max(largest[0].max(largest[1]).max(largest[2].max(largest[3])));
        let scale = round_up(scale(largest, fma_rn_f32), out.scale_beyond);
        let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
        // the padding of K is zeros
        let or_zero = |x: f32| if KEYS { f32::from_bits(selp_b32(inside, x.to_bits(), 0)) } else { x };
        let (scale, inverse) = (or_zero(scale), or_zero(inverse));
        let mut words = [0; DIMS / 4];
        unroll!(0..DIMS / 4, |i| {
            words[i] = quantize4::<E>([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]], inverse);
        });
        let token = tile.first + row;
        let to = if KEYS {
            let block = (token / KV_BLOCK as u32) as usize * block_bytes(out.head_dim as usize);
            out.bytes.wrapping_add(block + k_offset(token as usize % KV_BLOCK, place.dim as usize))
        } else {
            out.bytes.wrapping_add(token as usize * out.head_dim as usize + place.dim as usize)
        };
        st_global_cs_v4_u32(place.has & (KEYS | inside), to, words);
        let first_lane = (place.lane == 0) & (KEYS | inside);
        st_global_f32(first_lane, out.scale.wrapping_add(token as usize), [scale]);
        if !KEYS && !out.bias.is_null() {
            let mut bias = [x[0] * mean[0], x[1] * mean[1], x[2] * mean[2], x[3] * mean[3]];
            unroll!(4..DIMS, |i| {
                bias[i % 4] = fma_rn_f32(x[i], mean[i], bias[i % 4]);
            });
            let bias = place.sum((bias[0] + bias[1]) + (bias[2] + bias[3]));
            st_global_f32(first_lane, out.bias.wrapping_add(token as usize), [bias]);
        }
    }
}

/// The lane's values of a row, K's less their means.
#[inline(always)]
unsafe fn lane_row<E: Element, const KEYS: bool>(
    place: &Place,
    row: u32,
    mean: &[f32; DIMS],
    head_dim: u32,
) -> [f32; DIMS] {
    let mut x = [0.0; DIMS];
    unroll!(0..DIMS / E::LANES, |piece| {
        let byte = (place.dim as usize + piece * E::LANES) * E::BYTES;
        let at = tile_address(row, head_dim * E::BYTES as u32, byte as u32);
        let vector = unsafe { ld_shared_v4_u32(at) };
        unroll!(0..E::LANES, |i| {
            let value = E::get(&vector, i);
            x[piece * E::LANES + i] = if KEYS { value - mean[piece * E::LANES + i] } else { value };
        });
    });
    x
}
