//! The scale that the tokens of a block of K share, where they are about as large.

use crate::layout::K_SCALE_RATIO;
use crate::ptx::global::st_global_f32;
use crate::ptx::math::{max_f32, mul_rn_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::ld_shared_v4_u32;
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::tid_x_again;
use crate::quantize::arithmetic::Rotated;
use crate::quantize::offset::Tables;
use crate::quantize::reduce::over_warp;
use crate::quantize::tile::Tile;

/// Stores the largest of the scales of a block of K, of which all warps have written theirs. Where all are numbers and near it, tokens may share
/// it: then that, else zero. Padding is not near.
///
/// # Safety
/// All 32 lanes of a converged warp call it, the first warp's among others.
#[inline(always)]
pub(super) unsafe fn block_scale<E: Rotated>(tile: Tile, to: *mut f32) -> f32 {
    unsafe {
        let thread = tid_x_again();
        let scales = Tables::new::<E>().scales::<E>(tile.index) + 16 * (thread % 32);
        let four = ld_shared_v4_u32(scales).map(f32::from_bits);
        // Of those that are numbers.
        let largest = max_f32(max_f32(four[0], four[1]), max_f32(four[2], four[3]));
        let largest = over_warp(max_f32(largest, 0.0), max_f32);
        st_global_f32(thread == 0, to, [largest]);
        let near = |scale: f32| largest <= mul_rn_f32(K_SCALE_RATIO, scale);
        let apart = vote_any(!(near(four[0]) & near(four[1]) & near(four[2]) & near(four[3])));
        f32::from_bits(selp_b32(apart, 0, largest.to_bits()))
    }
}
