//! The scales of each block, and what they make of its keys: a warp for a block, a lane for four keys.

use super::shared::Shared;
use super::{Kernel, warps};
use crate::attention::softmax::{BlockMax, Softmax};
use crate::layout::{KV_BLOCK, V_FIRST_RATIO, V_SCALE_RATIO, key_slot};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::math::{fma_rn_f32, max_f32, min_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::shuffle::{first_lane, vote_any};
use crate::ptx::special::tid_x;
use crate::quantize::reduce::over_warp;
use crate::quantize::scale::{reciprocal, round_up_to_step, scale, v_unit};

/// # Safety
/// All warps of the CTA call it, a barrier after the scales of K and the magnitudes of V.
#[inline(always)]
pub(crate) unsafe fn scales<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    count: u32,
    shared: &Shared<K, MT>,
    warp: u32,
) {
    unsafe {
        let mut block = warp;
        while block < shared.blocks {
            let places = (shared.keys - block * KV_BLOCK as u32).min(KV_BLOCK as u32);
            let keys = (count - block * KV_BLOCK as u32).min(KV_BLOCK as u32);
            of_keys(params, block, places, shared);
            of_values(block, keys, places, shared);
            block += warps();
        }
    }
}

/// The lane's four of a block's numbers; zeros behind the keys that have a place.
#[inline(always)]
unsafe fn four(numbers: u32, places: u32) -> [f32; 4] {
    let key = 4 * (tid_x() % 32);
    let four = unsafe { ld_shared_v4_u32(numbers + 4 * key.min(places - 4)) };
    four.map(|bits| f32::from_bits(selp_b32(key < places, bits, 0)))
}

/// `k_block_scale`, and the keys' factors in place of their scales.
#[inline(always)]
unsafe fn of_keys<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    block: u32,
    places: u32,
    shared: &Shared<K, MT>,
) {
    unsafe {
        let (numbers, lane) = (shared.factors(block), tid_x() % 32);
        let four = four(numbers, places);
        // Of those that are numbers.
        let largest = max_f32(max_f32(four[0], four[1]), max_f32(four[2], four[3]));
        let largest = over_warp(max_f32(largest, 0.0), max_f32);
        st_shared_u32(lane == 0, shared.block(block), largest.to_bits());
        let common = <BlockMax<MT, false> as Softmax<MT>>::common_factor(params, K::HEAD_DIM);
        let common = common * <BlockMax<MT, false> as Softmax<MT>>::shrink(params, K::HEAD_DIM, largest);
        let factors = four.map(|scale| <BlockMax<MT, false> as Softmax<MT>>::key_factor(common, scale).to_bits());
        // All have read their scales.
        warp_sync();
        unroll!(0..2, |pair| {
            let key = 4 * lane as usize + 2 * pair;
            let to = numbers + 4 * (key / 32 * 32 + key_slot(key % 32)) as u32;
            st_shared_v2_u32(true, to, [factors[2 * pair], factors[2 * pair + 1]]);
        });
    }
}

/// Whether the block's values share a scale; theirs, its reciprocals, and of the first block the head's unit.
#[inline(always)]
unsafe fn of_values<K: Kernel<MT>, const MT: usize>(block: u32, keys: u32, places: u32, shared: &Shared<K, MT>) {
    unsafe {
        let (numbers, lane) = (shared.inverses(block), tid_x() % 32);
        let amax = four(numbers, places);
        let or = |yes: bool, x: f32, other: f32| f32::from_bits(selp_b32(yes, x.to_bits(), other.to_bits()));
        let (mut own, mut number, mut inside) = ([0.0; 4], [false; 4], [false; 4]);
        let (mut largest, mut smallest, mut lost) = (0.0, f32::INFINITY, false);
        unroll!(0..4, |i| {
            own[i] = scale(amax[i], fma_rn_f32);
            (number[i], inside[i]) = (amax[i] < f32::INFINITY, 4 * lane + (i as u32) < keys);
            largest = max_f32(largest, or(number[i] & inside[i], own[i], 0.0));
            smallest = min_f32(smallest, or(number[i] & inside[i], own[i], f32::INFINITY));
            lost |= inside[i] & !number[i];
        });
        let (largest, smallest) = (over_warp(largest, max_f32), over_warp(smallest, min_f32));
        let lost = vote_any(lost);
        let first = f32::from_bits(first_lane(or(number[0], own[0], f32::NAN).to_bits()));
        let near = largest <= mul_rn_f32(V_SCALE_RATIO, smallest);
        let near_first = (block != 0) | (largest <= mul_rn_f32(V_FIRST_RATIO, first));
        // All lanes say the same, and the compiler is to know.
        let share = !vote_any(!(!lost & near & near_first));

        let of_all = reciprocal(largest, rcp_approx_ftz_f32, fma_rn_f32);
        let (mut scales, mut inverses) = ([0; 4], [0; 4]);
        if !share {
            unroll!(0..4, |i| {
                own[i] = round_up_to_step(own[i]);
            });
        }
        unroll!(0..4, |i| {
            let (of_key, inverse) = if share {
                (largest, of_all)
            } else {
                (or(number[i], own[i], f32::NAN), reciprocal(own[i], rcp_approx_ftz_f32, fma_rn_f32))
            };
            scales[i] = or(inside[i], of_key, 0.0).to_bits();
            inverses[i] = or(number[i] & inside[i], inverse, f32::NAN).to_bits();
        });
        // Lanes behind the last key have read what the last one before it writes over.
        warp_sync();
        st_shared_v4_u32(true, numbers + 16 * lane, inverses);
        st_shared_v4_u32(true, shared.v_scales(block) + 16 * lane, scales);
        st_shared_u32(lane == 0, shared.block(block) + 4, or(share, largest, f32::NAN).to_bits());
        let largest = if share { largest } else { round_up_to_step(largest) };
        st_shared_u32((lane == 0) & (block == 0), shared.unit(), v_unit(largest).to_bits());
    }
}
