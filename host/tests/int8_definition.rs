//! `reference::int8` against docs/kernel-abi.md written down once more, one score at a time and with no thought of speed:
//! float16 operations in exact integers, packed operands read where the layouts put them.

use half::f16;
use int_flash_attention::reference::{first_excess, gpu_bounds, int8, quantize};
use int_flash_attention::{AttentionProblem, DType, HostQuantized, HostTensor, Scheme, Shape, TensorLayout, Window};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, k_offset, kv_blocks, v_offset};

/// A float16 in units of 2^-24.
fn units(x: f16) -> i128 {
    let magnitude = i128::from(x.to_bits() & 0x7fff);
    let (exponent, fraction) = (magnitude >> 10, magnitude & 0x3ff);
    assert!(exponent < 31, "not finite");
    let value = if exponent == 0 { fraction } else { (fraction | 0x400) << (exponent - 1) };
    if x.is_sign_negative() { -value } else { value }
}

/// The float16 nearest to `x * 2^-48`, ties to even, by trying all.
fn nearest(x: i128) -> f16 {
    let distance = |bits: u16| ((units(f16::from_bits(bits)) << 24) - x.abs()).abs();
    let (mut low, mut high) = (0_u16, 0x7bff_u16);
    while high - low > 1 {
        let middle = low.midpoint(high);
        if units(f16::from_bits(middle)) << 24 <= x.abs() { low = middle } else { high = middle }
    }
    let best = match distance(low).cmp(&distance(high)) {
        std::cmp::Ordering::Less => low,
        std::cmp::Ordering::Greater => high,
        std::cmp::Ordering::Equal => low + low % 2,
    };
    f16::from_bits(if x < 0 { best | 0x8000 } else { best })
}

/// `fma_f16(a, b, c)`, rounded once.
fn fma_f16(a: f16, b: f16, c: f16) -> f16 {
    nearest(units(a) * units(b) + (units(c) << 24))
}

/// The least float16 that is not below `x`.
fn round_up(x: f32) -> f16 {
    let key = |bits: u16| if bits & 0x8000 == 0 { 0x8000 | bits } else { !bits };
    let finite = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).map(|bits| (key(bits), f16::from_bits(bits)));
    finite.filter(|(_, value)| value.to_f32() >= x).min_by_key(|(key, _)| *key).unwrap().1
}

/// The operands of a head, by token and channel.
struct Head<'a> {
    operands: &'a HostQuantized,
    d: usize,
    q: usize,
    kv: usize,
}

impl Head<'_> {
    fn block(&self, data: &[i8], key: usize) -> usize {
        assert_eq!(data.len() % block_bytes(self.d), 0);
        (self.kv * kv_blocks(self.operands.k.shape.seqlen) + key / KV_BLOCK) * block_bytes(self.d)
    }

    fn score(&self, row: usize, key: usize) -> i32 {
        let (q, k) = (&self.operands.q, &self.operands.k.data);
        let q = &q.data[(self.q * q.shape.seqlen + row) * self.d..][..self.d];
        let at = self.block(k, key);
        (0..self.d).map(|dim| i32::from(q[dim]) * i32::from(k[at + k_offset(key % KV_BLOCK, dim)])).sum()
    }

    /// A byte of V: a code and 128.
    fn value(&self, key: usize, dim: usize) -> f64 {
        let v = &self.operands.v.data;
        (v[self.block(v, key) + v_offset(key % KV_BLOCK, dim, self.d)] as u8).into()
    }

    fn k_scale(&self, key: usize) -> f32 {
        self.operands.k.scale[self.kv * kv_blocks(self.operands.k.shape.seqlen) * KV_BLOCK + key]
    }

    fn v_scale(&self, key: usize) -> f32 {
        self.operands.v.scale[self.kv * kv_blocks(self.operands.k.shape.seqlen) * KV_BLOCK + key]
    }

    /// The largest scale of a block's keys, and the scale that its values share.
    fn block_scales(&self, block: usize) -> (f32, f32) {
        let at = self.kv * kv_blocks(self.operands.k.shape.seqlen) + block;
        (self.operands.k.block_scale[at], self.operands.v.block_scale[at])
    }
}

/// What computes: exactly, or as badly as a GPU may (PTX ISA, "ex2": 2^-9.9 in float16 and 2^-22 in float32).
struct Machine {
    gpu: bool,
    state: u64,
}

impl Machine {
    /// `2^x` for float16, before it is rounded: with that rounding the error is within the instruction's.
    fn ex2_f16(&mut self, x: f16) -> f64 {
        f64::from(x).exp2() * (1.0 + self.noise() * ((-9.9_f64).exp2() - (-11_f64).exp2()))
    }

    fn ex2_f32(&mut self, x: f32) -> f64 {
        f64::from((f64::from(x).exp2() * (1.0 + self.noise() * (-22_f64).exp2())) as f32)
    }

    /// A sum, which a GPU keeps in float32.
    fn sum(&self, x: f64) -> f64 {
        if self.gpu { f64::from(x as f32) } else { x }
    }

    /// -1 or 1, or 0 without errors.
    fn noise(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match (self.gpu, self.state >> 63) {
            (false, _) => 0.0,
            (true, 0) => -1.0,
            (true, _) => 1.0,
        }
    }
}

/// What a block gives its row.
struct Block {
    codes: Vec<f64>,
    /// Its share of the row sum.
    sum: f64,
    exponent: f64,
    /// What its sums of P V are multiplied with.
    value: f64,
}

/// The code of an exponent argument.
fn code(machine: &mut Machine, x: f16) -> f64 {
    let e = nearest((machine.ex2_f16(x) * 2_f64.powi(48)).round() as i128);
    f64::from(fma_f16(e, f16::from_f32(255.0), f16::from_f32(1024.0)).to_bits() & 0xff)
}

fn default_block(
    machine: &mut Machine,
    p: &AttentionProblem,
    head: &Head<'_>,
    row: usize,
    keys: std::ops::Range<usize>,
) -> Block {
    // 96 = 3 * 32; the others are powers of two.
    let rotation = if p.head_dim == 96 { 32 } else { p.head_dim };
    let c = p.scale() * std::f32::consts::LOG2_E / rotation as f32;
    let unit = 1.0 / 256.0_f32;
    let q_scale = head.operands.q.scale[head.q * p.seqlen_q + row];
    let (k_largest, v_shared) = head.block_scales(keys.start / KV_BLOCK);
    let in_range = (2_f32.powi(-22)..=128.0).contains(&q_scale);
    let reach = (16129 * p.head_dim) as f32 * c.abs() * q_scale.max(unit);
    let kf = |key| f32::from_bits((head.k_scale(key) * (c * unit)).to_bits() / 4 * 4);
    if !v_shared.is_nan() && in_range && reach * k_largest <= 32768.0 {
        let qs = f16::from_f32(q_scale / unit);
        let score =
            |key| f16::from_f32(((12_582_912 + head.score(row, key)) as f32).mul_add(kf(key), -12_582_912.0 * kf(key)));
        let t: Vec<f16> = keys.map(score).collect();
        let m = round_up(t.iter().map(|t| t.to_f32() * qs.to_f32()).fold(f32::NEG_INFINITY, f32::max));
        let codes: Vec<f64> = t.iter().map(|&t| code(machine, fma_f16(t, qs, -m))).collect();
        return Block { sum: codes.iter().sum(), codes, exponent: m.into(), value: v_shared.into() };
    }
    let log =
        |key| if v_shared.is_nan() { (16.0 * f64::from(head.v_scale(key)).log2()).round() as f32 / 16.0 } else { 0.0 };
    let loudest = keys.clone().map(log).fold(f32::NEG_INFINITY, f32::max);
    let bound = (16129 * p.head_dim) as f32 * c.abs() * unit * k_largest;
    let shrink = if bound > 32768.0 { 2_f32.powi(14 - bound.log2().floor() as i32) } else { 1.0 };
    let t: Vec<f16> = keys.clone().map(|key| f16::from_f32(head.score(row, key) as f32 * (kf(key) * shrink))).collect();
    let largest = t.iter().map(|t| t.to_f32()).fold(f32::NEG_INFINITY, f32::max);
    let x: Vec<f16> = t.iter().map(|t| f16::from_f32((t.to_f32() - largest) * (q_scale / unit / shrink))).collect();
    let y: Vec<f16> = x.iter().zip(keys).map(|(x, key)| f16::from_f32(x.to_f32() + (log(key) - loudest))).collect();
    let sum: f64 = x.iter().map(|&x| machine.ex2_f32(x.to_f32())).sum();
    let shift = y.iter().copied().fold(f16::NEG_INFINITY, f16::max);
    let finite = |y: &f16| y.max(f16::MIN);
    let codes = y.iter().map(|y| code(machine, fma_f16(finite(y), f16::ONE, -shift))).collect();
    let value = if v_shared.is_nan() { f64::from(loudest).exp2() } else { v_shared.into() };
    let exponent = (largest * (q_scale / unit / shrink)).clamp(-1e30, 1e30);
    Block { codes, sum: 255.0 * sum, exponent: exponent.into(), value: f64::from(shift).exp2() * value }
}

/// Output and log-sum-exp of a row.
fn row(machine: &mut Machine, p: &AttentionProblem, head: &Head<'_>, row: usize) -> (Vec<f64>, f64) {
    let (mut acc, mut l, mut reference, mut max) = (vec![0.0; p.head_dim], 0.0, f64::NEG_INFINITY, f32::NEG_INFINITY);
    let mut offset = 0.0;
    let visible = p.visible_keys(row);
    let q_scale = head.operands.q.scale[head.q * p.seqlen_q + row];
    for block in visible.start / KV_BLOCK..visible.end.div_ceil(KV_BLOCK) {
        let keys = visible.start.max(block * KV_BLOCK)..visible.end.min((block + 1) * KV_BLOCK);
        let block = if p.scheme == Scheme::Default {
            default_block(machine, p, head, row, keys.clone())
        } else {
            let c = p.scale() * std::f32::consts::LOG2_E;
            let s: Vec<f32> =
                keys.clone().map(|key| head.score(row, key) as f32 * ((q_scale * c) * head.k_scale(key))).collect();
            max = s.iter().copied().fold(max, f32::max);
            let e: Vec<f64> = s.iter().map(|s| machine.ex2_f32(s - max)).collect();
            let codes = e.iter().map(|e| (127.0 * e).round_ties_even()).collect();
            Block { codes, sum: e.iter().sum(), exponent: max.into(), value: head.v_scale(keys.start).into() }
        };
        if block.exponent > reference {
            let factor = (reference - block.exponent).exp2();
            acc.iter_mut().for_each(|acc| *acc = machine.sum(*acc * factor));
            l = machine.sum(l * factor);
            offset = machine.sum(offset * factor);
            reference = block.exponent;
        }
        let weight = (block.exponent - reference).exp2();
        l = machine.sum(l + weight * block.sum);
        let weight = machine.sum(weight * block.value);
        offset = machine.sum(offset + weight * 128.0 * block.codes.iter().sum::<f64>());
        for (dim, acc) in acc.iter_mut().enumerate() {
            let product: f64 = keys.clone().zip(&block.codes).map(|(key, code)| code * head.value(key, dim)).sum();
            *acc = machine.sum(*acc + weight * product);
        }
    }
    if visible.is_empty() {
        return (acc, f64::NEG_INFINITY);
    }
    let (one, sum_one) = if p.scheme == Scheme::Default { (1.0, 255.0) } else { (127.0, 1.0) };
    let mut o: Vec<f64> = acc.iter().map(|acc| (acc - offset) / (one * l)).collect();
    if p.scheme == Scheme::Default {
        // Rows of the transposed rotation.
        let back = [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]];
        for four in o.chunks_exact_mut(4) {
            let of = four.to_vec();
            for (o, row) in four.iter_mut().zip(back) {
                *o = row.iter().zip(&of).map(|(sign, o)| sign * o).sum::<f64>() / 4.0;
            }
        }
    }
    let bias = head.operands.q.bias.as_ref().map_or(0.0, |bias| f64::from(bias[head.q * p.seqlen_q + row]));
    let lse = std::f64::consts::LN_2 * (reference + (l / sum_one).log2()) + f64::from(p.scale()) * bias;
    (o, lse)
}

/// Problems and operands.
fn cases() -> impl Iterator<Item = (AttentionProblem, HostQuantized)> {
    let cases = [
        (Scheme::Default, 1, 9, 300, 32, Window::CAUSAL, 0.3),
        (Scheme::Default, 2, 3, 129, 96, Window::FULL, -0.2),
        (Scheme::Default, 2, 7, 5, 64, Window::CAUSAL, 40.0),
        (Scheme::Default, 1, 2, 128, 256, Window::FULL, 1e-4),
        (Scheme::Default, 1, 9, 300, 32, Window { left: Some(150), right: Some(2) }, 0.3),
        (Scheme::Default, 1, 5, 300, 64, Window::CAUSAL, 0.2),
        (Scheme::Default, 1, 3, 200, 64, Window::FULL, 1e5),
        (Scheme::Paper, 1, 9, 300, 32, Window::CAUSAL, 0.3),
        (Scheme::Paper, 2, 4, 257, 128, Window::FULL, 0.05),
        (Scheme::Paper, 1, 9, 300, 32, Window { left: Some(150), right: Some(2) }, 0.3),
    ];
    cases.into_iter().enumerate().map(|(index, (scheme, heads_kv, n, n_kv, d, window, scale))| {
        let p = AttentionProblem::new(1, 2, heads_kv, n, n_kv, d).with_window(window).with_scheme(scheme);
        let p = p.with_softmax_scale(scale);
        let tensor = |shape: Shape, seed: usize| {
            let value = move |_, h: usize, n: usize, d: usize| {
                let x = (h * 7919 + n * 104_729 + d * 1_299_709 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                3.0 * (x as f32 / (1 << 23) as f32 - 1.0) + 0.4
            };
            HostTensor::from_fn(DType::F16, TensorLayout::bhnd(shape), value).unwrap()
        };
        let (q, k, mut v) = (tensor(p.q_shape(), 1), tensor(p.kv_shape(), 2), tensor(p.kv_shape(), 3));
        if index % 2 == 1 {
            // Some small values: blocks in which tokens have scales of their own.
            let layout = v.layout();
            let value = |b, h, n, d| v.get(b, h, n, d) * if n % 50 == 0 { 0.03 } else { 1.0 };
            v = HostTensor::from_fn(DType::F16, layout, value).unwrap();
        }
        (p, quantize(&p, &q, &k, &v).unwrap())
    })
}

/// The definition, row by row: outputs and log-sum-exps.
fn define(machine: &mut Machine, p: &AttentionProblem, operands: &HostQuantized) -> (Vec<f64>, Vec<f64>) {
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for q in 0..p.heads_q {
        let head = Head { operands, d: p.head_dim, q, kv: q / p.group() };
        for index in 0..p.seqlen_q {
            let (row_o, row_lse) = row(machine, p, &head, index);
            o.extend(row_o);
            lse.push(row_lse);
        }
    }
    (o, lse)
}

#[test]
fn int8_is_its_definition() {
    for (p, operands) in cases() {
        let got = int8(&p, &operands).unwrap();
        let (o, lse) = define(&mut Machine { gpu: false, state: 0 }, &p, &operands);
        // With one code different this would be off by about 1 / 255 of a step of V.
        assert_eq!(first_excess(&got.o, &o, &vec![1e-9; o.len()]), None, "{p:?}");
        assert_eq!(first_excess(&got.lse, &lse, &vec![1e-9; lse.len()]), None, "{p:?}");
    }
}

#[test]
fn the_worst_gpu_is_within_the_bounds() {
    for (p, operands) in cases() {
        let (want, bounds) = gpu_bounds(&p, &operands, DType::F16).unwrap();
        for state in 0..4 {
            let (o, lse) = define(&mut Machine { gpu: true, state }, &p, &operands);
            let o: Vec<f64> = o.iter().map(|&o| DType::F16.round(o)).collect();
            let lse: Vec<f64> = lse.iter().map(|&lse| f64::from(lse as f32)).collect();
            assert_eq!(first_excess(&o, &want.o, &bounds.o), None, "{p:?}");
            assert_eq!(first_excess(&lse, &want.lse, &bounds.lse), None, "{p:?}");
        }
        let v = operands.v.scale.iter().copied().fold(0.0, f32::max) * 127.0;
        let largest = bounds.o.iter().copied().fold(0.0, f64::max) / f64::from(v);
        println!("{p:?}: {largest:.1e} of V's range");
        assert!(largest < 1e-2, "{p:?}: a bound of {largest:.1e} of V's range");
    }
}
