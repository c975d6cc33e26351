//! The default scheme of the general kernels: as `block_max`, with float32 scores.

use super::super::codes::log2_of_step;
use super::super::head::Head;
use super::super::score::RowScore;
use super::block_max::BlockMax;
use super::tables::{Tables, tables};
use super::{BlockSums, Codes, EX2_F32_ERROR, EXPONENT_LIMIT, Softmax};
use crate::round::f16_bits_rn;
use int_flash_attention_kernels::layout::{KV_BLOCK, SCORE_UNIT};
use std::ops::Range;

/// u8 P scaled by the block's own row maximum, of float32 scores that have been changed: the general kernels' default scheme.
pub(in super::super) struct FloatMax {
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
