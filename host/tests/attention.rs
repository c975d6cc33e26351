//! `attention` on host tensors: layouts, types, heads, and what is refused.

use int_flash_attention::reference::{self, compare, first_excess};
use int_flash_attention::{
    AttentionProblem, DType, Device, Error, HostTensor, Options, Order, Progress, Scheme, Shape, TensorLayout, Window,
    attention,
};
use std::sync::atomic::{AtomicU64, Ordering};

fn tensor(dtype: DType, layout: TensorLayout, seed: usize) -> HostTensor {
    let value = |b: usize, h: usize, n: usize, d: usize| {
        let x = (b * 31 + h * 7919 + n * 104_729 + d * 1_299_709 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        2.0 * (x as f32 / (1 << 23) as f32 - 1.0)
    };
    HostTensor::from_fn(dtype, layout, value).unwrap()
}

fn shapes() -> (Shape, Shape) {
    (Shape::new(2, 4, 37, 64).unwrap(), Shape::new(2, 2, 150, 64).unwrap())
}

#[test]
fn layouts_and_types_give_the_same_answer() {
    let (q_shape, kv_shape) = shapes();
    let options = Options { window: Window::CAUSAL, lse: true, ..Options::default() };
    let run = |dtype, layout: &dyn Fn(Shape) -> TensorLayout| {
        let [q, k, v] = [(q_shape, 1), (kv_shape, 2), (kv_shape, 3)].map(|(shape, seed)| {
            let sixteen_bits = tensor(DType::BF16, layout(shape), seed);
            HostTensor::from_fn(dtype, layout(shape), |b, h, n, d| sixteen_bits.get(b, h, n, d)).unwrap()
        });
        attention(Device::Cpu, &q, &k, &v, &options).unwrap()
    };
    let want = run(DType::F32, &|shape| TensorLayout::bhnd(shape));
    let padded = |shape: Shape| {
        let strides = [5 * 1000 * 80, 1000 * 80, 80];
        TensorLayout::strided(shape, strides).unwrap()
    };
    for layout in [&(|shape| TensorLayout::bnhd(shape)) as &dyn Fn(Shape) -> TensorLayout, &padded] {
        let got = run(DType::F32, layout);
        assert_eq!((got.o.dense_f64(), &got.lse), (want.o.dense_f64(), &want.lse));
    }
    assert_eq!(run(DType::F32, &|shape| TensorLayout::bnhd(shape)).o.layout().order(), Some(Order::Bnhd));
    let half = run(DType::BF16, &|shape| TensorLayout::bhnd(shape));
    let rounded: Vec<f64> = want.o.dense_f64().iter().map(|&o| DType::BF16.round(o)).collect();
    assert_eq!((half.o.dtype(), half.o.dense_f64()), (DType::BF16, rounded));
}

#[test]
fn grouped_heads_and_cross_lengths_are_close_to_exact() {
    let (q_shape, kv_shape) = shapes();
    let [q, k, v] =
        [(q_shape, 1), (kv_shape, 2), (kv_shape, 3)].map(|(s, seed)| tensor(DType::F32, TensorLayout::bhnd(s), seed));
    for scheme in [Scheme::Default, Scheme::Paper] {
        for causal in [false, true] {
            let done = AtomicU64::new(0);
            let progress = |p: Progress| {
                assert_eq!(p.total, 2 * 4 * 37);
                done.fetch_max(p.done, Ordering::Relaxed);
            };
            let options = Options {
                window: if causal { Window::CAUSAL } else { Window::FULL },
                scheme,
                lse: true,
                softmax_scale: Some(0.2),
                progress: Some(&progress),
                ..Options::default()
            };
            let got = attention(Device::Cpu, &q, &k, &v, &options).unwrap();
            assert_eq!(done.into_inner(), 2 * 4 * 37);
            let problem = AttentionProblem::of(q_shape, kv_shape, kv_shape).unwrap();
            let problem = problem.with_causal(causal).with_softmax_scale(0.2);
            let problem = problem.with_scheme(scheme);
            let (want, bounds) = reference::exact_bounds(&problem, &q, &k, &v, DType::F32).unwrap();
            let error = compare(&got.o.dense_f64(), &want.o);
            assert!(error.relative_l2 < 0.03 && error.relative_l2 > 1e-4, "{scheme} {causal}: {error:?}");
            let lse: Vec<f64> = got.lse.unwrap().into_iter().map(f64::from).collect();
            assert_eq!(first_excess(&lse, &want.lse, &bounds.lse), None, "{scheme} {causal}");
            assert!(compare(&lse, &want.lse).max_abs < 0.05);
        }
    }
}

#[test]
fn rows_without_keys_are_zero() {
    let (q, kv) = (Shape::new(1, 1, 5, 32).unwrap(), Shape::new(1, 1, 2, 32).unwrap());
    let [q, k, v] = [(q, 1), (kv, 2), (kv, 3)].map(|(s, seed)| tensor(DType::F16, TensorLayout::bhnd(s), seed));
    let options = Options { window: Window::CAUSAL, lse: true, ..Options::default() };
    let got = attention(Device::Cpu, &q, &k, &v, &options).unwrap();
    let lse = got.lse.unwrap();
    for (row, &lse) in lse.iter().take(3).enumerate() {
        assert!((0..32).all(|d| got.o.get(0, 0, row, d) == 0.0) && lse == f32::NEG_INFINITY);
    }
    assert!(lse[3].is_finite());
}

#[test]
fn wrong_input_is_refused() {
    let (q_shape, kv_shape) = shapes();
    let [q, k, v] =
        [(q_shape, 1), (kv_shape, 2), (kv_shape, 3)].map(|(s, seed)| tensor(DType::F16, TensorLayout::bhnd(s), seed));
    let run = |q: &HostTensor, k: &HostTensor, v: &HostTensor| attention(Device::Cpu, q, k, v, &Options::default());
    assert!(matches!(run(&q, &q, &v), Err(Error::ShapeMismatch { name: "v", .. })));
    assert!(matches!(run(&k, &q, &q), Err(Error::HeadGroups { heads_q: 2, heads_kv: 4 })));
    let other = tensor(DType::F32, TensorLayout::bhnd(kv_shape), 2);
    assert!(matches!(run(&q, &other, &v), Err(Error::DTypeMismatch { name: "k", .. })));
    let odd = tensor(DType::F16, TensorLayout::bhnd(Shape::new(1, 1, 3, 44).unwrap()), 1);
    assert!(matches!(run(&odd, &odd, &odd), Err(Error::HeadDim { given: 44, .. })));
    let holed = |b: usize, h, n, d| if (b, h, n, d) == (1, 1, 7, 9) { f32::NAN } else { k.get(b, h, n, d) };
    let holed = HostTensor::from_fn(DType::F16, k.layout(), holed).unwrap();
    assert!(matches!(run(&q, &holed, &v), Err(Error::NotFinite { name: "k", token: 7, dim: 9, .. })));
    let infinite = Options { softmax_scale: Some(f32::INFINITY), ..Options::default() };
    assert!(matches!(attention(Device::Cpu, &q, &k, &v, &infinite), Err(Error::SoftmaxScale { .. })));
}

#[test]
fn devices_have_names() {
    assert_eq!("cuda:3".parse::<Device>().unwrap(), Device::Cuda(3));
    assert_eq!(Device::Cuda(0).to_string().parse::<Device>().unwrap(), Device::Cuda(0));
    assert!(matches!("gpu".parse::<Device>(), Err(Error::Parse { .. })));
    match Device::auto() {
        (Device::Cpu, Some(reason)) => assert!(!reason.to_string().is_empty()),
        (Device::Cuda(0), None) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn large_magnitudes_do_not_break() {
    let shape = Shape::new(1, 1, 130, 32).unwrap();
    for magnitude in [1e-30_f32, 1e-6, 1e4, 1e15, 3e38] {
        for scheme in [Scheme::Default, Scheme::Paper] {
            let x = tensor(DType::F32, TensorLayout::bhnd(shape), 5);
            let scaled = |b, h, n, d| 0.5 * magnitude * x.get(b, h, n, d);
            let x = HostTensor::from_fn(DType::F32, x.layout(), scaled).unwrap();
            match attention(Device::Cpu, &x, &x, &x, &Options { scheme, ..Options::default() }) {
                Ok(got) => assert!(got.o.dense_f64().iter().all(|o| o.is_finite()), "{scheme} {magnitude:e}"),
                // Out of the range of the schemes.
                Err(error) => {
                    assert!(
                        matches!(error, Error::ResultNotFinite { .. }) && magnitude > 1e15,
                        "{magnitude:e}: {error}"
                    );
                }
            }
        }
    }
}
