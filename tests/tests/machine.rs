//! Every shipped kernel on the PTX machine, against the CPU reference.

use int_flash_attention::{AttentionProblem, DType, Scheme, reference};
use int_flash_attention_kernels::config::{self, MODULES};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_tests::case::{Case, Placement, any_case};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{baseline, cases, check_cases, properties};
use proptest::strategy::Strategy;

/// Each int8 attention kernel once, with a tail in queries and keys, grouped heads and a padded layout.
fn each_variant(head_dim: usize) {
    let simulator = Simulator::new();
    for (seed, variant) in config::ATTENTION.iter().filter(|v| v.head_dim == head_dim).enumerate() {
        let scheme = match variant.scheme {
            config::Scheme::Default => Scheme::Default,
            config::Scheme::Paper => Scheme::Paper,
        };
        let problem = AttentionProblem::new(1, 2, 1, 67, 201, head_dim).with_causal(variant.causal).with_scheme(scheme);
        let mut case = Case::plain(problem, seed as u64);
        case.placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
        (case.dtype, case.out_dtype) =
            [(DType::F16, DType::F32), (DType::BF16, DType::F16), (DType::F32, DType::BF16)][seed % 3];
        properties::all(&simulator, &case).unwrap_or_else(|error| panic!("{}: {error:#}", variant.entry));
    }
}

#[test]
fn each_variant_d32() {
    each_variant(32);
}

#[test]
fn each_variant_d64() {
    each_variant(64);
}

#[test]
fn each_variant_d96() {
    each_variant(96);
}

#[test]
fn each_variant_d128() {
    each_variant(128);
}

#[test]
fn each_variant_d256() {
    each_variant(256);
}

/// The float16 kernels, with tails, grouped heads and a padded layout, against float64.
#[test]
fn float16_kernels_match_float64() {
    let simulator = Simulator::new();
    for (seed, variant) in config::BASELINE.iter().enumerate() {
        for (seqlen_q, seqlen_kv) in [(1, 1), (67, 203), (130, 64), (70, 3)] {
            let problem =
                AttentionProblem::new(1, 2, 1, seqlen_q, seqlen_kv, variant.head_dim).with_causal(variant.causal);
            let mut case = Case::plain(problem, seed as u64);
            case.placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
            let [q, k, v] = case.tensors().unwrap();
            let (o, lse) = simulator
                .attention_f16(&problem, [&q, &k, &v], &case.output().unwrap())
                .unwrap_or_else(|error| panic!("{} {seqlen_q}/{seqlen_kv}: {error:#}", variant.entry));
            let rows: Vec<usize> = (0..seqlen_q).collect();
            let want = baseline::expected(&problem, &q, &k, &v, &rows);
            properties::within(variant.entry, &o.dense_f64(), &want.o, &want.bound, variant.head_dim).unwrap();
            let exact = reference::exact(&problem, &q, &k, &v).unwrap();
            let close = |(got, want): (&f32, &f64)| f64::from(*got) == *want || (f64::from(*got) - want).abs() < 1e-4;
            assert!(lse.iter().zip(&exact.lse).all(close), "{} lse {lse:?} {:?}", variant.entry, exact.lse);
        }
    }
}

/// A kernel that ships is a kernel that these tests run.
#[test]
fn every_shipped_kernel_is_covered() {
    let simulator = Simulator::new();
    let attention = config::ATTENTION.iter().map(|variant| variant.entry);
    let quantize = int_flash_attention_kernels::quantize::launch::BOUNDS.iter().map(|bounds| bounds.entry);
    let baseline = config::BASELINE.iter().map(|variant| variant.entry);
    let covered: Vec<_> = attention.chain(baseline).chain(quantize).collect();
    assert!(config::ATTENTION.iter().all(|variant| HEAD_DIMS.contains(&variant.head_dim)));
    for module in MODULES {
        for kernel in simulator.kernels(module.name).unwrap() {
            assert!(covered.contains(&kernel.as_str()), "{kernel} of {} is run by no test", module.name);
        }
    }
}

#[test]
fn generated_cases_match_the_reference() {
    let simulator = Simulator::new();
    check_cases(cases(300), &any_case(150), |case| properties::all(&simulator, case))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// More keys than a block, so that the loop, its prologue and its tail run; one head keeps it quick.
#[test]
fn generated_long_key_sequences_match_the_reference() {
    let simulator = Simulator::new();
    let long = any_case(40).prop_flat_map(|case| {
        (130..700_usize).prop_map(move |seqlen_kv| {
            let mut case = case.clone();
            let problem = case.problem;
            case.problem = AttentionProblem { batch: 1, heads_q: 1, heads_kv: 1, seqlen_kv, ..problem };
            case
        })
    });
    check_cases(cases(200), &long, |case| properties::all(&simulator, case)).unwrap_or_else(|error| panic!("{error}"));
}

/// More chunks of statistics than come through shared memory at a time.
#[test]
fn statistics_of_a_long_head_match_the_reference() {
    let problem = AttentionProblem::new(1, 1, 1, 1, 44_000, 32);
    let case = Case::plain(problem, 0);
    let [q, k, v] = case.tensors().unwrap();
    let want = reference::quantize(&problem, &q, &k, &v).unwrap();
    let got = Simulator::new().quantize(&problem, &q, &k, &v).unwrap();
    properties::same_operands(&problem, &got, &want, &q).unwrap();
}

#[test]
fn hostile_values_match_the_reference() {
    let simulator = Simulator::new();
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::new(1, 1, 1, 33, 140, 64).with_causal(true).with_scheme(scheme);
            let mut case = Case::plain(problem, seed as u64);
            case.values = [values; 3];
            case.dtype = if seed % 2 == 0 { DType::F16 } else { DType::F32 };
            properties::all(&simulator, &case).unwrap_or_else(|error| panic!("{values:?} {scheme}: {error:#}"));
        }
    }
}
