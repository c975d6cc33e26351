//! What changes scores, of sequences of unlike lengths.

use super::{UNLIKE, check};
use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::{
    AttentionProblem, BiasLayout, DType, Device, Error, HostBias, HostData, HostMask, HostScores, MaskKind, MaskLayout,
    Options, Scheme, ScoreMod, ScoreTensors, Scored, SeqLens, TensorLayout, Window, attention, reference,
};
use int_flash_attention_kernels::config::{self, Family, Kind};
use int_flash_attention_kernels::layout::MAX_SCALE;
use int_flash_attention_tests::case::{Case, WINDOWS, any_case};
use int_flash_attention_tests::definition::{definition, is_close};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::scores::some_score_mod;
use int_flash_attention_tests::sequences::{self, Lengths, any_scored_pack, key_lengths, packed, scored};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases, properties};

/// Every general kernel, and between them every feature: as the references, and each sequence as alone, bit for bit.
#[test]
fn general_kernels_on_packs_are_as_on_their_sequences_alone() {
    let general = config::ATTENTION.iter().filter(|variant| variant.kind == Kind::General);
    for (i, variant) in general.enumerate() {
        let pack = packed(Case::of_variant(variant, i), &UNLIKE, 30 * (i % 3));
        let (case, lengths) = scored(pack, |problem| some_score_mod(problem, i + 1));
        check(variant.family, &case, &lengths);
    }
}

#[test]
fn every_change_of_the_scores_beside_key_lengths() {
    for which in 0..10 {
        let problem = AttentionProblem::new(1, 4, 2, 40, 200, 32).with_window(WINDOWS[which % WINDOWS.len()]);
        let problem = problem.with_scheme(Scheme::ALL[which / 5]);
        let pack = key_lengths(Case::plain(problem, which as u64), &[200, 0, 1, 129]);
        let (case, lengths) = scored(pack, |problem| some_score_mod(problem, which));
        check(Family::Sm80, &case, &lengths);
    }
}

/// Sinks are of plain kernels too, those with Hopper's instructions among them: sequences with and without keys.
#[test]
fn sinks_of_plain_kernels() {
    for (i, family) in Family::ALL.into_iter().enumerate() {
        let problem = AttentionProblem::new(1, 3, 1, 1, 1, 64).with_window(WINDOWS[i]);
        for pack in [
            packed(Case::plain(problem, 7), &UNLIKE, 5),
            key_lengths(Case::plain(AttentionProblem { seqlen_q: 70, seqlen_kv: 200, ..problem }, 8), &[200, 0, 1]),
        ] {
            let (case, lengths) = scored(pack, |_| ScoreMod { sinks: true, ..ScoreMod::NONE });
            check(family, &case, &lengths);
        }
    }
}

#[test]
fn generated_packs_and_key_lengths_with_changed_scores() {
    check_cases(cases(10), &any_scored_pack(any_case(20), 260), |(case, lengths)| {
        let family = Family::ALL[(case.seed % 2) as usize];
        let kernels = || Simulator::of(family, 2);
        sequences::all(&kernels().with_lengths(lengths), &kernels(), case, lengths)
    })
    .unwrap_or_else(|error| panic!("{error}"));
}

/// The float64 reference against the definition, and the INT8 reference within its bound of it; how many bounds say something.
fn references_are_near(case: &Case, lengths: &Lengths) -> Result<usize> {
    let [q, k, v] = case.tensors()?;
    let (on_host, scores) = (lengths.map(Vec::as_slice), case.scores());
    let scored = scores.scored(&case.problem);
    let exact = reference::sequences::exact(scored, &on_host, &q, &k, &v)?;
    let (o, lse) = definition(&scored, &on_host, [&q, &k, &v]);
    // Scores of 1e20 are one-hot by rounding; what they come to is no matter of definition.
    if !case.values.contains(&Values::Huge) {
        ensure!(is_close(&exact.o, &o), "the output is not that of the definition");
        ensure!(is_close(&exact.lse, &lse), "the log-sum-exp is not that of the definition");
    }
    let operands = reference::sequences::quantize(&case.problem, &on_host, &q, &k, &v)?;
    if operands.q.scale.iter().chain(&operands.k.scale).any(|scale| *scale == MAX_SCALE) {
        // Out of range: elements saturate (docs/kernel-abi.md), and no bound says by how much.
        return Ok(0);
    }
    let (want, bounds) = reference::sequences::exact_bounds(scored, &on_host, [&q, &k, &v], DType::F32)?;
    let got = reference::sequences::int8(scored, &on_host, &operands)?;
    let infinite = |bounds: Vec<f64>| -> Vec<f64> {
        bounds.into_iter().map(|b| if b.is_nan() { f64::INFINITY } else { b }).collect()
    };
    let (o, lse) = (infinite(bounds.o), infinite(bounds.lse));
    properties::within("o", &got.o, &want.o, &o, case.problem.value_dim())?;
    properties::within("lse", &got.lse, &want.lse, &lse, 1)?;
    let (got, bounds) = reference::sequences::gpu_bounds(scored, &on_host, &operands, DType::F32, false)?;
    for (name, got, bounds) in [("o", &got.o, &bounds.o), ("lse", &got.lse, &bounds.lse)] {
        // Beside scores of 1e20 a sink may have any weight.
        let sure = !case.values.contains(&Values::Huge);
        let at = got.iter().zip(bounds).position(|(got, bound)| sure && got.is_finite() && !bound.is_finite());
        ensure!(at.is_none(), "{name}[{at:?}] of a GPU may be anything");
    }
    Ok(o.iter().filter(|bound| 0.0 < **bound && **bound < 1.0).count())
}

#[test]
fn references_are_the_definition_and_within_their_bounds() {
    let tight = std::cell::Cell::new(0);
    check_cases(cases(40), &any_scored_pack(any_case(20), 90), |(case, lengths)| {
        tight.set(tight.get() + references_are_near(case, lengths)?);
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error}"));
    // A bias that hides keys beside a softcap and values of unlike scales: what is hidden is off by nothing.
    let problem = AttentionProblem::new(1, 2, 1, 1, 1, 32);
    let case = Case { values: [Values::Normal, Values::Normal, Values::ZeroBlocks], ..Case::plain(problem, 3) };
    let (case, lengths) = scored(packed(case, &[(40, 300), (9, 140)], 0), |problem| some_score_mod(problem, 9));
    references_are_near(&case, &lengths).unwrap();
    assert!(tight.get() > 10_000, "bounds that allow anything: {} are between 0 and 1", tight.get());
}

/// Elements of a mask or a bias behind a sequence's own queries and keys are not read: of a bias that is no number there, nothing is seen.
#[test]
fn elements_of_no_query_or_key_are_not_read() {
    let lengths = [(40, 129), (3, 7), (0, 128), (17, 200)];
    let problem = AttentionProblem::new(1, 2, 1, 1, 1, 64).with_window(WINDOWS[3]);
    let (case, lens) = packed(Case::plain(problem, 4), &lengths, 9);
    let simulator = Simulator::new().with_lengths(&lens);
    let [q, k, v] = case.tensors().unwrap();
    let AttentionProblem { batch, heads_q, seqlen_q, seqlen_kv, .. } = case.problem;
    let dims = [batch, heads_q, seqlen_q, seqlen_kv];
    let score_mod = ScoreMod {
        bias: Some(BiasLayout::broadcast(DType::F16, dims, &case.problem).unwrap()),
        mask: Some(MaskLayout::broadcast(MaskKind::Bytes, dims, &case.problem).unwrap()),
        ..ScoreMod::NONE
    };
    let problem = case.problem.with_score_mod(score_mod);
    let run = |rest: f32| {
        let own = |at: usize| {
            let (j, i, s) = (at % seqlen_kv, at / seqlen_kv % seqlen_q, at / seqlen_kv / seqlen_q / heads_q);
            i < lengths[s].0 as usize && j < lengths[s].1 as usize
        };
        let places = 0..dims.iter().product::<usize>();
        let value = |at: usize| f16::from_f32(if own(at) { (at % 11) as f32 / 4.0 } else { rest });
        let bias = HostData::F16(places.clone().map(value).collect());
        let mask: Vec<u8> = places.map(|at| u8::from(own(at) && at % 5 != 0)).collect();
        let tensors = ScoreTensors { bias: Some(bias.as_slice()), mask: Some(&mask), ..ScoreTensors::default() };
        let operands = simulator.quantize(&problem, &q, &k, &v).unwrap();
        let scored = Scored::new(&problem, tensors);
        let (o, lse) = simulator.attention(&scored, &operands, &case.output().unwrap(), DType::F32, true).unwrap();
        (o.bytes().to_vec(), lse.unwrap())
    };
    let want = run(0.0);
    assert!(want.1.iter().any(|lse| lse.is_finite()) && want.1.iter().all(|lse| !lse.is_nan()));
    for rest in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(run(rest), want, "{rest}");
    }
}

/// Values of another head dim than keys, and heads whose blocks come in pieces: plain and with a softcap, on the CPU in one call and by the kernels for
/// every GPU, near the definition.
#[test]
fn packs_of_other_value_dims_and_of_wide_heads() {
    for (head_dim, value_dim) in [(192, 128), (328, 328)] {
        let problem = AttentionProblem::new(1, 2, 1, 1, 1, head_dim).with_head_dim_v(value_dim);
        let (case, lens) = packed(Case::plain(problem, 9), &[(40, 40), (3, 130), (0, 5)], 0);
        let [q, k, v] = case.tensors().unwrap();
        let lengths = lens.map(Vec::as_slice);
        for softcap in [None, Some(2.0)] {
            let scores = HostScores { softcap, ..HostScores::default() };
            let options = Options { window: Window::CAUSAL, lengths, scores, ..Options::default() };
            let problem = options.problem(&q, &k, &v).unwrap();
            let scored = options.scored(&problem);
            let (want, _) = definition(&scored, &lengths, [&q, &k, &v]);
            let cpu = attention(Device::Cpu, &q, &k, &v, &options).unwrap().o;
            let simulator = Simulator::new().with_lengths(&lens);
            let operands = simulator.quantize(&problem, &q, &k, &v).unwrap();
            let out = TensorLayout::bhnd(problem.o_shape());
            let (machine, _) = simulator.attention(&scored, &operands, &out, DType::F16, false).unwrap();
            for (of, got) in [("cpu", cpu.dense_f64()), ("machine", machine.dense_f64())] {
                assert_eq!(got.len(), want.len(), "{of}");
                let squares = |x: f64, y: f64| (x - y) * (x - y);
                let error: f64 = got.iter().zip(&want).map(|(&got, &want)| squares(got, want)).sum();
                let all: f64 = want.iter().map(|&want| squares(want, 0.0)).sum();
                let relative = (error / all).sqrt();
                assert!(relative < 2e-2, "{of} {head_dim} {value_dim} {softcap:?}: {relative}");
            }
        }
    }
}

/// Whole jobs on host tensors: one call takes lengths and scores, and refuses those that do not fit.
#[test]
fn on_the_cpu() {
    let problem = AttentionProblem::new(1, 4, 2, 1, 1, 32).with_causal(true);
    let (case, lengths) = packed(Case::plain(problem, 9), &UNLIKE, 0);
    let [q, k, v] = case.tensors().unwrap();
    let lengths = lengths.map(Vec::as_slice);
    let (slopes, sinks) = (vec![0.25; 4 * UNLIKE.len()], [0.5, -1.0, 0.0, 3.0]);
    let bias = HostData::F32((0..200).map(|j| j as f32 / 100.0).collect());
    let mask: Vec<u8> = (0..9 * 200).map(|at| u8::from(at % 7 != 0)).collect();
    let scores = HostScores {
        softcap: Some(20.0),
        alibi_slopes: Some(&slopes),
        bias: Some(HostBias { dims: [1, 1, 1, 200], data: &bias }),
        mask: Some(HostMask { dims: [9, 1, 1, 200], kind: MaskKind::Bytes, data: &mask }),
        sinks: Some(&sinks),
    };
    let options = Options { window: Window::CAUSAL, lengths, lse: true, scores, ..Options::default() };
    let got = attention(Device::Cpu, &q, &k, &v, &options).unwrap();
    let problem = options.problem(&q, &k, &v).unwrap();
    let (_, want) = definition(&options.scored(&problem), &lengths, [&q, &k, &v]);
    for (row, (got, want)) in got.lse.unwrap().into_iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() < 0.05, "row {row}: {got} {want}");
    }
    let refused =
        |scores: HostScores<'_>| attention(Device::Cpu, &q, &k, &v, &Options { scores, ..options }).unwrap_err();
    // Of the longest sequences, not of all tokens.
    let tokens = k.shape().seqlen;
    let long = vec![1; tokens];
    let mask = HostMask { dims: [1, 1, 1, tokens], kind: MaskKind::Bytes, data: &long };
    let error = refused(HostScores { mask: Some(mask), ..scores });
    assert!(matches!(error, Error::ShapeMismatch { name: "mask", .. }), "{error}");
    assert!(error.to_string().contains("[9, 4, 130, 200]"), "{error}");
    let error = refused(HostScores { alibi_slopes: Some(&slopes[1..]), ..scores });
    assert!(matches!(error, Error::ShapeMismatch { name: "alibi_slopes", .. }), "{error}");
    let equal = Options { lengths: SeqLens::Equal, ..options };
    assert!(attention(Device::Cpu, &q, &k, &v, &equal).is_err(), "the mask is not that of one sequence of all tokens");
}
