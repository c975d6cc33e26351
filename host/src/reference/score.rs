//! What changes the scores of a row (docs/kernel-abi.md, "What changes a score"), exactly and as the general kernels do it.

use crate::scores::Scored;
use int_flash_attention_kernels::layout::BIAS_HIDES;
use std::f32::consts::LOG2_E;

/// A row, as far as its scores go.
#[derive(Clone, Copy)]
pub(super) struct RowScore {
    /// Batch, query head and query.
    at: [usize; 3],
    slope: Option<f32>,
    /// The key beside it.
    beside: i64,
}

impl RowScore {
    /// Query `row` of query head `head` of all.
    pub(super) fn new(scored: &Scored<'_>, head: usize, row: usize) -> Self {
        let p = scored.problem;
        let at = [head / p.heads_q, head % p.heads_q, row];
        let beside = row as i64 + p.seqlen_kv as i64 - p.seqlen_q as i64;
        Self { at, slope: scored.slope(at[0], at[1]), beside }
    }

    fn distance(&self, key: usize) -> u64 {
        (self.beside - key as i64).unsigned_abs()
    }

    /// What becomes of the score `z` of a key inside the window; minus infinity where it is hidden.
    pub(super) fn exact(&self, scored: &Scored<'_>, mut z: f64, key: usize) -> f64 {
        if let Some(cap) = scored.problem.score_mod.softcap.map(f64::from) {
            z = cap * (z / cap).tanh();
        }
        let bias = scored.bias(self.at, key).unwrap_or(0.0);
        if bias < BIAS_HIDES || !scored.keeps(self.at, key) {
            return f64::NEG_INFINITY;
        }
        z - self.slope.map_or(0.0, |slope| f64::from(slope) * self.distance(key) as f64) + f64::from(bias)
    }

    /// The magnitudes of what is added to a score, which float32's roundings are relative to.
    pub(super) fn added(&self, scored: &Scored<'_>, key: usize) -> f64 {
        let slope = self.slope.map_or(0.0, |slope| (f64::from(slope) * self.distance(key) as f64).abs());
        slope + scored.bias(self.at, key).map_or(0.0, |bias| f64::from(bias).abs())
    }

    /// [`exact`](Self::exact) with the kernels' operations, on a score in powers of two.
    pub(super) fn float(&self, scored: &Scored<'_>, mut y: f32, key: usize) -> f32 {
        if let Some(cap) = scored.problem.score_mod.softcap {
            let e = f64::from(y * (2.0 / cap)).exp2() as f32;
            y = (cap * LOG2_E) * (1.0 - 2.0 * (1.0 / (1.0 + e)));
        }
        if let Some(slope) = self.slope {
            y = (-(slope * LOG2_E)).mul_add(self.distance(key) as f32, y);
        }
        if let Some(bias) = scored.bias(self.at, key) {
            y = if bias < BIAS_HIDES { f32::NEG_INFINITY } else { bias.mul_add(LOG2_E, y) };
        }
        if scored.keeps(self.at, key) { y } else { f32::NEG_INFINITY }
    }
}

impl RowScore {
    /// How far a GPU's score of a key may be from [`float`](Self::float)'s, in powers of two: the exponential and the reciprocal of a
    /// softcap are approximations. Without one the bits are the same.
    ///
    /// With `g = 1 / (1 + e)`, an error of `2^-22` of `e` moves `g` by at most `2^-22 / 4`, the reciprocal errs by `2^-23`, and the sum
    /// before it and the results are rounded by `2^-24` each: `1 - 2g` is off by less than `2^-20`. What is added then is rounded twice, on
    /// both sides.
    pub(super) fn gpu_error(&self, scored: &Scored<'_>, key: usize) -> f64 {
        let Some(cap) = scored.problem.score_mod.softcap.map(f64::from) else { return 0.0 };
        f64::from(LOG2_E) * (cap * (-20_f64).exp2() + (cap + self.added(scored, key)) * (-22_f64).exp2())
    }

    /// The most of [`gpu_error`](Self::gpu_error) of the keys that may be the largest: those within 1 of it, as long as none is off by half.
    pub(super) fn gpu_error_of_largest(&self, scored: &Scored<'_>, first: usize, y: &[f32], largest: f32) -> f64 {
        if scored.problem.score_mod.softcap.is_none() {
            return 0.0;
        }
        let near = y.iter().enumerate().filter(|(_, y)| **y >= largest - 1.0);
        near.map(|(j, _)| self.gpu_error(scored, first + j)).fold(0.0, f64::max)
    }
}
