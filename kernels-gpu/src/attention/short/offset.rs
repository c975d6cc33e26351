//! What is taken out of K: made of the head's first tokens.

use super::shared::Shared;
use super::{Kernel, Team};
use crate::config::short::RANGES_WARPS;
use crate::element::{Rows, load};
use crate::layout::{OFFSET_TOKENS, ROW_BYTES};
use crate::ptx::math::cvt_rn_f16x2_f32;
use crate::ptx::opaque::rolled;
use crate::ptx::shared::{ld_shared_u32, st_shared_u32, st_shared_v4_u32};
use crate::ptx::shuffle::shfl_bfly;
use crate::ptx::special::tid_x;
use crate::quantize::arithmetic::Rotated;
use crate::quantize::middle::middle;
use crate::rotation::signs_from;

/// Bytes of a row.
const fn row_bytes<E: Rotated, K: Kernel<MT>, const MT: usize>() -> u32 {
    (K::HEAD_DIM * E::BYTES) as u32
}

/// The least and the largest element of each channel that a warp has loaded, a row each of a warp. Where K's codes are later.
#[inline(always)]
fn range<E: Rotated, K: Kernel<MT>, const MT: usize>(shared: &Shared<K, MT>, warp: u32) -> u32 {
    // As many bytes as the codes of K have at least.
    const { assert!(2 * RANGES_WARPS * E::BYTES <= ROW_BYTES) }
    shared.k() + 2 * warp * row_bytes::<E, K, MT>()
}

/// The ranges of the head's first tokens, of which there are `count` in all.
///
/// # Safety
/// K's team calls it.
#[inline(always)]
pub(crate) unsafe fn ranges<E: Rotated, K: Kernel<MT>, const MT: usize>(
    rows: &Rows,
    count: u32,
    shared: &Shared<K, MT>,
    team: Team,
) {
    if team.member() >= RANGES_WARPS as u32 {
        return;
    }
    unsafe {
        let vectors = row_bytes::<E, K, MT>() / 16;
        let at_a_time = 32 * team.size.min(RANGES_WARPS as u32) / vectors;
        let thread = tid_x();
        let (row, vector) = (thread / vectors, thread % vectors);
        let tokens = count.min(OFFSET_TOKENS as u32);
        // Rows behind the last are as the last.
        let some = |first: u32| load::<E, 2>(rows, |i| ((first + row + at_a_time * i as u32).min(tokens - 1), vector));
        let [mut low, mut high] = some(0);
        (low, high) = joined::<E>((low, high), (high, low));
        let mut first = 2 * at_a_time;
        while first < tokens {
            rolled();
            let [a, b] = some(first);
            (low, high) = joined::<E>(joined::<E>((low, high), (a, a)), (b, b));
            first += 2 * at_a_time;
        }
        // Lanes of the same vector.
        if vectors <= 4 {
            (low, high) = over_lanes::<E, 4>(low, high);
        }
        if vectors <= 8 {
            (low, high) = over_lanes::<E, 8>(low, high);
        }
        if vectors <= 16 {
            (low, high) = over_lanes::<E, 16>(low, high);
        }
        let to = range::<E, K, MT>(shared, thread / 32) + 16 * vector;
        st_shared_v4_u32(thread % 32 < vectors, to, low);
        st_shared_v4_u32(thread % 32 < vectors, to + row_bytes::<E, K, MT>(), high);
    }
}

/// The smaller of least and the larger of largest elements.
#[inline(always)]
fn joined<E: Rotated>(a: ([u32; 4], [u32; 4]), b: ([u32; 4], [u32; 4])) -> ([u32; 4], [u32; 4]) {
    let (mut low, mut high) = a;
    unroll!(0..4, |word| {
        (low[word], high[word]) = (E::min(low[word], b.0[word]), E::max(high[word], b.1[word]));
    });
    (low, high)
}

/// With those of lane `lane ^ MASK`.
#[inline(always)]
unsafe fn over_lanes<E: Rotated, const MASK: u32>(low: [u32; 4], high: [u32; 4]) -> ([u32; 4], [u32; 4]) {
    unsafe {
        let low = low.map(|word| E::min(word, shfl_bfly::<MASK>(word)));
        (low, high.map(|word| E::max(word, shfl_bfly::<MASK>(word))))
    }
}

/// The signs of the dims, and K's offset, of the ranges.
///
/// # Safety
/// K's team calls it, a barrier after [`ranges`].
#[inline(always)]
pub(crate) unsafe fn tables<E: Rotated, K: Kernel<MT>, const MT: usize>(shared: &Shared<K, MT>, team: Team) {
    let mut word = tid_x();
    while word < row_bytes::<E, K, MT>() / 4 {
        rolled();
        let dim = word * E::IN_WORD as u32;
        unsafe {
            let at = |warp: u32| range::<E, K, MT>(shared, warp) + 4 * word;
            let high_at = |warp: u32| at(warp) + row_bytes::<E, K, MT>();
            let (mut low, mut high, mut warp) = (ld_shared_u32(at(0)), ld_shared_u32(high_at(0)), 1);
            while warp < team.size.min(RANGES_WARPS as u32) {
                rolled();
                low = E::min(low, ld_shared_u32(at(warp)));
                high = E::max(high, ld_shared_u32(high_at(warp)));
                warp += 1;
            }
            let signs = signs_from(dim);
            let mut mask = 0;
            let offset = |i: usize| middle(E::get(&[low; 4], i), E::get(&[high; 4], i));
            unroll!(0..E::IN_WORD, |i| {
                let sign = (signs >> i) << 31;
                mask |= sign >> (32 - 8 * E::BYTES * (i + 1));
                if !E::HALF {
                    st_shared_u32(true, shared.offsets() + 4 * (dim + i as u32), offset(i).to_bits() ^ sign);
                }
            });
            if E::HALF {
                // A vector's, in the first half of the place that float32 would have.
                let at = dim / E::LANES as u32 * (4 * E::LANES) as u32 + dim % E::LANES as u32 * E::BYTES as u32;
                let two = cvt_rn_f16x2_f32(offset(1), offset(0));
                st_shared_u32(true, shared.offsets() + at, two ^ mask);
            }
            st_shared_u32(true, shared.signs() + 4 * word, mask);
        }
        word += 32 * team.size;
    }
}
