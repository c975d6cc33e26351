//! What must hold of the kernels on sequences of unlike lengths, and cases of them.

use crate::case::Case;
use crate::properties::{self, Kernels, OPERANDS, Operand, representable, same_but_bias, within};
use crate::scores::any_score_mod;
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::{self, sequences};
use int_flash_attention::{
    AttentionProblem, HostQuantized, HostTensor, ScoreMod, Scored, SeqLens, Sequences, Shape, Span, TensorLayout,
};
use proptest::prelude::*;
use std::ops::Range;

/// Lengths on the host that own their arrays.
pub type Lengths = SeqLens<Vec<u32>>;

/// Offsets of these lengths.
#[must_use]
pub fn offsets(lengths: &[u32]) -> Vec<u32> {
    let sums = lengths.iter().scan(0, |sum, n| {
        *sum = u32::saturating_add(*sum, *n);
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

/// A case whose sequences have these numbers of queries and keys, with room for so many tokens more.
#[must_use]
pub fn packed(case: Case, lengths: &[(u32, u32)], room: usize) -> (Case, Lengths) {
    let (q, kv): (Vec<u32>, Vec<u32>) = lengths.iter().copied().unzip();
    let (cu_seqlens_q, cu_seqlens_kv) = (offsets(&q), offsets(&kv));
    let total = |offsets: &[u32]| (offsets[lengths.len()] as usize + room).max(1);
    let longest = |lengths: &[u32]| lengths.iter().copied().max().unwrap_or(0).max(1) as usize;
    let sequences = Sequences::Packed { total_q: total(&cu_seqlens_q), total_kv: total(&cu_seqlens_kv) };
    let problem = AttentionProblem {
        batch: lengths.len(),
        seqlen_q: longest(&q),
        seqlen_kv: longest(&kv),
        sequences,
        ..case.problem
    };
    (Case { problem, ..case }, SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv })
}

/// The same with a change of the scores for the problem that it has become.
#[must_use]
pub fn scored(
    (case, lengths): (Case, Lengths),
    score_mod: impl FnOnce(&AttentionProblem) -> ScoreMod,
) -> (Case, Lengths) {
    let problem = case.problem.with_score_mod(score_mod(&case.problem));
    (Case { problem, ..case }, lengths)
}

/// A case of a dense batch whose sequences have these numbers of keys.
#[must_use]
pub fn key_lengths(case: Case, lengths: &[u32]) -> (Case, Lengths) {
    let problem = AttentionProblem { batch: lengths.len(), sequences: Sequences::KeyLengths, ..case.problem };
    (Case { problem, ..case }, SeqLens::KeyLengths { seqlens_kv: lengths.to_vec() })
}

/// The tokens of one sequence.
///
/// # Errors
///
/// When there are none.
pub fn tokens(x: &HostTensor, batch: usize, tokens: &Range<usize>) -> Result<HostTensor> {
    let Shape { heads, head_dim, .. } = x.shape();
    let layout = TensorLayout::bhnd(Shape::new(1, heads, tokens.len(), head_dim)?);
    Ok(HostTensor::from_fn(x.dtype(), layout, |_, h, n, d| x.get(batch, h, tokens.start + n, d))?)
}

/// Quantization, attention, with what changes the case's scores, and dequantization by `kernels`, which have the case's lengths, against the references; and that each
/// sequence comes out as from `alone`, the same kernels without lengths, bit for bit.
///
/// # Errors
///
/// The first that does not hold.
pub fn all<K: Kernels>(kernels: &K, alone: &K, case: &Case, lengths: &Lengths) -> Result<()> {
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let on_host = lengths.map(Vec::as_slice);
    let shared = Scored::from(problem).with_narrow(kernels.shares_k(problem));
    let want = sequences::quantize(shared, &on_host, &q, &k, &v)?;
    let got = kernels.quantize(problem, &q, &k, &v)?;
    same_operands(problem, lengths, &got, &want, &q)?;

    let (layout, scores) = (case.output()?, case.scores());
    let scored = scores.scored(problem).with_narrow(kernels.narrow(problem));
    let (o, lse) = kernels.attention(&scored, &want, &layout, case.out_dtype, case.lse)?;
    let (expected, bounds) = sequences::gpu_bounds(scored, &on_host, &want, case.out_dtype, K::EXACT_EXPONENTIALS)?;
    let d = problem.value_dim();
    let in_dense = |o: &HostTensor| representable(o, &expected.o, &bounds.o);
    within("o", &in_dense(&o), &expected.o, &bounds.o, d)?;
    ensure!(lse.is_some() == case.lse, "the log-sum-exp was asked for and not given, or the reverse");
    if let Some(lse) = &lse {
        let lse: Vec<f64> = lse.iter().copied().map(f64::from).collect();
        within("lse", &lse, &expected.lse, &bounds.lse, 1)?;
    }
    for span in spans(problem, lengths)? {
        let one = problem.of_one(span.q.len(), span.kv.len());
        let part = sequences::part(problem, &span, &want)?;
        let own = TensorLayout::bhnd(one.o_shape());
        let of_one = scored.of_sequence(&one, span.sequence);
        let (own_o, own_lse) = alone.attention(&of_one, &part, &own, case.out_dtype, case.lse)?;
        let of = || format!("sequence {} of {lengths:?}", span.sequence);
        let place = |h: usize, n: usize| (span.batch, h, span.q.start + n);
        for (h, n) in (0..problem.heads_q).flat_map(|h| (0..span.q.len()).map(move |n| (h, n))) {
            let (batch, _, token) = place(h, n);
            let same = (0..d).all(|i| own_o.get(0, h, n, i).to_bits() == o.get(batch, h, token, i).to_bits());
            ensure!(same, "{}: head {h}, row {n} differs from the sequence alone", of());
            if let (Some(own), Some(all)) = (&own_lse, &lse) {
                let same = own[h * span.q.len() + n].to_bits() == all[span.rows(problem, h).start + n].to_bits();
                ensure!(same, "{}: the log-sum-exp of head {h}, row {n} differs from the sequence alone", of());
            }
        }
    }
    dequantized(kernels, case, lengths, &want)
}

/// The sequences whose tokens are in tensors.
fn spans(problem: &AttentionProblem, lengths: &Lengths) -> Result<impl Iterator<Item = Span> + use<>> {
    let spans = problem.spans(&lengths.map(Vec::as_slice))?;
    Ok(spans.into_iter().filter(|span| !span.q.is_empty() && !span.kv.is_empty()))
}

/// Whether operands are the reference's, bit for bit, but for the rounding of `q_bias`.
///
/// # Errors
///
/// Names the array.
pub(crate) fn same_operands(
    problem: &AttentionProblem,
    lengths: &Lengths,
    got: &HostQuantized,
    want: &HostQuantized,
    q: &HostTensor,
) -> Result<()> {
    same_but_bias(got, want)?;
    for span in spans(problem, lengths)? {
        let one = problem.of_one(span.q.len(), span.kv.len());
        let [got, want] = [got, want].map(|operands| sequences::part(problem, &span, operands));
        properties::same_operands(&one, &got?, &want?, &tokens(q, span.batch, &span.q)?)
            .with_context(|| format!("sequence {} of {lengths:?}", span.sequence))?;
    }
    Ok(())
}

/// Every sequence's tokens of every operand, back in floats.
///
/// # Errors
///
/// Names the first element that is wrong.
pub(crate) fn dequantized(
    kernels: &impl Kernels,
    case: &Case,
    lengths: &Lengths,
    operands: &HostQuantized,
) -> Result<()> {
    let problem = &case.problem;
    for operand in OPERANDS {
        let shape = match operand {
            Operand::Q => problem.q_shape(),
            Operand::K => problem.kv_shape(),
            Operand::V => problem.v_shape(),
        };
        let layout = case.placement[3].layout(shape)?;
        let all = kernels.dequantize(problem, operands, operand, &layout, case.out_dtype)?;
        for span in spans(problem, lengths)? {
            let part = sequences::part(problem, &span, operands)?;
            let (own, want) = match operand {
                Operand::Q => (&span.q, reference::dequantize_q(&part.q)?),
                Operand::K => (&span.kv, reference::dequantize_k(&part.k)?),
                Operand::V => (&span.kv, reference::dequantize_v(&part.v)?),
            };
            let got = tokens(&all, span.batch, own)?.dense_f64();
            for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
                let want = case.out_dtype.round(f64::from(want));
                let same = got == want || got.is_nan() && want.is_nan();
                let of = span.sequence;
                ensure!(same, "{operand:?}[{i}] of sequence {of} of {lengths:?} is {got:e}, should be {want:e}");
            }
        }
    }
    Ok(())
}

/// Packs of up to nine sequences, and dense batches of unlike keys: of the problem, types, layouts and values of a case.
pub fn any_pack(case: impl Strategy<Value = Case>, longest: u32) -> impl Strategy<Value = (Case, Lengths)> {
    let length = move || prop_oneof![1 => Just(0), 1 => Just(1), 2 => 0..=longest, 1 => 120..=130_u32];
    let pack = prop::collection::vec((length(), length()), 1..=9);
    (case, pack, 0..200_usize, any::<bool>()).prop_map(|(case, pack, room, dense)| {
        if dense {
            let keys: Vec<u32> = pack.iter().take(3).map(|&(_, keys)| keys).collect();
            let seqlen_kv = keys.iter().copied().max().unwrap_or(0).max(1) as usize + room / 2;
            let problem = AttentionProblem { seqlen_q: pack[0].0.max(1) as usize, seqlen_kv, ..case.problem };
            return key_lengths(Case { problem, ..case }, &keys);
        }
        // A placement of one batch: the gaps of a case are as good.
        packed(case, &pack, room)
    })
}

/// [`any_pack`] with any change of the scores.
pub fn any_scored_pack(case: impl Strategy<Value = Case>, longest: u32) -> impl Strategy<Value = (Case, Lengths)> {
    any_pack(case, longest).prop_flat_map(|pack| {
        let problem = pack.0.problem;
        any_score_mod(problem).prop_map(move |score_mod| scored(pack.clone(), |_| score_mod))
    })
}
