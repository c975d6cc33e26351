//! The quantized operands of one head, unpacked for the CPU.

use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::HostQuantized;
use crate::scores::Scored;
use int_flash_attention_kernels::layout::{
    KV_BLOCK, NARROW_STEP, SCORE_UNIT, block_bytes, k_offset, kv_blocks, v_byte, v_offset,
};

/// K and V of a head, unpacked once for all query heads that share them.
pub(super) struct Unpacked {
    /// Which head of K and V it is.
    kv: usize,
    /// K as [`Vectors::products`](super::simd::Vectors::products) takes it: `[block][dim / 2][key][dim % 2]`.
    pub(super) k: Vec<[i16; 2]>,
    /// V in the same way: `[block][key / 2][dim][key % 2]`.
    pub(super) v: Vec<[i16; 2]>,
    /// Magnitudes of V where bounds are asked for, `[block][dim][key]`.
    pub(super) v_magnitude: Vec<i8>,
}

impl Unpacked {
    /// Head `kv` of all heads of K and V; the lengths have been checked.
    pub(super) fn new<const BOUNDS: bool>(problem: &AttentionProblem, x: &HostQuantized, kv: usize) -> Self {
        let (d, dv, blocks) = (problem.head_dim, problem.value_dim(), kv_blocks(problem.seqlen_kv));
        let k = &x.k.data[kv * blocks * block_bytes(d)..][..blocks * block_bytes(d)];
        let v = &x.v.data[kv * blocks * block_bytes(dv)..][..blocks * block_bytes(dv)];
        let code = |block: &[i8], key: usize, dim: usize| v_byte(block[v_offset(key, dim, dv)]);
        let mut unpacked = Self { kv, k: Vec::new(), v: Vec::new(), v_magnitude: Vec::new() };
        unpacked.k.reserve_exact(k.len() / 2);
        for block in k.chunks_exact(block_bytes(d)) {
            for pair in 0..d / 2 {
                let at = |key: usize, i: usize| i16::from(block[k_offset(key, 2 * pair + i)]);
                unpacked.k.extend((0..KV_BLOCK).map(|key| [at(key, 0), at(key, 1)]));
            }
        }
        unpacked.v.reserve_exact(v.len() / 2);
        for block in v.chunks_exact(block_bytes(dv)) {
            for pair in 0..KV_BLOCK / 2 {
                let at = |dim: usize, i: usize| i16::from(code(block, 2 * pair + i, dim));
                unpacked.v.extend((0..dv).map(|dim| [at(dim, 0), at(dim, 1)]));
            }
            if BOUNDS {
                for dim in 0..dv {
                    // What a hidden key holds may be any byte.
                    unpacked.v_magnitude.extend((0..KV_BLOCK).map(|key| code(block, key, dim).saturating_abs()));
                }
            }
        }
        unpacked
    }
}

/// One query head's view of its operands, and the factors of its scores.
pub(super) struct Head<'a> {
    pub(super) d: usize,
    /// Dims of V.
    pub(super) dv: usize,
    pub(super) unpacked: &'a Unpacked,
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
    /// Whether all keys and values of a block have scales that are numbers.
    pub(super) numbers: Vec<bool>,
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
    /// Head `head` of all query heads, one of those that have these K and V; the lengths have been checked.
    pub(super) fn new(scored: Scored<'a>, x: &'a HostQuantized, unpacked: &'a Unpacked, head: usize) -> Self {
        let problem = scored.problem;
        let (d, n, kv) = (problem.head_dim, problem.seqlen_q, unpacked.kv);
        let blocks = kv_blocks(problem.seqlen_kv);
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
        let v_scale = &x.v.scale[kv * blocks * KV_BLOCK..][..blocks * KV_BLOCK];
        let number = |of: &[f32]| of.iter().all(|x| !x.is_nan());
        let of_blocks = key_factor.chunks_exact(KV_BLOCK).zip(v_scale.chunks_exact(KV_BLOCK));
        Self {
            numbers: of_blocks.map(|(k, v)| number(k) && number(v)).collect(),
            d,
            dv: problem.value_dim(),
            unpacked,
            q: &x.q.data[head * n * d..][..n * d],
            q_scale: &x.q.scale[head * n..][..n],
            q_bias: x.q.bias.as_ref().map(|bias| &bias[head * n..][..n]),
            key_factor,
            k_block_scale: &x.k.block_scale[kv * blocks..][..blocks],
            narrow_unit: narrow_units(&scored, k_scale, &x.k.block_scale[kv * blocks..][..blocks], c),
            c,
            v_scale,
            v_block_scale: &x.v.block_scale[kv * blocks..][..blocks],
            least: (-90_f64).exp2() * largest(v_scale)
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
