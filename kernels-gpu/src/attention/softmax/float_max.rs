//! The default scheme with float32 scores, for the general kernels: they are anything once a softcap, ALiBi or a bias has changed them
//! (docs/kernel-abi.md, "What changes a score").
//!
//! P is that of [`BlockMax`](super::BlockMax), u8 scaled by the row's maximum inside the block. Float32 has the range of all scores, so
//! that blocks are special only where their values have scales of their own (*mixed*).

use super::block_max::{Sums, finish, quad_sums};
use super::{
    BlockScales, FloatScores, Notes, Softmax, SpecialBlock, Team, WEIGHT_UNIT, block_max, hide, quad_sum, score_factor,
};
use crate::attention::KEY_TILES;
use crate::attention::epilogue::Finished;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::Sequence;
use crate::layout::{SCORE_UNIT, V_SCALE_STEPS};
use crate::params::AttentionParams;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::{
    add_rn_f32, cvt_rn_f16x2_f32, ex2_approx_f16x2, ex2_approx_ftz_f32, fma_rn_f16x2, fma_rn_f32, lg2_approx_ftz_f32,
    max_nan_f32, min_nan_f32, mul_rn_f32, prmt,
};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::{shfl_bfly, vote_any};

/// 255 and 1024 as pairs of float16: `255 e + 1024` has the rounded code of P in its low byte.
const CODES: u32 = 0x5bf8_5bf8;
const HALF_MAGIC: u32 = 0x6400_6400;
/// The reference exponent of a row moves only when a block's maximum exceeds it by this.
const SLACK: f32 = 32.0;
/// Exponents of blocks are within these bounds: a row whose scores leave float32 has one key, whichever.
const EXPONENT_LIMIT: f32 = 1e30;
/// Added to a float below 2^22 and taken away again, it rounds it to an integer.
const ROUNDER: f32 = 12_582_912.0;

pub(crate) struct FloatMax<const MT: usize> {
    /// The rows' scales over [`SCORE_UNIT`], and their shares of K's offset in powers of two.
    scale: [[f32; 2]; MT],
    bias: [[f32; 2]; MT],
    /// Reference exponents. The sums over the blocks so far are in shared memory ([`Sums`]).
    reference: [[f32; 2]; MT],
}

/// What a mixed block says of the rows, zero for others: the block's exponents, and the sums of its exponentials.
#[derive(Clone, Copy)]
pub(crate) struct Mixed<const MT: usize> {
    exponent: [[f32; 2]; MT],
    sum: [[f32; 2]; MT],
}

/// What P of a block is made with.
#[derive(Clone, Copy)]
pub(crate) struct Exponents<const MT: usize> {
    /// The largest score of each row, of a mixed block with the logarithm of its value's scale and less the block's exponent; 0 where
    /// the row sees no key.
    max: [[f32; 2]; MT],
    /// Whether it sees one.
    seen: [[bool; 2]; MT],
    mixed: Mixed<MT>,
}

/// The rows' maxima over the keys of all warps of the team.
#[inline(always)]
unsafe fn maxima<T: Team<MT>, const MT: usize>(scores: &FloatScores<MT>, team: &T) -> [[f32; 2]; MT] {
    let mut maxima = [[f32::NEG_INFINITY; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            // Four chains: one would be waited for.
            let mut four = [scores[mt][half][0], scores[mt][half][1]];
            unroll!(2..KEY_TILES, |tile| {
                if tile < KEY_TILES / T::WARPS {
                    unroll!(0..2, |i| {
                        four[tile % 2][i] = max_nan_f32(four[tile % 2][i], scores[mt][half][tile][i]);
                    });
                }
            });
            let mut max = max_nan_f32(max_nan_f32(four[0][0], four[0][1]), max_nan_f32(four[1][0], four[1][1]));
            unsafe {
                max = max_nan_f32(max, f32::from_bits(shfl_bfly::<1>(max.to_bits())));
                max = max_nan_f32(max, f32::from_bits(shfl_bfly::<2>(max.to_bits())));
            }
            maxima[mt][half] = max;
        });
    });
    unsafe { team.combine(maxima, max_nan_f32) }
}

impl<const MT: usize> Softmax<MT> for FloatMax<MT> {
    type Scores = FloatScores<MT>;
    type RowScales = Mixed<MT>;
    type Exponents = Exponents<MT>;
    type OfRows = Exponents<MT>;
    /// The block's weight against the reference exponent.
    type Row = [[f32; 2]; MT];

    const SPECIAL: bool = true;
    const LOUD: bool = false;
    const BIASED: bool = true;

    #[inline(always)]
    unsafe fn new(
        params: &AttentionParams,
        q_scale: [[f32; 2]; MT],
        q_bias: impl Fn() -> [[f32; 2]; MT],
        notes: impl Fn() -> Notes,
    ) -> Self {
        unsafe { Sums::<MT>::ZERO.store(notes()) };
        let natural = |bias: f32| mul_rn_f32(params.softmax_scale, bias);
        Self {
            scale: q_scale.map(|halves| halves.map(|scale| mul_rn_f32(scale, 1.0 / SCORE_UNIT))),
            bias: q_bias().map(|halves| halves.map(|bias| mul_rn_f32(natural(bias), core::f32::consts::LOG2_E))),
            reference: [[f32::MIN; 2]; MT],
        }
    }

    #[inline(always)]
    fn common_factor(params: &AttentionParams, head_dim: usize) -> f32 {
        mul_rn_f32(score_factor(params, head_dim), SCORE_UNIT)
    }

    #[inline(always)]
    fn key_factor(common_factor: f32, k_scale: f32) -> f32 {
        <block_max::BlockMax<MT, false> as Softmax<MT>>::key_factor(common_factor, k_scale)
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
        let t = [fma_rn_f32(sums[0], key[0], key[1]), fma_rn_f32(sums[1], key[2], key[3])];
        scores[mt][half][tile] = t.map(|t| fma_rn_f32(t, self.scale[mt][half], self.bias[mt][half]));
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
            let t = mul_rn_f32(sums[i], factors[i]);
            scores[mt][half][tile][i] = fma_rn_f32(t, self.scale[mt][half], self.bias[mt][half]);
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
    unsafe fn is_special(scales: &BlockScales) -> bool {
        // All lanes say the same; the vote lets the compiler know.
        unsafe { vote_any(scales.v.is_nan()) }
    }

    #[inline(always)]
    unsafe fn row_scales(_: impl Fn() -> Notes) -> Self::RowScales {
        Mixed { exponent: [[0.0; 2]; MT], sum: [[0.0; 2]; MT] }
    }

    /// A mixed block: its scores become the exponent arguments of P, less the block's exponents.
    #[inline(always)]
    unsafe fn special<T: Team<MT>>(
        scores: &mut Self::Scores,
        mixed: &mut Self::RowScales,
        team: &T,
        block: &impl SpecialBlock,
    ) {
        unsafe {
            if !block.has_keys() {
                unroll!(0..MT, |mt| {
                    unroll!(0..2, |half| { Self::hide_from(scores, mt, half, 0, KEY_TILES / T::WARPS) })
                });
            }
            mixed.exponent = maxima(scores, team);
            let (v_scale, first, unit) = (block.v_scale(), block.first_own(), log2(block.v_unit()));
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let base = or_zero(mixed.exponent[mt][half]);
                    unroll!(0..KEY_TILES, |tile| {
                        if tile < KEY_TILES / T::WARPS {
                            unroll!(0..2, |i| {
                                let x = add_rn_f32(scores[mt][half][tile][i], -base);
                                mixed.sum[mt][half] += ex2_approx_ftz_f32(x);
                                scores[mt][half][tile][i] = x;
                            });
                        }
                    });
                    mixed.sum[mt][half] = quad_sum(mixed.sum[mt][half]);
                });
            });
            unroll!(0..KEY_TILES, |tile| {
                if tile < KEY_TILES / T::WARPS {
                    unroll!(0..2, |i| {
                        let log = add_rn_f32(log2(v_scale(first + (8 * tile + i) as i32)), -unit);
                        unroll!(0..MT, |mt| {
                            unroll!(0..2, |half| {
                                let x = scores[mt][half][tile][i];
                                // What is hidden stays so, whatever its scale.
                                let hidden = x == f32::NEG_INFINITY;
                                let with_scale = add_rn_f32(x, log).to_bits();
                                scores[mt][half][tile][i] = f32::from_bits(selp_b32(hidden, x.to_bits(), with_scale));
                            });
                        });
                    });
                }
            });
            mixed.sum = team.combine(mixed.sum, add_rn_f32);
        }
    }

    #[inline(always)]
    unsafe fn exponents<T: Team<MT>>(
        &mut self,
        scores: &Self::Scores,
        mixed: Self::RowScales,
        team: &T,
    ) -> Self::Exponents {
        let maxima = unsafe { maxima(scores, team) };
        Exponents {
            max: maxima.map(|halves| halves.map(or_zero)),
            seen: maxima.map(|halves| halves.map(|max| max != f32::NEG_INFINITY)),
            mixed,
        }
    }

    #[inline(always)]
    unsafe fn note_exponents(_: &Self::Exponents, _: impl Fn() -> Notes) {}

    #[inline(always)]
    fn step(&mut self, scores: &Self::Scores, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT] {
        let mut p = [[0; 4]; MT];
        unroll!(0..2, |upper| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let base = exponents.max[mt][half];
                    let codes = |tile: usize| {
                        let [low, high] = scores[mt][half][tile].map(|y| add_rn_f32(y, -base));
                        fma_rn_f16x2(ex2_approx_f16x2(cvt_rn_f16x2_f32(high, low)), CODES, HALF_MAGIC)
                    };
                    let tile = 4 * step + 2 * upper;
                    p[mt][half + 2 * upper] = prmt(codes(tile), codes(tile + 1), 0x6420);
                });
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
        acc: &mut Accumulator<MT>,
        tiles: usize,
        special: bool,
        scales: impl Fn() -> BlockScales,
        notes: impl Fn() -> Notes,
    ) -> Self::Row {
        let (mut codes, mut exponent) = ([[0.0; 2]; MT], [[0.0; 2]; MT]);
        unroll!(0..MT, |mt| {
            codes[mt] = unsafe { quad_sums(&p[mt]) };
            unroll!(0..2, |half| {
                let max = if special { exponents.mixed.exponent[mt][half] } else { exponents.max[mt][half] };
                let max = min_nan_f32(max_nan_f32(max, -EXPONENT_LIMIT), EXPONENT_LIMIT);
                let none = -EXPONENT_LIMIT;
                exponent[mt][half] = f32::from_bits(selp_b32(exponents.seen[mt][half], max.to_bits(), none.to_bits()));
            });
        });
        let mut moved = false;
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                moved |= exponent[mt][half] > self.reference[mt][half] + SLACK;
            });
        });
        if unsafe { vote_any(moved) } {
            let mut factor = [[1.0; 2]; MT];
            let mut totals = unsafe { Sums::<MT>::load(notes()) };
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    if exponent[mt][half] > self.reference[mt][half] + SLACK {
                        factor[mt][half] = ex2_approx_ftz_f32(self.reference[mt][half] - exponent[mt][half]);
                        self.reference[mt][half] = exponent[mt][half];
                        totals.row[mt][half] *= factor[mt][half];
                        totals.code[mt][half] *= factor[mt][half];
                    }
                });
            });
            unsafe { totals.store(notes()) };
            acc.scale(tiles, &factor);
        }
        let (shared, notes) = (scales().v, notes());
        let mut totals = unsafe { Sums::<MT>::load(notes) };
        let mut weight = [[0.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let w = ex2_approx_ftz_f32(exponent[mt][half] - self.reference[mt][half]);
                let (mut sum, mut value) = (codes[mt][half], shared);
                if special {
                    sum = mul_rn_f32(exponents.mixed.sum[mt][half], 255.0);
                    value = mul_rn_f32(ex2_approx_ftz_f32(exponents.max[mt][half]), WEIGHT_UNIT);
                }
                totals.row[mt][half] = fma_rn_f32(w, sum, totals.row[mt][half]);
                weight[mt][half] = mul_rn_f32(w, value);
                totals.code[mt][half] = fma_rn_f32(weight[mt][half], codes[mt][half], totals.code[mt][half]);
            });
        });
        unsafe { totals.store(notes) };
        weight
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
        finish(sums.row[mt][half], sums.code[mt][half], self.reference[mt][half], sink, unit)
    }
}

/// The maximum of keys, 0 where there are none: nothing less minus infinity is no number.
#[inline(always)]
fn or_zero(max: f32) -> f32 {
    f32::from_bits(selp_b32(max == f32::NEG_INFINITY, 0, max.to_bits()))
}

/// The logarithm of a scale of V, in steps of which it is a multiple.
#[inline(always)]
fn log2(scale: f32) -> f32 {
    let steps = mul_rn_f32(lg2_approx_ftz_f32(scale), V_SCALE_STEPS as f32);
    mul_rn_f32(add_rn_f32(add_rn_f32(steps, ROUNDER), -ROUNDER), 1.0 / V_SCALE_STEPS as f32)
}
