//! Quantization to INT8 (arXiv 2409.16997, section 3.2; docs/kernel-abi.md, "Quantization").

use super::codes::{Arithmetic, amax, code, k_offset, round_up_to_10_bits, round_up_to_step, token_scale, v_scale};
use super::packed::resized;
use super::simd::{Kernel, Vectors, dispatch};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::{
    HostK, HostQ, HostQuantized, HostV, Lengths, PackedFormat, QuantizedK, QuantizedQ, QuantizedV, check_len,
};
use crate::resources::{filled, zeroed};
use crate::scores::Scored;
use crate::shape::Shape;
use crate::view::HostView;
use int_flash_attention_kernels::layout::{
    self, K_SCALE_RATIO, KV_BLOCK, MIN_SCALE, V_FIRST_RATIO, V_SCALE_RATIO, V_UNIT_SCALES, block_bytes, kv_blocks,
    packed_dim, v_byte, v_offset,
};
use rayon::prelude::*;

/// Quantizes Q, one scale a token; in the default scheme rotated, with scales rounded up to 10 bits.
///
/// `k_offset` is what was taken out of K, `[batch][heads_kv][head_dim]` ([`HostK::offset`](QuantizedK::offset)); with it the result has the
/// `bias` that the log-sum-exp needs.
///
/// # Errors
/// A head dim without kernels; offsets that are not those of a divisor of Q's heads.
pub fn quantize_q<'a>(scheme: Scheme, q: impl Into<HostView<'a>>, k_offset: Option<&[f32]>) -> Result<HostQ> {
    let q = q.into();
    let shape = q.shape();
    let lengths = Lengths::of(shape)?;
    let d = shape.head_dim;
    let group = k_offset.map_or(Ok(1), |offset| {
        let heads_kv = offset.len() / (shape.batch * d);
        if !offset.len().is_multiple_of(shape.batch * d) || heads_kv == 0 || !shape.heads.is_multiple_of(heads_kv) {
            return Err(Error::HeadGroups { heads_q: shape.heads, heads_kv });
        }
        Ok(shape.heads / heads_kv)
    })?;
    let arithmetic = Arithmetic::of(scheme, q.dtype());
    let mut data = zeroed("the codes of Q", lengths.q_data)?;
    let [mut scales, mut bias] = [zeroed("the scales of Q", lengths.q_scale)?, zeroed("q_bias", lengths.q_scale)?];
    let packed = packed_dim(d);
    data.par_chunks_mut(packed).zip(&mut scales).zip(&mut bias).enumerate().with_min_len(64).for_each_init(
        || vec![0.0; packed],
        |x, (row, ((codes, scale), bias))| {
            let (head, token) = (row / shape.seqlen, row % shape.seqlen);
            q.read_row(head / shape.heads, head % shape.heads, token, &mut x[..d]);
            x[d..].fill(0.0);
            let k_offset = k_offset.map(|offset| &offset[head / group * d..][..d]);
            dispatch(TokenOfQ { scheme, arithmetic, x, k_offset, codes, scale, bias });
        },
    );
    Ok(QuantizedQ { shape, scheme, data, scale: scales, bias: k_offset.map(|_| bias) })
}

/// A token of Q, and where it is quantized to.
struct TokenOfQ<'a> {
    scheme: Scheme,
    arithmetic: Arithmetic,
    x: &'a mut [f32],
    /// What was taken out of the keys of its head.
    k_offset: Option<&'a [f32]>,
    codes: &'a mut [i8],
    scale: &'a mut f32,
    bias: &'a mut f32,
}

impl Kernel for TokenOfQ<'_> {
    #[inline(always)]
    fn run(self, _: impl Vectors) {
        let Self { scheme, arithmetic, x, k_offset, codes, scale, bias } = self;
        if let Some(offset) = k_offset {
            *bias = x.iter().zip(offset).map(|(&x, &m)| f64::from(x) * f64::from(m)).sum::<f64>() as f32;
        }
        let unit = if scheme.rotates() { arithmetic.rotate(x, None) } else { 1.0 };
        *scale = token_scale(amax(x) * unit);
        if scheme.rotates() {
            *scale = round_up_to_10_bits(*scale);
        }
        let [factor, inverse] = arithmetic.inverse(*scale / unit);
        for (code_out, &x) in codes.iter_mut().zip(&*x) {
            *code_out = code(x * factor, inverse);
        }
    }
}

/// Quantizes K, one scale a token, into packed blocks; the default scheme takes the head's offset out and rotates.
///
/// # Errors
/// A head dim without kernels.
pub fn quantize_k<'a>(scheme: Scheme, k: impl Into<HostView<'a>>) -> Result<HostK> {
    keys(scheme, k.into(), None, false)
}

/// Quantizes later tokens of K in the default scheme, from a multiple of 128 on, of heads whose first tokens gave this offset,
/// `[batch][heads_kv][head_dim]`: the bytes are those of one quantization of the whole.
///
/// # Errors
/// As [`quantize_k`]; an offset of another length.
pub fn quantize_k_on<'a>(k: impl Into<HostView<'a>>, offset: &[f32]) -> Result<HostK> {
    keys(Scheme::Default, k.into(), Some(offset), false)
}

/// The tokens of a block share a scale, where they are about as large, if `shares` and the scheme rotates.
pub(super) fn keys(scheme: Scheme, k: HostView<'_>, of_first: Option<&[f32]>, shares: bool) -> Result<HostK> {
    let shape = k.shape();
    let lengths = Lengths::of(shape)?;
    let arithmetic = Arithmetic::of(scheme, k.dtype());
    let d = shape.head_dim;
    let blocks = kv_blocks(shape.seqlen);
    let mut out = QuantizedK {
        shape,
        packed: None,
        scheme,
        format: PackedFormat::CURRENT,
        data: zeroed("the codes of K", lengths.kv_data)?,
        scale: zeroed("the scales of K", lengths.kv_scale)?,
        block_scale: zeroed("the scales of K's blocks", lengths.blocks)?,
        offset: of_first.map_or_else(|| zeroed("k_offset", lengths.channels), |offset| Ok(offset.to_vec()))?,
    };
    check_len("k_offset", out.offset.len(), lengths.channels)?;
    let channels = out.offset.par_chunks_mut(d);
    let d = packed_dim(d);
    let heads = out.data.par_chunks_mut(blocks * block_bytes(d)).zip(out.scale.par_chunks_mut(blocks * KV_BLOCK));
    let heads = heads.zip(out.block_scale.par_chunks_mut(blocks)).zip(channels).enumerate();
    heads.for_each(|(head, (((data, scales), block_scales), offset))| {
        let rows = k.read_head(head / shape.heads, head % shape.heads);
        if scheme.rotates() && of_first.is_none() {
            offset.copy_from_slice(&k_offset(&rows, shape.head_dim, arithmetic));
        }
        let mut rows = resized(rows, shape.head_dim, d);
        let blocks = data.par_chunks_mut(block_bytes(d)).zip(scales.par_chunks_mut(KV_BLOCK)).zip(block_scales);
        let blocks = blocks.zip(rows.par_chunks_mut(KV_BLOCK * d)).enumerate();
        blocks.for_each(|(block, (((data, scales), block_scale), rows))| {
            let mut units = [1.0; KV_BLOCK];
            for ((row, key_scale), unit) in rows.chunks_exact_mut(d).zip(&mut *scales).zip(&mut units) {
                if scheme.rotates() {
                    *unit = arithmetic.rotate(row, Some(offset));
                }
                *key_scale = token_scale(amax(row) * *unit);
            }
            if shares && scheme.rotates() && (block > 0 || of_first.is_some()) {
                share_of_keys(scales);
            }
            for (((key, row), key_scale), unit) in rows.chunks_exact(d).enumerate().zip(&*scales).zip(units) {
                let [factor, inverse] = arithmetic.inverse(key_scale / unit);
                for (dim, &x) in row.iter().enumerate() {
                    data[layout::k_offset(key, dim)] = code(x * factor, inverse);
                }
            }
            *block_scale = scales.iter().copied().fold(0.0, f32::max);
        });
    });
    Ok(out)
}

/// Quantizes V into packed, transposed blocks. The default scheme rotates four dims at a time, and gives the tokens of a block one scale
/// where they are about as large and else one each; the paper's has one scale a head.
///
/// # Errors
/// A head dim without kernels.
pub fn quantize_v<'a>(scheme: Scheme, v: impl Into<HostView<'a>>) -> Result<HostV> {
    values(scheme, v.into(), None)
}

/// Quantizes later tokens of V in the default scheme, from a multiple of 128 on, of heads whose first block gave this unit,
/// `[batch][heads_kv]`: the bytes are those of one quantization of the whole.
///
/// # Errors
/// As [`quantize_v`]; units of another length.
pub fn quantize_v_on<'a>(v: impl Into<HostView<'a>>, unit: &[f32]) -> Result<HostV> {
    values(Scheme::Default, v.into(), Some(unit))
}

fn values(scheme: Scheme, v: HostView<'_>, of_first: Option<&[f32]>) -> Result<HostV> {
    let shape = v.shape();
    let lengths = Lengths::of(shape)?;
    let arithmetic = Arithmetic::of(scheme, v.dtype());
    let d = shape.head_dim;
    let blocks = kv_blocks(shape.seqlen);
    let mut out = QuantizedV {
        shape,
        packed: None,
        scheme,
        format: PackedFormat::CURRENT,
        data: filled("the codes of V", v_byte(0), lengths.kv_data)?,
        scale: zeroed("the scales of V", lengths.kv_scale)?,
        block_scale: zeroed("the scales of V's blocks", lengths.blocks)?,
        unit: of_first.map_or_else(|| filled("v_unit", 1.0, lengths.heads), |unit| Ok(unit.to_vec()))?,
    };
    check_len("v_unit", out.unit.len(), lengths.heads)?;
    let d = packed_dim(d);
    let heads = out.data.par_chunks_mut(blocks * block_bytes(d)).zip(out.scale.par_chunks_mut(blocks * KV_BLOCK));
    let heads = heads.zip(out.block_scale.par_chunks_mut(blocks)).zip(&mut out.unit).enumerate();
    heads.for_each(|(head, (((data, scales), block_scales), unit))| {
        let mut rows = resized(v.read_head(head / shape.heads, head % shape.heads), shape.head_dim, d);
        let of_head = (!scheme.rotates()).then(|| v_scale(amax(&rows)));
        let blocks = data.par_chunks_mut(block_bytes(d)).zip(scales.par_chunks_mut(KV_BLOCK)).zip(&mut *block_scales);
        blocks.zip(rows.par_chunks_mut(KV_BLOCK * d)).enumerate().for_each(
            |(block, (((data, scales), block_scale), rows))| {
                let mut unit = 1.0;
                if scheme.rotates() {
                    rows.chunks_exact_mut(d).for_each(|row| unit = arithmetic.rotate_v(row));
                }
                let scales = &mut scales[..rows.len() / d];
                for (scale, row) in scales.iter_mut().zip(rows.chunks_exact(d)) {
                    *scale = of_head.unwrap_or_else(|| v_scale(amax(row) * unit));
                }
                *block_scale = share(scales, block == 0 && of_first.is_none());
                for ((key, row), scale) in rows.chunks_exact(d).enumerate().zip(&*scales) {
                    let [factor, inverse] = arithmetic.inverse(scale / unit);
                    for (dim, &x) in row.iter().enumerate() {
                        data[v_offset(key, dim, d)] = v_byte(code(x * factor, inverse));
                    }
                }
            },
        );
        if scheme.rotates() && of_first.is_none() {
            *unit = v_unit(scales[..KV_BLOCK].iter().copied().fold(0.0, f32::max));
        }
    });
    Ok(out)
}

/// The unit of a head of V whose first block has this largest scale: 1, but for scales that float32 sums of P V would not hold.
fn v_unit(largest: f32) -> f32 {
    let far = largest > MIN_SCALE && !V_UNIT_SCALES.contains(&largest);
    if far { f32::from_bits(largest.to_bits() & 0x7f80_0000) } else { 1.0 }
}

/// Gives all tokens of a block of K the largest of their scales, where these are near each other.
fn share_of_keys(scales: &mut [f32]) {
    let largest = scales.iter().copied().fold(0.0, f32::max);
    let near = |scale: &f32| largest <= K_SCALE_RATIO * scale;
    if scales.iter().all(near) {
        scales.fill(largest);
    }
}

/// The scale that all tokens of a block of V share, given their own; or NaN, with their own rounded up to a power of `2^(1/16)`.
pub(super) fn share(scales: &mut [f32], first_block: bool) -> f32 {
    // `max` and `min` pass over what is no number.
    let largest = scales.iter().copied().fold(0.0, f32::max);
    let smallest = scales.iter().copied().fold(f32::INFINITY, f32::min);
    let shared = scales.iter().all(|scale| !scale.is_nan())
        && largest <= V_SCALE_RATIO * smallest
        && !(first_block && largest > V_FIRST_RATIO * scales[0]);
    for scale in &mut *scales {
        *scale = if shared { largest } else { round_up_to_step(*scale) };
    }
    if shared { largest } else { f32::NAN }
}

/// Quantizes all three operands of a problem, in its scheme; for kernels that take narrow blocks ([`Scored::narrow`]), the tokens of a block of K
/// with one scale where they are about as large.
///
/// # Errors
/// A wrong problem, or tensors of other shapes than it says.
pub fn quantize<'p, 'a>(
    problem: impl Into<Scored<'p>>,
    q: impl Into<HostView<'a>>,
    k: impl Into<HostView<'a>>,
    v: impl Into<HostView<'a>>,
) -> Result<HostQuantized> {
    let Scored { problem, narrow, .. } = problem.into();
    problem.check()?;
    problem.check_equal()?;
    let (q, k, v) = (q.into(), k.into(), v.into());
    check_shapes(problem, [q, k, v].map(|tensor| tensor.shape()))?;
    let k = keys(problem.scheme, k, None, narrow)?;
    let offset = problem.scheme.rotates().then_some(k.offset.as_slice());
    let q = quantize_q(problem.scheme, q, offset)?;
    Ok(HostQuantized { q, k, v: quantize_v(problem.scheme, v)? })
}

/// Whether Q, K and V have the problem's shapes.
pub(super) fn check_shapes(p: &AttentionProblem, [q, k, v]: [Shape; 3]) -> Result<()> {
    AttentionProblem::check_shape("q", q, p.q_shape())?;
    AttentionProblem::check_shape("k", k, p.kv_shape())?;
    AttentionProblem::check_shape("v", v, p.v_shape())
}

#[cfg(test)]
mod tests {
    use super::super::{dequantize_k, dequantize_q, dequantize_v};
    use super::*;
    use crate::dtype::DType;
    use crate::shape::TensorLayout;
    use crate::tensor::HostTensor;

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
                let row = i / 64;
                let (head, token) = (row / 131, row % 131);
                let slack = 1.0001 * 0.5;
                // Rotated back, an element is the mean of so many that err by half a step.
                assert!((f64::from(q_back[i]) - want).abs() <= slack * f64::from(q.scale[row]));
                assert!((f64::from(k_back[i]) - want).abs() <= slack * f64::from(k.scale[head * 256 + token]));
                assert!((f64::from(v_back[i]) - want).abs() <= slack * f64::from(v.scale[head * 256 + token]));
            }
            for head in 0..4 {
                assert!(k.scale[head * 256 + 131..][..125].iter().all(|&s| s == 0.0));
                assert!(v.scale[head * 256 + 131..][..125].iter().all(|&s| s == 0.0));
            }
        }
    }

    #[test]
    fn degenerate_values_stay_finite() {
        let shape = Shape::new(1, 1, 3, 32).unwrap();
        for x in [0.0, 1e-38, 3e36, -1e-45] {
            let tensor = HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), |_, _, n, _| x * n as f32).unwrap();
            for scheme in [Scheme::Default, Scheme::Paper] {
                let k = quantize_k(scheme, &tensor).unwrap();
                assert!(k.scale[..3].iter().all(|s| s.is_finite() && *s > 0.0));
                assert!(dequantize_v(&quantize_v(scheme, &tensor).unwrap()).unwrap().iter().all(|x| x.is_finite()));
            }
        }
    }
}
