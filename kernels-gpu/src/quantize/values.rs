//! V: rotated four dims at a time, one scale a block or one a token (or, as in arXiv 2409.16997, section 3.2, one a head), keys packed along the row.
//!
//! A lane has one vector of dims of eight keys that are neighbouring bytes of packed rows: the transposition happens in registers. Four lanes hold
//! the four octets of a row of 32 keys, so that they write whole sectors.

use super::launch::THREAD_VECTORS;
use super::pack::{clamp, code, with_byte};
use super::reduce::over_warp;
use super::scale::{reciprocal, round_up_to_step, scale, v_unit};
use super::tile::{Tile, Vectors};
use crate::division::div_rem;
use crate::element::{Element, Rows, Vector, load};
use crate::layout::{
    KV_BLOCK, ROW_BYTES, V_FIRST_RATIO, V_OFFSETS, V_PANELS, V_ROTATION, V_SCALE_RATIO, octet_key, rotate_v, swizzle,
    v_row,
};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{st_global_cs_v2_u32, st_global_f32};
use crate::ptx::math::{fma_rn_f32, max_f32, max_nan_f32, min_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::order::red_relaxed_gpu_max_u32;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{
    ld_shared_f32, ld_shared_v2_u32, ld_shared_v4_u32, st_shared_f32, st_shared_v2_u32, st_shared_v4_u32,
};
use crate::ptx::shuffle::{shfl_bfly, vote_any};
use crate::ptx::special::{ntid_x, tid_x};
use crate::smem;

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
struct Place {
    /// Row of 32 keys.
    panel: u32,
    /// Eight neighbouring bytes of it.
    octet: u32,
    /// Vector of a token.
    vector: u32,
    /// Whether the lane has one; if not, it repeats another's.
    has: bool,
}

impl Place {
    #[inline(always)]
    fn new<E: Element>(head_dim: u32) -> Self {
        let (octet, unit) = (tid_x() % 4, tid_x() / 4);
        // SAFETY: a token has vectors.
        let (panel, vector) = unsafe { div_rem(unit, head_dim / E::LANES as u32) };
        Self { panel: panel.min(V_PANELS as u32 - 1), octet, vector, has: panel < V_PANELS as u32 }
    }

    /// The block's key in the lane's byte number `i`.
    #[inline(always)]
    fn key(&self, i: usize) -> u32 {
        self.panel * ROW_BYTES as u32 + octet_key(self.octet, i)
    }

    /// Token and vector of the lane's key number `i`, or of the last key and the last vector of `dims` where there are fewer.
    #[inline(always)]
    fn at<E: Element>(&self, first: u32, count: u32, dims: u32, i: usize) -> (u32, u32) {
        (first + self.key(i).min(count - 1), self.vector.min(dims / E::LANES as u32 - 1))
    }
}

/// The dims of a vector, rotated where V is.
#[inline(always)]
fn rotated<E: Element, const ROTATES: bool>(vector: &Vector) -> [f32; 8] {
    let mut x = [0.0; 8];
    unroll!(0..E::LANES, |i| {
        x[i] = E::get(vector, i);
    });
    if ROTATES {
        unroll!(0..E::LANES / V_ROTATION, |i| {
            let four = rotate_v([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
            (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]) = (four[0], four[1], four[2], four[3]);
        });
    }
    x
}

#[inline(always)]
fn amax<E: Element, const ROTATES: bool>(vector: &Vector) -> f32 {
    let x = rotated::<E, ROTATES>(vector);
    let mut amax = x[0].abs();
    unroll!(1..E::LANES, |i| {
        amax = max_nan_f32(amax, x[i].abs());
    });
    amax
}

/// Shared address of a key's largest magnitude in 4 vectors of dims, number `part`.
#[inline(always)]
fn part_address(part: u32, key: u32) -> u32 {
    smem::base() + 4 * (part * KV_BLOCK as u32 + key)
}

/// Most parts: of 256 floats.
const PARTS: u32 = 16;

/// Shared address of a key's own scale, rounded up.
#[inline(always)]
fn own_address(key: u32) -> u32 {
    part_address(PARTS, key)
}

/// Shared address of its reciprocal, NaN where the key has no codes.
#[inline(always)]
fn inverse_address(key: u32) -> u32 {
    part_address(PARTS + 1, key)
}

/// Shared address of what [`Scales`] is made of, for a panel.
#[inline(always)]
fn panel_address(panel: u32) -> u32 {
    part_address(PARTS + 2, 4 * panel)
}

/// The scales of a block before they are shared or not.
struct Scales {
    largest: f32,
    /// Whether all tokens have the largest.
    shared: bool,
}

/// Quantizes and packs the blocks of V from `tile` to before number `end`; `dims` of the packed `head_dim` are in the tensor.
/// `head_amax` is the largest magnitude of the head, where V does not rotate: in the paper's scheme. `rows` and `out` say where the
/// head and the block are, as often as they are asked, so that addresses take no registers meanwhile. With `steps` the scale that a
/// block's tokens share is rounded up as one of their own is.
///
/// # Safety
/// Every thread of the CTA calls it; tile and output are in their tensor and arrays.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element>(
    head_dim: u32,
    dims: u32,
    rotates: bool,
    steps: bool,
    head_amax: f32,
    rows: impl Fn() -> Rows,
    tile: Tile,
    end: u32,
    out: impl Fn(Tile) -> Output,
) {
    unsafe {
        let mut tile = tile;
        loop {
            one::<E>(head_dim, dims, rotates, steps, head_amax, &rows(), tile, &out);
            tile.index += 1;
            if tile.index >= end {
                break;
            }
            // All have read the scales.
            bar_sync();
        }
    }
}

#[inline(always)]
unsafe fn one<E: Element>(
    head_dim: u32,
    dims: u32,
    rotates: bool,
    steps: bool,
    head_amax: f32,
    rows: &Rows,
    tile: Tile,
    out: &impl Fn(Tile) -> Output,
) {
    unsafe {
        let place = Place::new::<E>(head_dim);
        let (first, count) = (tile.first(), tile.count());
        let inside = place.vector < dims / E::LANES as u32;
        let raw = Vectors::load::<E>(rows, |_| inside, |i| place.at::<E>(first, count, dims, i));
        raw.wait::<E>();
        if rotates {
            largest_of_parts::<E>(&place, &raw);
        }
        bar_sync();
        own_scales(if rotates { head_dim / (4 * E::LANES) as u32 } else { 0 }, head_amax, tile.count());
        bar_sync();
        let scales = Scales::decide(tile.index == 0, steps);
        scales.write(tile, rotates, &out(tile));

        let (inverse, masks) = scales.of_keys(&place, tile.count());
        let dim = (place.vector * E::LANES as u32) as usize;
        let to = out(tile).bytes.wrapping_add((place.panel * head_dim) as usize * ROW_BYTES);
        let to = to.wrapping_add(swizzle(v_row(dim), 8 * place.octet as usize));
        let raw = raw.again::<E>();
        if rotates {
            pack::<E, true>(&raw, &inverse, masks, place.has, to);
        } else {
            pack::<E, false>(&raw, &inverse, masks, place.has, to);
        }
    }
}

/// The largest magnitudes of the lanes' keys, each over four vectors, to shared memory.
#[inline(always)]
unsafe fn largest_of_parts<E: Element>(place: &Place, raw: &Vectors) {
    unsafe {
        let mut eight = [0.0; 8];
        unroll!(0..8, |i| {
            eight[i] = amax::<E, true>(&raw.get::<E>(i));
        });
        // A lane and its neighbour of another vector take four of the eight keys each, then two of the four.
        let choose = |upper: bool, a: f32, b: f32| f32::from_bits(selp_b32(upper, b.to_bits(), a.to_bits()));
        let upper = place.vector & 1 != 0;
        let mut four = [0.0; 4];
        unroll!(0..4, |i| {
            let (keep, send) = (choose(upper, eight[i], eight[i + 4]), choose(upper, eight[i + 4], eight[i]));
            four[i] = max_nan_f32(keep, f32::from_bits(shfl_bfly::<4>(send.to_bits())));
        });
        let last = place.vector & 2 != 0;
        let mut two = [0; 2];
        unroll!(0..2, |i| {
            let (keep, send) = (choose(last, four[i], four[i + 2]), choose(last, four[i + 2], four[i]));
            two[i] = max_nan_f32(keep, f32::from_bits(shfl_bfly::<8>(send.to_bits()))).to_bits();
        });
        // Keys of an octet, in bits of their number: 2, 8, 1 (`octet_key`).
        let key = place.key(0) + 2 * (place.vector & 1) + 4 * (place.vector & 2);
        st_shared_v2_u32(place.has, part_address(place.vector / 4, key), two);
    }
}

/// A lane for each key: its own scale, of the largest of so many parts and `amax`, and of each panel of 32 keys what the block's decision needs.
#[inline(always)]
unsafe fn own_scales(parts: u32, amax: f32, count: u32) {
    unsafe {
        let (lane, mut panel) = (tid_x() % 32, tid_x() / 32);
        while panel < V_PANELS as u32 {
            let key = panel * 32 + lane;
            let (mut amax, mut part) = (amax, 0);
            while part < parts {
                amax = max_nan_f32(amax, ld_shared_f32(part_address(part, key)));
                part = opaque(part + 1);
            }
            let (number, inside) = (amax < f32::INFINITY, key < count);
            let own = scale(amax, fma_rn_f32);
            let or = |yes: bool, x: f32, other: f32| f32::from_bits(selp_b32(yes, x.to_bits(), other.to_bits()));
            let largest = or(number & inside, own, 0.0);
            let smallest = or(number & inside, own, f32::INFINITY);
            let lost = vote_any(inside & !number);
            let (largest, smallest) = (over_warp(largest, max_f32), over_warp(smallest, min_f32));
            let first = or(number, own, f32::NAN).to_bits();
            let of_panel = [largest.to_bits(), smallest.to_bits(), u32::from(lost), first];
            st_shared_v4_u32(lane == 0, panel_address(panel), of_panel);

            let stepped = round_up_to_step(own);
            let inverse = reciprocal(stepped, rcp_approx_ftz_f32, fma_rn_f32);
            st_shared_f32(own_address(key), or(inside, or(number, stepped, f32::NAN), 0.0));
            st_shared_f32(inverse_address(key), or(number & inside, inverse, f32::NAN));
            panel += ntid_x() / 32;
        }
    }
}

impl Scales {
    /// What the whole block comes to; the same for all threads.
    #[inline(always)]
    unsafe fn decide(first_block: bool, steps: bool) -> Self {
        unsafe {
            let [large, small, lost, first] = ld_shared_v4_u32(panel_address(0));
            let (mut largest, mut smallest, mut lost) = (f32::from_bits(large), f32::from_bits(small), lost);
            unroll!(1..V_PANELS, |panel| {
                let [large, small, more, _] = ld_shared_v4_u32(panel_address(panel as u32));
                largest = max_f32(largest, f32::from_bits(large));
                smallest = min_f32(smallest, f32::from_bits(small));
                lost |= more;
            });
            let near = largest <= mul_rn_f32(V_SCALE_RATIO, smallest);
            let near_first = !first_block | (largest <= mul_rn_f32(V_FIRST_RATIO, f32::from_bits(first)));
            let largest = if steps { round_up_to_step(largest) } else { largest };
            Self { largest, shared: (lost == 0) & near & near_first }
        }
    }

    /// The scales of the block's tokens, the block's and the head's.
    #[inline(always)]
    unsafe fn write(&self, tile: Tile, rotates: bool, out: &Output) {
        unsafe {
            let (count, mut key) = (tile.count(), tid_x());
            while key < KV_BLOCK as u32 {
                let own = ld_shared_f32(own_address(key));
                let shared = self.shared & (key < count);
                let scale = f32::from_bits(selp_b32(shared, self.largest.to_bits(), own.to_bits()));
                st_global_f32(true, out.scale.wrapping_add(key as usize), [scale]);
                key += ntid_x();
            }
            let block_scale = selp_b32(self.shared, self.largest.to_bits(), f32::NAN.to_bits());
            st_global_f32((tid_x() == 0) & !out.block_scale.is_null(), out.block_scale, [f32::from_bits(block_scale)]);
            let largest = if self.shared { self.largest } else { round_up_to_step(self.largest) };
            let unit = if rotates { v_unit(largest) } else { 1.0 };
            st_global_f32((tid_x() == 0) & !out.unit.is_null(), out.unit, [unit]);
        }
    }

    /// The reciprocals of the scales of the lane's eight keys, and 0xff in the bytes of those that have codes.
    #[inline(always)]
    unsafe fn of_keys(&self, place: &Place, count: u32) -> ([f32; 8], [u32; 2]) {
        let largest = reciprocal(self.largest, rcp_approx_ftz_f32, fma_rn_f32);
        let (mut inverse, mut masks) = ([largest; 8], [u32::MAX; 2]);
        if !self.shared | (count < KV_BLOCK as u32) {
            masks = [0; 2];
            unroll!(0..4, |pair| {
                let own = unsafe { ld_shared_v2_u32(inverse_address(place.key(2 * pair))) };
                unroll!(0..2, |odd| {
                    let (i, own) = (2 * pair + odd, f32::from_bits(own[odd]));
                    masks[i / 4] |= selp_b32(own.is_nan(), 0, 0xff << (8 * (i % 4)));
                    inverse[i] = f32::from_bits(selp_b32(self.shared, largest.to_bits(), own.to_bits()));
                });
            });
        }
        (inverse, masks)
    }
}

/// The codes of the lane's keys, eight bytes for each of its dims.
#[inline(always)]
unsafe fn pack<E: Element, const ROTATES: bool>(
    raw: &Vectors,
    inverse: &[f32; 8],
    masks: [u32; 2],
    predicate: bool,
    to: *mut u8,
) {
    let mut words = [[0; 2]; 8];
    unroll!(0..8, |key| {
        // Rotated a second time: to keep what `largest_of_parts` made would take as much shared memory again.
        let x = rotated::<E, ROTATES>(&unsafe { raw.get::<E>(key) });
        unroll!(0..E::LANES, |dim| {
            let code = code(clamp::<E>(mul_rn_f32(x[dim], inverse[key])));
            words[dim][key / 4] = with_byte(words[dim][key / 4], key % 4, code);
        });
    });
    unroll!(0..E::LANES, |dim| {
        let codes = [words[dim][0] & masks[0] ^ V_OFFSETS, words[dim][1] & masks[1] ^ V_OFFSETS];
        unsafe { st_global_cs_v2_u32(predicate, to.wrapping_add(FURTHER[dim] * ROW_BYTES), codes) };
    });
}

/// The largest magnitude of a block of V into that of its head.
///
/// # Safety
/// All threads of the CTA call it; the tile is in the tensor.
#[inline(always)]
pub(crate) unsafe fn add_amax<E: Element>(head_dim: u32, dims: u32, rows: &Rows, tile: Tile, head_amax: *mut u32) {
    unsafe {
        let place = Place::new::<E>(head_dim);
        let (first, count) = (tile.first(), tile.count());
        let raw = load::<E, THREAD_VECTORS>(rows, |i| place.at::<E>(first, count, dims, i));
        let mut largest = amax::<E, false>(&raw[0]);
        unroll!(1..THREAD_VECTORS, |i| {
            largest = max_nan_f32(largest, amax::<E, false>(&raw[i]));
        });
        let largest = over_warp(largest, max_nan_f32);
        // Magnitudes compare as their bits do, and a NaN is above them.
        let bits = selp_b32(largest < f32::INFINITY, largest.to_bits(), f32::NAN.to_bits());
        if tid_x() % 32 == 0 {
            red_relaxed_gpu_max_u32(head_amax, bits);
        }
    }
}
