//! The CPU side: quantization against its definition, the INT8 reference against float64, and the CPU device.

use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::{
    AttentionProblem, DType, Device, Error, HostTensor, Options, Order, Scheme, Shape, TensorLayout, Window, attention,
    reference,
};
use int_flash_attention_kernels::layout::{HEAD_DIMS, KV_BLOCK, MAX_SCALE, kv_blocks, packed_dim, rotation};
use int_flash_attention_tests::case::{AWKWARD, Case, Placement, any_case};
use int_flash_attention_tests::scores::Scores;
use int_flash_attention_tests::unseen::{self, any_unseen};
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases, properties};
use proptest::strategy::Strategy;
use std::cell::Cell;

fn passes(result: Result<(), String>) {
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Half a step, and the float32 roundings of taking an offset out, of rotating, of dividing, and of going back; `largest` is the largest
/// magnitude of the token. Rotated back, an element is the mean of so many that err by half a step.
fn half_step(scale: f32, offset: f32, largest: f64) -> f64 {
    let magnitude = 128.0 * f64::from(scale) + f64::from(offset).abs() + largest;
    0.5 * f64::from(scale) + 20.0 * f64::from(f32::EPSILON) * magnitude
}

/// What float16's arithmetic adds to that, of a token of so many dims and this norm without its offset: the reciprocal of the scale is off by 2^-11; of Q and K each of
/// the roundings by 2^-11 of the norm, which is what an element of the token rotated back may be off; of V the sums of four elements, which are taken in units of 4.
fn in_float16(of_v: bool, head_dim: usize, scale: f32, norm: f64) -> f64 {
    let (steps, bit) = (127.1 * f64::from(scale), (-11_f64).exp2());
    let rotations = f64::from(rotation(packed_dim(head_dim)).trailing_zeros() + 2);
    if of_v { 4.0 * bit * steps + (-21_f64).exp2() } else { bit * (steps + rotations * norm) }
}

fn quantize_and_back(case: &Case) -> Result<()> {
    let [q, k, v] = case.tensors()?;
    let operands = reference::quantize(&case.problem, &q, &k, &v)?;
    let (d, n, blocks) = (case.problem.head_dim, case.problem.seqlen_kv, kv_blocks(case.problem.seqlen_kv));
    let back = [
        reference::dequantize_q(&operands.q)?,
        reference::dequantize_k(&operands.k)?,
        reference::dequantize_v(&operands.v)?,
    ];
    for ((name, tensor), back) in [("q", &q), ("k", &k), ("v", &v)].into_iter().zip(back) {
        let x = tensor.dense_f64();
        for (row, (x, back)) in x.chunks(d).zip(back.chunks(d)).enumerate() {
            let (head, token) = (row / n, row % n);
            let scale = match name {
                "q" => operands.q.scale[row],
                "k" => operands.k.scale[head * blocks * KV_BLOCK + token],
                _ => operands.v.scale[head * blocks * KV_BLOCK + token],
            };
            if name != "v" && scale == MAX_SCALE {
                // Out of range: its elements saturate (docs/kernel-abi.md).
                continue;
            }
            let largest = x.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            let offset = |i: usize| if name == "k" { operands.k.offset[head * d + i] } else { 0.0 };
            let square = |(i, x): (usize, &f64)| (x - f64::from(offset(i))).powi(2);
            let norm = x.iter().enumerate().map(square).sum::<f64>().sqrt();
            let halves = tensor.dtype() == DType::F16 && case.problem.scheme.rotates();
            let more = if halves { in_float16(name == "v", d, scale, norm) } else { 0.0 };
            for (i, (&x, &back)) in x.iter().zip(back).enumerate() {
                let bound = half_step(scale, offset(i), largest) + more;
                ensure!(
                    (f64::from(back) - x).abs() <= bound,
                    "{name}[{row},{i}] {x} came back as {back}, bound {bound:e}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn quantize_and_back_is_within_a_step() {
    passes(check_cases(cases(200), &any_case(200), quantize_and_back));
}

/// Elements whose distance was bounded, and elements in all.
type Counts = (usize, usize);

/// A bound that is not finite says nothing (scores off by hundreds, so that any key may win); such an element must be a
/// number, no more.
fn int8_against_exact(case: &Case) -> Result<Counts> {
    let [q, k, v] = case.tensors()?;
    let scores = case.scores();
    let scored = scores.scored(&case.problem);
    let (exact, bounds) = reference::exact_bounds(scored, &q, &k, &v, DType::F32)?;
    let got = reference::int8(scored, &reference::quantize(&case.problem, &q, &k, &v)?)?;
    ensure!(got.o.iter().all(|o| o.is_finite()), "an output is not finite");
    let infinite = |bounds: Vec<f64>| bounds.into_iter().map(|b| if b.is_nan() { f64::INFINITY } else { b }).collect();
    let (o, lse): (Vec<f64>, Vec<f64>) = (infinite(bounds.o), infinite(bounds.lse));
    properties::within("o", &got.o, &exact.o, &o, case.problem.head_dim)?;
    properties::within("lse", &got.lse, &exact.lse, &lse, 1)?;
    Ok((o.iter().filter(|bound| bound.is_finite()).count(), o.len()))
}

#[test]
fn int8_is_within_its_derived_distance_of_float64() {
    let counts = Cell::new((0, 0));
    passes(check_cases(cases(150), &any_case(150), |case| {
        let (bounded, all) = int8_against_exact(case)?;
        counts.set((counts.get().0 + bounded, counts.get().1 + all));
        Ok(())
    }));
    let (bounded, all) = counts.get();
    assert!(2 * bounded > all, "only {bounded} of {all} elements had a bound that says something");
}

#[test]
fn awkward_lengths_are_within_the_distance_too() {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for causal in [false, true] {
            let problem = AttentionProblem::new(1, 2, 1, seqlen_q, seqlen_kv, 64).with_causal(causal);
            int8_against_exact(&Case::plain(problem, seed as u64))
                .unwrap_or_else(|error| panic!("{problem:?}: {error:#}"));
        }
    }
}

fn options<'a>(case: &Case, scores: &'a Scores) -> Options<'a> {
    Options {
        window: case.problem.window,
        scheme: case.problem.scheme,
        softmax_scale: case.problem.softmax_scale,
        scores: scores.of_heads(&case.problem),
        lse: case.lse,
        output_dtype: Some(case.out_dtype),
        output_order: None,
        ..Options::default()
    }
}

/// The device is the reference, rounded once, whatever the layout.
fn cpu_device(case: &Case) -> Result<()> {
    let [q, k, v] = case.tensors()?;
    let scores = case.scores();
    let want = reference::int8(scores.scored(&case.problem), &reference::quantize(&case.problem, &q, &k, &v)?)?;
    let largest = if case.out_dtype == DType::F32 { f64::INFINITY } else { case.out_dtype.largest() };
    let rounded: Vec<f64> = want.o.iter().map(|&o| case.out_dtype.round(o.clamp(-largest, largest))).collect();
    let output = match attention(Device::Cpu, &q, &k, &v, &options(case, &scores)) {
        Err(Error::ResultNotFinite { name: "o", .. }) => {
            ensure!(rounded.iter().any(|o| !o.is_finite()), "all of the reference, rounded, is finite");
            return Ok(());
        }
        other => other?,
    };
    let dense = Case { placement: [Placement::Bhnd; 4], ..case.clone() };
    let [q, k, v] = dense.tensors()?;
    let same = attention(Device::Cpu, &q, &k, &v, &options(case, &scores))?;
    ensure!(output.o.dense_f64() == same.o.dense_f64() && output.lse == same.lse, "the layout changes the values");
    ensure!(output.o.dense_f64() == rounded, "the output is not the reference, rounded");
    ensure!(output.o.dtype() == case.out_dtype && output.lse.is_some() == case.lse, "not what was asked for");
    Ok(())
}

#[test]
fn the_cpu_device_is_the_reference_rounded() {
    passes(check_cases(cases(60), &any_case(100), cpu_device));
}

#[test]
fn rows_without_keys_are_zero() {
    let problem = AttentionProblem::new(1, 1, 1, 9, 4, 32).with_causal(true);
    let [q, k, v] = Case::plain(problem, 3).tensors().unwrap();
    let options = Options { window: Window::CAUSAL, lse: true, ..Options::default() };
    let output = attention(Device::Cpu, &q, &k, &v, &options).unwrap();
    for row in 0..5 {
        assert!((0..32).all(|d| output.o.get(0, 0, row, d) == 0.0));
        assert_eq!(output.lse.as_ref().unwrap()[row], f32::NEG_INFINITY);
    }
    assert!((0..32).any(|d| output.o.get(0, 0, 5, d) != 0.0));
}

/// A masked key must not be heard: with weight on it, the output would be near -100.
#[test]
fn masked_keys_are_not_heard() {
    let problem = AttentionProblem::new(1, 1, 1, 200, 200, 64).with_causal(true);
    let layout = TensorLayout::bhnd(problem.q_shape());
    let tensor =
        |value: fn(usize, usize) -> f32| HostTensor::from_fn(DType::F16, layout, |_, _, n, d| value(n, d)).unwrap();
    let q = tensor(|_, _| 1.0);
    let k = tensor(|n, d| if n == 199 { 20.0 } else { ((7 * n + 3 * d) % 11) as f32 / 11.0 });
    let v = tensor(|n, d| if n == 199 { -100.0 } else { (d % 5) as f32 });
    for scheme in [Scheme::Default, Scheme::Paper] {
        let options = Options { window: Window::CAUSAL, scheme, ..Options::default() };
        let o = attention(Device::Cpu, &q, &k, &v, &options).unwrap().o;
        // all unmasked values of a channel are equal; V is off by at most half a step of 100/127
        let heard = (0..199)
            .flat_map(|n| (0..64).map(move |d| (n, d)))
            .find(|&(n, d)| (o.get(0, 0, n, d) - (d % 5) as f32).abs() > 0.5);
        assert_eq!(heard, None, "{scheme}");
        assert!(o.get(0, 0, 199, 0) < -90.0, "the last row does see the last key");
    }
}

#[test]
fn wrong_requests_are_errors() {
    let tensor = |batch, heads, seqlen, head_dim| {
        let shape = Shape::new(batch, heads, seqlen, head_dim).unwrap();
        HostTensor::from_fn(DType::F16, TensorLayout::bhnd(shape), |_, _, _, d| d as f32).unwrap()
    };
    let run = |q: &HostTensor, k: &HostTensor, v: &HostTensor| {
        attention(Device::Cpu, q, k, v, &Options::default()).unwrap_err()
    };
    let good = tensor(1, 2, 5, 64);
    assert!(matches!(run(&good, &tensor(2, 2, 5, 64), &tensor(2, 2, 5, 64)), Error::ShapeMismatch { .. }));
    assert!(matches!(run(&good, &good, &tensor(1, 2, 6, 64)), Error::ShapeMismatch { .. }));
    assert!(matches!(run(&tensor(1, 3, 5, 64), &good, &good), Error::HeadGroups { .. }));
    let odd = tensor(1, 2, 5, 44);
    assert!(matches!(run(&odd, &odd, &odd), Error::HeadDim { given: 44, .. }));
    let layout = TensorLayout::from_dims(&[1, 2, 5, 64], Order::Bhnd).unwrap();
    let nan = HostTensor::new(vec![f16::NAN; layout.span()], layout).unwrap();
    assert!(attention(Device::Cpu, &nan, &good, &good, &Options::default()).is_err());
    let wide = HostTensor::new(vec![0.0_f32; layout.span()], layout).unwrap();
    assert!(matches!(run(&good, &wide, &good), Error::DTypeMismatch { .. }));
}

#[test]
fn what_a_row_does_not_see_does_not_change_it() {
    // Values that are no numbers are refused on the host path.
    let finite = any_unseen(&HEAD_DIMS, 500).prop_filter("finite", |unseen| unseen.value.is_finite());
    passes(check_cases(cases(60), &finite, |unseen| {
        unseen::changes_nothing(unseen, |problem, [q, k, v]| {
            let options = Options { window: problem.window, ..Options::default() };
            Ok(attention(Device::Cpu, q, k, v, &options)?.o)
        })
    }));
}

#[test]
fn normal_values_are_normal_and_differ_along_every_axis() {
    let shape = Shape::new(3, 5, 64, 64).unwrap();
    let t = Values::Normal.tensor(DType::F32, TensorLayout::bhnd(shape), 7).unwrap();
    let dense = t.dense_f64();
    let n = dense.len() as f64;
    let mean = dense.iter().sum::<f64>() / n;
    let variance = dense.iter().map(|x| x * x).sum::<f64>() / n;
    assert!(mean.abs() < 5.0 / n.sqrt() && (variance - 1.0).abs() < 10.0 / n.sqrt(), "{mean} {variance}");
    let first = t.get(0, 0, 0, 0);
    assert!([t.get(1, 0, 0, 0), t.get(0, 1, 0, 0), t.get(0, 0, 1, 0), t.get(0, 0, 0, 1)].iter().all(|&x| x != first));
}

#[test]
fn all_kinds_are_finite_in_all_types() {
    let shape = Shape::new(1, 2, 130, 32).unwrap();
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for kind in Values::ALL {
            kind.tensor(dtype, TensorLayout::bhnd(shape), 1).unwrap().check_finite("x").unwrap();
        }
    }
}

#[test]
fn results_without_a_number_or_of_another_length_are_not_within_bounds() {
    let within = |got: &[f64], want: &[f64]| properties::within("o", got, want, &vec![f64::INFINITY; want.len()], 1);
    assert!(within(&[1.0, 2.0], &[1.0, 3.0]).is_ok());
    assert!(within(&[1.0, f64::NAN], &[1.0, 3.0]).is_err());
    assert!(within(&[1.0], &[1.0, 3.0]).is_err() && within(&[1.0, 3.0, 3.0], &[1.0, 3.0]).is_err());
}

#[test]
fn the_largest_number_stands_for_what_the_type_cannot_hold() {
    let layout = TensorLayout::bhnd(Shape::new(1, 1, 1, 5).unwrap());
    let [plus, minus] = [65504.0, -65504.0];
    let got = [plus, minus, minus, plus, f32::INFINITY];
    let o = HostTensor::from_fn(DType::F16, layout, |_, _, _, d| got[d]).unwrap();
    let (want, bound) = ([7e4, 7e4, 7e4, 6e4, 7e4], [1.0, 1.0, 2e5, 1.0, 1.0]);
    assert_eq!(properties::representable(&o, &want, &bound), [7e4, -65504.0, 7e4, 65504.0, f64::INFINITY]);
}
