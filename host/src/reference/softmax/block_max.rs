//! The default scheme: u8 P scaled by the row's maximum inside the block.

use super::super::codes::log2_of_step;
use super::super::head::Head;
use super::super::narrow::NarrowRow;
use super::tables::{Tables, tables};
use super::{BlockSums, Codes, EX2_F32_ERROR, EXPONENT_LIMIT, Softmax};
use crate::round::{f16_bits_rn, f16_bits_rp, f16_magnitude_bits_coarse, f32_from_f16_bits};
use half::f16;
use int_flash_attention_kernels::layout::{KV_BLOCK, SCORE_RANGE, SCORE_UNIT, row_reach};
use std::ops::Range;

/// u8 P scaled by the block's own row maximum, float16 arithmetic where scores and values allow it.
pub(in super::super) struct BlockMax {
    /// The row's scale in units of [`SCORE_UNIT`]; and in float16.
    scale: f32,
    qs: f32,
    reach: f32,
    narrow: NarrowRow,
    tables: &'static Tables,
}

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
