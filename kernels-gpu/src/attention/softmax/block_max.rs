//! The default scheme: P in u8, scaled by the row's maximum inside the block; float16 exponentials; integer row sums.
//!
//! Blocks whose scores are beyond float16, or whose values have scales of their own, are in `special`; those whose keys share a scale in
//! `narrow`, and in `narrow_magic` for GPUs without its instructions. From a block's scores to P it is `codes`; what hides keys is in `hide`, what is
//! summed of rows in `sums`.

mod codes;
mod hide;
pub(crate) mod narrow;
#[cfg(any(kernels = "sm80", kernels = "short"))]
pub(crate) mod narrow_magic;
mod special;
mod sums;

pub(crate) use codes::Exponents;
pub(crate) use sums::CodeSums;
pub(super) use sums::{Sums, finish, quad_sums};

use super::{BlockScales, Notes, Softmax, SpecialBlock, Team, lane_sums, quad_sum};
use crate::attention::KEY_TILES;
use crate::attention::epilogue::Finished;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::Sequence;
use crate::layout::{NARROW_STEP, SCORE_RANGE, SCORE_UNIT, rotation, row_reach};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::{cvt_f32_f16_low, cvt_rn_f16x2_f32, ex2_approx_ftz_f32, fma_rn_f32, mul_rn_f32};
use crate::ptx::shuffle::vote_any;

/// Minus infinity in both halves.
pub(crate) const NEG_INFINITY: u32 = 0xfc00_fc00;
/// The reference exponent of a row moves only when a block's maximum exceeds it by this: float32 has the range,
/// and the rescale of the whole output almost never runs.
const SLACK: f32 = 32.0;

/// `LANE_SUMS`: each lane of a quad adds up P of its own keys, and the quad's four sums are added at the end of the row. Else the
/// tensor cores add up P of all keys of a block: fewer instructions, but on sm_90a a product of `mma.sync` would wait until those
/// of the warpgroup's `wgmma` are done.
pub(crate) struct BlockMax<const MT: usize, const LANE_SUMS: bool> {
    /// Reference exponents.
    reference: [[f32; 2]; MT],
}

impl<const MT: usize, const LANE_SUMS: bool> BlockMax<MT, LANE_SUMS> {
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
        hide::hide_from(&mut scores[mt][half], tiles, NEG_INFINITY, keys);
    }

    #[inline(always)]
    fn hide_before(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        hide::hide_before(&mut scores[mt][half], tiles, NEG_INFINITY, keys);
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
