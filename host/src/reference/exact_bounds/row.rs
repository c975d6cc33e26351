//! A query row on its way to its bounds.

use super::super::exact::dot;
use super::super::score::RowScore;
use super::head::{HALF, Head};
use crate::dtype::DType;
use crate::problem::{AttentionProblem, Scheme};
use crate::scores::Scored;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::{KV_BLOCK, SCORE_RANGE, SCORE_UNIT};
use std::ops::Range;

/// A float16 is off by so much of it, and float32 on the way.
const ELEVEN_BITS: f64 = 1.0 / (1 << 11) as f64 + 1.0 / (1 << 20) as f64;

/// A row on its way to its bounds.
pub(super) struct Row {
    index: usize,
    /// The keys that the row sees; of these are the following.
    keys: Range<usize>,
    weights: Vec<f64>,
    /// Less the mean's share in the plain kernels; as they are in the end in the general ones, minus infinity where the key is hidden.
    scores: Vec<f64>,
    /// By what the general kernels' scores are off besides what quantization does; empty in the plain ones.
    rounded: Vec<f64>,
    /// The logarithm of the sum of the exponentials of `scores`, and of the sink.
    sum: f64,
    /// The least that the weight of the sink may be, what it is, and the most.
    sink: [f64; 3],
    /// Of each key: the error of its score, which is that of its weight in the row sum and in the output.
    score_error: Vec<f64>,
    /// The error of its weight in both, and in the output alone, besides: that of its code.
    shared_error: Vec<f64>,
    output_error: Vec<f64>,
    o: Vec<f64>,
    lse: f64,
}

pub(super) struct RowBound {
    pub o: Vec<f64>,
    pub lse: f64,
    pub o_bound: Vec<f64>,
    pub lse_bound: f64,
}

/// Where the blocks of 128 keys divide the keys that a row sees, counted from the first of these.
fn blocks(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = *keys;
    let within = move |key: usize| key.clamp(start, end.max(start)) - start;
    let blocks = start / KV_BLOCK..end.div_ceil(KV_BLOCK);
    blocks.map(move |block| within(block * KV_BLOCK)..within((block + 1) * KV_BLOCK))
}

impl Row {
    pub fn new(scored: &Scored<'_>, head: &Head, of: usize, index: usize) -> Self {
        let p = scored.problem;
        let mut row = Self {
            index,
            keys: p.visible_keys(index),
            weights: Vec::new(),
            scores: Vec::new(),
            rounded: Vec::new(),
            sum: 0.0,
            sink: [0.0; 3],
            score_error: Vec::new(),
            shared_error: Vec::new(),
            output_error: Vec::new(),
            o: vec![0.0; p.value_dim()],
            lse: 0.0,
        };
        let [bias, bias_error] = head.bias[index];
        row.lse = head.x.row(scored, of, index, bias, &mut row.weights, &mut row.o);
        row.sum = row.lse - bias;
        let (d, scale) = (p.head_dim, f64::from(p.scale()));
        let q = &head.x.q[index * d..][..d];
        let keys = &head.x.k[row.keys.start * d..row.keys.end * d];
        row.scores = keys.chunks_exact(d).map(|k| scale * dot(q, k)).collect();
        if p.score_mod.kind() == Kind::General {
            row.sum = row.lse;
            let (score, cap) = (RowScore::new(scored, of, index), p.score_mod.softcap.map_or(0.0, f64::from));
            let (float, twice) = ((-20_f64).exp2(), (-21_f64).exp2());
            for (z, key) in row.scores.iter_mut().zip(row.keys.clone()) {
                let before = float * (z.abs() + bias.abs() + cap) + bias_error;
                *z = score.exact(scored, *z + bias, key);
                row.rounded
                    .push(before + twice * (score.added(scored, key) + if z.is_finite() { z.abs() } else { 0.0 }));
            }
        }
        if let Some(sink) = scored.sink(of % p.heads_q).map(f64::from) {
            let error = (-20_f64).exp2() * (1.0 + sink.abs() + bias.abs() + row.lse.abs()) + bias_error;
            row.sink = [-error, 0.0, error].map(|error| (sink - row.lse + error).exp());
        }
        row.score_errors(p, head);
        row.code_errors(p, head);
        row
    }

    fn score_errors(&mut self, p: &AttentionProblem, head: &Head) {
        let (d, rotation) = (p.head_dim as f64, p.scheme.rotation(p.head_dim) as f64);
        let scale = f64::from(p.scale()).abs() / rotation;
        let (sq, q_norm) = (head.q_scale[self.index], head.q_norm[self.index]);
        let steps = |j: usize| {
            let key = self.keys.start + j;
            let sk: f64 = head.k_scale[key];
            let rotated = head.rotation * (2.0 + head.rotation) * head.norms[0][self.index] * head.norms[1][key];
            scale * (head.half * (sq * head.k_norm[key] + sk * (q_norm + d * sq * head.half)) + rotated * 1.01)
        };
        let float = (-20_f64).exp2();
        for (block, range) in (self.keys.start / KV_BLOCK..).zip(blocks(&self.keys)) {
            let (first, scores) = (range.start, &self.scores[range]);
            // Before the block's maximum is subtracted.
            let float16 = p.scheme == Scheme::Default;
            // Subnormal float16 is in steps of 2^-24, of a row's scale in the scores' unit, which a loud key makes coarser.
            let loud =
                head.reach(p, f64::from(SCORE_UNIT)) * f64::from(head.k_block_scale[block]) / f64::from(SCORE_RANGE);
            let step = (-24_f64).exp2() * sq / f64::from(SCORE_UNIT) * (2.0 * loud).max(1.0);
            let general = !self.rounded.is_empty();
            let (relative, absolute) = match (float16, general) {
                (true, false) => (ELEVEN_BITS, step + (-24_f64).exp2()),
                (true, true) => (0.0, (-24_f64).exp2()),
                (false, _) => (float, float),
            };
            // Hidden keys have no error, nor have they a size.
            let size = |score: f64| if score.is_finite() { score.abs() } else { 0.0 };
            let before: Vec<f64> = (scores.iter().enumerate())
                .map(|(j, score)| {
                    let steps = steps(first + j);
                    let rounded = if general { self.rounded[first + j] + float * steps } else { 0.0 };
                    steps + relative * (size(*score) + steps) + absolute + rounded
                })
                .collect();
            let max = scores.iter().zip(&before).map(|(s, e)| s + e).fold(f64::NEG_INFINITY, f64::max);
            let max = max + 2.0 * relative * size(max);
            let subtracted = if float16 { ELEVEN_BITS } else { float };
            let error = |(s, e): (&f64, &f64)| if s.is_finite() { e + subtracted * (max - s + e) } else { 0.0 };
            self.score_error.extend(scores.iter().zip(&before).map(error));
        }
    }

    fn code_errors(&mut self, p: &AttentionProblem, head: &Head) {
        let mut running: f64 = 0.0;
        let half_code = 0.5 + 255.0 * (-12_f64).exp2();
        for (block, range) in (self.keys.start / KV_BLOCK..).zip(blocks(&self.keys)) {
            let errors = &self.score_error[range.clone()];
            let high: Vec<f64> = range.clone().map(|j| self.weights[j] + self.growth(j)).collect();
            let max = high.iter().copied().fold(0.0, f64::max);
            let scores = &self.scores[range.clone()];
            let v_scale = &head.v_scale[self.keys.start + range.start..][..range.len()];
            let (mut shared, mut output) = (vec![0.0; high.len()], vec![0.0; high.len()]);
            if p.scheme == Scheme::Paper {
                running = running.max(max);
                output.fill(running / 127.0 * HALF);
            } else if head.plain(p, self.index, block) {
                // The block's maximum is rounded up to 11 bits.
                let largest = scores.iter().zip(errors).map(|(s, e)| s.abs() + e).fold(0.0, f64::max);
                let rounded_up = if self.rounded.is_empty() { largest * (-10_f64).exp2() } else { 0.0 };
                shared.fill(max * rounded_up.exp() / 255.0 * half_code);
            } else {
                // P is of weights times scales, and the maximum that of these products. Their logarithms are rounded to 11 bits.
                let products: Vec<f64> = high.iter().zip(v_scale).map(|(w, s)| w * s).collect();
                let largest = products.iter().copied().fold(0.0, f64::max);
                let (best, loudest) = (
                    scores.iter().zip(errors).map(|(s, e)| s + e).fold(f64::NEG_INFINITY, f64::max),
                    v_scale.iter().copied().fold(0.0, f64::max),
                );
                for (j, output) in output.iter_mut().enumerate() {
                    let below = (best - scores[j] + errors[j]) / std::f64::consts::LN_2 + (loudest / v_scale[j]).log2();
                    // Beyond 30 below the maximum the code is 0, whatever the rounding.
                    let rounding = high[j] * (ELEVEN_BITS * below.min(64.0)).exp_m1();
                    *output = largest / v_scale[j] / 255.0 * half_code * 1.04 + rounding;
                }
            }
            for (j, _) in scores.iter().enumerate().filter(|(_, score)| **score == f64::NEG_INFINITY) {
                (shared[j], output[j]) = (0.0, 0.0);
            }
            self.shared_error.extend(shared);
            self.output_error.extend(output);
        }
    }

    /// By how much the weight of key `j` may be larger, its score being so far off. The weight itself may be less than float64 has.
    fn growth(&self, j: usize) -> f64 {
        let (weight, error) = (self.weights[j], self.score_error[j]);
        if weight > f64::MIN_POSITIVE { weight * error.exp_m1() } else { (self.scores[j] - self.sum + error).exp() }
    }

    pub fn bound(self, p: &AttentionProblem, head: &Head, dtype: DType) -> RowBound {
        let d = p.value_dim();
        let [bias, bias_error] = head.bias[self.index];
        if self.scores.iter().all(|score| *score == f64::NEG_INFINITY) {
            let zeros = vec![0.0; d];
            return RowBound { o: self.o, lse: self.lse, o_bound: zeros, lse_bound: 0.0 };
        }
        let [mut low, sink, mut high] = self.sink;
        let sink_error = (high - sink).max(sink - low);
        let (mut values, mut steps) = (0.0, 0.0);
        let mut around: Vec<f64> = self.o.iter().map(|o| sink_error * o.abs()).collect();
        let values_of_row = head.x.v[self.keys.start * d..].chunks_exact(d);
        for (j, (v, &w)) in values_of_row.zip(&self.weights).enumerate() {
            let (score, shared, output) = (self.score_error[j], self.shared_error[j], self.output_error[j]);
            let weight_error = self.growth(j) + shared;
            low += (w * (-score).exp() - shared).max(0.0);
            high += w + weight_error;
            let step = head.v_scale[self.keys.start + j];
            values += (w + weight_error + output) * (head.half_v * step + head.faint_v);
            steps += (w + weight_error) * step;
            for (around, (v, o)) in around.iter_mut().zip(v.iter().zip(&self.o)) {
                *around += weight_error * (v - o).abs() + output * v.abs();
            }
        }
        let rounding = (-22_f64).exp2();
        let o_bound = (0..d)
            .map(|i| {
                let bound = (around[i] + values) / low + rounding * (self.o[i].abs() + steps / low * 127.0) + 1e-30;
                let bound = bound + dtype.half_step(self.o[i].abs() + bound);
                // A weight without a bound, of a value that is the output.
                if bound.is_nan() { f64::INFINITY } else { bound }
            })
            .collect();
        let lse = self.lse;
        let lse_bound = high.ln().max(-low.ln()) + bias_error + rounding * (1.0 + lse.abs() + (lse - bias).abs());
        RowBound { o: self.o, lse, o_bound, lse_bound }
    }
}
