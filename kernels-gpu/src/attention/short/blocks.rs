//! The scales of each block, and what they make of its keys: a warp for a block, a lane for a key of each 32.

use super::shared::Shared;
use super::{Kernel, Team};
use crate::attention::softmax::{BlockMax, Softmax};
use crate::layout::{KV_BLOCK, V_FIRST_RATIO, V_SCALE_RATIO, key_slot};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::math::{fma_rn_f32, max_f32, min_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::opaque::rolled;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_f32, st_shared_f32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::tid_x;
use crate::quantize::reduce::over_warp;
use crate::quantize::scale::{reciprocal, round_up_to_step, scale, v_unit};

/// Keys of a block that have a place: whole panels.
#[inline(always)]
fn places<K: Kernel<MT>, const MT: usize>(shared: &Shared<K, MT>, block: u32) -> u32 {
    (shared.keys - block * KV_BLOCK as u32).min(KV_BLOCK as u32)
}

/// `k_block_scale`, and the keys' factors in place of their scales.
///
/// # Safety
/// K's team calls it, a barrier after the scales.
#[inline(always)]
pub(crate) unsafe fn keys<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    shared: &Shared<K, MT>,
    team: Team,
) {
    let mut block = team.member();
    while block < shared.blocks {
        rolled();
        let (lane, numbers, places) = (tid_x() % 32, shared.factors(block), places(shared, block));
        unsafe {
            let (mut largest, mut key) = (0.0, lane);
            while key < places {
                rolled();
                // Of those that are numbers.
                largest = max_f32(largest, ld_shared_f32(numbers + 4 * key));
                key += 32;
            }
            let largest = over_warp(largest, max_f32);
            if lane == 0 {
                st_shared_f32(shared.block(block), largest);
            }
            let common = <BlockMax<MT, false> as Softmax<MT>>::common_factor(params, K::HEAD_DIM);
            let common = common * <BlockMax<MT, false> as Softmax<MT>>::shrink(params, K::HEAD_DIM, largest);
            let slot = key_slot(lane as usize) as u32;
            let mut first = 0;
            while first < places {
                rolled();
                let scale = ld_shared_f32(numbers + 4 * (first + lane));
                // All have read the scales of the 32.
                warp_sync();
                let factor = <BlockMax<MT, false> as Softmax<MT>>::key_factor(common, scale);
                st_shared_f32(numbers + 4 * (first + slot), factor);
                first += 32;
            }
        }
        block += team.size;
    }
}

/// Whether a block's values share a scale; theirs, its reciprocals, and of the first block the head's unit.
///
/// # Safety
/// V's team calls it, a barrier after the magnitudes.
#[inline(always)]
pub(crate) unsafe fn values<K: Kernel<MT>, const MT: usize>(count: u32, shared: &Shared<K, MT>, team: Team) {
    let or = |yes: bool, x: f32, other: f32| f32::from_bits(selp_b32(yes, x.to_bits(), other.to_bits()));
    let mut block = team.member();
    while block < shared.blocks {
        rolled();
        let (lane, numbers, places) = (tid_x() % 32, shared.inverses(block), places(shared, block));
        let keys = (count - block * KV_BLOCK as u32).min(KV_BLOCK as u32);
        unsafe {
            let own = |key: u32| {
                let amax = ld_shared_f32(numbers + 4 * key);
                let (number, inside) = (amax < f32::INFINITY, key < keys);
                (scale(amax, fma_rn_f32), number & inside, inside & !number)
            };
            let (mut largest, mut smallest, mut lost, mut key) = (0.0, f32::INFINITY, false, lane);
            while key < places {
                rolled();
                let (own, number, is_lost) = own(key);
                largest = max_f32(largest, or(number, own, 0.0));
                smallest = min_f32(smallest, or(number, own, f32::INFINITY));
                lost |= is_lost;
                key += 32;
            }
            let (first, number, _) = own(0);
            let first = or(number, first, f32::NAN);
            let (largest, smallest) = (over_warp(largest, max_f32), over_warp(smallest, min_f32));
            let near = largest <= mul_rn_f32(V_SCALE_RATIO, smallest);
            let near_first = (block != 0) | (largest <= mul_rn_f32(V_FIRST_RATIO, first));
            // All lanes say the same, and the compiler is to know.
            let share = !vote_any(lost | !near | !near_first);
            let mut largest = largest;
            if !share {
                largest = round_up_to_step(largest);
            }
            // All have read the first one's magnitude.
            warp_sync();
            let mut key = lane;
            while key < places {
                rolled();
                let (own, number, lost) = own(key);
                let mut scale = largest;
                if !share {
                    scale = round_up_to_step(own);
                }
                let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
                st_shared_f32(numbers + 4 * key, or(number, inverse, f32::NAN));
                st_shared_f32(shared.v_scales(block) + 4 * key, or(lost, f32::NAN, or(number, scale, 0.0)));
                key += 32;
            }
            // Special blocks look at all of them.
            while key < KV_BLOCK as u32 {
                rolled();
                st_shared_f32(shared.v_scales(block) + 4 * key, 0.0);
                key += 32;
            }
            if lane == 0 {
                st_shared_f32(shared.block(block) + 4, or(share, largest, f32::NAN));
                if block == 0 {
                    st_shared_f32(shared.unit(), v_unit(largest));
                }
            }
        }
        block += team.size;
    }
}
