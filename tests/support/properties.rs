//! What must hold of the kernels, whatever runs them: a GPU, or the PTX machine.

use crate::case::Case;
use anyhow::{Result, ensure};
use int_flash_attention::reference;
use int_flash_attention::{AttentionProblem, DType, HostQuantized, HostTensor, Scored, TensorLayout};

/// One of Q, K, V.
pub use int_flash_attention::Operand;

/// All of them.
pub const OPERANDS: [Operand; 3] = [Operand::Q, Operand::K, Operand::V];

/// Something that runs the kernels.
///
/// Implementations surround every output with guard bytes and fail where one of them, or a gap between rows, changed.
pub trait Kernels {
    /// Whether `ex2` is the rounded exact value, so that the codes of P are the reference's; a GPU's is an approximation.
    const EXACT_EXPONENTIALS: bool;

    /// Whether the kernel for a problem takes narrow blocks as such.
    fn narrow(&self, problem: &AttentionProblem) -> bool;

    /// Whether `quantize` gives the tokens of a block of K one scale where they are about as large.
    fn shares_k(&self, problem: &AttentionProblem) -> bool;

    /// `quantize`.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn quantize(
        &self,
        problem: &AttentionProblem,
        q: &HostTensor,
        k: &HostTensor,
        v: &HostTensor,
    ) -> Result<HostQuantized>;

    /// The INT8 attention: O, and the log-sum-exp where it is asked for.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn attention(
        &self,
        scored: &Scored<'_>,
        operands: &HostQuantized,
        out: &TensorLayout,
        dtype: DType,
        lse: bool,
    ) -> Result<(HostTensor, Option<Vec<f32>>)>;

    /// `dequantize`.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn dequantize(
        &self,
        problem: &AttentionProblem,
        operands: &HostQuantized,
        operand: Operand,
        out: &TensorLayout,
        dtype: DType,
    ) -> Result<HostTensor>;

    /// `attention_f16`, on float16 tensors: O and the log-sum-exp.
    ///
    /// # Errors
    ///
    /// When there is no kernel for the problem, or a launch fails.
    fn attention_f16(
        &self,
        problem: &AttentionProblem,
        inputs: [&HostTensor; 3],
        out: &TensorLayout,
    ) -> Result<(HostTensor, Vec<f32>)>;
}

/// All properties of one case.
///
/// # Errors
///
/// The first that does not hold.
pub fn all(kernels: &impl Kernels, case: &Case) -> Result<()> {
    let [q, k, v] = case.tensors()?;
    let shared = Scored::from(&case.problem).with_narrow(kernels.shares_k(&case.problem));
    let want = reference::quantize(shared, &q, &k, &v)?;
    let got = kernels.quantize(&case.problem, &q, &k, &v)?;
    same_operands(&case.problem, &got, &want, &q)?;
    attention(kernels, case, &want)?;
    for operand in OPERANDS {
        dequantize(kernels, case, &want, operand)?;
    }
    Ok(())
}

/// The quantization kernels' output against the reference, bit for bit; `q_bias`, whose order of summation is free,
/// within the error of a float32 sum.
///
/// # Errors
///
/// Names the array and the place.
pub fn same_operands(
    problem: &AttentionProblem,
    got: &HostQuantized,
    want: &HostQuantized,
    q: &HostTensor,
) -> Result<()> {
    same_but_bias(got, want)?;
    if let Some(bias) = &got.q.bias {
        bias_within_rounding(problem, bias, &want.k.offset, q)?;
    }
    Ok(())
}

/// Operands that are the same bit for bit, `q_bias` included: what one kernel makes of the same inputs twice.
///
/// # Errors
///
/// Names the array and the place.
pub fn identical_operands(got: &HostQuantized, want: &HostQuantized) -> Result<()> {
    same_but_bias(got, want)?;
    match (&got.q.bias, &want.q.bias) {
        (Some(got), Some(want)) => same_bits("q_bias", got, want),
        _ => Ok(()),
    }
}

/// Operands that are the same bit for bit but for `q_bias`.
///
/// # Errors
///
/// Names the array and the place.
pub fn same_but_bias(got: &HostQuantized, want: &HostQuantized) -> Result<()> {
    same_bits("k_offset", &got.k.offset, &want.k.offset)?;
    same_bits("q_scale", &got.q.scale, &want.q.scale)?;
    same_bits("k_scale", &got.k.scale, &want.k.scale)?;
    same_bits("k_block_scale", &got.k.block_scale, &want.k.block_scale)?;
    same_bits("v_scale", &got.v.scale, &want.v.scale)?;
    same_bits("v_block_scale", &got.v.block_scale, &want.v.block_scale)?;
    same_bits("v_unit", &got.v.unit, &want.v.unit)?;
    same_bytes("q", &got.q.data, &want.q.data)?;
    same_bytes("k", &got.k.data, &want.k.data)?;
    same_bytes("v", &got.v.data, &want.v.data)?;
    ensure!(got.q.bias.is_some() == want.q.bias.is_some(), "q_bias is there in one of them only");
    Ok(())
}

/// What `q_bias` is, in float64, and by how much a sum in float32 may be off, in any order: n additions of products err by at most n+1 roundings of
/// the absolute sum. One of a row that is no number, or that overflows, may be anything.
///
/// # Panics
///
/// If `q` or `k_offset` are not those of the problem.
#[must_use]
pub fn bias_sums(problem: &AttentionProblem, k_offset: &[f32], q: &HostTensor) -> Vec<(f64, f64)> {
    let (shape, d) = (problem.q_shape(), problem.head_dim);
    let row = |row: usize| {
        let (head, n) = (row / shape.seqlen, row % shape.seqlen);
        let (b, h) = (head / shape.heads, head % shape.heads);
        let offset = &k_offset[(b * problem.heads_kv + h / problem.group()) * d..][..d];
        let products = || (0..d).map(|i| f64::from(q.get(b, h, n, i)) * f64::from(offset[i]));
        let (sum, magnitude) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
        let bound = (d + 1) as f64 * (magnitude * f64::from(f32::EPSILON) / 2.0 + 2f64.powi(-149));
        (sum, if magnitude < f64::from(f32::MAX) { bound } else { f64::INFINITY })
    };
    (0..shape.rows()).map(row).collect()
}

/// `q_bias` against the sum in float64.
pub(crate) fn bias_within_rounding(
    problem: &AttentionProblem,
    got: &[f32],
    k_offset: &[f32],
    q: &HostTensor,
) -> Result<()> {
    let want = bias_sums(problem, k_offset, q);
    ensure!(got.len() == want.len(), "q_bias has {} elements, should have {}", got.len(), want.len());
    for (row, (&got, (sum, bound))) in got.iter().zip(want).enumerate() {
        ensure!(
            bound.is_infinite() || (f64::from(got) - sum).abs() <= bound,
            "q_bias of row {row} is {got}, should be {sum} within {bound:e}"
        );
    }
    Ok(())
}

fn same_bits(name: &str, got: &[f32], want: &[f32]) -> Result<()> {
    ensure!(got.len() == want.len(), "{name} has {} elements, should have {}", got.len(), want.len());
    let differs = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits());
    ensure!(
        differs.is_none(),
        "{name}{}",
        differs.map_or(String::new(), |i| format!("[{i}] is {:e}, should be {:e}", got[i], want[i]))
    );
    Ok(())
}

fn same_bytes(name: &str, got: &[i8], want: &[i8]) -> Result<()> {
    ensure!(got.len() == want.len(), "{name} has {} bytes, should have {}", got.len(), want.len());
    let differs = got.iter().zip(want).position(|(g, w)| g != w);
    ensure!(
        differs.is_none(),
        "{name}{}",
        differs.map_or(String::new(), |i| format!("[{i}] is {}, should be {}", got[i], want[i]))
    );
    Ok(())
}

/// The attention kernel's output and log-sum-exp against the reference on the same operands, within the derived bound.
///
/// # Errors
///
/// Names the element.
pub fn attention<K: Kernels>(kernels: &K, case: &Case, operands: &HostQuantized) -> Result<()> {
    let scores = case.scores();
    let scored = scores.scored(&case.problem);
    let (o, lse) = kernels.attention(&scored, operands, &case.output()?, case.out_dtype, case.lse)?;
    let scored = scored.with_narrow(kernels.narrow(&case.problem));
    let (want, bounds) = if K::EXACT_EXPONENTIALS {
        reference::ideal_bounds(scored, operands, case.out_dtype)?
    } else {
        reference::gpu_bounds(scored, operands, case.out_dtype)?
    };
    within("o", &representable(&o, &want.o, &bounds.o), &want.o, &bounds.o, case.problem.value_dim())?;
    ensure!(lse.is_some() == case.lse, "the log-sum-exp was asked for and not given, or the reverse");
    if let Some(lse) = lse {
        let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
        within("lse", &lse, &want.lse, &bounds.lse, 1)?;
    }
    Ok(())
}

/// The elements of `o`; one that is its type's largest number, of either sign, as `want` where the type cannot hold `want`, give or
/// take `bound`: the kernels saturate.
#[must_use]
pub fn representable(o: &HostTensor, want: &[f64], bound: &[f64]) -> Vec<f64> {
    let largest = o.dtype().largest();
    let mut got = o.dense_f64();
    for ((got, &want), &bound) in got.iter_mut().zip(want).zip(bound) {
        if got.abs() == largest && got.signum() * want + bound >= largest {
            *got = want;
        }
    }
    got
}

/// Every element within its bound, and a number.
///
/// # Errors
///
/// Names the first that is not.
pub fn within(name: &str, got: &[f64], want: &[f64], bound: &[f64], columns: usize) -> Result<()> {
    ensure!(got.len() == want.len(), "{name} has {} elements, should have {}", got.len(), want.len());
    if let Some(i) = reference::first_excess(got, want, bound).map(|excess| excess.index) {
        let (row, column) = (i / columns, i % columns);
        anyhow::bail!(
            "{name}, row {row}, column {column}: {:e}, should be {:e} within {:e}",
            got[i],
            want[i],
            bound[i]
        );
    }
    Ok(())
}

/// The dequantize kernel's output: the reference's float32, rounded to the output's dtype.
///
/// # Errors
///
/// Names the element.
pub fn dequantize(kernels: &impl Kernels, case: &Case, operands: &HostQuantized, operand: Operand) -> Result<()> {
    let (shape, want) = match operand {
        Operand::Q => (case.problem.q_shape(), reference::dequantize_q(&operands.q)?),
        Operand::K => (case.problem.kv_shape(), reference::dequantize_k(&operands.k)?),
        Operand::V => (case.problem.v_shape(), reference::dequantize_v(&operands.v)?),
    };
    let layout = case.placement[3].layout(shape)?;
    let got = kernels.dequantize(&case.problem, operands, operand, &layout, case.out_dtype)?.dense_f64();
    ensure!(got.len() == want.len(), "{operand:?} has {} elements, should have {}", got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
        let want = case.out_dtype.round(f64::from(want));
        let same = got == want || got.is_nan() && want.is_nan();
        ensure!(same, "dequantized {operand:?}[{i}] is {got:e}, should be {want:e}");
    }
    Ok(())
}

/// Guard elements around an output that a test hands to a kernel.
pub const GUARD: usize = 256;
/// What guards and gaps are filled with; no kernel writes 4 of them in a row.
pub const POISON: u8 = 0xa5;

/// The elements of an output buffer that lie outside every row: guards must still be poison, and so must gaps.
///
/// `bytes` is the buffer with [`GUARD`] bytes before and after it.
///
/// # Errors
///
/// Names the first byte that was written.
pub fn untouched(name: &str, bytes: &[u8], layout: &TensorLayout, element: usize) -> Result<()> {
    let shape = layout.shape();
    let mut inside = vec![false; bytes.len()];
    for (b, h, n) in rows(shape) {
        let start = GUARD + layout.offset(b, h, n) * element;
        inside[start..start + shape.head_dim * element].fill(true);
    }
    let written = (0..bytes.len()).find(|&i| !inside[i] && bytes[i] != POISON);
    ensure!(
        written.is_none(),
        "{name} was written outside its rows, {} bytes from its start",
        written.unwrap_or_default() as i64 - GUARD as i64
    );
    Ok(())
}

fn rows(shape: int_flash_attention::Shape) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..shape.batch).flat_map(move |b| (0..shape.heads).flat_map(move |h| (0..shape.seqlen).map(move |n| (b, h, n))))
}
