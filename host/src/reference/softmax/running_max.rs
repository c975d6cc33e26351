//! The paper's scheme: int8 P scaled by the running maximum.

use super::super::head::Head;
use super::super::score::RowScore;
use super::{BlockSums, Codes, EX2_F32_ERROR, EXPONENT_LIMIT, Softmax};
use crate::round::round_ties_even;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::KV_BLOCK;
use std::ops::Range;

/// int8 P scaled by the running maximum, float32 arithmetic (arXiv 2409.16997, algorithm 1).
pub(in super::super) struct RunningMax {
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
