//! What must hold of the kernels on sequences of unlike lengths, and cases of them.

use crate::case::Case;
use crate::properties::{Kernels, Operand, representable, same_but_bias, same_operands, within};
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::{self, sequences};
use int_flash_attention::{AttentionProblem, HostTensor, SeqLens, Sequences, Shape, Span, TensorLayout};
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

/// Quantization, attention and dequantization of a case by `kernels`, which have its lengths, against the references; and that each
/// sequence comes out as from `alone`, the same kernels without lengths, bit for bit.
///
/// # Errors
///
/// The first that does not hold.
pub fn all<K: Kernels>(kernels: &K, alone: &K, case: &Case, lengths: &Lengths) -> Result<()> {
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let on_host = lengths.map(Vec::as_slice);
    let want = sequences::quantize(problem, &on_host, &q, &k, &v)?;
    let got = kernels.quantize(problem, &q, &k, &v)?;
    same_but_bias(&got, &want)?;

    let layout = case.output()?;
    let (o, lse) = kernels.attention(&problem.into(), &want, &layout, case.out_dtype, case.lse)?;
    let (expected, bounds) = {
        let (ideal, narrow) = (K::EXACT_EXPONENTIALS, kernels.narrow(problem));
        sequences::gpu_bounds(problem, &on_host, &want, case.out_dtype, ideal, narrow)?
    };
    let d = problem.value_dim();
    let in_dense = |o: &HostTensor| representable(o, &expected.o, &bounds.o);
    within("o", &in_dense(&o), &expected.o, &bounds.o, d)?;
    ensure!(lse.is_some() == case.lse, "the log-sum-exp was asked for and not given, or the reverse");
    if let Some(lse) = &lse {
        let lse: Vec<f64> = lse.iter().copied().map(f64::from).collect();
        within("lse", &lse, &expected.lse, &bounds.lse, 1)?;
    }
    for span in problem.spans(&on_host)?.into_iter().filter(|span| !span.q.is_empty() && !span.kv.is_empty()) {
        let one = problem.of_one(span.q.len(), span.kv.len());
        let (part, of_got) = (sequences::part(problem, &span, &want)?, sequences::part(problem, &span, &got)?);
        same_operands(&one, &of_got, &part, &tokens(&q, span.batch, &span.q)?)?;
        let own = TensorLayout::bhnd(one.o_shape());
        let (own_o, own_lse) = alone.attention(&(&one).into(), &part, &own, case.out_dtype, case.lse)?;
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
        for operand in [Operand::Q, Operand::K, Operand::V] {
            dequantized(kernels, case, &want, operand, &span).with_context(of)?;
        }
    }
    Ok(())
}

/// A sequence's tokens of an operand, back in floats.
fn dequantized(
    kernels: &impl Kernels,
    case: &Case,
    operands: &int_flash_attention::HostQuantized,
    operand: Operand,
    span: &Span,
) -> Result<()> {
    let problem = &case.problem;
    let part = sequences::part(problem, span, operands)?;
    let (shape, own, want) = match operand {
        Operand::Q => (problem.q_shape(), &span.q, reference::dequantize_q(&part.q)?),
        Operand::K => (problem.kv_shape(), &span.kv, reference::dequantize_k(&part.k)?),
        Operand::V => (problem.v_shape(), &span.kv, reference::dequantize_v(&part.v)?),
    };
    let layout = case.placement[3].layout(shape)?;
    let got = kernels.dequantize(problem, operands, operand, &layout, case.out_dtype)?;
    let got = tokens(&got, span.batch, own)?.dense_f64();
    for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
        let want = case.out_dtype.round(f64::from(want));
        ensure!(got == want || got.is_nan() && want.is_nan(), "{operand:?}[{i}] is {got:e}, should be {want:e}");
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
