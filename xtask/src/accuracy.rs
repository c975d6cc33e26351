//! How far an output is from float64 attention.

use crate::progress::LateBar;
use anyhow::Result;
use int_flash_attention::reference::{self, Figures};
use int_flash_attention::{HostSeqLens, HostTensor, Scored};
use xtask::tensors::Inputs;

/// Multiply-adds that the float64 reference is given; beyond it, query rows are sampled.
const BUDGET: f64 = 2e11;

/// Error figures and the query positions they were taken at.
pub struct Accuracy {
    pub figures: Figures,
    /// Query positions compared, of every head.
    pub rows: usize,
    pub rows_of: usize,
}

/// Compares `o` with float64 attention, at evenly spaced query positions where all would take too long.
pub fn measure(scored: Scored<'_>, inputs: &Inputs, o: &HostTensor) -> Result<Accuracy> {
    let (problem, shape) = (scored.problem, o.shape());
    let row_cost = 2.0 * (problem.batch * problem.heads_q) as f64 * problem.seqlen_kv as f64 * problem.head_dim as f64;
    let affordable = ((BUDGET / row_cost) as usize).clamp(64, shape.seqlen.max(64));
    let step = shape.seqlen.div_ceil(affordable);
    // an odd phase, so that the sample is not made of tile starts only
    let rows: Vec<usize> =
        (0..shape.seqlen).step_by(step).map(|row| (row + row / step % step).min(shape.seqlen - 1)).collect();
    let bar = LateBar::new("float64 reference");
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for (done, part) in rows.chunks(rows.len().div_ceil(50)).enumerate() {
        want.extend(reference::exact_rows(scored, &inputs.q, &inputs.k, &inputs.v, part)?.o);
        for (b, h, &n) in cells(shape.batch, shape.heads, part) {
            got.extend((0..shape.head_dim).map(|d| f64::from(o.get(b, h, n, d))));
        }
        bar.update(done as u64 + 1, 50);
    }
    Ok(Accuracy { figures: reference::compare(&got, &want), rows: rows.len(), rows_of: shape.seqlen })
}

/// [`measure`] of sequences of these lengths, at all query positions.
pub fn measure_with(
    scored: Scored<'_>,
    lengths: &HostSeqLens<'_>,
    inputs: &Inputs,
    o: &HostTensor,
) -> Result<Accuracy> {
    if *lengths == HostSeqLens::Equal {
        return measure(scored, inputs, o);
    }
    let want = reference::sequences::exact(scored, lengths, &inputs.q, &inputs.k, &inputs.v)?;
    let rows = o.shape().seqlen;
    Ok(Accuracy { figures: reference::compare(&o.dense_f64(), &want.o), rows, rows_of: rows })
}

/// `[b][h][rows]`, in the reference's order.
fn cells(batch: usize, heads: usize, rows: &[usize]) -> impl Iterator<Item = (usize, usize, &usize)> {
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| rows.iter().map(move |n| (b, h, n))))
}
