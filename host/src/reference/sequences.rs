//! The references for sequences of unlike lengths: each one is computed as a problem of its own, with its own tensors.
//!
//! So a sequence has the same bits alone and in a pack by construction, and what holds of the kernels is that they do as well.

use super::{Bounds, Exact, Int8};
use crate::error::Result;
use crate::problem::{AttentionProblem, HostSeqLens, Span};
use crate::progress::{Progress, ProgressFn};
use crate::quantized::{HostK, HostQ, HostQuantized, HostV, Lengths, PackedFormat};
use crate::scores::Scored;
use crate::tensor::HostTensor;
use crate::view::HostView;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, packed_dim, v_byte};
use std::ops::Range;

/// [`exact`](super::exact()) of every sequence, `[batch][heads_q][tokens]` as the problem's tensors have them. Rows that belong to no
/// sequence are as those that see no key and have no sink.
///
/// # Errors
/// As there, and of [`AttentionProblem::spans`].
pub fn exact<'a>(
    problem: impl Into<Scored<'a>>,
    lengths: &HostSeqLens<'_>,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
) -> Result<Exact> {
    let scored = problem.into();
    let problem = scored.problem;
    problem.check_sizes()?;
    scored.check()?;
    super::quantize::check_shapes(problem, [q, k, v].map(HostTensor::shape))?;
    let spans = problem.spans(lengths)?;
    let mut all = Whole::new(&scored, &spans);
    for span in spans {
        if let Some(one) = all.dense(&span) {
            let [q, k, v] = tensors(&span, q, k, v)?;
            let Exact { o, lse } = super::exact(scored.of_sequence(&one, span.sequence), &q, &k, &v)?;
            all.put(&span, &o, &lse);
        }
    }
    Ok(Exact { o: all.o, lse: all.lse })
}

/// [`exact_bounds`](super::exact_bounds()) of every sequence.
///
/// # Errors
/// As there, and of [`AttentionProblem::spans`].
pub fn exact_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    lengths: &HostSeqLens<'_>,
    [q, k, v]: [&HostTensor; 3],
    dtype: crate::DType,
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    let problem = scored.problem;
    problem.check()?;
    scored.check()?;
    super::quantize::check_shapes(problem, [q, k, v].map(HostTensor::shape))?;
    let spans = problem.spans(lengths)?;
    let (mut all, mut bounds) = (Whole::new(&scored, &spans), Whole::zero(problem));
    for span in spans {
        if let Some(one) = all.dense(&span) {
            let [q, k, v] = tensors(&span, q, k, v)?;
            let one = scored.of_sequence(&one, span.sequence);
            let (Exact { o, lse }, of_one) = super::exact_bounds(one, &q, &k, &v, dtype)?;
            all.put(&span, &o, &lse);
            bounds.put(&span, &of_one.o, &of_one.lse);
        }
    }
    Ok((Exact { o: all.o, lse: all.lse }, Bounds { o: bounds.o, lse: bounds.lse }))
}

/// [`quantize`](super::quantize()) of every sequence. What belongs to no sequence, and keys behind a sequence's own, are zero.
///
/// # Errors
/// As there, and of [`AttentionProblem::spans`].
pub fn quantize<'p, 'a>(
    problem: impl Into<Scored<'p>>,
    lengths: &HostSeqLens<'_>,
    q: impl Into<HostView<'a>>,
    k: impl Into<HostView<'a>>,
    v: impl Into<HostView<'a>>,
) -> Result<HostQuantized> {
    let (q, k, v) = (q.into(), k.into(), v.into());
    let Scored { problem, narrow, .. } = problem.into();
    problem.check()?;
    super::quantize::check_shapes(problem, [q, k, v].map(|tensor| tensor.shape()))?;
    let mut all = empty(problem)?;
    for span in problem.spans(lengths)? {
        if span.kv.is_empty() {
            // Queries without keys are quantized as well: nothing is taken out of K.
            if !span.q.is_empty() {
                let q = q.tokens(span.batch, span.q.clone())?;
                let offset = vec![0.0; problem.heads_kv * problem.head_dim];
                let offset = problem.scheme.rotates().then_some(offset.as_slice());
                put_q(problem, &span, &mut all.q, &super::quantize_q(problem.scheme, &q, offset)?);
            }
            continue;
        }
        let tokens = k.tokens(span.batch, span.kv.clone())?;
        let k = super::quantize::keys(problem.scheme, (&tokens).into(), None, narrow)?;
        let v = super::quantize_v(problem.scheme, &v.tokens(span.batch, span.kv.clone())?)?;
        if !span.q.is_empty() {
            let offset = problem.scheme.rotates().then_some(k.offset.as_slice());
            let q = super::quantize_q(problem.scheme, &q.tokens(span.batch, span.q.clone())?, offset)?;
            put_q(problem, &span, &mut all.q, &q);
        }
        for head in 0..problem.heads_kv {
            let (to, of_all) = (span.blocks(problem, head), span.head(problem, head));
            let from = of_one(&to, head);
            let d = problem.head_dim;
            let (of_k, of_v) = (bytes(d), bytes(problem.value_dim()));
            let keys = |blocks: &Range<usize>| blocks.start * KV_BLOCK..blocks.end * KV_BLOCK;
            all.k.data[of_k(&to)].copy_from_slice(&k.data[of_k(&from)]);
            all.k.scale[keys(&to)].copy_from_slice(&k.scale[keys(&from)]);
            all.k.block_scale[to.clone()].copy_from_slice(&k.block_scale[from.clone()]);
            all.k.offset[of_all * d..][..d].copy_from_slice(&k.offset[head * d..][..d]);
            all.v.data[of_v(&to)].copy_from_slice(&v.data[of_v(&from)]);
            all.v.scale[keys(&to)].copy_from_slice(&v.scale[keys(&from)]);
            all.v.block_scale[to].copy_from_slice(&v.block_scale[from]);
            all.v.unit[of_all] = v.unit[head];
        }
    }
    Ok(all)
}

/// [`int8`](super::int8()) of every sequence on the problem's operands.
///
/// # Errors
/// As there, and of [`AttentionProblem::spans`].
pub fn int8<'a>(problem: impl Into<Scored<'a>>, lengths: &HostSeqLens<'_>, operands: &HostQuantized) -> Result<Int8> {
    int8_with_progress(problem.into(), lengths, operands, None)
}

pub(crate) fn int8_with_progress(
    scored: Scored<'_>,
    lengths: &HostSeqLens<'_>,
    operands: &HostQuantized,
    progress: Option<ProgressFn<'_>>,
) -> Result<Int8> {
    let problem = scored.problem;
    let spans = checked_spans(&scored, lengths, operands)?;
    let mut all = Whole::new(&scored, &spans);
    let total = (problem.q_shape().rows()) as u64;
    let mut before = 0;
    for span in spans {
        if let Some(one) = all.dense(&span) {
            let ahead = |p: Progress| {
                if let Some(progress) = progress {
                    progress(Progress { done: before + p.done, total });
                }
            };
            let of_one = scored.of_sequence(&one, span.sequence);
            let Int8 { o, lse } = super::int8_with_progress(of_one, &part(problem, &span, operands)?, Some(&ahead))?;
            all.put(&span, &o, &lse);
        }
        before += (problem.heads_q * span.q.len()) as u64;
    }
    Ok(Int8 { o: all.o, lse: all.lse })
}

/// [`gpu_bounds`](super::gpu_bounds()) of every sequence, or [`ideal_bounds`](super::ideal_bounds) where `ideal`.
///
/// # Errors
/// As there, and of [`AttentionProblem::spans`].
pub fn gpu_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    lengths: &HostSeqLens<'_>,
    operands: &HostQuantized,
    dtype: crate::DType,
    ideal: bool,
) -> Result<(Int8, Bounds)> {
    let scored = problem.into();
    let problem = scored.problem;
    let spans = checked_spans(&scored, lengths, operands)?;
    let (mut all, mut bounds) = (Whole::new(&scored, &spans), Whole::zero(problem));
    for span in spans {
        if let Some(one) = all.dense(&span) {
            let (x, one) = (part(problem, &span, operands)?, scored.of_sequence(&one, span.sequence));
            let (Int8 { o, lse }, of_one) =
                if ideal { super::ideal_bounds(one, &x, dtype) } else { super::gpu_bounds(one, &x, dtype) }?;
            all.put(&span, &o, &lse);
            bounds.put(&span, &of_one.o, &of_one.lse);
        }
    }
    Ok((Int8 { o: all.o, lse: all.lse }, Bounds { o: bounds.o, lse: bounds.lse }))
}

/// The operands of one sequence, which has queries and keys, as those of a dense problem.
///
/// # Errors
/// A wrong problem.
pub fn part(problem: &AttentionProblem, span: &Span, x: &HostQuantized) -> Result<HostQuantized> {
    let one = problem.of_one(span.q.len(), span.kv.len());
    let mut out = HostQuantized { q: part_of_q(problem, span, &x.q)?, ..empty(&one)? };
    for head in 0..problem.heads_kv {
        let (from, of_all) = (span.blocks(problem, head), span.head(problem, head));
        let to = of_one(&from, head);
        let d = problem.head_dim;
        let (of_k, of_v) = (bytes(d), bytes(problem.value_dim()));
        let keys = |blocks: &Range<usize>| blocks.start * KV_BLOCK..blocks.end * KV_BLOCK;
        out.k.data[of_k(&to)].copy_from_slice(&x.k.data[of_k(&from)]);
        out.k.scale[keys(&to)].copy_from_slice(&x.k.scale[keys(&from)]);
        out.k.block_scale[to.clone()].copy_from_slice(&x.k.block_scale[from.clone()]);
        out.k.offset[head * d..][..d].copy_from_slice(&x.k.offset[of_all * d..][..d]);
        out.v.data[of_v(&to)].copy_from_slice(&x.v.data[of_v(&from)]);
        out.v.scale[keys(&to)].copy_from_slice(&x.v.scale[keys(&from)]);
        out.v.block_scale[to].copy_from_slice(&x.v.block_scale[from]);
        out.v.unit[head] = x.v.unit[of_all];
    }
    Ok(out)
}

/// The queries of one sequence, as those of a dense problem.
pub(super) fn part_of_q(problem: &AttentionProblem, span: &Span, q: &HostQ) -> Result<HostQ> {
    // Of K there is something in any problem.
    let HostQuantized { q: mut out, .. } = empty(&problem.of_one(span.q.len(), 1))?;
    for head in 0..problem.heads_q {
        let (from, d) = (span.rows(problem, head), packed_dim(problem.head_dim));
        let to = head * span.q.len()..(head + 1) * span.q.len();
        out.data[to.start * d..to.end * d].copy_from_slice(&q.data[from.start * d..from.end * d]);
        out.scale[to.clone()].copy_from_slice(&q.scale[from.clone()]);
        if let (Some(to_bias), Some(bias)) = (&mut out.bias, &q.bias) {
            to_bias[to].copy_from_slice(&bias[from]);
        }
    }
    Ok(out)
}

/// Where the bytes of blocks of K or V of so many dims are.
fn bytes(dims: usize) -> impl Fn(&Range<usize>) -> Range<usize> {
    let each = block_bytes(packed_dim(dims));
    move |blocks| blocks.start * each..blocks.end * each
}

/// The blocks of head `head` of a sequence that is alone, of which there are as many.
const fn of_one(blocks: &Range<usize>, head: usize) -> Range<usize> {
    let each = blocks.end - blocks.start;
    head * each..(head + 1) * each
}

fn put_q(problem: &AttentionProblem, span: &Span, all: &mut HostQ, q: &HostQ) {
    for head in 0..problem.heads_q {
        let (to, d) = (span.rows(problem, head), packed_dim(problem.head_dim));
        let from = head * span.q.len()..(head + 1) * span.q.len();
        all.data[to.start * d..to.end * d].copy_from_slice(&q.data[from.start * d..from.end * d]);
        all.scale[to.clone()].copy_from_slice(&q.scale[from.clone()]);
        if let (Some(to_bias), Some(bias)) = (&mut all.bias, &q.bias) {
            to_bias[to].copy_from_slice(&bias[from]);
        }
    }
}

/// Operands of a problem whose sequences have no tokens.
fn empty(problem: &AttentionProblem) -> Result<HostQuantized> {
    let (q, kv, v) = (Lengths::of(problem.q_shape())?, Lengths::of_kv(problem)?, Lengths::of_v(problem)?);
    let (scheme, packed, format) = (problem.scheme, problem.packed(), PackedFormat::CURRENT);
    Ok(HostQuantized {
        q: HostQ {
            shape: problem.q_shape(),
            scheme,
            data: vec![0; q.q_data],
            scale: vec![0.0; q.q_scale],
            bias: scheme.rotates().then(|| vec![0.0; q.q_scale]),
        },
        k: HostK {
            shape: problem.kv_shape(),
            packed,
            scheme,
            format,
            data: vec![0; kv.kv_data],
            scale: vec![0.0; kv.kv_scale],
            block_scale: vec![0.0; kv.blocks],
            offset: vec![0.0; kv.channels],
        },
        v: HostV {
            shape: problem.v_shape(),
            packed,
            scheme,
            format,
            data: vec![v_byte(0); v.kv_data],
            scale: vec![0.0; kv.kv_scale],
            block_scale: vec![0.0; kv.blocks],
            unit: vec![1.0; kv.heads],
        },
    })
}

fn checked_spans(scored: &Scored<'_>, lengths: &HostSeqLens<'_>, operands: &HostQuantized) -> Result<Vec<Span>> {
    scored.problem.check()?;
    scored.check()?;
    super::int8::check_operands(scored.problem, operands)?;
    scored.problem.spans(lengths)
}

/// A sequence's tensors.
fn tensors(span: &Span, q: &HostTensor, k: &HostTensor, v: &HostTensor) -> Result<[HostTensor; 3]> {
    let kv = |x: &HostTensor| x.view().tokens(span.batch, span.kv.clone());
    Ok([q.view().tokens(span.batch, span.q.clone())?, kv(k)?, kv(v)?])
}

/// The rows of all sequences, in the order of the problem's tensors.
pub(super) struct Whole<'a> {
    problem: &'a AttentionProblem,
    o: Vec<f64>,
    lse: Vec<f64>,
}

impl<'a> Whole<'a> {
    /// Of rows that see no key, with the sinks of those that sequences have.
    pub(super) fn new(scored: &Scored<'a>, spans: &[Span]) -> Self {
        let problem = scored.problem;
        let mut all = Self { lse: vec![f64::NEG_INFINITY; problem.q_shape().rows()], ..Self::zero(problem) };
        for (span, head) in spans.iter().flat_map(|span| (0..problem.heads_q).map(move |head| (span, head))) {
            if let Some(sink) = scored.sink(head) {
                all.lse[span.rows(problem, head)].fill(sink.into());
            }
        }
        all
    }

    pub(super) fn results(self) -> Int8 {
        Int8 { o: self.o, lse: self.lse }
    }

    fn zero(problem: &'a AttentionProblem) -> Self {
        let shape = problem.o_shape();
        Self { problem, o: vec![0.0; shape.elements()], lse: vec![0.0; shape.rows()] }
    }

    /// The sequence as a dense problem, where it has queries and keys.
    pub(super) fn dense(&self, span: &Span) -> Option<AttentionProblem> {
        let is = !span.q.is_empty() && !span.kv.is_empty();
        is.then(|| self.problem.of_one(span.q.len(), span.kv.len()))
    }

    /// A sequence's results, `[heads_q][rows]`.
    pub(super) fn put(&mut self, span: &Span, o: &[f64], lse: &[f64]) {
        let (n, d) = (span.q.len(), self.problem.value_dim());
        for head in 0..self.problem.heads_q {
            let to = span.rows(self.problem, head);
            self.o[to.start * d..to.end * d].copy_from_slice(&o[head * n * d..][..n * d]);
            self.lse[to].copy_from_slice(&lse[head * n..][..n]);
        }
    }
}
