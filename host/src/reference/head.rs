//! The quantized operands of one head, unpacked for the CPU.

use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::HostQuantized;
use crate::scores::Scored;
use int_flash_attention_kernels::layout::{
    KV_BLOCK, NARROW_STEP, SCORE_UNIT, block_bytes, k_offset, kv_blocks, v_byte, v_offset,
};

/// One query head's view of its operands, and the factors of its scores.
pub(super) struct Head<'a> {
    pub(super) d: usize,
    /// Dims of V.
    pub(super) dv: usize,
    /// `[block][key][dim]`.
    pub(super) k: Vec<i8>,
    /// `[block][dim][key]`.
    pub(super) v: Vec<i8>,
    /// `[token][dim]`.
    pub(super) q: &'a [i8],
    pub(super) q_scale: &'a [f32],
    pub(super) q_bias: Option<&'a [f32]>,
    /// Paper: `k_scale`. Default: `kf`.
    pub(super) key_factor: Vec<f32>,
    /// The largest scale of each block's keys.
    pub(super) k_block_scale: &'a [f32],
    /// The units of the scores of blocks in 16 bits, without the row's scale; NaN where keys do not share a scale.
    pub(super) narrow_unit: Vec<f32>,
    /// Factor of the codes' scores, with `log2(e)`.
    pub(super) c: f32,
    /// The scale of each value, and that which those of a block share, or NaN.
    pub(super) v_scale: &'a [f32],
    pub(super) v_block_scale: &'a [f32],
    /// Less than what the kernels' sums of P V can tell apart: weights next to nothing are flushed to zero; and a sum is in steps of
    /// 2^-48 of the codes' unit, half of which each block may add, over a row sum of at least 255.
    pub(super) least: f64,
    /// Whether four neighbouring dims of V are rotated.
    pub(super) rotated: bool,
    pub(super) softmax_scale: f32,
    /// Which of all query heads it is, and of what problem.
    pub(super) index: usize,
    pub(super) scored: Scored<'a>,
    /// The unit of V's scales.
    pub(super) v_unit: f32,
}

impl<'a> Head<'a> {
    /// Head `head` of all query heads; the lengths have been checked.
    pub(super) fn new(scored: Scored<'a>, x: &'a HostQuantized, head: usize) -> Self {
        let problem = scored.problem;
        let (d, n) = (problem.head_dim, problem.seqlen_q);
        let kv = head / problem.heads_q * problem.heads_kv + head % problem.heads_q / problem.group();
        let blocks = kv_blocks(problem.seqlen_kv);
        let dv = problem.value_dim();
        let of_head = |data: &'a [i8], d: usize| &data[kv * blocks * block_bytes(d)..][..blocks * block_bytes(d)];
        let (k, v) = (unpack_k(of_head(&x.k.data, d), d), unpack_v(of_head(&x.v.data, dv), dv));
        let k_scale = &x.k.scale[kv * blocks * KV_BLOCK..][..blocks * KV_BLOCK];

        let softmax_scale = problem.scale();
        let c = score_factor(problem);
        let key_factor = match problem.scheme {
            Scheme::Default => {
                let unit = c * SCORE_UNIT;
                k_scale.iter().map(|scale| f32::from_bits((scale * unit).to_bits() & !3)).collect()
            }
            Scheme::Paper => k_scale.to_vec(),
        };
        Self {
            d,
            dv,
            k,
            v,
            q: &x.q.data[head * n * d..][..n * d],
            q_scale: &x.q.scale[head * n..][..n],
            q_bias: x.q.bias.as_ref().map(|bias| &bias[head * n..][..n]),
            key_factor,
            k_block_scale: &x.k.block_scale[kv * blocks..][..blocks],
            narrow_unit: narrow_units(&scored, k_scale, &x.k.block_scale[kv * blocks..][..blocks], c),
            c,
            v_scale: &x.v.scale[kv * blocks * KV_BLOCK..][..blocks * KV_BLOCK],
            v_block_scale: &x.v.block_scale[kv * blocks..][..blocks],
            least: (-90_f64).exp2() * largest(&x.v.scale[kv * blocks * KV_BLOCK..][..blocks * KV_BLOCK])
                + (-49_f64).exp2() / 255.0 * blocks as f64 * f64::from(x.v.unit[kv]),
            rotated: problem.scheme.rotates(),
            softmax_scale,
            index: head,
            scored,
            v_unit: x.v.unit[kv],
        }
    }

    /// The sink of the head in natural units, less the share of K's offset of a row where its scores are without it.
    pub(super) fn sink(&self, bias: f64) -> Option<f64> {
        let sink = self.scored.sink(self.index % self.scored.problem.heads_q)?;
        Some(f64::from(sink) - bias)
    }
}

/// [`Head::narrow_unit`].
fn narrow_units(scored: &Scored<'_>, k_scale: &[f32], block_scale: &[f32], c: f32) -> Vec<f32> {
    let of = |(scales, block): (&[f32], &f32)| {
        let shared = scored.narrow && scales.iter().all(|scale| scale == block);
        if shared { block * (c * NARROW_STEP) } else { f32::NAN }
    };
    k_scale.chunks_exact(KV_BLOCK).zip(block_scale).map(of).collect()
}

fn largest(scales: &[f32]) -> f64 {
    scales.iter().copied().fold(0.0, f32::max).into()
}

/// The factor of a score of codes, without their scales: `softmax_scale * log2(e)`, over what the rotation multiplies scores with.
pub(super) fn score_factor(problem: &AttentionProblem) -> f32 {
    let rotation = problem.scheme.rotation(problem.head_dim) as f32;
    problem.scale() * std::f32::consts::LOG2_E * (1.0 / rotation)
}

/// Packed blocks to `[block][key][dim]`.
fn unpack_k(k: &[i8], d: usize) -> Vec<i8> {
    let mut unpacked = vec![0; k.len()];
    for (packed, out) in k.chunks_exact(block_bytes(d)).zip(unpacked.chunks_exact_mut(block_bytes(d))) {
        for (i, x) in out.iter_mut().enumerate() {
            *x = packed[k_offset(i / d, i % d)];
        }
    }
    unpacked
}

/// Packed blocks to `[block][dim][key]`.
fn unpack_v(v: &[i8], d: usize) -> Vec<i8> {
    let mut unpacked = vec![0; v.len()];
    for (packed, out) in v.chunks_exact(block_bytes(d)).zip(unpacked.chunks_exact_mut(block_bytes(d))) {
        for (i, x) in out.iter_mut().enumerate() {
            *x = v_byte(packed[v_offset(i % KV_BLOCK, i / KV_BLOCK, d)]);
        }
    }
    unpacked
}
