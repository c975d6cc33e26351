//! The paper's scheme (arXiv 2409.16997, algorithm 1): int8 P scaled by the running maximum, float32 softmax.

use super::{BlockScales, FloatScores, Joined, MAGIC, Notes, Softmax, SpecialBlock, Team, hide, lane_sums, quad_sum};
use crate::attention::KEY_TILES;
use crate::attention::epilogue::Finished;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::Sequence;
use crate::layout::V_OFFSET;
use crate::params::AttentionParams;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::{
    add_rn_f32, cvt_rn_f32_s32, ex2_approx_ftz_f32, fma_rn_f32, lg2_approx_ftz_f32, max_nan_f32, mul_rn_f32, prmt,
    rcp_approx_ftz_f32,
};
use crate::ptx::opaque::opaque;
use crate::ptx::shuffle::shfl_bfly;

/// R, the largest int8 code.
const R: f32 = 127.0;

pub(crate) struct Paper<const MT: usize> {
    /// q_scale * softmax_scale * log2(e).
    row_scale: [[f32; 2]; MT],
    row_max: [[f32; 2]; MT],
    /// This lane's share of the row sum (the quad's four are added at the end).
    row_sum: [[f32; 2]; MT],
    /// The same of the codes of P: `V_OFFSET` times that is what V's bytes add to the output.
    code_sum: [[f32; 2]; MT],
}

/// The maximum of no keys: a finite one, so that differences are numbers. And not that of the rows without keys in `lse`: ptxas would
/// keep one constant for both, in a register across the loop.
const LEAST: f32 = -1e30;

impl<const MT: usize> Softmax<MT> for Paper<MT> {
    type Scores = FloatScores<MT>;
    type RowScales = ();
    /// `2^(old maximum - new maximum)`.
    type Exponents = [[f32; 2]; MT];
    type OfRows = [[f32; 2]; MT];
    type Row = [[f32; 2]; MT];

    const SPECIAL: bool = false;

    #[inline(always)]
    unsafe fn new(
        params: &AttentionParams,
        q_scale: [[f32; 2]; MT],
        _: impl Fn() -> [[f32; 2]; MT],
        _: impl Fn() -> Notes,
    ) -> Self {
        let c = mul_rn_f32(params.softmax_scale, core::f32::consts::LOG2_E);
        let row_scale = q_scale.map(|halves| halves.map(|scale| mul_rn_f32(scale, c)));
        Self { row_scale, row_max: [[LEAST; 2]; MT], row_sum: [[0.0; 2]; MT], code_sum: [[0.0; 2]; MT] }
    }

    #[inline(always)]
    fn common_factor(_: &AttentionParams, _: usize) -> f32 {
        1.0
    }

    #[inline(always)]
    fn key_factor(_: f32, k_scale: f32) -> f32 {
        k_scale
    }

    #[inline(always)]
    fn empty() -> Self::Scores {
        [[[[f32::NEG_INFINITY; 2]; KEY_TILES]; 2]; MT]
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
        let exact = [add_rn_f32(sums[0], -MAGIC), add_rn_f32(sums[1], -MAGIC)];
        self.scores_of_sums(scores, mt, half, tile, exact, [key[0], key[2]]);
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
        unroll!(0..2, |i| {
            scores[mt][half][tile][i] = mul_rn_f32(sums[i], mul_rn_f32(self.row_scale[mt][half], factors[i]));
        });
    }

    #[inline(always)]
    fn hide_from(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        // Opaque: the first keys of all tiles would be in registers across the loop, to be subtracted from the row's.
        let keys = opaque(keys as u32) as i32;
        hide(&mut scores[mt][half], tiles, |key| key < keys);
    }

    #[inline(always)]
    fn hide_before(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        // Opaque: as above.
        let keys = opaque(keys as u32) as i32;
        hide(&mut scores[mt][half], tiles, |key| key >= keys);
    }

    #[inline(always)]
    fn shrink(_: &AttentionParams, _: usize, _: f32) -> f32 {
        1.0
    }

    #[inline(always)]
    unsafe fn is_special(_: &BlockScales) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn row_scales(_: impl Fn() -> Notes) {}

    #[inline(always)]
    unsafe fn special<T: Team<MT>>(_: &mut Self::Scores, (): &mut (), _: &T, _: &impl SpecialBlock) {}

    #[inline(always)]
    unsafe fn exponents<T: Team<MT>>(&mut self, scores: &Self::Scores, (): (), _: &T) -> Self::Exponents {
        const { assert!(T::WARPS == 1) }
        let mut alpha = [[0.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let mut max = self.row_max[mt][half];
                unroll!(0..KEY_TILES, |tile| {
                    max = max_nan_f32(max, max_nan_f32(scores[mt][half][tile][0], scores[mt][half][tile][1]));
                });
                unsafe {
                    max = max_nan_f32(max, f32::from_bits(shfl_bfly::<1>(max.to_bits())));
                    max = max_nan_f32(max, f32::from_bits(shfl_bfly::<2>(max.to_bits())));
                }
                alpha[mt][half] = ex2_approx_ftz_f32(self.row_max[mt][half] - max);
                self.row_max[mt][half] = max;
                self.row_sum[mt][half] *= alpha[mt][half];
            });
        });
        alpha
    }

    #[inline(always)]
    unsafe fn note_exponents(_: &Self::Exponents, _: impl Fn() -> Notes) {}

    #[inline(always)]
    fn step(&mut self, scores: &Self::Scores, _: &Self::Exponents, step: usize) -> [[u32; 4]; MT] {
        let mut p = [[0; 4]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let reference = self.row_max[mt][half];
                let mut sum = 0.0;
                unroll!(0..2, |upper| {
                    let mut codes = [[0; 2]; 2];
                    unroll!(0..2, |i| {
                        unroll!(0..2, |j| {
                            let e = ex2_approx_ftz_f32(scores[mt][half][4 * step + 2 * upper + i][j] - reference);
                            sum += e;
                            codes[i][j] = fma_rn_f32(e, R, MAGIC).to_bits();
                        });
                    });
                    let [low, high] = codes.map(|pair| prmt(pair[0], pair[1], 0x0040));
                    p[mt][half + 2 * upper] = prmt(low, high, 0x5410);
                });
                self.row_sum[mt][half] += sum;
            });
        });
        p
    }

    #[inline(always)]
    fn of_rows(exponents: &Self::Exponents) -> Self::OfRows {
        *exponents
    }

    #[inline(always)]
    unsafe fn add_block<T: Team<MT>>(
        &mut self,
        exponents: Self::OfRows,
        p: &Probabilities<MT>,
        _: &mut Accumulator<MT>,
        _: usize,
        _: bool,
        _: impl Fn() -> BlockScales,
        _: impl Fn() -> Notes,
    ) -> Self::Row {
        unroll!(0..MT, |mt| {
            let sums = lane_sums(&p[mt]);
            unroll!(0..2, |half| {
                self.code_sum[mt][half] = fma_rn_f32(self.code_sum[mt][half], exponents[mt][half], sums[half]);
            });
        });
        exponents
    }

    #[inline(always)]
    fn accumulate(o: f32, sum: i32, row: &Self::Row, mt: usize, half: usize) -> f32 {
        fma_rn_f32(o, row[mt][half], cvt_rn_f32_s32(sum))
    }

    #[inline(always)]
    unsafe fn output_unit(params: &AttentionParams, sequence: &Sequence) -> f32 {
        // All blocks of a head have one scale; without a block no row has an output to multiply.
        if sequence.seqlen_kv == 0 { 1.0 } else { unsafe { ld_global_nc_f32(sequence.v_block_scale(params, 0)) } }
    }

    #[inline(always)]
    unsafe fn finish(&self, mt: usize, half: usize, unit: f32, sink: f32, _: impl Fn() -> Notes) -> Finished {
        let [sum, codes] = unsafe { [quad_sum(self.row_sum[mt][half]), quad_sum(self.code_sum[mt][half])] };
        // Not `sum > 0`: NaN is a result.
        if sum == 0.0 {
            return Finished::UNSEEN;
        }
        let row = Joined::new(sum, self.row_max[mt][half], sink, 1.0);
        let factor = mul_rn_f32(rcp_approx_ftz_f32(R * row.sum), row.weight);
        let offset = mul_rn_f32(f32::from(V_OFFSET) * factor, codes);
        let lse = row.reference + lg2_approx_ftz_f32(row.sum);
        Finished { factor: factor * unit, offset: offset * unit, rest: 1.0, rotated: false, seen: u32::MAX, lse }
    }
}
