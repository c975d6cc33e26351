//! Narrow blocks (docs/kernel-abi.md) without 16-bit integer instructions, which GPUs have from compute capability 9.0 on: the sums begin
//! at a constant that makes the upper bits of each those of a positive float16. Their order is that of the integers, and no sum of halves
//! carries or borrows.
//!
//! ```text
//! two sums, from MAGIC_BITS   s0: 4b b2 b1 b0     s1: 4b b2 b1 b0
//! u, one prmt                 [ b2 b1 of s1 | b2 b1 of s0 ]            0x4000 + (s >> 8), from 0x2080 to 0x5f80 where d <= 128
//! M, max.f16x2                of the row's keys
//! n, one 32-bit sum           0x6800 + (u - M), at least 0x2900       the float16 2048 + (u - M), where that is from 1024 on
//! x, fma.f16x2                n * A - 2048 * A
//! ```
//!
//! A score more than 1024 below the largest has a smaller float16 for its n than it should, but a positive one, and so an argument below
//! -1024 A, where P is zero.

use super::narrow::{TOP, UNSEEN, argument_offset, codes};
use super::{BlockMax, NEG_INFINITY};
use crate::attention::KEY_TILES;
use crate::attention::softmax::{MAGIC_BITS, Team};
use crate::layout::SCORE_UNIT;
use crate::ptx::math::{cvt_f32_f16_low, cvt_rn_f16x2_f32, cvt_rn_f32_s32, max_f16x2, mul_rn_f32, prmt};
use crate::ptx::select::selp_b32;

/// A score of zero.
const ZERO: i32 = MAGIC_BITS >> 8 & 0xffff;
/// The largest of no keys: below all scores, and as far above hidden ones as weights reach.
const LEAST: u32 = 0x1000_1000;
/// The score of a hidden key.
const HIDDEN: u32 = 0;

const _: () = {
    let reach = 127 * 127 * 128 >> 8;
    assert!(ZERO - reach - 1 > 0x1000 && 0x1000 >= 1024 && ZERO + reach < TOP as i32 & 0xffff);
    // Positive, as those between the smallest score and the largest are.
    assert!(TOP as i32 & 0xffff > 2 * reach + 1 && NEG_INFINITY != HIDDEN);
};

/// The scores of the sums of two neighbouring keys.
#[inline(always)]
pub(crate) fn score(low: i32, high: i32) -> u32 {
    prmt(low as u32, high as u32, 0x6521)
}

/// Hides the keys of a row from `keys` on, counted from the lane's first.
#[inline(always)]
pub(crate) fn hide_from(scores: &mut [u32; KEY_TILES], tiles: usize, keys: i32) {
    super::hide::hide_from(scores, tiles, HIDDEN, keys);
}

/// Hides the keys of a row before `keys`.
#[inline(always)]
pub(crate) fn hide_before(scores: &mut [u32; KEY_TILES], tiles: usize, keys: i32) {
    super::hide::hide_before(scores, tiles, HIDDEN, keys);
}

/// What P of a block is made with.
pub(crate) struct Exponents<const MT: usize> {
    /// The units of the scores, and as pairs of float16, and -2048 times that.
    units: [[f32; 2]; MT],
    unit: [[u32; 2]; MT],
    offset: [[u32; 2]; MT],
    /// The largest scores, of row g in the low half and of row g + 8 in the high one.
    largest: [u32; MT],
    /// What makes float16 of a score: 2048 less the largest, in both halves.
    base: [[u32; 2]; MT],
}

impl<const MT: usize> Exponents<MT> {
    /// With the rows' scales over [`SCORE_UNIT`], as pairs of float16, and the block's unit.
    ///
    /// # Safety
    /// By all warps of a team.
    #[inline(always)]
    pub(crate) unsafe fn new<T: Team<MT>>(
        scores: &[[[u32; KEY_TILES]; 2]; MT],
        row_scales: [[u32; 2]; MT],
        block_unit: f32,
        team: &T,
    ) -> Self {
        let block_unit = mul_rn_f32(block_unit, SCORE_UNIT);
        let maxima = unsafe { team.largest(BlockMax::<MT, false>::maxima(scores, KEY_TILES / T::WARPS)) };
        let largest = maxima.map(|largest| max_f16x2(largest, LEAST));
        let units = row_scales.map(|of| of.map(|scale| mul_rn_f32(cvt_f32_f16_low(scale), block_unit)));
        let unit = units.map(|of| of.map(|unit| cvt_rn_f16x2_f32(unit, unit)));
        let offset = unit.map(|of| of.map(argument_offset));
        let base = largest.map(|largest| {
            let base = TOP - largest;
            [prmt(base, base, 0x1010), prmt(base, base, 0x3232)]
        });
        Self { units, unit, offset, largest, base }
    }

    /// The exponents of the rows: of a score in the middle of those that 16 bits take for the largest.
    #[inline(always)]
    pub(crate) fn of_rows(&self) -> [[f32; 2]; MT] {
        let mut rows = [[0.0; 2]; MT];
        unroll!(0..MT, |mt| {
            let largest = [self.largest[mt] & 0xffff, self.largest[mt] >> 16];
            unroll!(0..2, |half| {
                let row = mul_rn_f32(self.units[mt][half], cvt_rn_f32_s32(largest[half] as i32 - ZERO) + 0.5);
                // A row that sees no key of the block: below all others, whatever the units of those are.
                let seen = largest[half] > LEAST & 0xffff;
                rows[mt][half] = f32::from_bits(selp_b32(seen, row.to_bits(), UNSEEN.to_bits()));
            });
        });
        rows
    }

    /// P of the keys of step `step`, as A fragments, with polynomials in these of every eight tiles.
    #[inline(always)]
    pub(crate) fn step(&self, scores: &[[[u32; KEY_TILES]; 2]; MT], polynomials: u32, step: usize) -> [[u32; 4]; MT] {
        let mut p = [[0; 4]; MT];
        unroll!(0..2, |upper| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let code = |tile: usize| {
                        let n = scores[mt][half][tile].wrapping_add(self.base[mt][half]);
                        codes(polynomials, tile, n, self.unit[mt][half], self.offset[mt][half])
                    };
                    let tile = 4 * step + 2 * upper;
                    p[mt][half + 2 * upper] = prmt(code(tile), code(tile + 1), 0x6420);
                });
            });
        });
        p
    }
}
