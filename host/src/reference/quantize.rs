//! Quantization to INT8 (arXiv 2409.16997, section 3.2; docs/kernel-abi.md, "Quantization").

use super::stats::{Stats, code, round_up_to_10_bits, scale};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::{HostK, HostQ, HostQuantized, HostV, Lengths, PackedFormat, QuantizedK, QuantizedQ, QuantizedV};
use crate::tensor::HostTensor;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, k_offset, kv_blocks, v_byte, v_offset};
use rayon::prelude::*;

/// Quantizes Q, one scale a token.
///
/// `k_mean` is the mean that was taken out of K, `[batch][heads_kv][head_dim]` ([`HostK::mean`](QuantizedK::mean)); with it
/// the result has the `bias` that the log-sum-exp needs. The default scheme rounds the scales up to 10 bits.
///
/// # Errors
/// A head dim without kernels; values that are not finite; means that are not those of a divisor of Q's heads.
pub fn quantize_q(scheme: Scheme, q: &HostTensor, k_mean: Option<&[f32]>) -> Result<HostQ> {
    q.check_finite("q")?;
    let shape = q.shape();
    let lengths = Lengths::of(shape)?;
    let d = shape.head_dim;
    let group = k_mean.map_or(Ok(1), |mean| {
        let heads_kv = mean.len() / (shape.batch * d);
        if !mean.len().is_multiple_of(shape.batch * d) || heads_kv == 0 || !shape.heads.is_multiple_of(heads_kv) {
            return Err(Error::HeadGroups { heads_q: shape.heads, heads_kv });
        }
        Ok(shape.heads / heads_kv)
    })?;
    let mut data = vec![0; lengths.q_data];
    let mut scales = vec![0.0; lengths.q_scale];
    let mut bias = vec![0.0; lengths.q_scale];
    data.par_chunks_mut(d).zip(&mut scales).zip(&mut bias).enumerate().with_min_len(64).for_each_init(
        || vec![0.0; d],
        |x, (row, ((codes, row_scale), row_bias))| {
            let (head, token) = (row / shape.seqlen, row % shape.seqlen);
            q.read_row(head / shape.heads, head % shape.heads, token, x);
            *row_scale = scale(x.iter().fold(0.0, |amax, x| amax.max(x.abs())));
            if scheme.smooths() {
                *row_scale = round_up_to_10_bits(*row_scale);
            }
            let inverse = 1.0 / *row_scale;
            for (code_out, &x) in codes.iter_mut().zip(&*x) {
                *code_out = code(x, inverse);
            }
            if let Some(mean) = k_mean {
                let mean = &mean[head / group * d..][..d];
                *row_bias = x.iter().zip(mean).map(|(&x, &mean)| f64::from(x) * f64::from(mean)).sum::<f64>() as f32;
            }
        },
    );
    Ok(QuantizedQ { shape, data, scale: scales, bias: k_mean.map(|_| bias) })
}

/// Quantizes K, one scale a token, into packed blocks; the default scheme takes the mean over the tokens out first.
///
/// # Errors
/// A head dim without kernels; values that are not finite.
pub fn quantize_k(scheme: Scheme, k: &HostTensor) -> Result<HostK> {
    k.check_finite("k")?;
    let shape = k.shape();
    let lengths = Lengths::of(shape)?;
    let d = shape.head_dim;
    let blocks = kv_blocks(shape.seqlen);
    let mut out = QuantizedK {
        shape,
        format: PackedFormat::CURRENT,
        data: vec![0; lengths.kv_data],
        scale: vec![0.0; lengths.k_scale],
        mean: vec![0.0; lengths.channels],
        scale_max: vec![0.0; lengths.heads],
    };
    let heads = out.data.par_chunks_mut(blocks * block_bytes(d)).zip(out.scale.par_chunks_mut(blocks * KV_BLOCK));
    let heads = heads.zip(out.mean.par_chunks_mut(d)).zip(&mut out.scale_max).enumerate();
    heads.for_each(|(head, (((data, scales), mean), scale_max))| {
        let mut rows = k.read_head(head / shape.heads, head % shape.heads);
        let stats = Stats::of(&rows, d);
        mean.copy_from_slice(&stats.mean(shape.seqlen, scheme.smooths()));
        *scale_max = scale(stats.amax(mean).into_iter().fold(0.0, f32::max));
        let blocks = data.par_chunks_mut(block_bytes(d)).zip(scales.par_chunks_mut(KV_BLOCK));
        blocks.zip(rows.par_chunks_mut(KV_BLOCK * d)).for_each(|((data, scales), rows)| {
            for ((key, row), key_scale) in rows.chunks_exact_mut(d).enumerate().zip(scales) {
                for (x, &mean) in row.iter_mut().zip(&*mean) {
                    *x -= mean;
                }
                *key_scale = scale(row.iter().fold(0.0, |amax, x| amax.max(x.abs())));
                let inverse = 1.0 / *key_scale;
                for (dim, &x) in row.iter().enumerate() {
                    data[k_offset(key, dim)] = code(x, inverse);
                }
            }
        });
    });
    Ok(out)
}

/// Quantizes V into packed, transposed blocks: in the default scheme less the mean over the tokens and with one scale a
/// channel, in the paper's with one scale a head.
///
/// # Errors
/// A head dim without kernels; values that are not finite.
pub fn quantize_v(scheme: Scheme, v: &HostTensor) -> Result<HostV> {
    v.check_finite("v")?;
    let shape = v.shape();
    let lengths = Lengths::of(shape)?;
    let d = shape.head_dim;
    let blocks = kv_blocks(shape.seqlen);
    let mut out = QuantizedV {
        shape,
        format: PackedFormat::CURRENT,
        data: vec![v_byte(0); lengths.kv_data],
        scale: vec![0.0; lengths.channels],
        mean: vec![0.0; lengths.channels],
    };
    let heads = out.data.par_chunks_mut(blocks * block_bytes(d)).zip(out.scale.par_chunks_mut(d));
    heads.zip(out.mean.par_chunks_mut(d)).enumerate().for_each(|(head, ((data, scales), mean))| {
        let rows = v.read_head(head / shape.heads, head % shape.heads);
        let stats = Stats::of(&rows, d);
        mean.copy_from_slice(&stats.mean(shape.seqlen, scheme.smooths()));
        let mut amax = stats.amax(mean);
        if !scheme.smooths() {
            let largest = amax.iter().copied().fold(0.0, f32::max);
            amax.fill(largest);
        }
        for (channel_scale, amax) in scales.iter_mut().zip(amax) {
            *channel_scale = scale(amax);
        }
        let inverse: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        data.par_chunks_mut(block_bytes(d)).zip(rows.par_chunks(KV_BLOCK * d)).for_each(|(data, rows)| {
            for (key, row) in rows.chunks_exact(d).enumerate() {
                for (dim, &x) in row.iter().enumerate() {
                    data[v_offset(key, dim, d)] = v_byte(code(x - mean[dim], inverse[dim]));
                }
            }
        });
    });
    Ok(out)
}

/// Quantizes all three operands of a problem, in its scheme.
///
/// # Errors
/// A wrong problem, tensors of other shapes than it says, or values that are not finite.
pub fn quantize(problem: &AttentionProblem, q: &HostTensor, k: &HostTensor, v: &HostTensor) -> Result<HostQuantized> {
    problem.check()?;
    check_shapes(problem, q, k, v)?;
    let k = quantize_k(problem.scheme, k)?;
    let mean = problem.scheme.smooths().then_some(k.mean.as_slice());
    let q = quantize_q(problem.scheme, q, mean)?;
    Ok(HostQuantized { q, k, v: quantize_v(problem.scheme, v)? })
}

/// Whether the tensors have the problem's shapes.
pub(super) fn check_shapes(p: &AttentionProblem, q: &HostTensor, k: &HostTensor, v: &HostTensor) -> Result<()> {
    AttentionProblem::check_shape("q", q.shape(), p.q_shape())?;
    AttentionProblem::check_shape("k", k.shape(), p.kv_shape())?;
    AttentionProblem::check_shape("v", v.shape(), p.kv_shape())
}

#[cfg(test)]
mod tests {
    use super::super::{dequantize_k, dequantize_q, dequantize_v};
    use super::*;
    use crate::dtype::DType;
    use crate::shape::{Shape, TensorLayout};

    #[test]
    fn dequantized_values_are_within_half_a_step() {
        for scheme in [Scheme::Default, Scheme::Paper] {
            let shape = Shape::new(2, 2, 131, 64).unwrap();
            let value = |b, h, n, d| ((b * 31 + h * 17 + n * 7 + d * 3) as f32 * 0.37).sin() * (1 + d % 5) as f32 + 0.7;
            let x = HostTensor::from_fn(DType::F32, TensorLayout::bnhd(shape), value).unwrap();
            let want = x.dense_f64();
            let (q, k, v) = (
                quantize_q(scheme, &x, None).unwrap(),
                quantize_k(scheme, &x).unwrap(),
                quantize_v(scheme, &x).unwrap(),
            );
            let (q_back, k_back, v_back) =
                (dequantize_q(&q).unwrap(), dequantize_k(&k).unwrap(), dequantize_v(&v).unwrap());
            for (i, &want) in want.iter().enumerate() {
                let (row, dim) = (i / 64, i % 64);
                let (head, token) = (row / 131, row % 131);
                let slack = 1.0001 * 0.5;
                assert!((f64::from(q_back[i]) - want).abs() <= slack * f64::from(q.scale[row]));
                assert!((f64::from(k_back[i]) - want).abs() <= slack * f64::from(k.scale[head * 256 + token]));
                assert!((f64::from(v_back[i]) - want).abs() <= slack * f64::from(v.scale[head * 64 + dim]));
            }
            for head in 0..4 {
                assert!(k.scale[head * 256..][..131].iter().all(|&s| s <= k.scale_max[head]));
                assert!(k.scale[head * 256 + 131..][..125].iter().all(|&s| s == 0.0));
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let p = AttentionProblem::new(1, 1, 1, 3, 3, 32);
        let tensor = |x: f32| {
            let value = move |_, _, n, d| if (n, d) == (1, 7) { x } else { 1.0 };
            HostTensor::from_fn(DType::F32, TensorLayout::bhnd(p.q_shape()), value).unwrap()
        };
        let good = tensor(1.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(tensor) {
            for (name, [q, k, v]) in
                [("q", [&bad, &good, &good]), ("k", [&good, &bad, &good]), ("v", [&good, &good, &bad])]
            {
                let error = quantize(&p, q, k, v).unwrap_err();
                let at = matches!(error, Error::NotFinite { name: which, token: 1, dim: 7, .. } if which == name);
                assert!(at, "{name}: {error}");
            }
        }
    }

    #[test]
    fn degenerate_values_stay_finite() {
        let shape = Shape::new(1, 1, 3, 32).unwrap();
        for x in [0.0, 1e-38, 1.7e38, -1e-45] {
            let tensor = HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), |_, _, n, _| x * n as f32).unwrap();
            for scheme in [Scheme::Default, Scheme::Paper] {
                let k = quantize_k(scheme, &tensor).unwrap();
                assert!(k.scale[..3].iter().all(|s| s.is_finite() && *s > 0.0));
                assert!(dequantize_v(&quantize_v(scheme, &tensor).unwrap()).unwrap().iter().all(|x| x.is_finite()));
            }
        }
    }
}
