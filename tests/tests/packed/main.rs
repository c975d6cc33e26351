//! Sequences of unlike lengths on the PTX machine: packed, and with key lengths in a dense batch.

mod scores;

use int_flash_attention::{AttentionProblem, DType, HostTensor, Scheme, SeqLens, Sequences};
use int_flash_attention_kernels::config::{self, Family, Kind};
use int_flash_attention_tests::case::{Case, Placement, WINDOWS, any_case};
use int_flash_attention_tests::definition::{definition, is_close};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::sequences::{self, Lengths, key_lengths, packed};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::{cases, check_cases, properties};

/// No tokens, one, about a tile and a block; queries without keys and keys without queries; ends that are empty.
const UNLIKE: [(u32, u32); 9] = [(0, 0), (1, 1), (64, 129), (130, 130), (0, 7), (5, 0), (1, 200), (66, 3), (0, 0)];

fn check(family: Family, case: &Case, lengths: &Lengths) {
    let kernels = || Simulator::of(family, 3);
    sequences::all(&kernels().with_lengths(lengths), &kernels(), case, lengths)
        .unwrap_or_else(|error| panic!("{family} {case:?} {lengths:?}: {error:#}"));
}

#[test]
fn packs_are_as_their_sequences_alone() {
    let plain = config::ATTENTION.iter().filter(|variant| variant.kind == Kind::Plain);
    for (i, variant) in plain.enumerate() {
        let case = Case::of_variant(variant, i);
        let (case, lengths) = packed(case, &UNLIKE, 40 * (i % 3));
        check(variant.family, &case, &lengths);
    }
}

#[test]
fn packs_under_every_window_and_layout() {
    let placements = [Placement::Bhnd, Placement::Bnhd, Placement::Padded { token: 24, head: 8, batch: 0 }];
    for (i, family) in Family::ALL.into_iter().enumerate() {
        for (j, window) in WINDOWS.into_iter().enumerate() {
            let problem = AttentionProblem::new(1, 3, 1, 1, 1, 64).with_window(window);
            let case = Case { placement: [placements[(i + j) % 3]; 4], ..Case::plain(problem, j as u64) };
            let (case, lengths) = packed(case, &UNLIKE, 0);
            check(family, &case, &lengths);
        }
    }
}

#[test]
fn key_lengths_of_a_dense_batch() {
    for (i, family) in Family::ALL.into_iter().enumerate() {
        for (j, window) in WINDOWS.into_iter().enumerate() {
            let problem = AttentionProblem::new(1, 2, 1, 70, 290, 64).with_window(window);
            let (case, lengths) = key_lengths(Case::plain(problem, (4 * i + j) as u64), &[290, 0, 1, 128, 129]);
            check(family, &case, &lengths);
        }
    }
}

#[test]
fn generated_packs_and_key_lengths() {
    let families = Family::ALL;
    check_cases(cases(12), &sequences::any_pack(any_case(20), 300), |(case, lengths)| {
        for family in families {
            let kernels = || Simulator::of(family, 2);
            sequences::all(&kernels().with_lengths(lengths), &kernels(), case, lengths)?;
        }
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error}"));
}

/// Keys at and behind the length are not read: not even what the quantizer makes of them is there.
#[test]
fn hidden_keys_may_be_anything() {
    let problem = AttentionProblem::new(2, 2, 1, 9, 300, 64);
    for scheme in Scheme::ALL {
        let problem = problem.with_scheme(scheme);
        let (case, lengths) = key_lengths(Case::plain(problem, 1), &[130, 40]);
        let [q, k, v] = case.tensors().unwrap();
        let keys = [130, 40];
        let spoilt = |x: &HostTensor| {
            HostTensor::from_fn(
                x.dtype(),
                x.layout(),
                |b, h, n, d| {
                    if n >= keys[b] { f32::NAN } else { x.get(b, h, n, d) }
                },
            )
            .unwrap()
        };
        for family in Family::ALL {
            let kernels = Simulator::of(family, 2).with_lengths(&lengths);
            let clean = kernels.quantize(&case.problem, &q, &k, &v).unwrap();
            let operands = kernels.quantize(&case.problem, &q, &spoilt(&k), &spoilt(&v)).unwrap();
            assert_eq!(clean, operands, "{family} {scheme}");
            // Quantized without the lengths, the bytes of the hidden keys are there and those of no number.
            let dense = AttentionProblem { sequences: Sequences::Equal, ..case.problem };
            let all = Simulator::of(family, 2).quantize(&dense, &q, &spoilt(&k), &v).unwrap();
            let layout = case.output().unwrap();
            let (o, _) = kernels.attention(&(&case.problem).into(), &all, &layout, DType::F32, false).unwrap();
            assert!(o.dense_f64().iter().all(|o| o.is_finite()), "{family} {scheme}");
        }
    }
}

/// Offsets and lengths that are none lead nowhere outside: the machine reports an access that does.
#[test]
fn offsets_that_are_none_stay_inside() {
    let bad = [[0, 200, 50, 300, 10], [u32::MAX; 5], [7, u32::MAX, 0, 1 << 31, 90], [0, 0, 0, 0, 4000]];
    for (family, cu) in Family::ALL.into_iter().flat_map(|family| bad.map(|cu| (family, cu))) {
        let problem = AttentionProblem::new(1, 2, 1, 1, 1, 64).with_causal(cu[0] == 0);
        let (case, good) = packed(Case::plain(problem, 3), &[(100, 90), (80, 100), (100, 100), (20, 10)], 0);
        let [q, k, v] = case.tensors().unwrap();
        let good = Simulator::of(family, 2).with_lengths(&good).quantize(&case.problem, &q, &k, &v).unwrap();
        for lengths in [
            SeqLens::Packed { cu_seqlens_q: cu.to_vec(), cu_seqlens_kv: cu.to_vec() },
            SeqLens::Packed { cu_seqlens_q: vec![0, 100, 180, 280, 300], cu_seqlens_kv: cu.to_vec() },
        ] {
            let kernels = Simulator::of(family, 2).with_lengths(&lengths);
            kernels.quantize(&case.problem, &q, &k, &v).unwrap();
            kernels.attention(&(&case.problem).into(), &good, &case.output().unwrap(), DType::F16, true).unwrap();
        }
    }
    let problem = AttentionProblem::new(2, 2, 1, 9, 300, 64).with_sequences(Sequences::KeyLengths);
    let case = Case::plain(problem, 1);
    let [q, k, v] = case.tensors().unwrap();
    let lengths = SeqLens::KeyLengths { seqlens_kv: vec![u32::MAX, 301] };
    Simulator::new().with_lengths(&lengths).quantize(&problem, &q, &k, &v).unwrap();
}

/// The device of the CPU is the reference of each sequence, and what it refuses is refused with a sentence.
#[test]
fn on_the_cpu() {
    use int_flash_attention::{Device, Error, Options, Window, attention, reference};
    let problem = AttentionProblem::new(1, 4, 2, 1, 1, 32).with_causal(true);
    let (case, lengths) = packed(Case::plain(problem, 9), &UNLIKE, 0);
    let [q, k, v] = case.tensors().unwrap();
    let on_host = lengths.map(Vec::as_slice);
    let options = Options {
        window: Window::CAUSAL,
        lengths: on_host,
        lse: true,
        output_dtype: Some(DType::F32),
        ..Options::default()
    };
    let got = attention(Device::Cpu, &q, &k, &v, &options).unwrap();
    let operands = reference::sequences::quantize(&case.problem, &on_host, &q, &k, &v).unwrap();
    let want = reference::sequences::int8(&case.problem, &on_host, &operands).unwrap();
    assert!(got.o.dense_f64().iter().zip(&want.o).all(|(&got, &want)| got == f64::from(want as f32)));
    assert!(got.lse.unwrap().iter().zip(&want.lse).all(|(&got, &want)| got == want as f32));

    let SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv } = &lengths else { unreachable!() };
    let refused = |cu_q: &[u32], cu_kv: &[u32]| {
        let lengths = SeqLens::Packed { cu_seqlens_q: cu_q, cu_seqlens_kv: cu_kv };
        attention(Device::Cpu, &q, &k, &v, &Options { lengths, ..options }).unwrap_err()
    };
    let mut falling = cu_seqlens_q.clone();
    falling[2] = falling[3] + 1;
    let error = refused(&falling, cu_seqlens_kv);
    assert!(matches!(error, Error::Offsets { name: "cu_seqlens_q", sequence: 2, .. }), "{error}");
    let error = refused(&cu_seqlens_q[..5], &cu_seqlens_kv[..5]);
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    let error = refused(&[], &[]).to_string();
    assert!(error.contains("cu_seqlens_q"), "{error}");
}

/// Each sequence against the definition in float64, within the bounds that are derived.
#[test]
fn references_are_within_their_bounds() {
    use int_flash_attention::reference;
    for (seed, window) in WINDOWS.into_iter().enumerate() {
        let problem = AttentionProblem::new(1, 2, 1, 1, 1, 32).with_window(window);
        let (case, lengths) = packed(Case::plain(problem, seed as u64), &UNLIKE, 3);
        let [q, k, v] = case.tensors().unwrap();
        let on_host = lengths.map(Vec::as_slice);
        let operands = reference::sequences::quantize(&case.problem, &on_host, &q, &k, &v).unwrap();
        let got = reference::sequences::int8(&case.problem, &on_host, &operands).unwrap();
        let (want, bounds) =
            reference::sequences::exact_bounds(&case.problem, &on_host, [&q, &k, &v], DType::F32).unwrap();
        properties::within("o", &got.o, &want.o, &bounds.o, 32).unwrap();
        properties::within("lse", &got.lse, &want.lse, &bounds.lse, 1).unwrap();
        let exact = reference::sequences::exact(&case.problem, &on_host, &q, &k, &v).unwrap();
        let (o, lse) = definition(&(&case.problem).into(), &on_host, [&q, &k, &v]);
        assert!(is_close(&exact.o, &o) && is_close(&exact.lse, &lse), "{window}");
    }
}

/// So many sequences and tiles that the quantizer's CTAs have several, and that some of those are of one sequence.
#[test]
fn many_sequences_are_quantized_in_runs_of_tiles() {
    let lengths: Vec<(u32, u32)> =
        (0..250).map(|i| (8 + i * 37 % 57, if i % 50 == 3 { 600 } else { 8 + i * 37 % 57 })).collect();
    let problem = AttentionProblem::new(1, 12, 12, 1, 1, 32);
    let (case, lengths) = packed(Case::plain(problem, 5), &lengths, 0);
    let [q, k, v] = case.tensors().unwrap();
    let on_host = lengths.map(Vec::as_slice);
    let kernels = Simulator::new().with_lengths(&lengths);
    let want = int_flash_attention::reference::sequences::quantize(&case.problem, &on_host, &q, &k, &v).unwrap();
    let got = kernels.quantize(&case.problem, &q, &k, &v).unwrap();
    properties::same_but_bias(&got, &want).unwrap();
}
