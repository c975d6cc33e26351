//! How far [`int8`](super::int8) may be from float64, derived from the roundings of the scheme.
//!
//! With exact weights `w` (they add to one), output `o` and scores `S`, the INT8 algorithm has
//!
//! ```text
//! A_j = w_j exp(ε_j) + δ_j U / R          o' = Σ A_j v_j / Σ A_j,   so   o' - o = Σ (A_j - w_j) (v_j - o) / Σ A_j
//! ```
//!
//! because `Σ w_j (v_j - o) = 0`: errors of the weights matter only as far as the values differ. `U` is the weight of a key
//! at the block's maximum (paper: at the running maximum) and `R` the largest code. Bounded are, per key:
//!
//! * `|ε_j|`, the error of a score. Q and K are off by half a step in each channel:
//!   `|scale| (sq/2 |k_j|₁ + sk_j/2 (|q|₁ + d sq/2))`, with K less its mean. The default scheme adds, with `S` less the mean's
//!   share: `2^-11 |S_j|` for `t` (and 2^-20 for the 22 bits of `kf` and float32's roundings), what the row's scale lost in
//!   float16, and `2^-11` of the distance to the block's maximum for `x`.
//! * `|δ_j|`, the error of a code: half a step, and in the default scheme `255 * 2^-12` for the exponential's float16.
//!
//! Then `|o' - o| <= Σ (w_j (exp |ε_j| - 1) + |δ_j| U/R) |v_j - o| / Σ max(0, w_j exp -|ε_j| - |δ_j| U/R)`, and half a step of V.
//! In the paper's scheme the row sum has the exponentials and not the codes, so the weights do not add to one and the part
//! of `δ` meets `|v_j|`. The log-sum-exp moves by the logarithm of `Σ A_j`.
//!
//! **What changes scores.** `S` is then the score as it is in the end. A softcap's slope is at most 1, so that it adds the roundings of its
//! own operations alone, `2^-20` of the cap, and sums those of what they come to. The general kernels have K's offset in their scores, with
//! the error of `q_bias`, and no float16 before `x`. A sink is one more key, with a value of zero and a weight that is off by the roundings of
//! its exponent; a hidden key is none.
//!
//! These are worst cases: all roundings in the worst direction at once. On random data the true error is smaller by about
//! the square root of the number of terms.

use super::Bounds;
use super::dequantize::{packed_k, packed_q, packed_v};
use super::exact::{Exact, HeadF64, dot};
use super::packed::{packed, resized};
use super::quantize::quantize;
use super::rows::Rows;
use super::score::RowScore;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::HostQuantized;
use crate::scores::Scored;
use crate::tensor::HostTensor;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::{
    KV_BLOCK, SCORE_RANGE, SCORE_UNIT, kv_blocks, negative, rotation, row_reach,
};
use rayon::prelude::*;
use std::ops::Range;

/// Half a step, and the float32 roundings on the way to it: a rotation rounds each element at most 8 times by 2^-24 of a sum that is at
/// most 16 times the largest element, which is 127 steps.
const HALF: f64 = 0.501_5;

/// [`exact`](super::exact()), and how far [`int8`](super::int8()) on the quantized tensors, rounded to `dtype`, may be from it.
///
/// # Errors
/// As [`quantize`](super::quantize()).
pub fn exact_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    dtype: DType,
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    of_tensors(scored, [q, k, v], dtype, Rows::all(scored.problem))
}

/// [`exact_bounds`] for these query positions of every head.
///
/// # Errors
/// As there, and a position past the end.
pub fn exact_bounds_rows<'a>(
    problem: impl Into<Scored<'a>>,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    dtype: DType,
    rows: &[usize],
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    of_tensors(scored, [q, k, v], dtype, Rows::some(scored.problem, rows)?)
}

/// On tensors, with zeros behind what is padded: the codes are of those.
fn of_tensors(
    scored: Scored<'_>,
    [q, k, v]: [&HostTensor; 3],
    dtype: DType,
    rows: Rows<'_>,
) -> Result<(Exact, Bounds)> {
    let problem = scored.problem;
    scored.check()?;
    let mut operands = quantize(problem, q, k, v)?;
    let whole = packed(problem);
    let wide = |x: Vec<f64>| resized(x, problem.head_dim, whole.head_dim);
    operands.k.offset = resized(operands.k.offset, problem.head_dim, whole.head_dim);
    let head = |head| {
        let HeadF64 { q, k, v } = HeadF64::read(problem, q, k, v, head);
        Head::of_tensors(
            &whole,
            &operands,
            HeadF64 { q: wide(q), k: wide(k), v: resized(v, problem.value_dim(), whole.value_dim()) },
            head,
        )
    };
    Ok(cut(problem, &whole, run(Scored { problem: &whole, ..scored }, dtype, rows, head)))
}

/// The true dims.
fn cut(p: &AttentionProblem, whole: &AttentionProblem, (mut exact, mut bounds): (Exact, Bounds)) -> (Exact, Bounds) {
    exact.o = resized(exact.o, whole.value_dim(), p.value_dim());
    bounds.o = resized(bounds.o, whole.value_dim(), p.value_dim());
    (exact, bounds)
}

/// Float64 attention on the dequantized operands, and how far [`int8`](super::int8()) on them, rounded to `dtype`, may be from
/// it: the share of P and of float16, without that of Q, K and V. Where a head is padded, what the codes say behind its dims counts in the
/// scores, as it does in the kernels. (That of V and of the scores is half a step each, which
/// dequantization shows.)
///
/// # Errors
/// As [`int8`](super::int8()).
pub fn dequantized_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    operands: &HostQuantized,
    dtype: DType,
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    let problem = scored.problem;
    problem.check()?;
    scored.check()?;
    problem.check_equal()?;
    super::int8::check_operands(problem, operands)?;
    let without = crate::HostK { offset: vec![0.0; operands.k.offset.len()], ..operands.k.clone() };
    let (q, k, v) = (packed_q(&operands.q)?, packed_k(&without)?, packed_v(&operands.v)?);
    let whole = packed(problem);
    let head = |head| Head::of_codes(&whole, operands, [&q, &k, &v], head);
    Ok(cut(problem, &whole, run(Scored { problem: &whole, ..scored }, dtype, Rows::all(problem), head)))
}

/// A query head in float64, K less its offset, and the steps of its quantization.
struct Head {
    x: HeadF64,
    /// `softmax_scale * q . k_offset` of each query, and a bound of its float32 error.
    bias: Vec<[f64; 2]>,
    q_scale: Vec<f64>,
    k_scale: Vec<f64>,
    /// The scale of each value, and whether those of a block share one.
    v_scale: Vec<f64>,
    v_shared: Vec<bool>,
    /// The largest scale of each block's keys.
    k_block_scale: Vec<f32>,
    /// Half a step, or 0 where the operands are what their codes say.
    half: f64,
    /// `|q_i|₁` and `|k_j|₁`, rotated where their codes are.
    q_norm: Vec<f64>,
    k_norm: Vec<f64>,
}

impl Head {
    fn of_tensors(p: &AttentionProblem, operands: &HostQuantized, mut x: HeadF64, head: usize) -> Self {
        let (d, kv) = (p.head_dim, kv_head(p, head));
        let offset: Vec<f64> = operands.k.offset[kv * d..][..d].iter().map(|&offset| offset.into()).collect();
        for row in x.k.chunks_exact_mut(d) {
            for (k, offset) in row.iter_mut().zip(&offset) {
                *k -= offset;
            }
        }
        let scale = f64::from(p.scale());
        let bias = x.q.chunks_exact(d).map(|q| {
            let magnitude: f64 = q.iter().zip(&offset).map(|(q, offset)| (q * offset).abs()).sum();
            [scale * dot(q, &offset), scale.abs() * magnitude * (-18_f64).exp2()]
        });
        let bias = bias.collect();
        Self::new(p, operands, x, head, bias, HALF)
    }

    fn of_codes(p: &AttentionProblem, operands: &HostQuantized, [q, k, v]: [&[f32]; 3], head: usize) -> Self {
        let (d, kv) = (p.head_dim, kv_head(p, head));
        let take =
            |x: &[f32], head: usize, n: usize, d: usize| x[head * n * d..][..n * d].iter().map(|&x| x.into()).collect();
        let (n, n_kv) = (p.seqlen_q, p.seqlen_kv);
        let x = HeadF64 { q: take(q, head, n, d), k: take(k, kv, n_kv, d), v: take(v, kv, n_kv, p.value_dim()) };
        let bias = (0..n).map(|row| operands.q.bias.as_ref().map_or(0.0, |bias| bias[head * n + row].into()));
        let bias = bias.map(|bias: f64| [bias * f64::from(p.scale()), 0.0]).collect();
        Self::new(p, operands, x, head, bias, 0.0)
    }

    fn new(
        p: &AttentionProblem,
        operands: &HostQuantized,
        x: HeadF64,
        head: usize,
        bias: Vec<[f64; 2]>,
        half: f64,
    ) -> Self {
        let kv = kv_head(p, head);
        let blocks = kv_blocks(p.seqlen_kv);
        let scales = |scales: &[f32]| -> Vec<f64> {
            scales[kv * blocks * KV_BLOCK..][..p.seqlen_kv].iter().map(|&scale| scale.into()).collect()
        };
        let norms = |rows: &[f64]| -> Vec<f64> {
            let norm = |row: &[f64]| {
                let mut row = row.to_vec();
                if p.scheme.rotates() {
                    rotate(&mut row);
                }
                row.iter().map(|x| x.abs()).sum()
            };
            rows.chunks_exact(p.head_dim).map(norm).collect()
        };
        let (q_norm, k_norm) = (norms(&x.q), norms(&x.k));
        Self {
            x,
            bias,
            q_scale: operands.q.scale[head * p.seqlen_q..][..p.seqlen_q].iter().map(|&scale| scale.into()).collect(),
            k_scale: scales(&operands.k.scale),
            v_scale: scales(&operands.v.scale),
            v_shared: operands.v.block_scale[kv * blocks..][..blocks].iter().map(|scale| !scale.is_nan()).collect(),
            k_block_scale: operands.k.block_scale[kv * blocks..][..blocks].to_vec(),
            half,
            q_norm,
            k_norm,
        }
    }

    /// Whether the scores of a row and a block are left to float16, and the values of the block share a scale.
    fn plain(&self, p: &AttentionProblem, row: usize, block: usize) -> bool {
        if p.score_mod.kind() == Kind::General {
            return self.v_shared[block];
        }
        let reach = row_reach(p.head_dim, super::head::score_factor(p), self.q_scale[row] as f32);
        self.v_shared[block] && reach * self.k_block_scale[block] <= SCORE_RANGE
    }

    fn reach(&self, p: &AttentionProblem, q_scale: f64) -> f64 {
        row_reach(p.head_dim, super::head::score_factor(p), q_scale as f32).into()
    }
}

fn kv_head(p: &AttentionProblem, head: usize) -> usize {
    head / p.heads_q * p.heads_kv + head % p.heads_q / p.group()
}

fn run(scored: Scored<'_>, dtype: DType, rows: Rows<'_>, head: impl Fn(usize) -> Head + Sync) -> (Exact, Bounds) {
    let p = scored.problem;
    let one_head = |index: usize| {
        let head = head(index);
        let row = |row| Row::new(&scored, &head, index, rows.at(row)).bound(p, &head, dtype);
        (0..rows.len()).into_par_iter().map(row).collect::<Vec<_>>()
    };
    let parts: Vec<_> = (0..p.batch * p.heads_q).into_par_iter().map(one_head).collect();
    let (mut exact, mut bounds) = (Exact { o: vec![], lse: vec![] }, Bounds::default());
    for row in parts.into_iter().flatten() {
        exact.o.extend(row.o);
        exact.lse.push(row.lse);
        bounds.o.extend(row.o_bound);
        bounds.lse.push(row.lse_bound);
    }
    (exact, bounds)
}

/// A row on its way to its bounds.
struct Row {
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

struct RowBound {
    o: Vec<f64>,
    lse: f64,
    o_bound: Vec<f64>,
    lse_bound: f64,
}

/// Where the blocks of 128 keys divide the keys that a row sees, counted from the first of these.
fn blocks(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = *keys;
    let within = move |key: usize| key.clamp(start, end.max(start)) - start;
    let blocks = start / KV_BLOCK..end.div_ceil(KV_BLOCK);
    blocks.map(move |block| within(block * KV_BLOCK)..within((block + 1) * KV_BLOCK))
}

impl Row {
    fn new(scored: &Scored<'_>, head: &Head, of: usize, index: usize) -> Self {
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
            scale * head.half * (sq * head.k_norm[key] + sk * (q_norm + d * sq * head.half))
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

    fn bound(self, p: &AttentionProblem, head: &Head, dtype: DType) -> RowBound {
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
            values += (w + weight_error + output) * head.half * step;
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

/// A float16 is off by so much of it, and float32 on the way.
const ELEVEN_BITS: f64 = 1.0 / (1 << 11) as f64 + 1.0 / (1 << 20) as f64;

/// Rotates a token of Q or K, as the codes are.
fn rotate(x: &mut [f64]) {
    let size = rotation(x.len());
    for (dim, x) in x.iter_mut().enumerate() {
        if negative(dim) {
            *x = -*x;
        }
    }
    let mut half = 1;
    while half < size {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{compare, first_excess, int8};
    use super::*;
    use crate::problem::Window;
    use crate::shape::{Shape, TensorLayout};

    #[test]
    fn int8_is_within_both_bounds() {
        let local = Window { left: Some(140), right: Some(30) };
        for (scheme, n, n_kv, window, spread) in [
            (Scheme::Default, 40, 300, Window::CAUSAL, 1.0),
            (Scheme::Default, 5, 130, Window::FULL, 6.0),
            (Scheme::Default, 40, 300, local, 1.0),
            (Scheme::Paper, 40, 300, Window::CAUSAL, 1.0),
            (Scheme::Paper, 70, 20, Window::CAUSAL, 6.0),
            (Scheme::Paper, 40, 300, local, 1.0),
        ] {
            let p = AttentionProblem::new(1, 2, 1, n, n_kv, 64).with_window(window).with_scheme(scheme);
            let tensor = |shape: Shape, seed: usize, spread: f32| {
                let value = move |_, h: usize, n: usize, d: usize| {
                    let x = (h * 7919 + n * 104_729 + d * 1_299_709 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                    spread * (x as f32 / (1 << 23) as f32 - 1.0) + 0.3
                };
                HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap()
            };
            let (q, k, v) =
                (tensor(p.q_shape(), 1, spread), tensor(p.kv_shape(), 2, 1.0), tensor(p.kv_shape(), 3, 1.0));
            let operands = quantize(&p, &q, &k, &v).unwrap();
            let got = int8(&p, &operands).unwrap();
            for (name, (want, bounds)) in [
                ("tensors", exact_bounds(&p, &q, &k, &v, DType::F32).unwrap()),
                ("codes", dequantized_bounds(&p, &operands, DType::F32).unwrap()),
            ] {
                assert_eq!(first_excess(&got.o, &want.o, &bounds.o), None, "{name} {p:?}");
                assert_eq!(first_excess(&got.lse, &want.lse, &bounds.lse), None, "{name} {p:?}");
                let (error, allowed) = (compare(&got.o, &want.o).max_abs, bounds.o.iter().copied().fold(0.0, f64::max));
                println!("{name} {scheme} {n}x{n_kv} spread {spread}: {error:.2e} of {allowed:.2e}");
                assert!(allowed < 1.0, "a bound that allows anything: {allowed}");
            }
        }
    }
}
