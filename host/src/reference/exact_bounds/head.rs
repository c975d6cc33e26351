//! A query head in float64, and the steps of its quantization.

use super::super::exact::{HeadF64, dot};
use crate::problem::AttentionProblem;
use crate::quantized::HostQuantized;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::{KV_BLOCK, SCORE_RANGE, kv_blocks, negative, rotation, row_reach};

/// Half a step, and the float32 roundings on the way to it: a rotation rounds each element at most 8 times by 2^-24 of a sum that is at
/// most 16 times the largest element, which is 127 steps.
pub(super) const HALF: f64 = 0.501_5;

/// A query head in float64, K less its offset, and the steps of its quantization.
pub(super) struct Head {
    pub x: HeadF64,
    /// `softmax_scale * q . k_offset` of each query, and a bound of its float32 error.
    pub bias: Vec<[f64; 2]>,
    pub q_scale: Vec<f64>,
    pub k_scale: Vec<f64>,
    /// The scale of each value, and whether those of a block share one.
    pub v_scale: Vec<f64>,
    pub v_shared: Vec<bool>,
    /// The largest scale of each block's keys.
    pub k_block_scale: Vec<f32>,
    /// Half a step, or 0 where the operands are what their codes say.
    pub half: f64,
    /// `|q_i|₁` and `|k_j|₁`, rotated where their codes are.
    pub q_norm: Vec<f64>,
    pub k_norm: Vec<f64>,
}

impl Head {
    pub fn of_tensors(p: &AttentionProblem, operands: &HostQuantized, mut x: HeadF64, head: usize) -> Self {
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

    pub fn of_codes(p: &AttentionProblem, operands: &HostQuantized, [q, k, v]: [&[f32]; 3], head: usize) -> Self {
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
    pub fn plain(&self, p: &AttentionProblem, row: usize, block: usize) -> bool {
        if p.score_mod.kind() == Kind::General {
            return self.v_shared[block];
        }
        let reach = row_reach(p.head_dim, super::super::head::score_factor(p), self.q_scale[row] as f32);
        self.v_shared[block] && reach * self.k_block_scale[block] <= SCORE_RANGE
    }

    pub fn reach(&self, p: &AttentionProblem, q_scale: f64) -> f64 {
        row_reach(p.head_dim, super::super::head::score_factor(p), q_scale as f32).into()
    }
}

fn kv_head(p: &AttentionProblem, head: usize) -> usize {
    head / p.heads_q * p.heads_kv + head % p.heads_q / p.group()
}

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
