//! Every shipped kernel on the PTX machine, against the CPU reference.

use int_flash_attention::{
    AttentionProblem, DType, Device, HostTensor, Options, Scheme, Scored, TensorLayout, Window, attention, reference,
};
use int_flash_attention_kernels::config::{self, AttentionVariant, Family, MODULES};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_tests::case::{
    AWKWARD, Case, PADDED_DIMS, Placement, VALUE_DIMS, WINDOWS, any_case, long_keys, variant_of,
};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::unseen::{self, any_unseen};
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{baseline, cases, check_cases, properties};
use proptest::prelude::*;

/// Each int8 attention kernel under each kind of window, with a tail in queries and keys, grouped heads and a padded layout.
fn each_variant(head_dim: usize) {
    for (i, variant) in config::ATTENTION.iter().filter(|v| v.head_dim == head_dim).enumerate() {
        let simulator = Simulator::of(variant.family, 3).with_shared_bytes(variant.from_kib() << 10);
        for seed in 0..WINDOWS.len() {
            properties::all(&simulator, &Case::of_variant(variant, seed + 5 * i))
                .unwrap_or_else(|error| panic!("{}: {error:#}", variant.name));
        }
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

#[test]
fn each_variant_d512() {
    each_variant(512);
}

/// Head dims that are padded, in each kernel that they go to: types, layouts and windows in turn. Memory of the PTX machine ends with the
/// tensors, so that one element beyond them is an error.
#[test]
fn padded_head_dims_match_the_reference() {
    let simulators = Family::ALL.map(|family| Simulator::of(family, 3));
    let alike = PADDED_DIMS.map(|dim| [dim, dim]);
    for (i, [head_dim, value_dim]) in alike.into_iter().chain(VALUE_DIMS).enumerate() {
        for (j, scheme) in Scheme::ALL.into_iter().enumerate() {
            let problem = AttentionProblem::new(1, 2, 1, 67, 201, head_dim).with_scheme(scheme);
            let problem = problem.with_head_dim_v(value_dim);
            for (simulator, family) in simulators.iter().zip(Family::ALL) {
                let Some(variant) = variant_of(family, &problem) else { continue };
                let case = Case::of_variant(variant, i + j);
                let problem = AttentionProblem { head_dim, head_dim_v: Some(value_dim), ..case.problem };
                let mut case = Case { problem, ..case };
                if (i + j) % 2 == 1 {
                    case.placement = [Placement::Bnhd; 4];
                }
                properties::all(simulator, &case).unwrap_or_else(|error| panic!("{case:?}: {error:#}"));
            }
        }
    }
}

/// The float16 kernels, with tails, grouped heads and a padded layout, against float64.
#[test]
fn float16_kernels_match_float64() {
    let simulator = Simulator::new();
    let windows = || WINDOWS.into_iter().enumerate();
    for (variant, (seed, window)) in config::BASELINE.iter().flat_map(|variant| windows().map(move |at| (variant, at)))
    {
        for (seqlen_q, seqlen_kv) in [(1, 1), (67, 203), (130, 64), (70, 3)] {
            let problem = AttentionProblem::new(1, 2, 1, seqlen_q, seqlen_kv, variant.head_dim).with_window(window);
            let mut case = Case::plain(problem, seed as u64);
            case.placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
            let [q, k, v] = case.tensors().unwrap();
            let (o, lse) = simulator
                .attention_f16(&problem, [&q, &k, &v], &case.output().unwrap())
                .unwrap_or_else(|error| panic!("{} {seqlen_q}/{seqlen_kv}: {error:#}", variant.name));
            let rows: Vec<usize> = (0..seqlen_q).collect();
            let want = baseline::expected(&problem, &q, &k, &v, &rows);
            properties::within(variant.name, &o.dense_f64(), &want.o, &want.bound, variant.head_dim).unwrap();
            let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
            properties::within(variant.name, &lse, &want.lse, &want.lse_bound, 1).unwrap();
        }
    }
}

/// A kernel that ships is a kernel that these tests run.
#[test]
fn every_shipped_kernel_is_covered() {
    let simulator = Simulator::new();
    let attention = config::ATTENTION.iter().map(|variant| variant.name);
    let quantize = int_flash_attention_kernels::quantize::launch::bounds().map(|bounds| bounds.entry);
    let dequantize = int_flash_attention_kernels::dequantize::launch::BOUNDS.iter().map(|bounds| bounds.entry);
    let baseline = config::BASELINE.iter().map(|variant| variant.name);
    // In tests/tests/short.rs and tests/tests/decode.rs.
    let short = config::short::SHORT.iter().map(|variant| variant.name);
    let decode = config::decode::DECODE.iter().map(|variant| variant.name);
    let merge = config::decode::MERGE_BOUNDS.iter().map(|bounds| bounds.entry);
    let covered: Vec<_> =
        attention.chain(baseline).chain(short).chain(quantize).chain(dequantize).chain(decode).chain(merge).collect();
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

#[test]
fn generated_long_key_sequences_match_the_reference() {
    let simulator = Simulator::new();
    check_cases(cases(200), &long_keys(), |case| properties::all(&simulator, case))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Cases for which there is a kernel for Hopper.
fn on_hopper(longest: usize) -> impl Strategy<Value = Case> {
    let kernels = config::ATTENTION.iter().filter(|variant| variant.family == Family::Sm90a).collect::<Vec<_>>();
    (any_case(longest), prop::sample::select(kernels)).prop_map(|(case, &AttentionVariant { head_dim, scheme, .. })| {
        Case { problem: AttentionProblem { head_dim, scheme, ..case.problem }, ..case }
    })
}

/// On a machine of one multiprocessor and on one of three: CTAs that work through several tiles, whose rings come round.
#[test]
fn generated_cases_on_hopper_match_the_reference() {
    let simulators = [1, 3].map(|multiprocessors| Simulator::of(Family::Sm90a, multiprocessors));
    check_cases(cases(120), &on_hopper(450), |case| properties::all(&simulators[(case.seed % 2) as usize], case))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Each kernel for Hopper, two batches of grouped heads, more blocks than a ring has slots.
#[test]
fn hopper_kernels_go_round_their_rings() {
    for (i, variant) in config::ATTENTION.iter().filter(|v| v.family == Family::Sm90a).enumerate() {
        let case = Case::of_variant(variant, i);
        for (multiprocessors, (seqlen_q, seqlen_kv)) in
            [(1, (200, 1000)), (3, (500, 300)), (2, (300, 20)), (5, (3, 800))]
        {
            let problem = AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, seqlen_q, seqlen_kv, ..case.problem };
            let case = Case { problem, ..case.clone() };
            assert_eq!(variant_of(Family::Sm90a, &problem), Some(variant));
            properties::all(&Simulator::of(Family::Sm90a, multiprocessors), &case)
                .unwrap_or_else(|error| panic!("{} {seqlen_q}/{seqlen_kv}: {error:#}", variant.name));
        }
    }
}

#[test]
fn awkward_lengths_on_hopper_match_the_reference() {
    let simulator = Simulator::of(Family::Sm90a, 2);
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for (i, variant) in config::ATTENTION.iter().filter(|v| v.family == Family::Sm90a).enumerate() {
            // Each pair of lengths with every other kernel.
            if (i + seed) % 2 == 0 {
                let case = Case::of_variant(variant, seed);
                let problem = AttentionProblem { seqlen_q, seqlen_kv, ..case.problem };
                properties::all(&simulator, &Case { problem, ..case })
                    .unwrap_or_else(|error| panic!("{} {seqlen_q}/{seqlen_kv}: {error:#}", variant.name));
            }
        }
    }
}

/// A head whose unit is beyond what float16 holds, and rows that see none of its loud values.
#[test]
fn quiet_rows_of_a_head_with_loud_values_are_what_they_are() {
    let simulator = Simulator::new();
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let window = Window { left: Some(0), right: Some(0) };
        let problem = AttentionProblem::new(1, 1, 1, 7, 7, 32).with_window(window);
        let tensor = |of: fn(usize, usize) -> f32| {
            let layout = TensorLayout::bhnd(problem.q_shape());
            HostTensor::from_fn(DType::F32, layout, |_, _, n, d| of(n, d)).unwrap()
        };
        let q = tensor(|n, d| (n + d) as f32 / 32.0);
        let v = tensor(|n, d| if n == 0 { 1e12 } else { d as f32 - n as f32 });
        let operands = reference::quantize(&problem, &q, &q, &v).unwrap();
        let (want, bounds) = reference::ideal_bounds(&problem, &operands, dtype).unwrap();
        let out = TensorLayout::bhnd(problem.o_shape());
        let (o, _) = simulator.attention(&Scored::from(&problem), &operands, &out, dtype, false).unwrap();
        let rest = problem.head_dim..;
        properties::within("o", &o.dense_f64()[rest.clone()], &want.o[rest.clone()], &bounds.o[rest], problem.head_dim)
            .unwrap_or_else(|error| panic!("{dtype}: {error:#}"));
    }
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

/// Scores of the usual size from Q and K of very different magnitudes (docs/kernel-abi.md, "Range"): powers of two that cancel
/// leave the output what it is, give or take what float16 rounds scores to.
#[test]
fn large_keys_meet_small_queries_and_the_reverse() {
    let simulator = Simulator::new();
    for (scheme, head_dim) in [(Scheme::Default, 32), (Scheme::Default, 256), (Scheme::Paper, 128)] {
        let problem = AttentionProblem::new(1, 1, 1, 9, 140, head_dim).with_scheme(scheme);
        let [q, k, v] = Case { dtype: DType::F32, ..Case::plain(problem, 4) }.tensors().unwrap();
        let run = |exponent: i32| {
            let scaled = |tensor: &HostTensor, exponent: i32| {
                let value = |b, h, n, d| (exponent as f32).exp2() * tensor.get(b, h, n, d);
                HostTensor::from_fn(DType::F32, tensor.layout(), value).unwrap()
            };
            simulator.job(&problem, [&scaled(&q, -exponent), &scaled(&k, exponent), &v], true).unwrap()
        };
        let plain = run(0);
        let largest = plain.0.dense_f64().into_iter().fold(0.0, |a: f64, x| a.max(x.abs()));
        for exponent in [-8, 8, 16] {
            let scaled = run(exponent);
            for (scaled, plain) in scaled.0.dense_f64().into_iter().zip(plain.0.dense_f64()) {
                assert!((scaled - plain).abs() <= 0.01 * largest, "{scheme} {head_dim} 2^{exponent}: {scaled} {plain}");
            }
            for (scaled, plain) in scaled.1.iter().flatten().zip(plain.1.iter().flatten()) {
                assert!((scaled - plain).abs() <= 0.01, "{scheme} {head_dim} 2^{exponent}: lse {scaled} {plain}");
            }
        }
    }
}

#[test]
fn what_a_row_does_not_see_does_not_change_it() {
    let [sm80, sm90a] = [Family::Sm80, Family::Sm90a].map(|family| Simulator::of(family, 2));
    for (simulator, head_dims) in [(sm80, &HEAD_DIMS[..]), (sm90a, &[64, 96, 128, 256])] {
        check_cases(cases(20), &any_unseen(head_dims, 420), |unseen| {
            unseen::changes_nothing(unseen, |problem, inputs| Ok(simulator.job(problem, inputs, false)?.0))
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// V of nothing but the ends of float16, with either sign: no output leaves them, in either scheme, on the CPU or by the kernels, though rounding V may
/// take it beyond.
#[test]
fn values_at_the_ends_of_float16_stay_inside() {
    for (seed, scheme) in Scheme::ALL.into_iter().enumerate() {
        let problem = AttentionProblem::new(1, 2, 1, 70, 200, 64).with_scheme(scheme);
        let case = Case::plain(problem, seed as u64);
        let [q, k, v] = case.tensors().unwrap();
        for alike in [true, false] {
            // Signs that are alike, and those of noise: a row then is the largest number, or what is left of both.
            let end = |b, h, n, d| if alike || v.get(b, h, n, d) > 0.0 { 65504.0 } else { -65504.0 };
            let v = HostTensor::from_fn(DType::F16, v.layout(), end).unwrap();
            let options = Options { scheme, ..Options::default() };
            let cpu = attention(Device::Cpu, &q, &k, &v, &options).unwrap().o;
            let (machine, _) = Simulator::new().job(&problem, [&q, &k, &v], false).unwrap();
            for o in cpu.dense_f64().into_iter().chain(machine.dense_f64()) {
                assert!(o.abs() <= 65504.0 && (!alike || o > 60000.0), "{scheme}: {o}");
            }
        }
    }
}
