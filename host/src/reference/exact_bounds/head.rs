//! A query head in float64, and the steps of its quantization.

use super::super::exact::{HeadF64, dot};
use crate::problem::AttentionProblem;
use crate::quantized::HostQuantized;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::{KV_BLOCK, SCORE_RANGE, V_UNIT_16, kv_blocks, negative, rotation, row_reach};

/// Half a step, and the float32 roundings on the way to it: a rotation rounds each element at most 8 times by 2^-24 of a sum that is at
/// most 16 times the largest element, which is 127 steps.
pub(super) const HALF: f64 = 0.501_5;

/// What float16 adds to half a step: its reciprocal of the scale is off by 2^-11 of 127 steps.
const RECIPROCAL_16: f64 = 127.1 / 2048.0;
/// And of V, whose rotation is two sums of float16: the last one's rounding is 2^-11 of 127 steps at most, the first ones' of two sums whose
/// magnitudes add to no more than 2 times that.
const ROTATION_16_OF_V: f64 = 3.0 * 127.1 / 2048.0;
/// Elements of V below 2^-12 lose bits of theirs, each of four 2^-25 in units of [`V_UNIT_16`].
const FAINT_OF_V: f64 = 4.0 * V_UNIT_16 as f64 / (1 << 25) as f64;
/// What the rotation of a float16 token adds, relative to its norm: each of its sums, and what is before them, is off by 2^-11 of its magnitude; roundings of a
/// stage are a vector of no more than so much of the token's norm, and what follows is a rotation, of them as of the token.
fn rotation_16(head_dim: usize) -> f64 {
    f64::from(rotation(head_dim).trailing_zeros() + 2) / 2048.0
}

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
    /// Half a step, or what of steps else a code may be off; 0 where the operands are what their codes say.
    pub half: f64,
    /// The same of V, and what a value may be off besides.
    pub half_v: f64,
    pub faint_v: f64,
    /// What the rotations of Q and K are off, relative to the norms of tokens.
    pub rotation: f64,
    /// Norms of Q's and K's tokens, rotated where their codes are.
    pub norms: [Vec<f64>; 2],
    /// `|q_i|₁` and `|k_j|₁`, rotated where their codes are.
    pub q_norm: Vec<f64>,
    pub k_norm: Vec<f64>,
}

impl Head {
    /// `halves` where the tensors are float16.
    pub fn of_tensors(
        p: &AttentionProblem,
        operands: &HostQuantized,
        mut x: HeadF64,
        head: usize,
        halves: bool,
    ) -> Self {
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
        let of_codes = Self::new(p, operands, x, head, bias, HALF);
        if !(halves && p.scheme.rotates()) {
            return of_codes;
        }
        Self {
            half: HALF + RECIPROCAL_16,
            half_v: HALF + RECIPROCAL_16 + ROTATION_16_OF_V,
            faint_v: FAINT_OF_V,
            rotation: rotation_16(p.head_dim),
            ..of_codes
        }
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
        let norms = |rows: &[f64]| -> (Vec<f64>, Vec<f64>) {
            let norm = |row: &[f64]| {
                let mut row = row.to_vec();
                if p.scheme.rotates() {
                    rotate(&mut row);
                }
                (row.iter().map(|x| x.abs()).sum::<f64>(), dot(&row, &row).sqrt())
            };
            rows.chunks_exact(p.head_dim).map(norm).unzip()
        };
        let ((q_norm, q_length), (k_norm, k_length)) = (norms(&x.q), norms(&x.k));
        Self {
            x,
            bias,
            q_scale: operands.q.scale[head * p.seqlen_q..][..p.seqlen_q].iter().map(|&scale| scale.into()).collect(),
            k_scale: scales(&operands.k.scale),
            v_scale: scales(&operands.v.scale),
            v_shared: operands.v.block_scale[kv * blocks..][..blocks].iter().map(|scale| !scale.is_nan()).collect(),
            k_block_scale: operands.k.block_scale[kv * blocks..][..blocks].to_vec(),
            half,
            half_v: half,
            faint_v: 0.0,
            rotation: 0.0,
            q_norm,
            k_norm,
            norms: [q_length, k_length],
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
