//! S = Q K^T, 64 query rows a warpgroup.

use crate::attention::Softmax;
use crate::config::hopper::WARPGROUP_ROWS;
use crate::layout::{KV_BLOCK, ROW_BYTES};
use crate::ptx::math::cvt_rn_f32_s32;
use crate::ptx::memory::ld_shared_v4_f32;
use crate::ptx::wgmma::{self, Products};

/// Starts the products of the warpgroup's tile of Q with the keys of part `part` of a K block, as a group.
#[inline(always)]
pub(crate) unsafe fn start<P: Products, const D: usize>(q: u32, k: u32, part: usize) -> P {
    let (q, k) = (wgmma::descriptor(q), wgmma::descriptor(k + (part * 8 * P::TILES * ROW_BYTES) as u32));
    unsafe {
        wgmma::fence();
        let mut sums = P::s8_s8(q, k);
        unroll!(1..D / ROW_BYTES, |step| {
            let q = q + (step * WARPGROUP_ROWS * ROW_BYTES / 16) as u64;
            let k = k + (step * KV_BLOCK * ROW_BYTES / 16) as u64;
            sums.add_s8_s8(q, k);
        });
        wgmma::commit_group();
        sums
    }
}

/// Takes the sums of a part over into the softmax's working unit, with the factors of the lane's first keys at shared
/// address `factors`.
#[inline(always)]
pub(crate) unsafe fn take<S: Softmax<D, 1>, P: Products, const D: usize>(
    softmax: &S,
    scores: &mut S::Scores,
    sums: &P,
    part: usize,
    factors: u32,
) {
    let sums = sums.tiles();
    unroll!(0..P::TILES / 2, |pair| {
        let first = part * P::TILES + 2 * pair;
        let factors = unsafe { ld_shared_v4_f32(factors + (32 * first) as u32) };
        unroll!(0..2, |n| {
            let exact = sums[2 * pair + n].map(cvt_rn_f32_s32);
            let keys = [factors[2 * n], factors[2 * n + 1]];
            unroll!(0..2, |half| {
                softmax.put_exact(scores, 0, half, first + n, [exact[2 * half], exact[2 * half + 1]], keys);
            });
        });
    });
}
