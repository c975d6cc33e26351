//! Softmax attention in float64.

use super::quantize::check_shapes;
use super::rows::Rows;
use super::score::RowScore;
use crate::error::Result;
use crate::problem::{AttentionProblem, ScoreMod};
use crate::scores::Scored;
use crate::tensor::HostTensor;
use rayon::prelude::*;

/// The exact output and log-sum-exp.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    /// `[batch][heads_q][rows][head_dim]`; 0 for a row that sees no key.
    pub o: Vec<f64>,
    /// Natural logarithm of the sum of the exponentials, `[batch][heads_q][rows]`; `-inf` for a row that sees no key.
    pub lse: Vec<f64>,
}

/// Attention in float64 on the tensors as they are, for any head dim.
///
/// # Errors
/// A wrong problem, or tensors of other shapes than it says.
pub fn exact<'a>(problem: impl Into<Scored<'a>>, q: &HostTensor, k: &HostTensor, v: &HostTensor) -> Result<Exact> {
    let scored = problem.into();
    run(scored, q, k, v, Rows::all(scored.problem))
}

/// [`exact`] for these query positions of every head.
///
/// # Errors
/// As there, and a position past the end.
pub fn exact_rows<'a>(
    problem: impl Into<Scored<'a>>,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    rows: &[usize],
) -> Result<Exact> {
    let scored = problem.into();
    run(scored, q, k, v, Rows::some(scored.problem, rows)?)
}

fn run(scored: Scored<'_>, q: &HostTensor, k: &HostTensor, v: &HostTensor, rows: Rows<'_>) -> Result<Exact> {
    let problem = scored.problem;
    problem.check_sizes()?;
    scored.check()?;
    problem.check_equal()?;
    check_shapes(problem, [q, k, v].map(HostTensor::shape))?;
    let (d, heads) = (problem.value_dim(), problem.batch * problem.heads_q);
    let mut out = Exact { o: vec![0.0; heads * rows.len() * d], lse: vec![0.0; heads * rows.len()] };
    if rows.len() == 0 {
        return Ok(out);
    }
    out.o.par_chunks_mut(rows.len() * d).zip(out.lse.par_chunks_mut(rows.len())).enumerate().for_each(
        |(head, (o, lse))| {
            let operands = HeadF64::read(problem, q, k, v, head);
            o.par_chunks_mut(d).zip(lse).enumerate().for_each_init(Vec::new, |scores, (index, (o, lse))| {
                *lse = operands.row(&scored, head, rows.at(index), 0.0, scores, o);
            });
        },
    );
    Ok(out)
}

/// The operands of a query head in float64, `[token][dim]`.
pub(super) struct HeadF64 {
    pub(super) q: Vec<f64>,
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
}

impl HeadF64 {
    pub(super) fn read(p: &AttentionProblem, q: &HostTensor, k: &HostTensor, v: &HostTensor, head: usize) -> Self {
        let (batch, head_q) = (head / p.heads_q, head % p.heads_q);
        let read = |x: &HostTensor, head| x.read_head(batch, head).into_iter().map(f64::from).collect();
        Self { q: read(q, head_q), k: read(k, head_q / p.group()), v: read(v, head_q / p.group()) }
    }

    /// Row `row` of query head `head` of all, to whose scores `offset` is added: the softmax weights of the keys inside its window, the
    /// output, and the log-sum-exp.
    pub(super) fn row(
        &self,
        scored: &Scored<'_>,
        head: usize,
        row: usize,
        offset: f64,
        weights: &mut Vec<f64>,
        o: &mut [f64],
    ) -> f64 {
        let problem = scored.problem;
        let (d, dv) = (problem.head_dim, problem.value_dim());
        let keys = problem.visible_keys(row);
        let q = &self.q[row * d..][..d];
        let scale = f64::from(problem.scale());
        weights.clear();
        weights.extend(self.k[keys.start * d..keys.end * d].chunks_exact(d).map(|k| scale * dot(q, k) + offset));
        if problem.score_mod != ScoreMod::NONE {
            let score = RowScore::new(scored, head, row);
            for (z, key) in weights.iter_mut().zip(keys.clone()) {
                *z = score.exact(scored, *z, key);
            }
        }
        let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sink = scored.sink(head % problem.heads_q).map(f64::from);
        o.fill(0.0);
        if max == f64::NEG_INFINITY {
            weights.fill(0.0);
            return sink.unwrap_or(max);
        }
        let max = sink.map_or(max, |sink| max.max(sink));
        let mut sum = sink.map_or(0.0, |sink| (sink - max).exp());
        for weight in &mut *weights {
            *weight = (*weight - max).exp();
            sum += *weight;
        }
        for (weight, v) in weights.iter_mut().zip(self.v[keys.start * dv..].chunks_exact(dv)) {
            *weight /= sum;
            for (o, v) in o.iter_mut().zip(v) {
                *o += *weight * v;
            }
        }
        max + sum.ln()
    }
}

/// In eight accumulators, so that it vectorizes.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let mut rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    rest += sums.iter().sum::<f64>();
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::problem::Window;
    use crate::shape::{Shape, TensorLayout};

    /// The definition, with no thought of speed.
    fn naive(p: &AttentionProblem, q: &HostTensor, k: &HostTensor, v: &HostTensor) -> Exact {
        let mut out = Exact { o: vec![], lse: vec![] };
        for (b, h, i) in
            (0..p.batch).flat_map(|b| (0..p.heads_q).flat_map(move |h| (0..p.seqlen_q).map(move |i| (b, h, i))))
        {
            let g = h / (p.heads_q / p.heads_kv);
            let Window { left, right } = p.window;
            let visible = |j: usize| {
                right.is_none_or(|right| j + p.seqlen_q <= i + p.seqlen_kv + right)
                    && left.is_none_or(|left| i + p.seqlen_kv <= j + p.seqlen_q + left)
            };
            let score = |j| {
                let sum: f64 =
                    (0..p.head_dim).map(|d| f64::from(q.get(b, h, i, d)) * f64::from(k.get(b, g, j, d))).sum();
                (sum * f64::from(p.scale())).exp()
            };
            let e: Vec<f64> = (0..p.seqlen_kv).map(|j| if visible(j) { score(j) } else { 0.0 }).collect();
            let sum: f64 = e.iter().sum();
            for d in 0..p.head_dim {
                let o: f64 = e.iter().enumerate().map(|(j, e)| e * f64::from(v.get(b, g, j, d))).sum();
                out.o.push(if sum > 0.0 { o / sum } else { 0.0 });
            }
            out.lse.push(sum.ln());
        }
        out
    }

    #[test]
    fn agrees_with_the_definition() {
        let local = Window { left: Some(2), right: Some(1) };
        let sliding = Window { left: Some(1), right: Some(0) };
        for (seqlen_q, seqlen_kv, window) in [
            (5, 9, Window::CAUSAL),
            (9, 5, Window::CAUSAL),
            (7, 11, Window::FULL),
            (1, 1, Window::CAUSAL),
            (9, 5, local),
            (5, 9, local),
            (8, 8, sliding),
        ] {
            let p =
                AttentionProblem::new(2, 4, 2, seqlen_q, seqlen_kv, 20).with_window(window).with_softmax_scale(0.31);
            let value = |b, h, n, d| ((b * 5 + h * 7 + n * 11 + d * 13) as f32 * 0.7).sin();
            let tensor = |s: Shape, m: f32| {
                HostTensor::from_fn(DType::F32, TensorLayout::bnhd(s), |b, h, n, d| m * value(b, h, n, d)).unwrap()
            };
            let (q, k, v) = (tensor(p.q_shape(), 1.0), tensor(p.kv_shape(), -1.5), tensor(p.kv_shape(), 2.0));
            let (got, want) = (exact(&p, &q, &k, &v).unwrap(), naive(&p, &q, &k, &v));
            let close = |a: f64, b: f64| a == b || (a - b).abs() < 1e-12;
            assert!(got.o.iter().zip(&want.o).all(|(a, b)| close(*a, *b)));
            assert!(got.lse.iter().zip(&want.lse).all(|(a, b)| close(*a, *b)));
            let last = exact_rows(&p, &q, &k, &v, &[seqlen_q - 1]).unwrap();
            assert_eq!(last.lse[3], got.lse[4 * seqlen_q - 1]);
            assert_eq!(last.o[7 * 20..], got.o[(8 * seqlen_q - 1) * 20..]);
        }
    }
}
