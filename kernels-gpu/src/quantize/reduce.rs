//! Over all lanes of a warp.

use crate::ptx::shuffle::shfl_bfly;

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
