//! The default scheme: P in u8, scaled by the row's maximum inside the block; float16 exponentials; integer row sums.
//!
//! Blocks whose scores are beyond float16, or whose values have scales of their own, are in `special`; those whose keys share a scale in
//! `narrow`, and in `narrow_magic` for GPUs without its instructions.

pub(crate) mod narrow;
#[cfg(any(kernels = "sm80", kernels = "short"))]
pub(crate) mod narrow_magic;
mod special;

use super::{
    BlockScales, Joined, MAGIC, MAGIC_BITS, Notes, Softmax, SpecialBlock, Team, WEIGHT_UNIT, lane_sums, quad_sum,
};
use crate::attention::epilogue::Finished;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::Sequence;
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::layout::{KV_BLOCK, NARROW_STEP, SCORE_RANGE, SCORE_UNIT, V_OFFSET, V_ROTATION, rotation, row_reach};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::{
    add_rn_f32, cvt_f32_f16_high, cvt_f32_f16_low, cvt_rn_f16x2_f32, cvt_rp_f16_f32, ex2_approx_f16x2,
    ex2_approx_ftz_f32, fma_rn_f16x2, fma_rn_f32, lg2_approx_ftz_f32, max_nan_f16x2, mul_rn_f32, prmt,
    rcp_approx_ftz_f32,
};
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_f32, st_shared_v4_u32};
use crate::ptx::shuffle::{shfl_bfly, vote_any};

/// 255 and 1024 as pairs of float16: `255 e + 1024` has the rounded code of P in its low byte.
const CODES: u32 = 0x5bf8_5bf8;
const HALF_MAGIC: u32 = 0x6400_6400;
/// Minus infinity in both halves.
pub(crate) const NEG_INFINITY: u32 = 0xfc00_fc00;
/// The reference exponent of a row moves only when a block's maximum exceeds it by this: float32 has the range,
/// and the rescale of the whole output almost never runs.
const SLACK: f32 = 32.0;
/// The largest unit of values that the factor of the sums has.
const NARROW: f32 = (1_u64 << 30) as f32;
/// What sums of P V are to be multiplied with: 2^149 over [`WEIGHT_UNIT`].
///
/// P and the bytes of V are unsigned, so a sum of P V is from 0 to `255 * 255 * 128 < 2^23`, and its bits, read as a float, are
/// the sum times 2^-149: floats next to zero (subnormal) have that step, and the arithmetic takes them at full speed. The sums
/// so go into `fma` as they are; converting them would be an instruction of half the rate for each. What V's bytes have too much
/// ([`V_OFFSET`]) leaves the output at the end.
const SUBNORMAL: f32 = (1_u128 << 101) as f32;

const _: () = assert!(255 * 255 * KV_BLOCK < 1 << 23);

/// `LANE_SUMS`: each lane of a quad adds up P of its own keys, and the quad's four sums are added at the end of the row. Else the
/// tensor cores add up P of all keys of a block: fewer instructions, but on sm_90a a product of `mma.sync` would wait until those
/// of the warpgroup's `wgmma` are done.
pub(crate) struct BlockMax<const MT: usize, const LANE_SUMS: bool> {
    /// Reference exponents.
    reference: [[f32; 2]; MT],
}

/// Sums over the blocks so far, of rows or of a lane's share of them. They are in shared memory ([`Notes::sums`]) but where a block is
/// added: the loops have no registers for them.
pub(super) struct Sums<const MT: usize> {
    /// Of the exponentials.
    pub row: [[f32; 2]; MT],
    /// Of the codes of P, each block's times its weight and the scale of its values: [`V_OFFSET`] times that is what V's bytes have too
    /// much.
    pub code: [[f32; 2]; MT],
}

impl<const MT: usize> Sums<MT> {
    pub const ZERO: Self = Self { row: [[0.0; 2]; MT], code: [[0.0; 2]; MT] };

    #[inline(always)]
    pub unsafe fn load(notes: Notes) -> Self {
        let mut sums = Self::ZERO;
        unroll!(0..MT, |mt| {
            let [a, b, c, d] = unsafe { ld_shared_v4_f32(notes.sums + (16 * mt) as u32) };
            (sums.row[mt], sums.code[mt]) = ([a, b], [c, d]);
        });
        sums
    }

    #[inline(always)]
    pub unsafe fn store(&self, notes: Notes) {
        unroll!(0..MT, |mt| {
            let ([a, b], [c, d]) = (self.row[mt], self.code[mt]);
            unsafe { st_shared_v4_u32(true, notes.sums + (16 * mt) as u32, [a, b, c, d].map(f32::to_bits)) };
        });
    }
}

/// What P of a block is made with.
pub(crate) struct Exponents<const MT: usize> {
    /// The block's exponents, negated, as pairs of equal float16.
    minus_m: [[u32; 2]; MT],
    row_scales: [[u32; 2]; MT],
}

impl<const MT: usize, const LANE_SUMS: bool> BlockMax<MT, LANE_SUMS> {
    /// The rows' maxima over the `tiles` n8 tiles of the quad's four lanes, for two rows at once: (row g, row g+8) in the halves.
    #[inline(always)]
    unsafe fn maxima(scores: &[[[u32; KEY_TILES]; 2]; MT], tiles: usize) -> [u32; MT] {
        unsafe { Self::quad_maxima(Self::lane_maxima(scores, tiles)) }
    }

    /// The same of the lane's own keys.
    #[inline(always)]
    pub(crate) fn lane_maxima(scores: &[[[u32; KEY_TILES]; 2]; MT], tiles: usize) -> [u32; MT] {
        let mut maxima = [0; MT];
        unroll!(0..MT, |mt| {
            let mut max = [NEG_INFINITY; 2];
            unroll!(0..2, |half| {
                let t = &scores[mt][half];
                // Three at a time: sm_90 has an instruction for that. NaN stays: a row that sees one is NaN.
                let mut two = [max_nan_f16x2(t[0], t[1]), max_nan_f16x2(t[2], t[3])];
                unroll!(2..KEY_TILES / 2, |i| {
                    if 2 * i < tiles {
                        two[i % 2] = max_nan_f16x2(max_nan_f16x2(two[i % 2], t[2 * i]), t[2 * i + 1]);
                    }
                });
                max[half] = max_nan_f16x2(two[0], two[1]);
            });
            maxima[mt] = max_nan_f16x2(prmt(max[0], max[1], 0x5410), prmt(max[0], max[1], 0x7632));
        });
        maxima
    }

    /// Those of a quad's lanes put together.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn quad_maxima(mut maxima: [u32; MT]) -> [u32; MT] {
        unroll!(0..MT, |mt| {
            unsafe {
                let max = max_nan_f16x2(maxima[mt], shfl_bfly::<1>(maxima[mt]));
                maxima[mt] = max_nan_f16x2(max, shfl_bfly::<2>(max));
            }
        });
        maxima
    }

    /// Makes the exponents of a first block, not a special one, the reference: there is no sum and no output that would have to be rescaled.
    #[inline(always)]
    pub(crate) fn begin(&mut self, exponents: [[f32; 2]; MT]) {
        self.reference = exponents;
    }

    /// [`Softmax::add_block`] of a block with these sums of P.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn add_codes<T: Team<MT>>(
        &mut self,
        mut max: [[f32; 2]; MT],
        codes: [[f32; 2]; MT],
        acc: &mut Accumulator<MT>,
        tiles: usize,
        special: bool,
        scales: impl Fn() -> BlockScales,
        notes: impl Fn() -> Notes,
    ) -> [[f32; 2]; MT] {
        if special {
            unsafe { Self::recall_exponents(notes(), &mut max) };
        }
        let mut moved = false;
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                moved |= max[mt][half] > self.reference[mt][half] + SLACK;
            });
        });
        if unsafe { vote_any(moved) } {
            let mut factor = [[1.0; 2]; MT];
            let mut totals = unsafe { Sums::<MT>::load(notes()) };
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    if max[mt][half] > self.reference[mt][half] + SLACK {
                        let reference = max[mt][half];
                        factor[mt][half] = ex2_approx_ftz_f32(self.reference[mt][half] - reference);
                        self.reference[mt][half] = reference;
                        totals.row[mt][half] *= factor[mt][half];
                        totals.code[mt][half] *= factor[mt][half];
                    }
                });
            });
            unsafe { totals.store(notes()) };
            acc.scale(tiles, &factor);
        }
        // Asked only now: what is in registers across the branch before would be spilled.
        let scales = scales();
        let (mut sums, mut value) = (codes, [[scales.v; 2]; MT]);
        if special {
            unsafe { Self::recall_sums::<T>(notes(), &mut sums, &mut value) };
        }
        let notes = notes();
        let mut totals = unsafe { Sums::<MT>::load(notes) };
        let mut weight = [[0.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let w = ex2_approx_ftz_f32(max[mt][half] - self.reference[mt][half]);
                totals.row[mt][half] = fma_rn_f32(w, sums[mt][half], totals.row[mt][half]);
                weight[mt][half] = mul_rn_f32(w, value[mt][half]);
                totals.code[mt][half] = fma_rn_f32(weight[mt][half], codes[mt][half], totals.code[mt][half]);
            });
        });
        unsafe { totals.store(notes) };
        weight
    }

    /// What P of a block is made with, whose rows have these maxima.
    #[inline(always)]
    pub(crate) fn exponents_of(maxima: &[u32; MT], row_scales: [[u32; 2]; MT]) -> Exponents<MT> {
        Exponents { minus_m: Self::negated(maxima, &row_scales), row_scales }
    }

    /// The block's exponents, negated, as pairs of equal float16.
    #[inline(always)]
    fn negated(maxima: &[u32; MT], row_scales: &[[u32; 2]; MT]) -> [[u32; 2]; MT] {
        let mut minus_m = [[0; 2]; MT];
        unroll!(0..MT, |mt| {
            let row_max = [cvt_f32_f16_low(maxima[mt]), cvt_f32_f16_high(maxima[mt])];
            unroll!(0..2, |half| {
                // A row that sees no key of the block has minus infinity here; any finite exponent serves it.
                let t = if row_max[half] < -65504.0 { -65504.0 } else { row_max[half] };
                let m = cvt_rp_f16_f32(mul_rn_f32(t, cvt_f32_f16_low(row_scales[mt][half])));
                minus_m[mt][half] = m ^ 0x8000_8000;
            });
        });
        minus_m
    }

    /// The codes of P of two neighbouring tiles of row `(mt, half)`: a register of an A fragment.
    #[inline(always)]
    fn codes(
        scores: &[[[u32; KEY_TILES]; 2]; MT],
        exponents: &Exponents<MT>,
        mt: usize,
        half: usize,
        tile: usize,
    ) -> u32 {
        let (row_scale, minus_m) = (exponents.row_scales[mt][half], exponents.minus_m[mt][half]);
        let code = |tile: usize| {
            let e = ex2_approx_f16x2(fma_rn_f16x2(scores[mt][half][tile], row_scale, minus_m));
            fma_rn_f16x2(e, CODES, HALF_MAGIC)
        };
        prmt(code(tile), code(tile + 1), 0x6420)
    }
}

/// Makes the scores of a row against the keys from `keys` on `hidden`, counted from the lane's first.
#[inline(always)]
fn hide_from(scores: &mut [u32; KEY_TILES], tiles: usize, hidden: u32, keys: i32) {
    hide(scores, tiles, hidden, |tile| {
        let keys = keys - (8 * tile) as i32;
        selp_b32(keys > 1, BOTH, selp_b32(keys > 0, LOW, NEITHER))
    });
}

/// The same of the keys before `keys`.
#[inline(always)]
fn hide_before(scores: &mut [u32; KEY_TILES], tiles: usize, hidden: u32, keys: i32) {
    hide(scores, tiles, hidden, |tile| {
        let keys = keys - (8 * tile) as i32;
        selp_b32(keys < 1, BOTH, selp_b32(keys < 2, HIGH, NEITHER))
    });
}

/// Selectors of `prmt` that take these halves of a pair of scores, and the other ones from what hides.
const BOTH: u32 = 0x3210;
const LOW: u32 = 0x7610;
const HIGH: u32 = 0x3254;
const NEITHER: u32 = 0x7654;

/// Makes the scores of a row `hidden`, a pair, but for the halves that `visible` selects in each of its `tiles` tiles.
#[inline(always)]
fn hide(scores: &mut [u32; KEY_TILES], tiles: usize, hidden: u32, visible: impl Fn(usize) -> u32) {
    unroll!(0..KEY_TILES, |tile| {
        if tile < tiles {
            scores[tile] = prmt(scores[tile], hidden, visible(tile));
        }
    });
}

/// The sums of P over all keys, of the rows in the two halves of a fragment.
#[inline(always)]
pub(super) unsafe fn quad_sums(p: &[[u32; 4]; KEY_STEPS]) -> [f32; 2] {
    let mut sums = CodeSums::ZERO;
    unroll!(0..KEY_STEPS, |step| {
        unsafe { sums.add(p[step]) };
    });
    sums.get()
}

/// The sums of P of a quad's two rows, step by step.
#[derive(Clone, Copy)]
pub(crate) struct CodeSums([i32; 4]);

impl CodeSums {
    pub(crate) const ZERO: Self = Self([MAGIC_BITS; 4]);

    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn add(&mut self, p: [u32; 4]) {
        // Ones for B: every column of the product is the row sum.
        self.0 = unsafe { mma_m16n8k32_s32_u8_u8(p, [0x0101_0101; 2], self.0) };
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> [f32; 2] {
        [0, 2].map(|i| add_rn_f32(f32::from_bits(self.0[i] as u32), -MAGIC))
    }
}

/// The factor of a score of codes, without their scales.
#[inline(always)]
pub(crate) fn score_factor(params: &AttentionParams, head_dim: usize) -> f32 {
    mul_rn_f32(mul_rn_f32(params.softmax_scale, core::f32::consts::LOG2_E), 1.0 / rotation(head_dim) as f32)
}

impl<const MT: usize, const LANE_SUMS: bool> Softmax<MT> for BlockMax<MT, LANE_SUMS> {
    type Scores = [[[u32; KEY_TILES]; 2]; MT];
    /// The rows' scales over [`SCORE_UNIT`], as pairs of equal float16; 1 where a block is special for the row.
    type RowScales = [[u32; 2]; MT];
    type Exponents = Exponents<MT>;
    /// The block's exponents.
    type OfRows = [[f32; 2]; MT];
    /// The block's weight against the reference exponent.
    type Row = [[f32; 2]; MT];

    const SPECIAL: bool = true;
    const NARROW: bool = LANE_SUMS;

    #[inline(always)]
    unsafe fn new(
        _: &AttentionParams,
        q_scale: [[f32; 2]; MT],
        _: impl Fn() -> [[f32; 2]; MT],
        notes: impl Fn() -> Notes,
    ) -> Self {
        let notes = notes();
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let value = mul_rn_f32(q_scale[mt][half], 1.0 / SCORE_UNIT);
                unsafe { special::note_row_scale(notes, mt, half, cvt_rn_f16x2_f32(value, value)) };
            });
        });
        unsafe { warp_sync() };
        unsafe { Sums::<MT>::ZERO.store(notes) };
        // Not minus infinity: ptxas would keep that one constant, for the rows without keys, in a register across the loop.
        Self { reference: [[f32::MIN; 2]; MT] }
    }

    #[inline(always)]
    fn common_factor(params: &AttentionParams, head_dim: usize) -> f32 {
        mul_rn_f32(score_factor(params, head_dim), SCORE_UNIT)
    }

    #[inline(always)]
    fn key_factor(common_factor: f32, k_scale: f32) -> f32 {
        // 22 bits: MAGIC times that is exact, so that fma(MAGIC + s, factor, -MAGIC * factor) is s * factor, rounded once.
        f32::from_bits(mul_rn_f32(k_scale, common_factor).to_bits() & !3)
    }

    #[inline(always)]
    fn empty() -> Self::Scores {
        [[[NEG_INFINITY; KEY_TILES]; 2]; MT]
    }

    #[inline(always)]
    fn scores_of_magic(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        key: [f32; 4],
    ) {
        let low = fma_rn_f32(sums[0], key[0], key[1]);
        let high = fma_rn_f32(sums[1], key[2], key[3]);
        scores[mt][half][tile] = cvt_rn_f16x2_f32(high, low);
    }

    #[inline(always)]
    fn scores_of_sums(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        factors: [f32; 2],
    ) {
        scores[mt][half][tile] = cvt_rn_f16x2_f32(mul_rn_f32(sums[1], factors[1]), mul_rn_f32(sums[0], factors[0]));
    }

    #[inline(always)]
    fn hide_from(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        hide_from(&mut scores[mt][half], tiles, NEG_INFINITY, keys);
    }

    #[inline(always)]
    fn hide_before(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        hide_before(&mut scores[mt][half], tiles, NEG_INFINITY, keys);
    }

    #[inline(always)]
    unsafe fn exponents<T: Team<MT>>(
        &mut self,
        scores: &Self::Scores,
        row_scales: Self::RowScales,
        team: &T,
    ) -> Self::Exponents {
        let maxima = unsafe { team.largest(Self::maxima(scores, KEY_TILES / T::WARPS)) };
        Self::exponents_of(&maxima, row_scales)
    }

    #[inline(always)]
    unsafe fn note_exponents(exponents: &Self::Exponents, notes: impl Fn() -> Notes) {
        unsafe { Self::note_exponents(&exponents.minus_m, notes()) };
    }

    #[inline(always)]
    fn of_narrow(exponents: narrow::Exponents) -> (Self::Scores, Self::Exponents) {
        let mut scores = Self::empty();
        unroll!(0..2, |half| {
            unroll!(0..KEY_TILES, |tile| {
                scores[0][half][tile] = exponents.score(half, tile);
            });
        });
        let (unit, offset) = exponents.factors();
        (scores, Exponents { minus_m: [offset; MT], row_scales: [unit; MT] })
    }

    #[inline(always)]
    fn of_narrow_rows(exponents: [f32; 2]) -> Self::OfRows {
        [exponents; MT]
    }

    #[inline(always)]
    fn of_rows(exponents: &Self::Exponents) -> Self::OfRows {
        let mut rows = [[0.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                rows[mt][half] = -cvt_f32_f16_low(exponents.minus_m[mt][half]);
            });
        });
        rows
    }

    #[inline(always)]
    fn step(&mut self, scores: &Self::Scores, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT] {
        let mut p = [[0; 4]; MT];
        unroll!(0..2, |upper| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    p[mt][half + 2 * upper] = Self::codes(scores, exponents, mt, half, 4 * step + 2 * upper);
                });
            });
        });
        p
    }

    #[inline(always)]
    fn shrink(params: &AttentionParams, head_dim: usize, k_block_scale: f32) -> f32 {
        let largest = row_reach(head_dim, score_factor(params, head_dim), SCORE_UNIT) * k_block_scale;
        let exponent = (largest.to_bits() >> 23) as i32 - 127;
        if largest > SCORE_RANGE { f32::from_bits(((14 - exponent + 127) as u32) << 23) } else { 1.0 }
    }

    #[inline(always)]
    fn narrow_unit(params: &AttentionParams, head_dim: usize, k_scale: f32) -> f32 {
        mul_rn_f32(k_scale, mul_rn_f32(score_factor(params, head_dim), NARROW_STEP))
    }

    #[inline(always)]
    unsafe fn is_special(scales: &BlockScales) -> bool {
        // All lanes say the same; the vote lets the compiler know, or it would give each shuffle behind the branch a second way.
        unsafe { vote_any(scales.reach * scales.k > SCORE_RANGE || scales.v.is_nan()) }
    }

    #[inline(always)]
    unsafe fn row_scales(notes: impl Fn() -> Notes) -> Self::RowScales {
        let notes = notes();
        let mut row_scales = [[0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                row_scales[mt][half] = unsafe { special::noted_row_scale(notes, mt, half) };
            });
        });
        row_scales
    }

    #[inline(always)]
    unsafe fn special<T: Team<MT>>(
        scores: &mut Self::Scores,
        row_scales: &mut Self::RowScales,
        team: &T,
        block: &impl SpecialBlock,
    ) {
        unsafe { Self::special_scores(scores, row_scales, team, block) }
    }

    #[inline(always)]
    unsafe fn add_block<T: Team<MT>>(
        &mut self,
        of_rows: Self::OfRows,
        p: &Probabilities<MT>,
        acc: &mut Accumulator<MT>,
        tiles: usize,
        special: bool,
        scales: impl Fn() -> BlockScales,
        notes: impl Fn() -> Notes,
    ) -> Self::Row {
        // Before the branches, where they fill the gaps between the exponentials.
        let mut codes = [[0.0; 2]; MT];
        if LANE_SUMS {
            unroll!(0..MT, |mt| {
                codes[mt] = lane_sums(&p[mt]);
            });
        }
        if !LANE_SUMS {
            unroll!(0..MT, |mt| {
                codes[mt] = unsafe { quad_sums(&p[mt]) };
            });
        }
        unsafe { self.add_codes::<T>(of_rows, codes, acc, tiles, special, scales, notes) }
    }

    #[inline(always)]
    fn accumulate(o: f32, sum: i32, row: &Self::Row, mt: usize, half: usize) -> f32 {
        fma_rn_f32(row[mt][half], f32::from_bits(sum as u32), o)
    }

    #[inline(always)]
    unsafe fn output_unit(params: &AttentionParams, sequence: &Sequence) -> f32 {
        unsafe { ld_global_nc_f32(sequence.v_unit(params)) }
    }

    #[inline(always)]
    unsafe fn finish(&self, mt: usize, half: usize, unit: f32, sink: f32, notes: impl Fn() -> Notes) -> Finished {
        let sums = unsafe { Sums::<MT>::load(notes()) };
        let (mut sum, mut codes) = (sums.row[mt][half], sums.code[mt][half]);
        if LANE_SUMS {
            (sum, codes) = unsafe { (quad_sum(sum), quad_sum(codes)) };
        }
        finish(sum, codes, self.reference[mt][half], sink, unit)
    }
}

/// A row of the sums `sum` of its exponentials and `codes` of its codes of P, both in `2^reference`.
#[inline(always)]
pub(super) fn finish(sum: f32, codes: f32, reference: f32, sink: f32, unit: f32) -> Finished {
    // Not `sum > 0`: NaN is a result.
    if sum == 0.0 {
        return Finished::UNSEEN;
    }
    let row = Joined::new(sum, reference, sink, 255.0);
    // More than float16 holds, and no more than a factor of the sums does.
    let (narrow, rest) = if unit > NARROW { (NARROW, mul_rn_f32(unit, 1.0 / NARROW)) } else { (unit, 1.0) };
    let scale = mul_rn_f32(narrow, 1.0 / V_ROTATION as f32);
    let inverse = mul_rn_f32(rcp_approx_ftz_f32(row.sum), row.weight);
    Finished {
        factor: mul_rn_f32(mul_rn_f32(inverse, SUBNORMAL), scale),
        // In this order: a product of the scale and one factor would leave float32 where the unit is far from 1.
        offset: mul_rn_f32(mul_rn_f32(mul_rn_f32(codes, inverse), f32::from(V_OFFSET) / WEIGHT_UNIT), scale),
        rest,
        rotated: true,
        seen: u32::MAX,
        lse: row.reference + lg2_approx_ftz_f32(mul_rn_f32(row.sum, 1.0 / 255.0)),
    }
}
