//! The decode of docs/kernel-abi.md on a paged cache, and how far a GPU may be from it.
//!
//! Scores `u`, the block's largest one and its product with the row's scale are single float32 operations, the same on every machine. What is
//! left, with a row's weights `w` of its blocks, codes `p`, `g = G/255` and the row sum `L`:
//!
//! 1. **The codes.** `e` has the relative error of `ex2.approx.ftz.f32` (`2^-22`), `255/G` that of `rcp.approx.ftz.f32` (`2^-23`) and of two
//!    products: less than `2^-20` in all, and where a softcap or ALiBi is in the scores also `δ`, below. A code that this takes over a tie is off by
//!    one, `s` says which may be: `|o' - o| <= Σ w g s |v| / L`.
//! 2. **The sums.** Over `n` blocks `γ = 2^-17 + (n + 8) 2^-21` as in [`gpu_bounds`](super::gpu_bounds), relative to `Σ w g p |v|` and to `L`. The
//!    32 additions of a lane within a block are of terms that are not negative and are in it as well.
//! 3. **The merge.** A piece's log-sum-exp is a float32, off by half a step of its own magnitude and of its terms', of which the piece's weight
//!    is the exponential: with `T` their sum in magnitude, `2^-21 T` more in `γ`. Its own roundings are those of another block.
//! 4. **Softcap and ALiBi** are computed in float32: with magnitudes `t` of the score, `b` of the row's bias, `C` of the cap and `a` of what
//!    ALiBi takes off, in powers of two, `δ = 2^-20 (t + b + C + a)`: the argument of the tangent has three roundings and the tangent is steep
//!    by at most one; of `C (1 - 2/(1 + e))` the exponential, the reciprocal and the last step are of the size of `C`.
//! 5. **The end** as there: `2^-21` of the row's sums, and half a step of the output's type.

use super::Bounds;
use super::int8::{Int8, rotate_back};
use super::simd::{Kernel, Vectors, dispatch, dot};
use crate::cache::{CacheShape, HeadPlace};
use crate::decode::{DecodeHeads, DecodeProblem, HostPagedKv};
use crate::dtype::DType;
use crate::error::Result;
use crate::quantized::HostQ;
use crate::round::round_ties_even;
use int_flash_attention_kernels::layout::{KV_BLOCK, V_ROTATION, block_bytes, rotation};
use rayon::prelude::*;
use std::f64::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// More than the relative error of a weight that becomes a code.
const CODE_ERROR: f64 = 1.0 / (1 << 20) as f64;
/// Where a score has a softcap or ALiBi in it, relative to what it is made of.
const SCORE_ERROR: f64 = 1.0 / (1 << 20) as f64;
/// The largest code of P.
const R: f64 = 255.0;

/// The decode of a problem on the host, before the output is rounded.
///
/// # Errors
/// As [`DecodeProblem::on_cpu`].
pub fn decode(
    problem: &DecodeProblem,
    q: &HostQ,
    cache: &HostPagedKv<'_>,
    heads: &DecodeHeads<&[f32]>,
) -> Result<Int8> {
    Ok(run(problem, q, cache, heads)?.0)
}

/// [`decode`], and how far a GPU's output in `dtype` and its log-sum-exp may be from it.
///
/// # Errors
/// As [`decode`].
pub fn decode_bounds(
    problem: &DecodeProblem,
    q: &HostQ,
    cache: &HostPagedKv<'_>,
    heads: &DecodeHeads<&[f32]>,
    dtype: DType,
) -> Result<(Int8, Bounds)> {
    let (result, mut bounds) = run(problem, q, cache, heads)?;
    for (bound, &o) in bounds.o.iter_mut().zip(&result.o) {
        *bound += dtype.half_step(o.abs() + *bound);
    }
    Ok((result, bounds))
}

fn run(
    problem: &DecodeProblem,
    q: &HostQ,
    cache: &HostPagedKv<'_>,
    heads: &DecodeHeads<&[f32]>,
) -> Result<(Int8, Bounds)> {
    problem.check_host(q, cache, heads)?;
    let of_head = |head: usize| {
        let (batch, head_kv) = (head / problem.heads_kv, head % problem.heads_kv);
        let head = Head::new(problem, q, cache, heads, batch, head_kv);
        let mut rows: Vec<Row<'_>> = (0..problem.group() * problem.seqlen_q).map(|row| Row::new(&head, row)).collect();
        dispatch(Blocks { head: &head, rows: &mut rows });
        let mut out = (Int8::default(), Bounds::default());
        rows.iter().for_each(|row| row.finish(&head, &mut out.0, &mut out.1));
        out
    };
    // A head of K and V has the rows of its group one after the other, as the output has them.
    let parts: Vec<(Int8, Bounds)> = (0..problem.batch * problem.heads_kv).into_par_iter().map(of_head).collect();
    let mut all = (Int8::default(), Bounds::default());
    for (result, bounds) in parts {
        all.0.o.extend(result.o);
        all.0.lse.extend(result.lse);
        all.1.o.extend(bounds.o);
        all.1.lse.extend(bounds.lse);
    }
    Ok(all)
}

/// A head of K and V of a sequence.
struct Head<'a> {
    problem: &'a DecodeProblem,
    q: &'a HostQ,
    heads: &'a DecodeHeads<&'a [f32]>,
    pages: &'a [u8],
    shape: CacheShape,
    table: &'a [u32],
    seqlen_kv: usize,
    batch: usize,
    head_kv: usize,
    /// Factor of the codes' scores, with `log2(e)`.
    c: f32,
}

/// A block of a head, unpacked.
struct Block {
    /// The first key's position in the sequence.
    first: usize,
    /// `[key][dim]`.
    k: Vec<i8>,
    /// `[dim][key]`.
    v: Vec<i8>,
    k_scale: Vec<f32>,
    v_scale: Vec<f32>,
}

impl<'a> Head<'a> {
    fn new(
        problem: &'a DecodeProblem,
        q: &'a HostQ,
        cache: &HostPagedKv<'a>,
        heads: &'a DecodeHeads<&'a [f32]>,
        batch: usize,
        head_kv: usize,
    ) -> Self {
        let table = &cache.block_table[batch * cache.table_stride..][..problem.max_blocks()];
        let seqlen_kv = (cache.seqlens_kv[batch] as usize).min(problem.max_blocks() * KV_BLOCK);
        let shape = problem.cache_shape(cache.pages.len());
        let c = problem.scale() * std::f32::consts::LOG2_E * (1.0 / rotation(problem.head_dim) as f32);
        Self { problem, q, heads, pages: cache.pages, shape, table, seqlen_kv, batch, head_kv, c }
    }

    /// A block, where the table has a page for it.
    fn block(&self, block: usize) -> Option<Block> {
        let d = self.problem.head_dim;
        let page = Some(self.table[block] as usize).filter(|&page| page < self.shape.pages)?;
        let place = HeadPlace::new(&self.shape, page, self.head_kv);
        let bytes = &self.pages[place.range()];
        let (mut k, mut v) = (vec![0; block_bytes(d)], vec![0; block_bytes(d)]);
        for (i, (k, v)) in k.iter_mut().zip(&mut v).enumerate() {
            *k = place.k(bytes, i / d, i % d);
            *v = place.v(bytes, i % KV_BLOCK, i / KV_BLOCK);
        }
        let k_scale = (0..KV_BLOCK).map(|key| place.k_scale(bytes, key)).collect();
        let v_scale = (0..KV_BLOCK).map(|key| place.v_scale(bytes, key)).collect();
        Some(Block { first: block * KV_BLOCK, k, v, k_scale, v_scale })
    }
}

struct Blocks<'a, 'h> {
    head: &'a Head<'h>,
    rows: &'a mut [Row<'h>],
}

impl Kernel for Blocks<'_, '_> {
    #[inline(always)]
    fn run(self, _: impl Vectors) {
        let first = self.rows.iter().map(|row| row.keys.start).min().unwrap_or(0) / KV_BLOCK;
        let end = self.rows.iter().map(|row| row.keys.end).max().unwrap_or(0).div_ceil(KV_BLOCK);
        for block in (first..end).filter_map(|block| self.head.block(block)) {
            for row in &mut *self.rows {
                let in_block = |key: usize| key.saturating_sub(block.first).min(KV_BLOCK);
                let keys = in_block(row.keys.start)..in_block(row.keys.end);
                if !keys.is_empty() {
                    row.add(self.head, &block, keys);
                }
            }
        }
    }
}

/// A query row on its way through the blocks. Sums are in units of `2^reference`.
struct Row<'a> {
    q: Vec<i16>,
    scale: f32,
    /// `softmax_scale * q . k_offset`.
    bias: f64,
    /// The key beside it, which a window or ALiBi counts from.
    beside: i64,
    /// Those that it sees.
    keys: Range<usize>,
    /// In powers of two.
    slope: f64,
    sink: Option<f64>,
    reference: f64,
    sum: f64,
    acc: Vec<f64>,
    /// What the bounds are made of, in the same units: of the codes' slack, and of the sums.
    slack: Vec<f64>,
    magnitude: Vec<f64>,
    blocks: f64,
    /// `δ`.
    delta: f64,
    /// The largest scale of V seen.
    largest: f64,
    head: std::marker::PhantomData<&'a ()>,
}

impl<'a> Row<'a> {
    fn new(head: &Head<'a>, row: usize) -> Self {
        let p = head.problem;
        let (d, token) = (p.head_dim, row % p.seqlen_q);
        let head_q = head.head_kv * p.group() + row / p.seqlen_q;
        let query = (head.batch * p.heads_q + head_q) * p.seqlen_q + token;
        let bias = head.q.bias.as_ref().map_or(0.0, |bias| f64::from(p.scale()) * f64::from(bias[query]));
        Self {
            q: head.q.data[query * d..][..d].iter().map(|&q| q.into()).collect(),
            scale: head.q.scale[query],
            bias,
            beside: (token + head.seqlen_kv) as i64 - p.seqlen_q as i64,
            keys: if head.seqlen_kv == 0 { 0..0 } else { p.of_length(head.seqlen_kv).visible_keys(token) },
            slope: head.heads.alibi_slopes.map_or(0.0, |slopes| f64::from(slopes[head_q]) * LOG2_E),
            sink: head.heads.sinks.map(|sinks| f64::from(sinks[head_q])),
            reference: f64::NEG_INFINITY,
            sum: 0.0,
            acc: vec![0.0; d],
            slack: vec![0.0; d],
            magnitude: vec![0.0; d],
            blocks: 0.0,
            delta: 0.0,
            largest: 0.0,
            head: std::marker::PhantomData,
        }
    }

    /// Adds a block, of which the keys `keys` are seen.
    #[inline(always)]
    fn add(&mut self, head: &Head<'_>, block: &Block, keys: Range<usize>) {
        let d = head.problem.head_dim;
        let mut u = [f32::NEG_INFINITY; KV_BLOCK];
        for j in keys.clone() {
            u[j] = dot(&self.q, &block.k[j * d..][..d]) as f32 * (block.k_scale[j] * head.c);
        }
        if self.scale.is_nan() || keys.clone().any(|j| u[j].is_nan()) {
            (self.sum, self.reference) = (f64::NAN, f64::NAN);
            return;
        }
        // Scores in powers of two, and the largest one as the kernel has it.
        let changed = head.problem.softcap.is_some() || head.problem.alibi;
        let mut t = [f64::NEG_INFINITY; KV_BLOCK];
        let mut delta = self.delta;
        for j in keys.clone() {
            t[j] = f64::from(u[j]) * f64::from(self.scale);
            if changed {
                t[j] = self.change(head.problem.softcap, t[j], (block.first + j) as i64, &mut delta);
            }
        }
        self.delta = delta;
        let exponent = if changed {
            t.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        } else {
            f64::from(u.iter().copied().fold(f32::NEG_INFINITY, f32::max) * self.scale)
        };

        let mut g = [0.0_f32; KV_BLOCK];
        let mut sum = 0.0;
        for j in keys.clone() {
            let e = (t[j] - exponent).exp2();
            sum += e;
            g[j] = e as f32 * block.v_scale[j];
        }
        let unknown = keys.clone().any(|j| block.v_scale[j].is_nan());
        let largest = g.iter().copied().fold(0.0, f32::max);
        let to_codes = if largest > 0.0 { 255.0 * (1.0 / largest) } else { 0.0 };
        let (mut p, mut slack) = ([0_i16; KV_BLOCK], [0_i16; KV_BLOCK]);
        // Whatever a page's bytes and a launch's slopes are.
        let rounded = |code: f64| round_ties_even(code).clamp(0.0, R) as i16;
        let error = CODE_ERROR + self.delta;
        for j in keys.clone() {
            let code = f64::from(g[j]) * f64::from(to_codes);
            p[j] = rounded(code);
            let [low, high] = [1.0 - error, 1.0 + error].map(|factor| rounded(code * factor));
            slack[j] = (p[j] - low).max(high - p[j]);
            self.largest = self.largest.max(block.v_scale[j].into());
        }

        let reference = self.reference.max(exponent);
        let old = if self.reference == f64::NEG_INFINITY { 0.0 } else { (self.reference - reference).exp2() };
        let new = (exponent - reference).exp2();
        let of_values = new * f64::from(largest) / R + if unknown { f64::NAN } else { 0.0 };
        self.reference = reference;
        self.sum = old * self.sum + new * sum;
        self.blocks += 1.0;
        for (dim, v) in block.v.chunks_exact(KV_BLOCK).enumerate() {
            let mut absolute = [0_i8; KV_BLOCK];
            for (a, v) in absolute.iter_mut().zip(v) {
                // What a hidden key holds may be any byte.
                *a = v.saturating_abs();
            }
            self.acc[dim] = old * self.acc[dim] + of_values * f64::from(dot(&p, v));
            self.slack[dim] = old * self.slack[dim] + of_values * f64::from(dot(&slack, &absolute));
            self.magnitude[dim] = old * self.magnitude[dim] + of_values * f64::from(dot(&p, &absolute));
        }
    }

    /// Softcap and ALiBi of a score, and what a float32 may be off by.
    fn change(&self, softcap: Option<f32>, mut t: f64, key: i64, delta: &mut f64) -> f64 {
        let mut size = t.abs();
        if let Some(cap) = softcap {
            let (cap, bias) = (f64::from(cap) * LOG2_E, self.bias * LOG2_E);
            size += cap + bias.abs();
            t = cap * ((t + bias) / cap).tanh();
        }
        let away = self.slope * (self.beside - key).abs() as f64;
        *delta = delta.max(SCORE_ERROR * (size + away.abs()));
        t - away
    }

    /// Appends the row's output and log-sum-exp, and their bounds.
    fn finish(&self, head: &Head<'_>, out: &mut Int8, bounds: &mut Bounds) {
        let d = head.problem.head_dim;
        let bias = if head.problem.softcap.is_some() { 0.0 } else { self.bias };
        let unseen = self.reference == f64::NEG_INFINITY;
        let lse = if unseen { f64::NEG_INFINITY } else { LN_2 * (self.reference + self.sum.log2()) + bias };
        // With a sink the weights of the keys no longer add to one.
        let all = self.sink.map_or(lse, |sink| log_sum(lse, sink));
        let share = if unseen { 0.0 } else { (lse - all).exp() };
        out.lse.push(all);

        let tiny = (-21_f64).exp2();
        let terms = 1.0 + lse.abs() + bias.abs() + self.reference.abs() * LN_2 + self.sink.map_or(0.0, f64::abs);
        let terms = if unseen { self.sink.map_or(0.0, f64::abs) } else { terms };
        let gamma = (-17_f64).exp2() + (self.blocks + 8.0) * tiny + self.delta + tiny * terms;
        let first = out.o.len();
        let mut rotated = vec![0.0; d];
        for (dim, bound) in rotated.iter_mut().enumerate() {
            if unseen {
                out.o.push(0.0);
                continue;
            }
            let [o, slack, magnitude] =
                [&self.acc, &self.slack, &self.magnitude].map(|sums| share * sums[dim] / self.sum);
            out.o.push(o);
            let sums = (gamma + tiny) * (magnitude + o.abs());
            *bound = (slack + sums) * (1.0 + 2.0 * gamma) + (-100_f64).exp2() * self.largest;
        }
        rotate_back(&mut out.o[first..]);
        // Rotated back, an element is a quarter of the sum of four, each rounded three times on the way.
        for (bounds_of_four, o) in rotated.chunks_exact(V_ROTATION).zip(out.o[first..].chunks_exact(V_ROTATION)) {
            let sum: f64 = bounds_of_four.iter().sum();
            let largest = o.iter().map(|o| o.abs()).sum::<f64>();
            bounds.o.extend(o.iter().map(|_| sum / V_ROTATION as f64 + tiny * largest));
        }
        bounds.lse.push(if unseen && self.sink.is_none() { 0.0 } else { gamma + tiny * terms });
    }
}

/// `ln(e^a + e^b)`.
pub(super) fn log_sum(a: f64, b: f64) -> f64 {
    let largest = a.max(b);
    if largest == f64::NEG_INFINITY { largest } else { largest + ((a - largest).exp() + (b - largest).exp()).ln() }
}
