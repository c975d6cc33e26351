//! Floating-point arithmetic.
//!
//! `add`, `sub`, `mul`, `fma` and the `.rn` forms of `div`, `sqrt` and `rcp` round correctly, as on a device. The
//! approximate operations are computed to the last bit or nearly, where PTX only promises a bound: 2 ulp for
//! `div.approx`, `div.full`, 1 ulp for `rcp.approx`, 2^-22 relative for `ex2.approx.f32` (subnormal results
//! included), 2^-22 for `lg2.approx` (absolute from 0.5 to 2, relative elsewhere), 2^-22.9 relative for
//! `rsqrt.approx`, 2^-20.5 absolute for `sin.approx` and `cos.approx`, 2^-11 relative for `tanh.approx.f32`, 2^-10.987
//! absolute for `tanh.approx.f16`, 2^-9.9 for `ex2.approx.f16`, 2^-7 for `ex2.approx.ftz.bf16`. Results may differ from a
//! device's by that much.

use super::half;
use crate::isa::{Float, FloatOp, FloatTy};
use crate::numeric::{NAN_F32, exp2};
use crate::registers::{LANES, Lane, Registers, Slot};

pub(super) fn execute(op: &Float, registers: &mut Registers, mask: u32) {
    match op.ty {
        FloatTy::F32 => single(op, registers, mask),
        FloatTy::F64 => double(op, registers, mask),
        FloatTy::F16 | FloatTy::Bf16 | FloatTy::F16x2 | FloatTy::Bf16x2 => half::execute(op, registers, mask),
    }
}

/// Replaces a subnormal by a zero of its sign.
#[inline(always)]
pub(super) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0_f32.copysign(x) } else { x }
}

/// The bits of a result, with the one NaN that arithmetic returns.
#[inline(always)]
fn canonical(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_F32 } else { bits }
}

#[inline(always)]
pub(super) fn clamp(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// The smaller; of the zeros, the negative one is.
#[inline(always)]
pub(super) fn smaller(a: f32, b: f32, nan: bool) -> f32 {
    let ordered = if a < b { a } else { b };
    let ordered = if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { ordered };
    pick_nan(a, b, nan, ordered)
}

#[inline(always)]
pub(super) fn larger(a: f32, b: f32, nan: bool) -> f32 {
    let ordered = if a > b { a } else { b };
    let ordered = if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { ordered };
    pick_nan(a, b, nan, ordered)
}

#[inline(always)]
fn pick_nan(a: f32, b: f32, nan: bool, ordered: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => ordered,
        (true, true) => f32::NAN,
        _ if nan => f32::NAN,
        (true, false) => b,
        (false, true) => a,
    }
}

fn single(op: &Float, registers: &mut Registers, mask: u32) {
    let Float { d, abc, .. } = *op;
    let [a, b, _] = abc;
    // `f` rounds its result; what is left is flushing, clamping and the one NaN that arithmetic returns.
    macro_rules! one {
        ($f:expr) => {{
            let f = $f;
            match (op.ftz, op.sat) {
                (false, false) => registers.map(mask, d, a, |a: f32| canonical(f(a))),
                (true, false) => registers.map(mask, d, a, |a: f32| canonical(flush(f(flush(a))))),
                (ftz, true) => registers.map(mask, d, a, |a: f32| clamp(f(if ftz { flush(a) } else { a }))),
            }
        }};
    }
    macro_rules! two {
        ($f:expr) => {{
            let f = $f;
            match (op.ftz, op.sat) {
                (false, false) => registers.zip(mask, d, [a, b], |a: f32, b: f32| canonical(f(a, b))),
                (true, false) => {
                    registers.zip(mask, d, [a, b], |a: f32, b: f32| canonical(flush(f(flush(a), flush(b)))));
                }
                (false, true) => registers.zip(mask, d, [a, b], |a: f32, b: f32| clamp(f(a, b))),
                (true, true) => registers.zip(mask, d, [a, b], |a: f32, b: f32| clamp(flush(f(flush(a), flush(b))))),
            }
        }};
    }
    macro_rules! three {
        ($f:expr) => {{
            let f = $f;
            match (op.ftz, op.sat) {
                (false, false) => registers.zip3(mask, d, abc, |a: f32, b: f32, c: f32| canonical(f(a, b, c))),
                (ftz, sat) => registers.zip3(mask, d, abc, |a: f32, b: f32, c: f32| {
                    let r = if ftz { flush(f(flush(a), flush(b), flush(c))) } else { f(a, b, c) };
                    if sat { clamp(r).to_bits() } else { canonical(r) }
                }),
            }
        }};
    }
    match op.op {
        FloatOp::Add => two!(|a: f32, b: f32| a + b),
        FloatOp::Sub => two!(|a: f32, b: f32| a - b),
        FloatOp::Mul => two!(|a: f32, b: f32| a * b),
        FloatOp::Div => two!(|a: f32, b: f32| a / b),
        FloatOp::Min { nan } => two!(|a, b| smaller(a, b, nan)),
        FloatOp::Max { nan } => two!(|a, b| larger(a, b, nan)),
        // The manual has the sign come first.
        FloatOp::CopySign => registers.zip(mask, d, [a, b], |sign: f32, magnitude: f32| magnitude.copysign(sign)),
        FloatOp::Fma => three!(f32::mul_add),
        FloatOp::FmaRelu => three!(|a: f32, b: f32, c: f32| relu(f64::from(a.mul_add(b, c))) as f32),
        FloatOp::Neg if op.ftz => registers.map(mask, d, a, |a: f32| -flush(a)),
        FloatOp::Neg => registers.map(mask, d, a, |a: f32| -a),
        FloatOp::Abs if op.ftz => registers.map(mask, d, a, |a: f32| flush(a).abs()),
        FloatOp::Abs => registers.map(mask, d, a, |a: f32| a.abs()),
        FloatOp::Sqrt => one!(f32::sqrt),
        FloatOp::Rcp => one!(|a: f32| 1.0 / a),
        FloatOp::Ex2 => one!(|a: f32| exp2(a.into()) as f32),
        FloatOp::Rsqrt => one!(|a: f32| (1.0 / f64::from(a).sqrt()) as f32),
        FloatOp::Lg2 => one!(|a: f32| f64::from(a).log2() as f32),
        FloatOp::Sin => one!(|a: f32| f64::from(a).sin() as f32),
        FloatOp::Cos => one!(|a: f32| f64::from(a).cos() as f32),
        FloatOp::Tanh => one!(|a: f32| f64::from(a).tanh() as f32),
    }
}

/// -0 becomes 0 as well (seen on an H200).
fn relu(x: f64) -> f64 {
    if x <= 0.0 { 0.0 } else { x }
}

fn double(op: &Float, registers: &mut Registers, mask: u32) {
    let Float { d, abc, .. } = *op;
    let [a, b, c] = abc.map(|slot| f64::read(registers, slot));
    let out: [f64; LANES] = std::array::from_fn(|i| operate(op.op, a[i], b[i], c[i], f64::mul_add));
    f64::write(registers, d, mask, &out);
}

/// One operation on doubles, with `fma` to stand in for a fused multiply-add.
pub(super) fn operate(op: FloatOp, a: f64, b: f64, c: f64, fma: impl Fn(f64, f64, f64) -> f64) -> f64 {
    let extreme = |nan: bool, ordered: f64| match (a.is_nan(), b.is_nan()) {
        (false, false) => ordered,
        (true, false) if !nan => b,
        (false, true) if !nan => a,
        _ => f64::NAN,
    };
    let below = a < b || (a == b && a.is_sign_negative());
    match op {
        FloatOp::Add => a + b,
        FloatOp::Sub => a - b,
        FloatOp::Mul => a * b,
        FloatOp::Div => a / b,
        FloatOp::Min { nan } => extreme(nan, if below { a } else { b }),
        FloatOp::Max { nan } => extreme(nan, if below { b } else { a }),
        FloatOp::CopySign => b.copysign(a),
        FloatOp::Fma => fma(a, b, c),
        FloatOp::FmaRelu => relu(fma(a, b, c)),
        FloatOp::Neg => -a,
        FloatOp::Abs => a.abs(),
        FloatOp::Sqrt => a.sqrt(),
        FloatOp::Rsqrt => 1.0 / a.sqrt(),
        FloatOp::Rcp => 1.0 / a,
        FloatOp::Ex2 => exp2(a),
        FloatOp::Lg2 => a.log2(),
        FloatOp::Sin => a.sin(),
        FloatOp::Cos => a.cos(),
        FloatOp::Tanh => a.tanh(),
    }
}

/// A register's values as doubles; packed types give their lower part.
pub(super) fn wide_values(registers: &Registers, ty: FloatTy, slot: Slot) -> [f64; LANES] {
    match ty {
        FloatTy::F64 => f64::read(registers, slot),
        FloatTy::F32 => f32::read(registers, slot).map(f64::from),
        _ => registers.narrow(slot).map(|bits| half::format(ty).decode(bits & 0xffff)),
    }
}
