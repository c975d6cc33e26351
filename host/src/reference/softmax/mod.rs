//! The softmax of one row and one block of keys, in both schemes (docs/kernel-abi.md has the arithmetic).

use super::codes::log2_of_step;
use super::head::Head;
use super::narrow::NarrowRow;
use super::score::RowScore;
use crate::round::{
    f16_bits_rn, f16_bits_rp, f16_from_f64, f16_magnitude_bits_coarse, f32_from_f16_bits, round_ties_even,
};
use half::f16;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::{KV_BLOCK, SCORE_RANGE, SCORE_UNIT, row_reach};
use std::ops::Range;
use std::sync::OnceLock;

/// Largest relative error of `ex2.approx.f16` (PTX ISA, "ex2": 2^-9.9).
pub(super) const EX2_F16_ERROR: f64 = 0.001_046_8;
/// More than the largest relative error of `ex2.approx.ftz.f32` (PTX ISA, "ex2": 2^-22), against the rounded exact value.
const EX2_F32_ERROR: f64 = 1.0 / (1 << 21) as f64;

/// P of a block: codes, and how far each may be off on a GPU (0 or 1; only written where bounds are asked for).
pub(super) struct Codes {
    pub(super) p: [i16; KV_BLOCK],
    pub(super) slack: [i16; KV_BLOCK],
}

/// What a block adds to its row, besides `P V`.
pub(super) struct BlockSums {
    /// The exponent (base 2) of the block's unit.
    pub(super) exponent: f64,
    /// The row sum, and the least and most that it may be on a GPU.
    pub(super) sum: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// What the block's `P V` is multiplied with, in the block's unit: the scale of V.
    pub(super) value: f64,
    /// Whether the row sum is that of the codes, so that the weights add to one whatever the codes are.
    pub(super) of_codes: bool,
    /// How far the scores may be off on a GPU, in powers of two.
    pub(super) error: f64,
}

/// A numeric scheme's softmax.
pub(super) trait Softmax {
    /// Of query row `row`.
    fn new(head: &Head<'_>, row: usize) -> Self;

    /// Codes and sums of block `block`, of which the keys `keys` are seen. `BOUNDS`: fill in slack, low and high.
    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums;

    /// What a weight of one is in P, and in the row sum.
    const ONE: (f64, f64);
    /// Whether the scores have the share of K's offset.
    const BIASED: bool = false;
}

/// u8 P scaled by the block's own row maximum, float16 arithmetic where scores and values allow it.
pub(super) struct BlockMax {
    /// The row's scale in units of [`SCORE_UNIT`]; and in float16.
    scale: f32,
    qs: f32,
    reach: f32,
    narrow: NarrowRow,
    tables: &'static Tables,
}

/// The exponent of a block that a row whose scores leave float32 has: any, so large that no other block counts.
const EXPONENT_LIMIT: f32 = 1e30;

impl BlockMax {
    /// The exponent arguments of the keys, the block's exponent and the weight of its `P V` in the block's unit, where float16 does
    /// for the scores and the values have one scale.
    #[inline(always)]
    fn plain(
        &self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        x: &mut [f64; KV_BLOCK],
    ) -> f64 {
        let kf = &head.key_factor[block * KV_BLOCK..][..KV_BLOCK];
        let mut t = [0.0_f32; KV_BLOCK];
        for j in 0..KV_BLOCK {
            // A kernel's fma(MAGIC + s, kf, -MAGIC * kf): with kf's 22 bits the last product is exact, and this is it.
            t[j] = f32_from_f16_bits(f16_bits_rn(scores[j] as f32 * kf[j]));
        }
        t[..keys.start].fill(f32::NEG_INFINITY);
        t[keys.end..].fill(f32::NEG_INFINITY);
        let max = t[keys].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let m = f64::from(f32_from_f16_bits(f16_bits_rp(max * self.qs)));
        for (x, &t) in x.iter_mut().zip(&t) {
            // Exact in float64 where the sum is above -16, and P is 0 below.
            *x = f64::from(t) * f64::from(self.qs) - m;
        }
        m
    }

    /// The same where one of both does not hold: `x` is the exponent argument of P, and the second result the sum of the exponentials.
    fn special(
        &self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        x: &mut [f64; KV_BLOCK],
    ) -> (f64, f64, f64) {
        let kf = &head.key_factor[block * KV_BLOCK..][..KV_BLOCK];
        let v_scale = &head.v_scale[block * KV_BLOCK..][..KV_BLOCK];
        let shared = head.v_block_scale[block];
        // The logarithm of a key's share of the scale.
        let log = |j: usize| if shared.is_nan() { log2_of_step(v_scale[j]) } else { 0.0 };
        let shrink = shrink(head, block);
        let score = |j: usize| f32_from_f16_bits(f16_bits_rn(scores[j] as f32 * (kf[j] * shrink)));
        let scale = self.scale * (1.0 / shrink);
        let max = keys.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
        let largest = keys.clone().map(log).fold(f32::NEG_INFINITY, f32::max);
        x.fill(f64::NEG_INFINITY);
        let mut sum = 0.0;
        for j in keys.clone() {
            let exponent = f16::from_f32((score(j) - max) * scale);
            sum += f64::from(f64::from(exponent).exp2() as f32);
            x[j] = f64::from(f16::from_f32(exponent.to_f32() + (log(j) - largest)));
        }
        let shift = x.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(-65504.0);
        for x in &mut x[keys] {
            *x -= shift;
        }
        let value = if shared.is_nan() { f64::from(largest).exp2() } else { f64::from(shared) };
        let m = (max * scale).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT);
        (m.into(), sum, shift.exp2() * value)
    }
}

/// What the factors of a block's keys are multiplied with: 1, or the power of two that keeps its scores in float16.
fn shrink(head: &Head<'_>, block: usize) -> f32 {
    let largest = row_reach(head.d, head.c, SCORE_UNIT) * head.k_block_scale[block];
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    if largest > SCORE_RANGE { ((14 - exponent) as f32).exp2() } else { 1.0 }
}

impl Softmax for BlockMax {
    const ONE: (f64, f64) = (1.0, 255.0);

    fn new(head: &Head<'_>, row: usize) -> Self {
        let scale = head.q_scale[row] * (1.0 / SCORE_UNIT);
        Self {
            scale,
            qs: f32_from_f16_bits(f16_bits_rn(scale)),
            reach: row_reach(head.d, head.c, head.q_scale[row]),
            narrow: NarrowRow::new(head, row),
            tables: tables(),
        }
    }

    #[inline(always)]
    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums {
        let all = block * KV_BLOCK..(block + 1) * KV_BLOCK;
        let shared = head.v_block_scale[block];
        let special = shared.is_nan() || self.reach * head.k_block_scale[block] > SCORE_RANGE;
        let seen = block * KV_BLOCK + keys.start..block * KV_BLOCK + keys.end;
        let number = |of: &[f32]| of[seen.clone()].iter().all(|x| !x.is_nan());
        debug_assert!(seen.end <= all.end);
        let numbers = head.numbers[block] || number(&head.key_factor) && number(head.v_scale);
        if self.scale.is_nan() || !numbers {
            codes.p.fill(0);
            codes.slack.fill(0);
            return BlockSums::NAN;
        }
        if let Some(unit) = self.narrow.unit(head, block) {
            return self.narrow.block::<BOUNDS>(unit, head, block, scores, keys, codes);
        }
        let mut x = [0.0; KV_BLOCK];
        let (exponent, exponentials, value) = if special {
            let (exponent, sum, value) = self.special(head, block, scores, keys, &mut x);
            (exponent, Some(sum), value)
        } else {
            (self.plain(head, block, scores, keys, &mut x), None, shared.into())
        };

        let mut index = [0_u16; KV_BLOCK];
        for (index, &x) in index.iter_mut().zip(&x) {
            *index = f16_magnitude_bits_coarse(x).min(Tables::LAST);
        }
        let Tables { p, ends } = self.tables;
        let sums = codes.fill::<BOUNDS>(|j| p[usize::from(index[j]) % p.len()], |j| ends[usize::from(index[j])]);
        match exponentials {
            None => BlockSums::of_codes(exponent, sums, value),
            Some(sum) => BlockSums {
                exponent,
                sum: 255.0 * sum,
                low: 255.0 * sum * (1.0 - EX2_F32_ERROR),
                high: 255.0 * sum * (1.0 + EX2_F32_ERROR),
                value,
                of_codes: false,
                error: 0.0,
            },
        }
    }
}

impl Codes {
    /// With the code of each key, and the least and the most that it may be; their sums.
    #[inline(always)]
    pub(super) fn fill<const BOUNDS: bool>(
        &mut self,
        code: impl Fn(usize) -> u8,
        ends: impl Fn(usize) -> [u8; 2],
    ) -> [i32; 3] {
        let mut sums = [0; 3];
        for j in 0..KV_BLOCK {
            self.p[j] = i16::from(code(j));
        }
        // A loop of its own, which becomes one of vectors.
        sums[0] = self.p.iter().map(|&p| i32::from(p)).sum();
        if BOUNDS {
            for j in 0..KV_BLOCK {
                let (p, [low, high]) = (self.p[j] as u8, ends(j));
                self.slack[j] = i16::from((p - low).max(high - p));
                sums[1] += i32::from(low);
                sums[2] += i32::from(high);
            }
        }
        sums
    }
}

impl BlockSums {
    /// Of codes whose sum is the row's, with these sums, and the least and the most of them.
    pub(super) fn of_codes(exponent: f64, sums: [i32; 3], value: f64) -> Self {
        let [sum, low, high] = sums.map(f64::from);
        Self { exponent, sum, low, high, value, of_codes: true, error: 0.0 }
    }

    /// Of a row that sees what is no number.
    const NAN: Self = Self { exponent: f64::NAN, ..Self::all(f64::NAN) };
    /// Of a block whose keys are all hidden.
    const UNSEEN: Self = Self { exponent: -(EXPONENT_LIMIT as f64), ..Self::all(0.0) };

    const fn all(x: f64) -> Self {
        Self { exponent: x, sum: x, low: x, high: x, value: x, of_codes: true, error: 0.0 }
    }
}

/// u8 P scaled by the block's own row maximum, of float32 scores that have been changed: the general kernels' default scheme.
pub(super) struct FloatMax {
    score: RowScore,
    /// The row's scale in units of [`SCORE_UNIT`], and its share of K's offset in powers of two.
    scale: f32,
    bias: f32,
    tables: &'static Tables,
}

impl FloatMax {
    /// The index of a code: that of the float16 nearest to an exponent argument, which is not positive.
    fn index(x: f32) -> usize {
        usize::from((f16_bits_rn(x.min(0.0)) & 0x7fff).min(Tables::LAST))
    }
}

impl Softmax for FloatMax {
    const ONE: (f64, f64) = BlockMax::ONE;
    const BIASED: bool = true;

    fn new(head: &Head<'_>, row: usize) -> Self {
        let bias = head.q_bias.map_or(0.0, |bias| bias[row]);
        Self {
            score: RowScore::new(&head.scored, head.index, row),
            scale: head.q_scale[row] * (1.0 / SCORE_UNIT),
            bias: (head.softmax_scale * bias) * std::f32::consts::LOG2_E,
            tables: tables(),
        }
    }

    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums {
        codes.p.fill(0);
        codes.slack.fill(0);
        let first = block * KV_BLOCK;
        let mut y = [f32::NEG_INFINITY; KV_BLOCK];
        for j in keys {
            let score = (scores[j] as f32 * head.key_factor[first + j]).mul_add(self.scale, self.bias);
            y[j] = self.score.float(&head.scored, score, first + j);
        }
        let max = y.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if y.iter().any(|y| y.is_nan()) || max == f32::INFINITY {
            return BlockSums::NAN;
        }
        if max == f32::NEG_INFINITY {
            return BlockSums::UNSEEN;
        }
        let error = self.score.gpu_error_of_largest(&head.scored, first, &y, max);
        // An argument is off by what its score and the largest are.
        let mut errors = [0.0; KV_BLOCK];
        if BOUNDS {
            for (j, _) in y.iter().enumerate().filter(|(_, y)| **y != f32::NEG_INFINITY) {
                errors[j] = error + self.score.gpu_error(&head.scored, first + j);
            }
        }
        let both = errors.iter().copied().fold(0.0, f64::max);
        let shared = head.v_block_scale[block];
        let exponentials = if shared.is_nan() {
            let unit = head.v_unit.log2();
            let mut sum = 0.0;
            for (j, y) in y.iter_mut().enumerate().filter(|(_, y)| **y != f32::NEG_INFINITY) {
                let x = *y - max;
                sum += f64::from(f64::from(x).exp2() as f32);
                *y = x + (log2_of_step(head.v_scale[first + j]) - unit);
            }
            if y.iter().any(|y| y.is_nan()) {
                return BlockSums::NAN;
            }
            Some(sum)
        } else {
            None
        };
        let base = if shared.is_nan() { y.iter().copied().fold(f32::NEG_INFINITY, f32::max) } else { max };
        let (mut sum, mut low, mut high) = (0, 0, 0);
        for (j, y) in y.iter().enumerate() {
            let x = y - base;
            let p = self.tables.p[Self::index(x)];
            codes.p[j] = p.into();
            sum += i32::from(p);
            if BOUNDS {
                let at = |x: f64| self.tables.ends[Self::index(x as f32)];
                let (p_low, p_high) = (at(f64::from(x) - errors[j])[0], at(f64::from(x) + errors[j])[1]);
                codes.slack[j] = (p - p_low).max(p_high - p).into();
                low += i32::from(p_low);
                high += i32::from(p_high);
            }
        }
        let exponent = max.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).into();
        match exponentials {
            None => BlockSums {
                exponent,
                sum: sum.into(),
                low: low.into(),
                high: high.into(),
                value: shared.into(),
                of_codes: true,
                error,
            },
            Some(sum) => BlockSums {
                exponent,
                sum: 255.0 * sum,
                low: 255.0 * sum * (1.0 - EX2_F32_ERROR) * (-both).exp2(),
                high: 255.0 * sum * (1.0 + EX2_F32_ERROR) * both.exp2(),
                value: f64::from(base).exp2() * f64::from(head.v_unit),
                of_codes: false,
                error: both,
            },
        }
    }
}

/// P for every float16 exponent argument `x <= 0`, by the bits of `-x`.
pub(super) struct Tables {
    /// The code, for every number of 15 bits: an index needs no check.
    pub(super) p: Box<[u8; 1 << 15]>,
    /// The least and the most that a GPU's `ex2.approx.f16` may make of it.
    pub(super) ends: Vec<[u8; 2]>,
}

impl Tables {
    /// The bits of 16: from there on P is 0.
    pub(super) const LAST: u16 = 0x4c00;
}

/// The float16 in `[low, high]` that is nearest to its ends.
fn f16_range(low: f64, high: f64) -> (f64, f64) {
    let up = |x: f64| {
        let nearest = f16_from_f64(x);
        if f64::from(nearest) < x { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
    };
    let down = |x: f64| {
        let nearest = f16_from_f64(x);
        if f64::from(nearest) > x { f16::from_bits(nearest.to_bits() - 1) } else { nearest }
    };
    (up(low).into(), down(high).into())
}

pub(super) fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        // fma_f16(e, 255, 1024): steps of 1 above 1024, so the low byte is 255 e rounded to nearest even.
        let code = |e: f64| round_ties_even(255.0 * e) as u8;
        let of = |bits| {
            let e = (-f64::from(f16::from_bits(bits))).exp2();
            let (low, high) = f16_range(e * (1.0 - EX2_F16_ERROR), e * (1.0 + EX2_F16_ERROR));
            (code(f16_from_f64(e).into()), [code(low), code(high)])
        };
        let (mut p, mut ends) = (Box::new([0; 1 << 15]), Vec::new());
        for (bits, p) in (0..=Tables::LAST).zip(p.iter_mut()) {
            let (code, of_gpu) = of(bits);
            *p = code;
            ends.push(of_gpu);
        }
        Tables { p, ends }
    })
}

/// int8 P scaled by the running maximum, float32 arithmetic (arXiv 2409.16997, algorithm 1).
pub(super) struct RunningMax {
    row_scale: f32,
    max: f32,
    /// In the general kernels.
    score: Option<RowScore>,
    /// The most by which a score so far may be off on a GPU.
    error: f64,
}

impl Softmax for RunningMax {
    const ONE: (f64, f64) = (127.0, 1.0);

    fn new(head: &Head<'_>, row: usize) -> Self {
        let general = head.scored.problem.score_mod.kind() == Kind::General;
        let score = general.then(|| RowScore::new(&head.scored, head.index, row));
        Self { row_scale: head.q_scale[row] * head.c, max: -EXPONENT_LIMIT, score, error: 0.0 }
    }

    #[inline(always)]
    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums {
        let k_scale = &head.key_factor[block * KV_BLOCK..][..KV_BLOCK];
        let mut s = [f32::NEG_INFINITY; KV_BLOCK];
        for j in keys {
            s[j] = scores[j] as f32 * (self.row_scale * k_scale[j]);
            if let Some(score) = &self.score {
                s[j] = score.float(&head.scored, s[j], block * KV_BLOCK + j);
            }
        }
        let seen = |s: &f32| *s != f32::NEG_INFINITY;
        if s.iter().any(|s| s.is_nan()) || head.v_block_scale[block].is_nan() && s.iter().any(seen) {
            codes.p.fill(0);
            codes.slack.fill(0);
            return BlockSums::NAN;
        }
        self.max = s.iter().copied().fold(self.max, f32::max);
        // What the scores of the block and the largest so far are off by, at most.
        let mut error = 0.0_f64;
        if let (true, Some(score)) = (BOUNDS, &self.score) {
            for (j, _) in s.iter().enumerate().filter(|(_, s)| seen(s)) {
                self.error = self.error.max(score.gpu_error(&head.scored, block * KV_BLOCK + j));
            }
            error = 2.0 * self.error;
        }
        let (less, more) = ((1.0 - EX2_F32_ERROR) * (-error).exp2(), (1.0 + EX2_F32_ERROR) * error.exp2());
        let mut sum = 0.0;
        for (j, s) in s.iter().enumerate() {
            let e = if seen(s) { f64::from(f64::from(s - self.max).exp2() as f32) } else { 0.0 };
            let p = round_ties_even(127.0 * e);
            codes.p[j] = p as i16;
            sum += e;
            if BOUNDS {
                let low = round_ties_even(127.0 * e * less);
                let high = round_ties_even((127.0 * e * more).min(127.0));
                codes.slack[j] = (high - low) as i16;
            }
        }
        BlockSums {
            exponent: self.max.into(),
            sum,
            low: sum * less,
            high: sum * more,
            value: if head.v_block_scale[block].is_nan() { 0.0 } else { head.v_block_scale[block].into() },
            of_codes: false,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_code_is_off_by_one_at_most() {
        let Tables { p, ends } = tables();
        assert_eq!((p[0], ends[0]), (255, [255; 2]));
        assert_eq!((p[usize::from(Tables::LAST)..].iter().max(), ends.last()), (Some(&0), Some(&[0; 2])));
        for (bits, (&p, &[low, high])) in p.iter().zip(ends).enumerate() {
            assert!(low <= p && p <= high && high - p <= 1 && p - low <= 1, "{bits:#x}: {low} {p} {high}");
        }
        // What the coarse rounding of tiny arguments relies on.
        assert!(p[..=0x400].iter().zip(ends).all(|(&p, &ends)| (p, ends) == (255, [255; 2])));
    }
}
