//! What changes scores: softcap, ALiBi, bias, mask and sinks, against the definition written down once more, and on the PTX machine.

use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::{
    AttentionProblem, BiasLayout, DType, Device, Error, HostBias, HostData, HostMask, HostScores, HostTensor, MaskKind,
    MaskLayout, Options, Scheme, ScoreMod, ScoreTensors, Scored, SeqLens, attention, reference,
};
use int_flash_attention_kernels::config::{self, Family, Kind};
use int_flash_attention_kernels::layout::MAX_SCALE;
use int_flash_attention_tests::case::{Case, any_scored_case};
use int_flash_attention_tests::definition::{definition, is_close};
use int_flash_attention_tests::scores::some_score_mod;
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases, properties};

fn exact_is_the_definition(case: &Case) -> Result<()> {
    let [q, k, v] = case.tensors()?;
    let scores = case.scores();
    let scored = scores.scored(&case.problem);
    let (got, (o, lse)) = (reference::exact(scored, &q, &k, &v)?, definition(&scored, &SeqLens::Equal, [&q, &k, &v]));
    // Scores of 1e20 are one-hot by rounding; what they come to is no matter of definition.
    if case.values.contains(&Values::Huge) {
        return Ok(());
    }
    ensure!(is_close(&got.lse, &lse), "the log-sum-exp is not that of the definition");
    ensure!(is_close(&got.o, &o), "the output is not that of the definition");
    Ok(())
}

#[test]
fn the_float64_reference_is_the_definition() {
    check_cases(cases(120), &any_scored_case(40), exact_is_the_definition).unwrap_or_else(|error| panic!("{error}"));
}

/// The INT8 reference within its bound of float64; a bound that is not finite says nothing.
fn int8_is_near(case: &Case) -> Result<usize> {
    let [q, k, v] = case.tensors()?;
    let scores = case.scores();
    let scored = scores.scored(&case.problem);
    let operands = reference::quantize(&case.problem, &q, &k, &v)?;
    if operands.q.scale.iter().chain(&operands.k.scale).any(|scale| *scale == MAX_SCALE) {
        // Out of range: elements saturate (docs/kernel-abi.md), and no bound says by how much.
        return Ok(0);
    }
    let (exact, bounds) = reference::exact_bounds(scored, &q, &k, &v, DType::F32)?;
    let got = reference::int8(scored, &operands)?;
    let infinite = |bounds: Vec<f64>| -> Vec<f64> {
        bounds.into_iter().map(|b| if b.is_nan() { f64::INFINITY } else { b }).collect()
    };
    let (o, lse) = (infinite(bounds.o), infinite(bounds.lse));
    properties::within("o", &got.o, &exact.o, &o, case.problem.head_dim)?;
    properties::within("lse", &got.lse, &exact.lse, &lse, 1)?;
    Ok(o.iter().filter(|bound| **bound < 1.0).count())
}

#[test]
fn the_int8_reference_is_within_its_bound_of_float64() {
    let tight = std::cell::Cell::new(0);
    check_cases(cases(120), &any_scored_case(120), |case| {
        tight.set(tight.get() + int8_is_near(case)?);
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error}"));
    assert!(tight.get() > 10_000, "bounds that allow anything: {} are below 1", tight.get());
}

/// The attention kernel alone; what is quantized does not depend on the scores.
fn kernel_is_the_reference(simulator: &Simulator, case: &Case) -> Result<()> {
    let [q, k, v] = case.tensors()?;
    properties::attention(simulator, case, &reference::quantize(&case.problem, &q, &k, &v)?)
}

#[test]
fn generated_cases_match_the_reference() {
    // Hopper's own kernels have sinks.
    let simulators = [Simulator::new(), Simulator::of(Family::Sm90a, 2)];
    let of = |case: &Case| &simulators[(case.seed % 2) as usize];
    check_cases(cases(150), &any_scored_case(150), |case| kernel_is_the_reference(of(case), case))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Every general kernel with every change of the scores that [`some_score_mod`] has, two batches of grouped heads.
#[test]
fn general_kernels_match_the_reference() {
    let simulator = Simulator::new();
    for (seed, variant) in config::ATTENTION.iter().filter(|variant| variant.kind == Kind::General).enumerate() {
        for which in 0..10 {
            let case = Case::of_variant(variant, seed + which);
            // Rows of masks and biases that begin anywhere, and at multiples of words.
            let seqlen_kv = [201, 256][(seed + which / 2) % 2];
            let problem =
                AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, seqlen_q: 37, seqlen_kv, ..case.problem };
            let problem = problem.with_score_mod(some_score_mod(&problem, which));
            kernel_is_the_reference(&simulator, &Case { problem, ..case })
                .unwrap_or_else(|error| panic!("{} {:?}: {error:#}", variant.name, problem.score_mod));
        }
    }
}

#[test]
fn hostile_values_match_the_reference() {
    let simulator = Simulator::new();
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for (scheme, head_dim) in [(Scheme::Default, 64), (Scheme::Paper, 32), (Scheme::Default, 256)] {
            let problem = AttentionProblem::new(1, 2, 1, 33, 270, head_dim).with_causal(true).with_scheme(scheme);
            let problem = problem.with_score_mod(some_score_mod(&problem, seed));
            let dtype = if seed % 2 == 0 { DType::F16 } else { DType::F32 };
            let case = Case { values: [values; 3], dtype, ..Case::plain(problem, seed as u64) };
            kernel_is_the_reference(&simulator, &case)
                .unwrap_or_else(|error| panic!("{values:?} {scheme} {head_dim}: {error:#}"));
        }
    }
}

/// One mask as bytes and as bits, expanded and shared: the same bits of the output. And a bias in each type.
#[test]
fn forms_of_a_tensor_are_the_same() {
    let simulator = Simulator::new();
    let problem = AttentionProblem::new(2, 2, 1, 21, 203, 64);
    let tensors = Case::plain(problem, 3).tensors().unwrap();
    let run = |score_mod: ScoreMod, tensors_of_scores: ScoreTensors<'_>| {
        let problem = problem.with_score_mod(score_mod);
        let [q, k, v] = &tensors;
        let (o, lse) = simulator.job(Scored::new(&problem, tensors_of_scores), [q, k, v], true).unwrap();
        (o.bytes().to_vec(), lse.unwrap())
    };
    let keeps = |n: usize, j: usize| !(n * 7 + j * 13).is_multiple_of(5) && n != 4;
    let (rows, keys) = (problem.seqlen_q, problem.seqlen_kv);
    let shared: Vec<u8> = (0..rows * keys).map(|at| u8::from(keeps(at / keys, at % keys))).collect();
    let expanded = shared.repeat(4);
    let mut bits = vec![0_u8; rows * keys.div_ceil(8)];
    for (n, j) in (0..rows).flat_map(|n| (0..keys).map(move |j| (n, j))).filter(|&(n, j)| keeps(n, j)) {
        bits[n * keys.div_ceil(8) + j / 8] |= 1 << (j % 8);
    }
    let masked = |kind, dims, mask: &[u8]| {
        let layout = MaskLayout::broadcast(kind, dims, &problem).unwrap();
        run(ScoreMod { mask: Some(layout), ..ScoreMod::NONE }, ScoreTensors { mask: Some(mask), ..Default::default() })
    };
    let want = masked(MaskKind::Bytes, [1, 1, rows, keys], &shared);
    assert_eq!(masked(MaskKind::Bytes, [2, 2, rows, keys], &expanded), want);
    assert_eq!(masked(MaskKind::Bits, [1, 1, rows, keys], &bits), want);
    assert_eq!(want.1[4], f32::NEG_INFINITY, "query 4 sees no key");

    let bias: Vec<f16> =
        (0..keys).map(|j| f16::from_f32(if j % 9 == 0 { -50000.0 } else { j as f32 / 64.0 })).collect();
    let wide: Vec<f32> = bias.iter().map(|x| x.to_f32()).collect();
    let biased = |bias: HostData| {
        let layout = BiasLayout::broadcast(bias.dtype(), [1, 1, 1, keys], &problem).unwrap();
        let tensors = ScoreTensors { bias: Some(bias.as_slice()), ..Default::default() };
        run(ScoreMod { bias: Some(layout), ..ScoreMod::NONE }, tensors)
    };
    assert_eq!(biased(HostData::F16(bias)), biased(HostData::F32(wide)));
}

/// Keys that a mask or a bias hides change not one bit, whatever they are; a NaN of a bias makes the rows NaN that see it, and no others.
#[test]
fn what_is_hidden_reaches_nothing() {
    let simulator = Simulator::new();
    for (scheme, head_dim) in [(Scheme::Default, 32), (Scheme::Default, 256)] {
        let problem = AttentionProblem::new(1, 1, 1, 20, 300, head_dim).with_scheme(scheme);
        let hidden = |j: usize| (130..150).contains(&j);
        let [q, k, v] = Case::plain(problem, 5).tensors().unwrap();
        let mask: Vec<u8> = (0..300).map(|j| u8::from(!hidden(j))).collect();
        let bias = HostData::F32((0..300).map(|j| if hidden(j) { f32::NEG_INFINITY } else { 0.5 }).collect());
        let dims = [1, 1, 1, 300];
        let by_mask =
            ScoreMod { mask: Some(MaskLayout::broadcast(MaskKind::Bytes, dims, &problem).unwrap()), ..ScoreMod::NONE };
        let by_bias =
            ScoreMod { bias: Some(BiasLayout::broadcast(DType::F32, dims, &problem).unwrap()), ..ScoreMod::NONE };
        for (score_mod, tensors) in [
            (by_mask, ScoreTensors { mask: Some(&mask), ..Default::default() }),
            (by_bias, ScoreTensors { bias: Some(bias.as_slice()), ..Default::default() }),
        ] {
            let problem = problem.with_score_mod(score_mod);
            let run = |k: &HostTensor, v: &HostTensor| {
                simulator.job(Scored::new(&problem, tensors), [&q, k, v], true).unwrap()
            };
            let other = |tensor: &HostTensor, value: f32| {
                let x = |b, h, n, d| if hidden(n) { value } else { tensor.get(b, h, n, d) };
                HostTensor::from_fn(DType::F16, tensor.layout(), x).unwrap()
            };
            // Zeros for the other codes of a block that its loudest values decide.
            let quiet = run(&other(&k, 0.0), &other(&v, f32::NAN));
            for value in [f32::INFINITY, f32::NAN, 65504.0] {
                let got = run(&other(&k, value), &other(&v, f32::NAN));
                assert_eq!(got.0.bytes(), quiet.0.bytes(), "{head_dim} {value}");
                assert_eq!(got.1, quiet.1, "{head_dim} {value}");
            }
            assert!(quiet.0.dense_f64().iter().all(|o| o.is_finite()));
        }
        let layout = BiasLayout::broadcast(DType::F32, [1, 1, 20, 300], &problem).unwrap();
        let poisoned = problem.with_score_mod(ScoreMod { bias: Some(layout), ..ScoreMod::NONE });
        let bias = HostData::F32((0..20 * 300).map(|at| if at == 7 * 300 + 140 { f32::NAN } else { 0.0 }).collect());
        let tensors = ScoreTensors { bias: Some(bias.as_slice()), ..Default::default() };
        let (o, lse) = simulator.job(Scored::new(&poisoned, tensors), [&q, &k, &v], true).unwrap();
        assert!(o.dense_f64().iter().enumerate().all(|(i, o)| o.is_nan() == (i / head_dim == 7)));
        assert!(lse.unwrap().iter().enumerate().all(|(i, lse)| lse.is_nan() == (i == 7)));
    }
}

/// The whole job on host tensors, and what is refused before anything runs.
#[test]
fn host_tensors_are_checked() {
    let problem = AttentionProblem::new(2, 4, 2, 9, 70, 32);
    let [q, k, v] = Case::plain(problem, 1).tensors().unwrap();
    let run = |scores: HostScores<'_>| {
        attention(Device::Cpu, &q, &k, &v, &Options { scores, lse: true, ..Options::default() })
    };
    let (slopes, sinks) = ([0.5, 0.25, 0.125, 0.0625], [1.0, -2.0, 0.0, 30.0]);
    let bias = HostData::F16(vec![f16::from_f32(0.5); 9 * 70]);
    let mask = vec![1; 2 * 70];
    let good = HostScores {
        softcap: Some(30.0),
        alibi_slopes: Some(&slopes),
        bias: Some(HostBias { dims: [1, 1, 9, 70], data: &bias }),
        mask: Some(HostMask { dims: [2, 1, 1, 70], kind: MaskKind::Bytes, data: &mask }),
        sinks: Some(&sinks),
    };
    let output = run(good).unwrap();
    let options = Options { scores: good, ..Options::default() };
    let problem = options.problem(&q, &k, &v).unwrap();
    let (_, lse) = definition(&options.scored(&problem), &SeqLens::Equal, [&q, &k, &v]);
    for (got, want) in output.lse.unwrap().iter().zip(lse) {
        assert!((f64::from(*got) - want).abs() < 0.05, "{got} {want}");
    }
    let none = || mask.iter().map(|_| 0).collect::<Vec<u8>>();
    let hidden = none();
    let unseen =
        HostScores { mask: Some(HostMask { dims: [2, 1, 1, 70], kind: MaskKind::Bytes, data: &hidden }), ..good };
    let output = run(unseen).unwrap();
    assert!(output.o.dense_f64().iter().all(|o| *o == 0.0));
    assert!(output.lse.unwrap().iter().enumerate().all(|(row, lse)| *lse == sinks[row / 9 % 4]));
    let output = run(HostScores { sinks: None, ..unseen }).unwrap();
    assert!(output.lse.unwrap().iter().all(|lse| *lse == f32::NEG_INFINITY));

    for cap in [0.0, -3.0, f32::NAN, f32::INFINITY, 20000.0] {
        let error = run(HostScores { softcap: Some(cap), ..good }).unwrap_err();
        assert!(matches!(error, Error::Softcap { .. }), "{error}");
    }
    for (scores, part) in [
        (HostScores { alibi_slopes: Some(&[0.5; 3]), ..good }, "alibi_slopes has the shape [3]; [4]"),
        (HostScores { sinks: Some(&[0.5; 8]), ..good }, "sinks has the shape [8]; [4]"),
        (HostScores { sinks: Some(&[0.0, f32::NAN, 0.0, 0.0]), ..good }, "sinks holds NaN at element 1"),
        (HostScores { alibi_slopes: Some(&[0.0, 1.0, f32::INFINITY, 0.0]), ..good }, "alibi_slopes holds inf"),
        (HostScores { bias: Some(HostBias { dims: [2, 3, 9, 70], data: &bias }), ..good }, "bias has the shape"),
        (
            HostScores { bias: Some(HostBias { dims: [2, 4, 9, 70], data: &bias }), ..good },
            "bias holds 630 elements; 5040",
        ),
        (
            HostScores { mask: Some(HostMask { dims: [2, 1, 1, 69], kind: MaskKind::Bytes, data: &mask }), ..good },
            "mask has the shape [2, 1, 1, 69]",
        ),
    ] {
        let error = run(scores).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }
    // A problem whose tensors are not given.
    let error = reference::exact(&problem, &q, &k, &v).unwrap_err().to_string();
    assert!(error.starts_with("alibi_slopes was not given; the problem is one with it"), "{error}");
}
