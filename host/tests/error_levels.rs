//! The error of both schemes against float64 on real and synthetic data, pinned.

use int_flash_attention::reference::{Figures, compare, exact_rows, int8_rows, quantize};
use int_flash_attention::{AttentionProblem, DType, HostTensor, Order, Scheme, Shape, TensorLayout};

/// The INT8 result against float64, on `rows` of every head.
fn error(problem: &AttentionProblem, q: &HostTensor, k: &HostTensor, v: &HostTensor, rows: &[usize]) -> Figures {
    let got = int8_rows(problem, &quantize(problem, q, k, v).unwrap(), rows).unwrap();
    let want = exact_rows(problem, q, k, v, rows).unwrap();
    let lse = compare(&got.lse, &want.lse);
    assert!(lse.relative_l2 < 1e-2, "{lse:?}");
    compare(&got.o, &want.o)
}

fn minilm(layer: usize, scheme: Scheme) -> f64 {
    let path = format!("{}/../tests/data/minilm-layer{layer}-qkv.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        let view = file.tensor(name).unwrap();
        let layout = TensorLayout::from_dims(view.shape(), Order::Bhnd).unwrap();
        HostTensor::from_bytes(DType::F16, view.data(), layout).unwrap()
    });
    let problem = AttentionProblem::of(q.shape(), k.shape(), v.shape()).unwrap().with_scheme(scheme);
    let rows: Vec<usize> = (0..problem.seqlen_q).collect();
    error(&problem, &q, &k, &v, &rows).relative_l2
}

/// Deterministic noise: splitmix64, and normal values from it by Box-Muller.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn synthetic(seqlen: usize, head_dim: usize, scheme: Scheme, mut value: impl FnMut(usize, usize) -> f64) -> f64 {
    let layout = TensorLayout::bhnd(Shape::new(1, 1, seqlen, head_dim).unwrap());
    let [q, k, v] =
        [0, 1, 2].map(|i| HostTensor::from_fn(DType::F16, layout, |_, _, _, dim| value(i, dim) as f32).unwrap());
    let problem = AttentionProblem::new(1, 1, 1, seqlen, seqlen, head_dim).with_scheme(scheme);
    let rows: Vec<usize> = (0..seqlen).step_by(seqlen / 256).collect();
    error(&problem, &q, &k, &v, &rows).relative_l2
}

fn assert_within(what: &str, got: f64, low: f64, high: f64) {
    println!("{what}: {got:.3e} (allowed {low:.2e} to {high:.2e})");
    assert!(low <= got && got <= high, "{what}: relative L2 error {got:.3e}, not within {low:.2e}..{high:.2e}");
}

#[test]
fn minilm_default() {
    assert_within("MiniLM layer 0, default", minilm(0, Scheme::Default), 0.0, 1.0e-2);
    assert_within("MiniLM layer 5, default", minilm(5, Scheme::Default), 0.0, 1.0e-2);
}

#[test]
fn minilm_paper() {
    assert_within("MiniLM layer 0, paper", minilm(0, Scheme::Paper), 0.9 * 1.4e-2, 1.1 * 1.4e-2);
    assert_within("MiniLM layer 5, paper", minilm(5, Scheme::Paper), 0.9 * 2.8e-2, 1.1 * 2.8e-2);
}

#[test]
fn normal() {
    let mut noise = Noise(1);
    let default = synthetic(4096, 128, Scheme::Default, |_, _| noise.normal());
    assert_within("normal N4096 d128, default", default, 1.0e-2, 1.6e-2);
    let mut noise = Noise(1);
    let paper = synthetic(4096, 128, Scheme::Paper, |_, _| noise.normal());
    assert_within("normal N4096 d128, paper", paper, 0.9 * 3.5e-2, 1.1 * 3.5e-2);
}

#[test]
fn uniform() {
    let mut noise = Noise(2);
    let default = synthetic(4096, 128, Scheme::Default, |_, _| noise.uniform() - 0.5);
    assert_within("uniform N4096 d128, default", default, 3.0e-3, 4.2e-3);
    let mut noise = Noise(2);
    let paper = synthetic(4096, 128, Scheme::Paper, |_, _| noise.uniform() - 0.5);
    assert_within("uniform N4096 d128, paper", paper, 0.9 * 4.4e-3, 1.1 * 4.4e-3);
}

/// Four channels of K are far from zero, and so is V: what smoothing and integer row sums are for.
#[test]
fn outlier_channels() {
    let value = |noise: &mut Noise, tensor, dim: usize| {
        noise.normal()
            + match tensor {
                1 if dim % 32 == 5 => 20.0,
                2 => 5.0,
                _ => 0.0,
            }
    };
    let mut noise = Noise(3);
    let default = synthetic(4096, 128, Scheme::Default, |i, dim| value(&mut noise, i, dim));
    let mut noise = Noise(3);
    let paper = synthetic(4096, 128, Scheme::Paper, |i, dim| value(&mut noise, i, dim));
    assert_within("outlier channels N4096 d128, default", default, 0.0, 3.0e-3);
    assert_within("outlier channels N4096 d128, paper", paper, 10.0 * default, 1.0);
}
