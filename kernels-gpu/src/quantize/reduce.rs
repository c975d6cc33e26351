//! Over all lanes of a warp.

use crate::layout::K_SCALE_RATIO;
use crate::ptx::math::{max_f32, mul_rn_f32};
use crate::ptx::shuffle::{shfl_bfly, vote_any};

/// `join` of a value over the warp, in all lanes.
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub(crate) unsafe fn over_warp(mut value: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    unsafe {
        value = join(value, f32::from_bits(shfl_bfly::<16>(value.to_bits())));
        value = join(value, f32::from_bits(shfl_bfly::<8>(value.to_bits())));
        value = join(value, f32::from_bits(shfl_bfly::<4>(value.to_bits())));
        value = join(value, f32::from_bits(shfl_bfly::<2>(value.to_bits())));
        join(value, f32::from_bits(shfl_bfly::<1>(value.to_bits())))
    }
}

/// The largest of a block's scales, four in each lane, and whether all are numbers and near it: what is padding is not.
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub(crate) unsafe fn share_of_keys(four: [f32; 4]) -> (f32, bool) {
    unsafe {
        // Of those that are numbers.
        let largest = max_f32(max_f32(four[0], four[1]), max_f32(four[2], four[3]));
        let largest = over_warp(max_f32(largest, 0.0), max_f32);
        let near = |scale: f32| largest <= mul_rn_f32(K_SCALE_RATIO, scale);
        (largest, !vote_any(!(near(four[0]) & near(four[1]) & near(four[2]) & near(four[3]))))
    }
}
