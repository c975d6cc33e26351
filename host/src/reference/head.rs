//! The quantized operands of one head, unpacked for the CPU.

use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::HostQuantized;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, k_offset, kv_blocks, v_byte, v_offset};

/// One query head's view of its operands, and the factors of its scores.
pub(super) struct Head<'a> {
    pub(super) d: usize,
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
    /// `softmax_scale * log2(e)`.
    pub(super) c: f32,
    pub(super) kappa: f32,
    pub(super) v_scale: &'a [f32],
    pub(super) v_mean: &'a [f32],
    pub(super) softmax_scale: f32,
}

impl<'a> Head<'a> {
    /// Head `head` of all query heads; the lengths have been checked.
    pub(super) fn new(problem: &AttentionProblem, x: &'a HostQuantized, head: usize) -> Self {
        let (d, n) = (problem.head_dim, problem.seqlen_q);
        let kv = head / problem.heads_q * problem.heads_kv + head % problem.heads_q / problem.group();
        let blocks = kv_blocks(problem.seqlen_kv);
        let bytes = blocks * block_bytes(d);
        let (k, v) = unpack(&x.k.data[kv * bytes..][..bytes], &x.v.data[kv * bytes..][..bytes], d);
        let k_scale = &x.k.scale[kv * blocks * KV_BLOCK..][..blocks * KV_BLOCK];

        let softmax_scale = problem.scale();
        let c = softmax_scale * std::f32::consts::LOG2_E;
        let kappa = kappa_of(problem, x.k.scale_max[kv]);
        let key_factor = match problem.scheme {
            Scheme::Default => {
                k_scale.iter().map(|scale| f32::from_bits((scale * (c * kappa)).to_bits() & !3)).collect()
            }
            Scheme::Paper => k_scale.to_vec(),
        };
        Self {
            d,
            k,
            v,
            q: &x.q.data[head * n * d..][..n * d],
            q_scale: &x.q.scale[head * n..][..n],
            q_bias: x.q.bias.as_ref().map(|bias| &bias[head * n..][..n]),
            key_factor,
            c,
            kappa,
            v_scale: &x.v.scale[kv * d..][..d],
            v_mean: &x.v.mean[kv * d..][..d],
            softmax_scale,
        }
    }
}

/// The working unit of a head's scores.
pub(super) fn kappa_of(problem: &AttentionProblem, k_scale_max: f32) -> f32 {
    let c = problem.scale() * std::f32::consts::LOG2_E;
    kappa((16129 * problem.head_dim) as f32 * k_scale_max * c.abs())
}

/// The power of two that brings every score below 2^15 (docs/kernel-abi.md, "Attention, default scheme").
fn kappa(bound: f32) -> f32 {
    let exponent = (14 - ((bound.to_bits() >> 23) as i32 - 127)).clamp(-100, 100);
    if bound == 0.0 { 1.0 } else { (exponent as f32).exp2() }
}

/// Packed blocks to `[block][key][dim]` and `[block][dim][key]`.
fn unpack(k: &[i8], v: &[i8], d: usize) -> (Vec<i8>, Vec<i8>) {
    let (mut k_out, mut v_out) = (vec![0; k.len()], vec![0; v.len()]);
    for (packed, out) in k.chunks_exact(block_bytes(d)).zip(k_out.chunks_exact_mut(block_bytes(d))) {
        for (i, x) in out.iter_mut().enumerate() {
            *x = packed[k_offset(i / d, i % d)];
        }
    }
    for (packed, out) in v.chunks_exact(block_bytes(d)).zip(v_out.chunks_exact_mut(block_bytes(d))) {
        for (i, x) in out.iter_mut().enumerate() {
            *x = v_byte(packed[v_offset(i % KV_BLOCK, i / KV_BLOCK, d)]);
        }
    }
    (k_out, v_out)
}
