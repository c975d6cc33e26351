//! V: rotated four dims at a time, one scale a block or one a token (or, as in arXiv 2409.16997, section 3.2, one a head), keys packed along the row.
//!
//! A lane has one vector of dims of eight keys that are neighbouring bytes of packed rows: the transposition happens in registers. Four lanes hold
//! the four octets of a row of 32 keys, so that they write whole sectors.

mod scales;

pub(crate) use scales::Scaling;
pub(super) use scales::{Largest, Scales, each_scale, largest_of_parts};

use super::launch::THREAD_VECTORS;
use super::reduce::over_warp;
use super::tile::{STEP, Tile, Vectors, in_shared, of_warp, wait};
use crate::division::div_rem;
use crate::element::{Rows, Vector, load};
use crate::layout::{KV_BLOCK, ROW_BYTES, V_OFFSETS, V_PANELS, octet_key, swizzle, v_row};
use crate::ptx::barrier::{bar_sync, warp_sync};
use crate::ptx::global::st_global_cs_v2_u32;
use crate::ptx::math::max_nan_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::order::red_relaxed_gpu_max_u32;
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::first_lane;
use crate::ptx::special::{tid_x, tid_x_again};
use crate::quantize::arithmetic::{Rotated, Values};

/// How many rows further a lane's dims stand than the first, which is a multiple of four: all are swizzled alike.
pub(crate) const FURTHER: [usize; 8] = [0, 1, 8, 9, 16, 17, 24, 25];

const _: () = {
    let mut dim = 0;
    while dim < 256 {
        let (first, row) = (v_row(dim - dim % 8), v_row(dim));
        assert!(row == first + FURTHER[dim % 8] && row & 4 == first & 4);
        dim += 1;
    }
};

/// Where a block goes.
pub(crate) struct Output {
    /// The block's bytes.
    pub bytes: *mut u8,
    /// The block's scales.
    pub scale: *mut f32,
    /// The block's `v_block_scale`, or null.
    pub block_scale: *mut f32,
    /// The head's `v_unit`, of its first block, or null.
    pub unit: *mut f32,
}

/// The lane's part of a block.
pub(super) struct VOctet {
    /// Row of 32 keys.
    panel: u32,
    /// Eight neighbouring bytes of it.
    octet: u32,
    /// Vector of a token.
    pub vector: u32,
    /// Whether the lane has one; if not, it repeats another's.
    has: bool,
}

impl VOctet {
    #[inline(always)]
    fn new<E: Rotated>(head_dim: u32) -> Self {
        Self::of_unit::<E>(head_dim, tid_x() % 4, tid_x() / 4)
    }

    /// That which the lane brings: of the warp's, but with vectors of the same key in neighbouring lanes.
    #[inline(always)]
    fn brought<E: Rotated>(head_dim: u32) -> Self {
        Self::of_unit::<E>(head_dim, tid_x() / 8 % 4, tid_x() / 32 * 8 + tid_x() % 8)
    }

    #[inline(always)]
    pub fn of_unit<E: Rotated>(head_dim: u32, octet: u32, unit: u32) -> Self {
        // SAFETY: a token has vectors.
        let (panel, vector) = unsafe { div_rem(unit, head_dim / E::LANES as u32) };
        Self { panel: panel.min(V_PANELS as u32 - 1), octet, vector, has: panel < V_PANELS as u32 }
    }

    /// All of it in a register, as long as it is not needed.
    #[inline(always)]
    fn packed(&self) -> u32 {
        opaque(self.panel | self.octet << 2 | self.vector << 4 | u32::from(self.has) << 31)
    }

    #[inline(always)]
    fn of(packed: u32) -> Self {
        let packed = opaque(packed);
        Self { panel: packed & 3, octet: packed >> 2 & 3, vector: packed >> 4 & 0xff, has: packed >> 31 != 0 }
    }

    /// The block's key in the lane's byte number `i`.
    #[inline(always)]
    fn key(&self, i: usize) -> u32 {
        self.panel * ROW_BYTES as u32 + octet_key(self.octet, i)
    }

    /// Token and vector of the lane's key number `i`, or of the last key and the last vector of `dims` where there are fewer.
    #[inline(always)]
    pub fn at<E: Rotated>(&self, first: u32, count: u32, dims: u32, i: usize) -> (u32, u32) {
        (first + self.key(i).min(count - 1), self.vector.min(dims / E::LANES as u32 - 1))
    }
}

/// The largest magnitude of a vector's dims, not finite where one's is not.
#[inline(always)]
fn amax<E: Rotated>(vector: &Vector) -> f32 {
    let mut amax = E::get(vector, 0).abs();
    unroll!(1..E::LANES, |i| {
        amax = max_nan_f32(amax, E::get(vector, i).abs());
    });
    amax
}

/// Quantizes and packs the blocks of V from `tile` to before number `end`; `dims` of the packed `head_dim` are in the tensor.
/// `rows` and `out` say where the head and the block are, as often as they are asked, so that addresses take no registers meanwhile.
///
/// # Safety
/// Every thread of the CTA calls it; tile and output are in their tensor and arrays.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Rotated>(
    head_dim: u32,
    dims: u32,
    scaling: Scaling,
    rows: impl Fn() -> Rows,
    tile: Tile,
    end: u32,
    out: impl Fn(Tile) -> Output,
) {
    unsafe {
        let octets =
            Octets { own: VOctet::new::<E>(head_dim).packed(), brought: VOctet::brought::<E>(head_dim).packed() };
        let mut tile = tile;
        if in_shared::<E>() {
            request::<E>(&mut Vectors::none(), dims, &octets, &rows(), tile);
        }
        loop {
            let mut raw = Vectors::none();
            if !in_shared::<E>() {
                request::<E>(&mut raw, dims, &octets, &rows(), tile);
            }
            one::<E>(head_dim, dims, scaling, &octets, &rows, tile, end, raw, &out);
            tile.index = first_lane(tile.index + 1);
            if tile.index >= end {
                break;
            }
        }
    }
}

/// What the lane works on, and what it brings, as [`VOctet::packed`].
struct Octets {
    own: u32,
    brought: u32,
}

/// Where a lane's first vector lies among the warp's, whose eight of an octet are neighbours: exchanged so that the four octets that are read
/// at a time lie in different banks.
#[inline(always)]
fn raw_address(octet: u32, unit: u32) -> u32 {
    of_warp() + octet * 128 + (unit ^ 2 * octet) * 16
}

/// Where the lane's own first vector lies.
#[inline(always)]
fn own_raw() -> u32 {
    let lane = tid_x_again() % 32;
    raw_address(lane % 4, lane / 4)
}

/// Starts loading a tile, of which `dims` of a token are in the tensor.
#[inline(always)]
unsafe fn request<E: Rotated>(raw: &mut Vectors, dims: u32, octets: &Octets, rows: &Rows, tile: Tile) {
    unsafe {
        let place = VOctet::of(if in_shared::<E>() { octets.brought } else { octets.own });
        let count = tile.count();
        let inside = place.vector < dims / E::LANES as u32;
        let at = |i: usize| place.at::<E>(0, count, dims, i);
        let to = raw_address(place.octet, tid_x_again() % 8);
        raw.request::<E, THREAD_VECTORS>(to, &rows.skip(tile.first()), |_| inside, at);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn one<E: Rotated>(
    head_dim: u32,
    dims: u32,
    scaling: Scaling,
    octets: &Octets,
    rows: &impl Fn() -> Rows,
    tile: Tile,
    end: u32,
    mut raw: Vectors,
    out: &impl Fn(Tile) -> Output,
) {
    unsafe {
        let Scaling { rotates, steps, head_amax, first_block } = scaling;
        wait::<E, 0>();
        let (mut eight, from) = ([0.0; 8], own_raw());
        unroll!(0..8, |key| {
            raw.in_registers::<E>(key, from + key as u32 * STEP);
        });
        let next = Tile { index: tile.index + 1, ..tile };
        if in_shared::<E>() && next.index < end {
            // The warp has read what was there.
            warp_sync();
            request::<E>(&mut Vectors::none(), dims, octets, &rows(), next);
        }
        let mut x = [E::values(&[0; 4]); 8];
        unroll!(0..8, |key| {
            x[key] = E::values(&raw.vector(key));
        });
        if rotates {
            unroll!(0..8, |key| {
                eight[key] = x[key].rotate();
            });
            largest_of_parts::<E>(tile.index, &VOctet::of(octets.own), &eight);
        }
        bar_sync();
        let parts = if rotates { head_dim / (4 * E::LANES) as u32 } else { 0 };
        let largest = Largest { tile: tile.index, parts, least: head_amax };
        let scales = Scales::decide::<E>(&largest, tile.index == first_block, steps);
        let (mut inverse, mut masks) = (scales.inverse(), [u32::MAX; 2]);
        let whole = scales.shared & (tile.count() == KV_BLOCK as u32);
        if !whole {
            each_scale::<E>(&largest, tile.count());
            bar_sync();
            (inverse, masks) = scales.of_keys::<E>(&VOctet::of(octets.own));
        }
        scales.write::<E>(whole, tile, rotates, &out(tile));

        store::<E>(&x, &inverse, masks, &VOctet::of(octets.own), head_dim, out(tile).bytes);
    }
}

/// Stores the codes of the lane's part of a block that is at `bytes`.
///
/// # Safety
/// All 32 lanes of a converged warp call it; the bytes are the block's.
#[inline(always)]
pub(super) unsafe fn store<E: Rotated>(
    x: &[E::Values; 8],
    inverse: &[f32; 8],
    masks: [u32; 2],
    place: &VOctet,
    head_dim: u32,
    bytes: *mut u8,
) {
    let four = |key: usize| {
        let inverse = [inverse[key], inverse[key + 1], inverse[key + 2], inverse[key + 3]];
        // SAFETY: in whole warps.
        unsafe { E::Values::encode([&x[key], &x[key + 1], &x[key + 2], &x[key + 3]], inverse) }
    };
    let words = [four(0), four(4)];
    let dim = (place.vector * E::LANES as u32) as usize;
    let to = bytes.wrapping_add((place.panel * head_dim) as usize * ROW_BYTES);
    let to = to.wrapping_add(swizzle(v_row(dim), 8 * place.octet as usize));
    unroll!(0..E::LANES, |dim| {
        let codes = [words[0][dim] & masks[0] ^ V_OFFSETS, words[1][dim] & masks[1] ^ V_OFFSETS];
        unsafe { st_global_cs_v2_u32(place.has, to.wrapping_add(FURTHER[dim] * ROW_BYTES), codes) };
    });
}

/// The largest magnitude of a block of V into that of its head.
///
/// # Safety
/// All threads of the CTA call it; the tile is in the tensor.
#[inline(always)]
pub(crate) unsafe fn add_amax<E: Rotated>(head_dim: u32, dims: u32, rows: &Rows, tile: Tile, head_amax: *mut u32) {
    unsafe {
        let place = VOctet::new::<E>(head_dim);
        let (first, count) = (tile.first(), tile.count());
        let raw = load::<E, THREAD_VECTORS>(rows, |i| place.at::<E>(first, count, dims, i));
        let mut largest = amax::<E>(&raw[0]);
        unroll!(1..THREAD_VECTORS, |i| {
            largest = max_nan_f32(largest, amax::<E>(&raw[i]));
        });
        let largest = over_warp(largest, max_nan_f32);
        // Magnitudes compare as their bits do, and a NaN is above them.
        let bits = selp_b32(largest < f32::INFINITY, largest.to_bits(), f32::NAN.to_bits());
        if tid_x() % 32 == 0 {
            red_relaxed_gpu_max_u32(head_amax, bits);
        }
    }
}
