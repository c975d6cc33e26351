//! S = Q K^T, 64 query rows a warpgroup.

use super::Kernel;
use crate::attention::KEY_TILES;
use crate::attention::softmax::Softmax;
use crate::config::sm90a::WARPGROUP_ROWS;
use crate::layout::{KV_BLOCK, ROW_BYTES};
use crate::ptx::math::cvt_rn_f32_s32;
use crate::ptx::shared::ld_shared_v4_f32;
use crate::ptx::wgmma::{self, Products};

/// The integer scores of a block.
pub(crate) type Sums = wgmma::Sums<KEY_TILES>;

/// Starts the products of the warpgroup's tile of Q with the keys of a block, as a group.
#[inline(always)]
pub(crate) unsafe fn start<K: Kernel>(q: u32, k: u32) -> Sums {
    let (q, k) = (wgmma::descriptor(q), wgmma::descriptor(k));
    unsafe {
        wgmma::fence();
        let mut sums = Sums::s8_s8(q, k);
        unroll!(1..K::HEAD_DIM / ROW_BYTES, |step| {
            let q = q + (step * WARPGROUP_ROWS * ROW_BYTES / 16) as u64;
            let k = k + (step * KV_BLOCK * ROW_BYTES / 16) as u64;
            sums.add_s8_s8(q, k);
        });
        wgmma::commit_group();
        sums
    }
}

/// The scores in the softmax's working unit, with the factors of the lane's first keys at shared address `factors`; without the `upper` half of the
/// keys, those are hidden.
#[inline(always)]
pub(crate) unsafe fn take<S: Softmax<1>>(softmax: &S, sums: &Sums, factors: u32, upper: bool) -> S::Scores {
    let mut scores = S::empty();
    unroll!(0..KEY_TILES / 4, |pair| {
        unsafe { take_pair(softmax, sums, factors, pair, &mut scores) };
    });
    if upper {
        unroll!(KEY_TILES / 4..KEY_TILES / 2, |pair| {
            unsafe { take_pair(softmax, sums, factors, pair, &mut scores) };
        });
    }
    scores
}

/// Those of a pair of n8 tiles.
#[inline(always)]
unsafe fn take_pair<S: Softmax<1>>(softmax: &S, sums: &Sums, factors: u32, pair: usize, scores: &mut S::Scores) {
    let factors = unsafe { ld_shared_v4_f32(factors + (64 * pair) as u32) };
    unroll!(0..2, |n| {
        let exact = sums[2 * pair + n].map(cvt_rn_f32_s32);
        let keys = [factors[2 * n], factors[2 * n + 1]];
        unroll!(0..2, |half| {
            let pair_of_sums = [exact[2 * half], exact[2 * half + 1]];
            softmax.scores_of_sums(scores, 0, half, 2 * pair + n, pair_of_sums, keys);
        });
    });
}
