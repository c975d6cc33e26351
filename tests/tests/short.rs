//! The kernels for short K and V on the PTX machine: bit for bit what quantization and the attention kernel for every GPU make, which are
//! held to the reference; where that kernel takes narrow blocks, held to the reference themselves.

use anyhow::{Context, Result, ensure};
use int_flash_attention::{AttentionProblem, DType, Scheme, SeqLens, TensorLayout, reference};
use int_flash_attention_kernels::config::short::{SHORT, short};
use int_flash_attention_kernels::config::sm80::takes_narrow;
use int_flash_attention_tests::case::{AWKWARD, Case, Placement, WINDOWS, any_case};
use int_flash_attention_tests::properties::{self, Kernels};
use int_flash_attention_tests::sequences::{self, Lengths, key_lengths, packed};
use int_flash_attention_tests::sim::{Places, Simulator};
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases};
use proptest::prelude::*;

/// One launch against two, on a GPU of so many multiprocessors, with large CTAs or with small ones. Where the attention kernel for every GPU takes narrow blocks, its numbers are others,
/// and where it has warps that share rows, they add up the float32 sums of special blocks in another order: there, against the reference.
fn same(simulator: &Simulator, case: &Case, multiprocessors: usize, large: bool) -> Result<()> {
    let (problem, out) = (&case.problem, case.output()?);
    let [q, k, v] = case.tensors()?;
    let gpu = (multiprocessors, shared_bytes(problem, large));
    let (got, got_lse) = simulator.short(problem, [&q, &k, &v], (&out, case.out_dtype), case.lse, gpu)?;
    let head_dim = problem.head_dim;
    if takes_narrow(head_dim) {
        let operands = reference::quantize(problem, &q, &k, &v)?;
        let (want, bounds) = reference::ideal_bounds(problem, &operands, case.out_dtype)?;
        let got = properties::representable(&got, &want.o, &bounds.o);
        properties::within("o", &got, &want.o, &bounds.o, head_dim)?;
        let lse: Option<Vec<f64>> = got_lse.map(|lse| lse.into_iter().map(f64::from).collect());
        ensure!(lse.is_some() == case.lse, "a log-sum-exp unasked, or none");
        return lse.map_or(Ok(()), |lse| properties::within("lse", &lse, &want.lse, &bounds.lse, 1));
    }
    let operands = simulator.quantize(problem, &q, &k, &v)?;
    let (o, lse) = simulator.attention(&problem.into(), &operands, &out, case.out_dtype, case.lse)?;
    for (i, (got, want)) in got.dense_f64().into_iter().zip(o.dense_f64()).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        ensure!(same, "o, row {}, dim {}: {got:e}, should be {want:e}", i / head_dim, i % head_dim);
    }
    ensure!(got_lse.is_some() == lse.is_some(), "a log-sum-exp unasked, or none");
    for (row, (got, want)) in got_lse.into_iter().flatten().zip(lse.into_iter().flatten()).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        ensure!(same, "lse, row {row}: {got:e}, should be {want:e}");
    }
    Ok(())
}

/// Shared memory of an H200's CTA, or as much as has room for one large CTA and not for two small ones.
fn shared_bytes(problem: &AttentionProblem, large: bool) -> usize {
    let variant = short(problem.head_dim).unwrap();
    if large { variant.shared_bytes(variant.most_warps, problem.seqlen_kv) } else { 227 << 10 }
}

/// A small case of a head dim; `seed` picks the types.
fn case(head_dim: usize, seqlen_q: usize, seqlen_kv: usize, seed: usize) -> Case {
    let problem = AttentionProblem::new(1, 2, 1, seqlen_q, seqlen_kv, head_dim);
    let (dtype, out_dtype) = [(DType::F16, DType::F32), (DType::BF16, DType::F16), (DType::F32, DType::BF16)][seed % 3];
    let placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
    Case { dtype, out_dtype, placement, ..Case::plain(problem, seed as u64) }
}

#[test]
fn one_launch_makes_what_two_make() {
    let simulator = Simulator::new();
    for variant in SHORT {
        for (seed, window) in WINDOWS.into_iter().enumerate() {
            let case = case(variant.head_dim, 67, 201, seed);
            let case = Case { problem: case.problem.with_window(window), ..case };
            same(&simulator, &case, 1, seed % 2 == 0)
                .unwrap_or_else(|error| panic!("{} {window}: {error:#}", variant.name));
        }
    }
}

/// Ends within panels, at them, and one key beyond; a sequence of one; more queries than keys.
#[test]
fn any_length_is_right() {
    let simulator = Simulator::new();
    let lengths =
        [(1, 1), (16, 16), (17, 31), (5, 32), (40, 33), (9, 64), (3, 65), (33, 96), (20, 127), (7, 129), (4, 257)];
    let awkward = AWKWARD.into_iter().filter(|&(q, kv)| q.max(kv) <= 300);
    for (seed, (seqlen_q, seqlen_kv)) in lengths.into_iter().chain(awkward).enumerate() {
        let variant = &SHORT[seed % SHORT.len()];
        let case = case(variant.head_dim, seqlen_q, seqlen_kv, seed / 2);
        same(&simulator, &case, 1 + seed % 3, seed % 4 == 0)
            .unwrap_or_else(|error| panic!("{} {seqlen_q}/{seqlen_kv}: {error:#}", variant.name));
    }
}

/// Cases for which there is a kernel for short K and V.
fn short_cases(longest: usize) -> impl Strategy<Value = Case> {
    let head_dims: Vec<usize> = SHORT.iter().map(|variant| variant.head_dim).collect();
    (any_case(longest), prop::sample::select(head_dims)).prop_map(|(case, head_dim)| Case {
        problem: AttentionProblem { head_dim, scheme: Scheme::Default, ..case.problem },
        ..case
    })
}

#[test]
fn generated_cases_are_the_same() {
    let simulator = Simulator::new();
    check_cases(cases(120), &short_cases(170), |case| {
        same(&simulator, case, 1 + (case.seed % 5) as usize, case.seed % 2 == 0)
    })
    .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn hostile_values_are_the_same() {
    let simulator = Simulator::new();
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        let case = case(SHORT[seed % SHORT.len()].head_dim, 33, 140, seed);
        let case = Case { values: [values; 3], ..case };
        same(&simulator, &case, 1, seed % 2 == 0).unwrap_or_else(|error| panic!("{values:?}: {error:#}"));
    }
}

/// Rows at any address, and strides beyond 32 bits.
#[test]
fn rows_anywhere_are_right() {
    for (seed, places) in
        [Places::Aligned(1), Places::Aligned(4), Places::Far(0), Places::Far(1), Places::Far(2)].into_iter().enumerate()
    {
        let case = case(SHORT[seed % SHORT.len()].head_dim, 20, 40, seed);
        let problem = AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, ..case.problem };
        let case = Case { problem, placement: [Placement::Padded { token: 1, head: 0, batch: 3 }; 4], ..case };
        same(&Simulator::new().with_places(places), &case, 1, seed % 2 == 0)
            .with_context(|| format!("{places:?}"))
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// No tokens, one, about a panel and a block; queries without keys and keys without queries; ends that are empty.
const UNLIKE: [(u32, u32); 9] = [(0, 0), (1, 1), (33, 129), (130, 130), (0, 7), (5, 0), (1, 100), (34, 3), (0, 0)];

/// Each sequence of a launch as it is alone, bit for bit, and what has no keys as nothing.
fn as_alone((case, lengths): &(Case, Lengths), multiprocessors: usize) -> Result<()> {
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let (gpu, simulator) = ((multiprocessors, 227 << 10), Simulator::new().with_lengths(lengths));
    let (o, lse) = simulator.short(problem, [&q, &k, &v], (&case.output()?, case.out_dtype), true, gpu)?;
    let lse = lse.context("no log-sum-exp")?;
    for span in problem.spans(&lengths.map(Vec::as_slice))? {
        let one = problem.of_one(span.q.len().max(1), span.kv.len().max(1));
        let alone = if span.q.is_empty() || span.kv.is_empty() {
            None
        } else {
            let q = sequences::tokens(&q, span.batch, &span.q)?;
            let [k, v] = [&k, &v].map(|x| sequences::tokens(x, span.batch, &span.kv));
            let out = TensorLayout::bhnd(one.o_shape());
            Some(Simulator::new().short(&one, [&q, &k?, &v?], (&out, case.out_dtype), true, gpu)?)
        };
        for head in 0..problem.heads_q {
            for (row, (token, at)) in span.q.clone().zip(span.rows(problem, head)).enumerate() {
                for dim in 0..problem.head_dim {
                    let want = alone.as_ref().map_or(0.0, |(o, _)| o.get(0, head, row, dim));
                    let got = o.get(span.batch, head, token, dim);
                    ensure!(got.to_bits() == want.to_bits(), "{span:?}, o, head {head}, row {row}: {got}, not {want}");
                }
                let want = match &alone {
                    Some((_, lse)) => lse.as_ref().context("no log-sum-exp")?[head * span.q.len() + row],
                    None => f32::NEG_INFINITY,
                };
                ensure!(
                    lse[at].to_bits() == want.to_bits(),
                    "{span:?}, lse, head {head}, row {row}: {} {want}",
                    lse[at]
                );
            }
        }
    }
    Ok(())
}

#[test]
fn packs_are_as_their_sequences_alone() {
    for (seed, window) in WINDOWS.into_iter().enumerate() {
        let case = case(SHORT[seed % SHORT.len()].head_dim, 1, 1, seed);
        let case = Case { problem: case.problem.with_window(window), ..case };
        let case = packed(case, &UNLIKE, 40 * (seed % 2));
        as_alone(&case, 1 + 9 * (seed % 2)).unwrap_or_else(|error| panic!("{case:?}: {error:#}"));
    }
}

#[test]
fn key_lengths_are_as_their_sequences_alone() {
    for variant in SHORT {
        let case = key_lengths(case(variant.head_dim, 20, 140, 2), &[140, 0, 1, 128, 129]);
        as_alone(&case, 1).unwrap_or_else(|error| panic!("{}: {error:#}", variant.name));
    }
}

/// Offsets and lengths that are none lead nowhere outside: the machine reports an access that does.
#[test]
fn offsets_that_are_none_stay_inside() {
    for (seed, cu) in [[0, 200, 50, 300, 10], [u32::MAX; 5], [7, u32::MAX, 0, 1 << 31, 90], [0, 0, 0, 0, 4000]]
        .into_iter()
        .enumerate()
    {
        let (case, _) = packed(case(64, 1, 1, seed), &[(100, 90), (80, 100), (100, 100), (20, 10)], 0);
        let [q, k, v] = case.tensors().unwrap();
        let lengths = SeqLens::Packed { cu_seqlens_q: cu.to_vec(), cu_seqlens_kv: cu.to_vec() };
        let simulator = Simulator::new().with_lengths(&lengths);
        simulator
            .short(&case.problem, [&q, &k, &v], (&case.output().unwrap(), case.out_dtype), true, (1, 227 << 10))
            .unwrap();
    }
}

#[test]
fn head_dims_without_a_kernel_have_none() {
    assert!(short(96).is_none() && short(64).is_some());
}
