//! The scales of a block of V: the largest magnitude of each key, one scale for all where these are near each other, else one for each.

use super::{Output, VOctet};
use crate::layout::{KV_BLOCK, V_FIRST_RATIO, V_SCALE_RATIO};
use crate::ptx::global::st_global_f32;
use crate::ptx::math::{fma_rn_f32, max_f32, max_nan_f32, min_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_f32, ld_shared_v2_u32, ld_shared_v4_u32, st_shared_f32, st_shared_v2_u32};
use crate::ptx::shuffle::{shfl_bfly, vote_any};
use crate::ptx::special::{ntid_x, tid_x};
use crate::quantize::arithmetic::Rotated;
use crate::quantize::reduce::over_warp;
use crate::quantize::scale::{reciprocal, round_up_to_step, scale, v_unit};
use crate::quantize::tile::{Tile, behind_raw, padded};

/// Parts of a token, of 4 vectors each.
#[inline(always)]
fn parts<E: Rotated>() -> u32 {
    padded::<E>() / (4 * E::LANES) as u32
}

/// Shared address of a key's largest magnitude in part `part`. Two tiles have places, so that one's are read while the next one's come.
#[inline(always)]
fn part_address<E: Rotated>(tile: u32, part: u32, key: u32) -> u32 {
    behind_raw::<E>() + 4 * ((tile % 2 * parts::<E>() + part) * KV_BLOCK as u32 + key)
}

/// Shared address of a key's own scale, rounded up.
#[inline(always)]
fn own_address<E: Rotated>(key: u32) -> u32 {
    part_address::<E>(0, 2 * parts::<E>(), key)
}

/// Shared address of its reciprocal, NaN where the key has no codes.
#[inline(always)]
fn inverse_address<E: Rotated>(key: u32) -> u32 {
    part_address::<E>(0, 2 * parts::<E>() + 1, key)
}

/// The largest magnitudes of a tile's keys.
#[derive(Clone, Copy)]
pub(in crate::quantize) struct Largest {
    pub tile: u32,
    /// How many parts there are of each.
    pub parts: u32,
    /// What they are at least: in the paper's scheme, which has no parts, the head's.
    pub least: f32,
}

impl Largest {
    /// Of `N` keys from `key` on; NaN or infinite where an element is.
    #[inline(always)]
    unsafe fn of_keys<E: Rotated>(&self, key: u32) -> [f32; 4] {
        let (mut amax, mut part) = ([self.least; 4], 0);
        while part < self.parts {
            let four = unsafe { ld_shared_v4_u32(part_address::<E>(self.tile, part, key)) }.map(f32::from_bits);
            unroll!(0..4, |i| {
                amax[i] = max_nan_f32(amax[i], four[i]);
            });
            part = opaque(part + 1);
        }
        amax
    }
}

/// How scales are found.
#[derive(Clone, Copy)]
pub(crate) struct Scaling {
    /// Whether V rotates: the default scheme.
    pub rotates: bool,
    /// Whether the scale that a block's tokens share is rounded up as one of their own is.
    pub steps: bool,
    /// The largest magnitude of the head, where V does not rotate: in the paper's scheme.
    pub head_amax: f32,
    /// The number of the tile that is the head's first block.
    pub first_block: u32,
}

/// The scales of a block before they are shared or not.
pub(in crate::quantize) struct Scales {
    largest: f32,
    /// Whether all tokens have the largest.
    pub shared: bool,
}

/// The largest magnitudes of the lanes' keys, each over four vectors, to shared memory.
#[inline(always)]
pub(in crate::quantize) unsafe fn largest_of_parts<E: Rotated>(tile: u32, place: &VOctet, eight: &[f32; 8]) {
    unsafe {
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
        st_shared_v2_u32(place.has, part_address::<E>(tile, place.vector / 4, key), two);
    }
}

/// The keys' own scales, rounded up, and their reciprocals, a few by each thread.
#[inline(always)]
pub(in crate::quantize) unsafe fn each_scale<E: Rotated>(amax: &Largest, count: u32) {
    unsafe {
        let mut key = 4 * tid_x();
        while key < KV_BLOCK as u32 {
            let four = amax.of_keys::<E>(key);
            unroll!(0..4, |i| {
                let (number, inside) = (four[i] < f32::INFINITY, key + (i as u32) < count);
                let or = |yes: bool, x: f32, other: f32| f32::from_bits(selp_b32(yes, x.to_bits(), other.to_bits()));
                let stepped = round_up_to_step(scale(four[i], fma_rn_f32));
                let inverse = reciprocal(stepped, rcp_approx_ftz_f32, fma_rn_f32);
                st_shared_f32(own_address::<E>(key + i as u32), or(inside, or(number, stepped, f32::NAN), 0.0));
                st_shared_f32(inverse_address::<E>(key + i as u32), or(number & inside, inverse, f32::NAN));
            });
            key += 4 * ntid_x();
        }
    }
}

impl Scales {
    /// What the whole block comes to; the same for all threads, each warp works it out. Keys that are not there are as the last one.
    #[inline(always)]
    pub unsafe fn decide<E: Rotated>(amax: &Largest, first_block: bool, steps: bool) -> Self {
        unsafe {
            let four = amax.of_keys::<E>(4 * (tid_x() % 32));
            let largest = max_nan_f32(max_nan_f32(four[0], four[1]), max_nan_f32(four[2], four[3]));
            let smallest = min_f32(min_f32(four[0], four[1]), min_f32(four[2], four[3]));
            let (mut largest, smallest) = (over_warp(largest, max_nan_f32), over_warp(smallest, min_f32));
            let mut shared = largest < f32::INFINITY;
            if vote_any(!shared) {
                // Of those that are numbers.
                let number = |x: f32| f32::from_bits(selp_b32(x < f32::INFINITY, opaque(x.to_bits()), 0));
                let numbers =
                    max_f32(max_f32(number(four[0]), number(four[1])), max_f32(number(four[2]), number(four[3])));
                largest = over_warp(numbers, max_f32);
            }
            // The scale of the largest is the largest scale: it grows with the magnitude.
            let (largest, smallest) = (scale(largest, fma_rn_f32), scale(smallest, fma_rn_f32));
            shared &= largest <= mul_rn_f32(V_SCALE_RATIO, smallest);
            if first_block {
                let first = scale(amax.of_keys::<E>(0)[0], fma_rn_f32);
                shared &= largest <= mul_rn_f32(V_FIRST_RATIO, first);
            }
            let largest = if steps { round_up_to_step(largest) } else { largest };
            Self { largest, shared }
        }
    }

    /// The scales of the block's tokens, the block's and the head's; `whole` says that all tokens are there and have the largest.
    #[inline(always)]
    pub unsafe fn write<E: Rotated>(&self, whole: bool, tile: Tile, rotates: bool, out: &Output) {
        unsafe {
            let (count, mut key) = (tile.count(), tid_x());
            while key < KV_BLOCK as u32 {
                let mut scale = self.largest;
                if !whole {
                    let own = ld_shared_f32(own_address::<E>(key));
                    let shared = self.shared & (key < count);
                    scale = f32::from_bits(selp_b32(shared, self.largest.to_bits(), own.to_bits()));
                }
                st_global_f32(true, out.scale.wrapping_add(key as usize), [scale]);
                key += ntid_x();
            }
            let block_scale = selp_b32(self.shared, self.largest.to_bits(), f32::NAN.to_bits());
            st_global_f32((tid_x() == 0) & !out.block_scale.is_null(), out.block_scale, [f32::from_bits(block_scale)]);
            if !out.unit.is_null() {
                // Opaque: else it would be worked out for all blocks.
                let largest = f32::from_bits(opaque(self.largest.to_bits()));
                let largest = if self.shared { largest } else { round_up_to_step(largest) };
                let unit = if rotates { v_unit(largest) } else { 1.0 };
                st_global_f32(tid_x() == 0, out.unit, [unit]);
            }
        }
    }

    /// The reciprocals of the scales of eight keys of a block all of whose tokens have the largest.
    #[inline(always)]
    pub fn inverse(&self) -> [f32; 8] {
        [reciprocal(self.largest, rcp_approx_ftz_f32, fma_rn_f32); 8]
    }

    /// The reciprocals of the scales of the lane's eight keys, and 0xff in the bytes of those that have codes.
    #[inline(always)]
    pub unsafe fn of_keys<E: Rotated>(&self, place: &VOctet) -> ([f32; 8], [u32; 2]) {
        let largest = reciprocal(self.largest, rcp_approx_ftz_f32, fma_rn_f32);
        let (mut inverse, mut masks) = ([0.0; 8], [0; 2]);
        unroll!(0..4, |pair| {
            let own = unsafe { ld_shared_v2_u32(inverse_address::<E>(place.key(2 * pair))) };
            unroll!(0..2, |odd| {
                let (i, own) = (2 * pair + odd, f32::from_bits(own[odd]));
                masks[i / 4] |= selp_b32(own.is_nan(), 0, 0xff << (8 * (i % 4)));
                inverse[i] = f32::from_bits(selp_b32(self.shared, largest.to_bits(), own.to_bits()));
            });
        });
        (inverse, masks)
    }
}
