//! Blocks in 16 bits (docs/kernel-abi.md, "narrow"): where all keys of a block share a scale, their integer scores compare as they are, and
//! the upper bits of a score are all that P shows of it. No conversion, no factor of a key.
//!
//! ```text
//! two sums of 32 bits       s0: b3 b2 b1 b0      s1: b3 b2 b1 b0
//! u, one prmt               [ b2 b1 of s1 | b2 b1 of s0 ]            two 16-bit integers, s >> 8
//! M, max.s16x2              of the row's keys
//! n, add and max at once    0x6800 + (u - M), at least 0x6400         the bits of the float16 2048 + (u - M), at least 1024
//! x, fma.f16x2              n * A - 2048 * A                          (u - M) * A, the exponent's argument
//! ```

use super::codes::{CODES, HALF_MAGIC};
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::layout::NARROW_POLYNOMIAL;
use crate::ptx::math::{
    add_s16x2, cvt_rn_f16x2_f32, cvt_rn_f32_s32, ex2_approx_f16x2, fma_rn_f16x2, fma_rn_relu_f16x2, mad_lo_u32,
    max_s16x2, max_s32, mul_rn_f32, prmt, shl_b32,
};
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::shfl_bfly;

/// The maximum of no keys, -16384: below all scores, which are within that of zero.
const LEAST: u32 = 0xc000_c000;
/// The score of a hidden key, -18432: below all others, further from the maximum of none than the weights reach (1024), and far enough from
/// the largest maximum for 16 bits.
const HIDDEN: u32 = 0xb800_b800;
/// The exponent of a row that sees no key of the block.
pub(super) const UNSEEN: f32 = -1e30;
/// 2048, 1024 and -2048 as pairs of float16, and minus zero.
pub(super) const TOP: u32 = 0x6800_6800;
const BOTTOM: u32 = 0x6400_6400;
const MINUS_TOP: u32 = 0xe800_e800;
const MINUS_ZERO: u32 = 0x8000_8000;
/// 10, 1536 and minus that as pairs of float16: added to a small one, 1536 rounds it to an integer, which is then in the lowest bits.
const TEN: u32 = 0x4900_4900;
const ROUNDER: u32 = 0x6600_6600;
const MINUS_ROUNDER: u32 = 0xe600_e600;
/// -1 and 1 as pairs of float16.
const MINUS_ONE: u32 = 0xbc00_bc00;
const ONE: u32 = 0x3c00_3c00;

const _: () = assert!(127 * 127 * 256 >> 8 < (1 << 14) && KEY_STEPS * 4 == KEY_TILES);

/// The upper bits of the scores of a lane's two rows: pairs of two neighbouring keys.
pub(crate) type Scores = [[u32; KEY_TILES]; 2];

/// What P of a block is made with, of the lane's two rows.
pub(crate) struct Exponents {
    scores: Scores,
    /// The units of the scores, and as pairs of float16, and -2048 times that.
    units: [f32; 2],
    unit: [u32; 2],
    offset: [u32; 2],
    /// The largest scores, of the one row in the low half and of the other in the high one.
    largest: u32,
    /// What makes float16 of a score: 2048 less the largest, in both halves.
    base: [u32; 2],
}

/// The scores of a block's sums.
#[inline(always)]
pub(crate) fn scores(sums: &[[i32; 4]; KEY_TILES]) -> Scores {
    let mut scores = [[0; KEY_TILES]; 2];
    unroll!(0..KEY_TILES, |tile| {
        unroll!(0..2, |half| {
            let [low, high] = [sums[tile][2 * half], sums[tile][2 * half + 1]];
            scores[half][tile] = prmt(low as u32, high as u32, 0x6521);
        });
    });
    scores
}

/// Hides the keys of a row from `keys` on, counted from the lane's first.
#[inline(always)]
pub(crate) fn hide_from(scores: &mut Scores, half: usize, keys: i32) {
    hide(&mut scores[half], keys, |behind| behind);
}

/// Hides the keys of a row before `keys`.
#[inline(always)]
pub(crate) fn hide_before(scores: &mut Scores, half: usize, keys: i32) {
    hide(&mut scores[half], keys, |behind| !behind);
}

/// Hides the scores of a row whose bits `which` makes of those of the keys from `keys` on: three instructions a pair.
#[inline(always)]
fn hide(scores: &mut [u32; KEY_TILES], keys: i32, which: impl Fn(u32) -> u32) {
    unroll!(0..KEY_TILES, |tile| {
        // Bits of the pair before those keys: 16 a key.
        let before = max_s32(16 * keys - (128 * tile) as i32, 0);
        let hidden = which(shl_b32(u32::MAX, before as u32));
        scores[tile] = scores[tile] & !hidden | HIDDEN & hidden;
    });
}

impl Exponents {
    /// With the units of the two rows.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn new(scores: Scores, units: [f32; 2]) -> Self {
        let mut max = [0; 2];
        unroll!(0..2, |half| {
            let u = &scores[half];
            // Three at a time: an instruction.
            let mut two = [max_s16x2(max_s16x2(u[0], u[1]), u[2]), max_s16x2(max_s16x2(u[3], u[4]), u[5])];
            unroll!(3..KEY_TILES / 2, |i| {
                two[i % 2] = max_s16x2(max_s16x2(two[i % 2], u[2 * i]), u[2 * i + 1]);
            });
            max[half] = max_s16x2(two[0], two[1]);
        });
        let (low, high) = (prmt(max[0], max[1], 0x5410), prmt(max[0], max[1], 0x7632));
        let mut largest = max_s16x2(max_s16x2(low, high), LEAST);
        unsafe {
            largest = max_s16x2(largest, shfl_bfly::<1>(largest));
            largest = max_s16x2(largest, shfl_bfly::<2>(largest));
        }
        // 2048 less that, of both rows at once: the complement is one too little.
        let base = add_s16x2(!largest, TOP + 0x0001_0001);
        let unit = units.map(|unit| cvt_rn_f16x2_f32(unit, unit));
        let offset = unit.map(argument_offset);
        Self { scores, units, unit, offset, largest, base: [prmt(base, base, 0x1010), prmt(base, base, 0x3232)] }
    }

    /// The exponents of the two rows: of a score in the middle of those that 16 bits take for the largest.
    #[inline(always)]
    pub(crate) fn of_rows(&self) -> [f32; 2] {
        let largest = [self.largest as i16, (self.largest >> 16) as i16];
        let mut rows = [0.0; 2];
        unroll!(0..2, |half| {
            let row = mul_rn_f32(self.units[half], cvt_rn_f32_s32(largest[half].into()) + 0.5);
            // A row that sees no key of the block: below all others, whatever the units of those are.
            let seen = largest[half] > LEAST as i16;
            rows[half] = f32::from_bits(selp_b32(seen, row.to_bits(), UNSEEN.to_bits()));
        });
        rows
    }

    /// A pair of scores as float16, which times [`Self::factors`]' first, and with the second added, is the exponents' argument.
    #[inline(always)]
    pub(super) fn score(&self, half: usize, tile: usize) -> u32 {
        max_s16x2(add_s16x2(self.scores[half][tile], self.base[half]), BOTTOM)
    }

    #[inline(always)]
    pub(super) fn factors(&self) -> ([u32; 2], [u32; 2]) {
        (self.unit, self.offset)
    }

    /// P of the keys of step `step`, as an A fragment, with polynomials in these of every eight tiles.
    #[inline(always)]
    pub(crate) fn step(&self, polynomials: u32, step: usize) -> [u32; 4] {
        let mut p = [0; 4];
        unroll!(0..2, |upper| {
            unroll!(0..2, |half| {
                let tile = 4 * step + 2 * upper;
                p[half + 2 * upper] =
                    prmt(self.codes(polynomials, half, tile), self.codes(polynomials, half, tile + 1), 0x6420);
            });
        });
        p
    }

    /// The codes of P of a pair of keys, in the low bytes of the halves.
    #[inline(always)]
    fn codes(&self, polynomials: u32, half: usize, tile: usize) -> u32 {
        codes(polynomials, tile, self.score(half, tile), self.unit[half], self.offset[half])
    }
}

/// What is added to 2048 and less, times the unit, for the exponents' argument.
#[inline(always)]
pub(super) fn argument_offset(unit: u32) -> u32 {
    fma_rn_f16x2(unit, MINUS_TOP, MINUS_ZERO)
}

/// The codes of P of a pair of scores as float16, in tile `tile`, in the low bytes of the halves.
#[inline(always)]
pub(super) fn codes(polynomials: u32, tile: usize, n: u32, unit: u32, offset: u32) -> u32 {
    let e = if polynomials >> (tile % 8) & 1 == 1 {
        polynomial(n, unit, offset)
    } else {
        ex2_approx_f16x2(fma_rn_f16x2(n, unit, offset))
    };
    fma_rn_f16x2(e, CODES, HALF_MAGIC)
}

/// The exponentials as polynomials of degree 2, on the units of sums and products where `ex2` has one of its own, and the longest queue.
#[inline(always)]
fn polynomial(n: u32, unit: u32, offset: u32) -> u32 {
    let [c0, c1, c2] = NARROW_POLYNOMIAL.map(|c| u32::from(c) * 0x0001_0001);
    // Ten more than the argument, so that none is negative; below, P is zero.
    let y = fma_rn_relu_f16x2(n, unit, fma_rn_f16x2(offset, ONE, TEN));
    let t = fma_rn_f16x2(y, ONE, ROUNDER);
    let f = fma_rn_f16x2(fma_rn_f16x2(t, ONE, MINUS_ROUNDER), MINUS_ONE, y);
    let e = fma_rn_f16x2(fma_rn_f16x2(f, c2, c1), f, c0);
    // The integer, 0 to 10, is added to the exponent: no half carries. One instruction, where a shift and a sum are two.
    mad_lo_u32(t & 0x000f_000f, 1 << 10, e)
}
