//! Statistics of K and V over the tokens of a head, in the kernels' order of additions, and scales.

use int_flash_attention_kernels::layout::{STATS_CHUNK, STATS_LANES};
use rayon::prelude::*;

/// The largest INT8 code.
pub(super) const R: f32 = 127.0;

/// Per channel: sum, minimum and maximum over the tokens.
pub(super) struct Stats {
    sum: Vec<f32>,
    min: Vec<f32>,
    max: Vec<f32>,
}

impl Stats {
    /// Of a head, `[token][dim]`.
    pub(super) fn of(head: &[f32], head_dim: usize) -> Self {
        let chunks: Vec<Self> =
            head.par_chunks(STATS_CHUNK * head_dim).map(|chunk| Self::of_chunk(chunk, head_dim)).collect();
        let mut chunks = chunks.into_iter();
        let Some(mut all) = chunks.next() else {
            return Self::of_chunk(&[], head_dim);
        };
        for chunk in chunks {
            for d in 0..head_dim {
                all.sum[d] += chunk.sum[d];
                all.min[d] = all.min[d].min(chunk.min[d]);
                all.max[d] = all.max[d].max(chunk.max[d]);
            }
        }
        all
    }

    fn of_chunk(chunk: &[f32], head_dim: usize) -> Self {
        let mut lanes = vec![0.0_f32; STATS_LANES * head_dim];
        let (mut min, mut max) = (vec![f32::INFINITY; head_dim], vec![f32::NEG_INFINITY; head_dim]);
        for (token, row) in chunk.chunks_exact(head_dim).enumerate() {
            let lane = &mut lanes[token % STATS_LANES * head_dim..][..head_dim];
            for d in 0..head_dim {
                lane[d] += row[d];
                min[d] = min[d].min(row[d]);
                max[d] = max[d].max(row[d]);
            }
        }
        let a = |lane: usize, d: usize| lanes[lane * head_dim + d];
        let tree = |d| ((a(0, d) + a(1, d)) + (a(2, d) + a(3, d))) + ((a(4, d) + a(5, d)) + (a(6, d) + a(7, d)));
        Self { sum: (0..head_dim).map(tree).collect(), min, max }
    }

    /// The mean over `tokens`, or zeros where smoothing is off.
    pub(super) fn mean(&self, tokens: usize, smooth: bool) -> Vec<f32> {
        let mean = |&sum: &f32| {
            let mean = sum / tokens as f32;
            if smooth && mean.is_finite() { mean } else { 0.0 }
        };
        self.sum.iter().map(mean).collect()
    }

    /// The largest distance from the mean, per channel.
    pub(super) fn amax(&self, mean: &[f32]) -> Vec<f32> {
        (0..mean.len()).map(|d| (self.max[d] - mean[d]).abs().max((self.min[d] - mean[d]).abs())).collect()
    }
}

/// The scale that maps `amax` to 127, kept where its reciprocal is a normal number.
pub(super) fn scale(amax: f32) -> f32 {
    (amax / R).max((-120_f32).exp2()).min(120_f32.exp2())
}

/// Rounded up to a fraction of 10 bits.
pub(super) fn round_up_to_10_bits(scale: f32) -> f32 {
    f32::from_bits((scale.to_bits() + 0x1fff) & !0x1fff)
}

/// `clamp(rne(x * inverse))`.
#[inline(always)]
pub(super) fn code(x: f32, inverse: f32) -> i8 {
    // 1.5 * 2^23 rounds to nearest even, as the kernels do it; the clamp first keeps the sum in its range.
    const ROUNDER: f32 = 12_582_912.0;
    (((x * inverse).clamp(-R, R) + ROUNDER) - ROUNDER) as i8
}
