//! Floating-point arithmetic.

use crate::harness::{check, mixed, run_one};
use half::{bf16, f16};

const NAN: u32 = 0x7fff_ffff;

fn floats(seed: u32) -> [u32; 32] {
    const CORNERS: [f32; 10] =
        [0.0, -0.0, 1.0, -1.5, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, f32::MAX, f32::MIN_POSITIVE];
    let random = mixed(seed);
    std::array::from_fn(|lane| match lane {
        0..10 => CORNERS[(lane + seed as usize) % 10].to_bits(),
        10..20 => f32::to_bits(random[lane] as i32 as f32 / 65_536.0),
        _ => random[lane] | (lane as u32 * 7 + seed) << 24,
    })
}

fn inputs() -> [[u32; 32]; 3] {
    [floats(1), floats(4), floats(8)]
}

fn canonical(x: f32) -> u32 {
    if x.is_nan() { NAN } else { x.to_bits() }
}

#[test]
fn single_precision() {
    let f = f32::from_bits;
    check("add.rn.f32 %d, %a, %b;", inputs(), |a, b, _| canonical(f(a) + f(b)));
    check("sub.f32 %d, %a, %b;", inputs(), |a, b, _| canonical(f(a) - f(b)));
    check("mul.rn.f32 %d, %a, %b;", inputs(), |a, b, _| canonical(f(a) * f(b)));
    check("div.rn.f32 %d, %a, %b;", inputs(), |a, b, _| canonical(f(a) / f(b)));
    check("fma.rn.f32 %d, %a, %b, %c;", inputs(), |a, b, c| canonical(f(a).mul_add(f(b), f(c))));
    check("sqrt.rn.f32 %d, %a;", inputs(), |a, _, _| canonical(f(a).sqrt()));
    check("rcp.rn.f32 %d, %a;", inputs(), |a, _, _| canonical(1.0 / f(a)));
    check("neg.f32 %d, %a;", inputs(), |a, _, _| a ^ 0x8000_0000);
    check("abs.f32 %d, %a;", inputs(), |a, _, _| a & 0x7fff_ffff);
    let flush = |x: f32| if x.is_subnormal() { 0_f32.copysign(x) } else { x };
    check("add.rn.ftz.f32 %d, %a, %b;", inputs(), |a, b, _| canonical(flush(flush(f(a)) + flush(f(b)))));
    check("mul.rn.ftz.f32 %d, %a, %b;", inputs(), |a, b, _| canonical(flush(flush(f(a)) * flush(f(b)))));
    let clamped = |x: f32| if x > 0.0 { x.min(1.0) } else { 0.0 };
    check("add.rn.sat.f32 %d, %a, %b;", inputs(), |a, b, _| clamped(f(a) + f(b)).to_bits());
}

#[test]
fn extremes() {
    let f = f32::from_bits;
    check("min.f32 %d, %a, %b;", inputs(), |a, b, _| match (f(a).is_nan(), f(b).is_nan()) {
        (true, true) => NAN,
        (true, false) => b,
        (false, true) => a,
        _ if f(a) == 0.0 && f(b) == 0.0 => a | b,
        _ => f(a).min(f(b)).to_bits(),
    });
    assert_eq!(run_one("max.f32 %d, %a, %b;", [0x8000_0000, 0, 0]), 0);
    assert_eq!(run_one("min.f32 %d, %a, %b;", [0, 0x8000_0000, 0]), 0x8000_0000);
    let one_nan = [f32::NAN.to_bits(), 0, 0];
    assert_eq!(run_one("max.NaN.f32 %d, %a, %b;", one_nan), NAN);
    assert_eq!(run_one("max.f32 %d, %a, %b;", one_nan), 0);
}

#[test]
fn approximations_are_the_exact_value_rounded() {
    for i in 0..40 {
        let values: [u32; 32] = std::array::from_fn(|lane| f32::to_bits((lane as f32 - 15.7) * 0.37_f32.powi(i - 12)));
        let f = f32::from_bits;
        check("ex2.approx.f32 %d, %a;", [values; 3], |a, _, _| (f64::from(f(a)).exp2() as f32).to_bits());
        check("rcp.approx.f32 %d, %a;", [values; 3], |a, _, _| (1.0 / f(a)).to_bits());
        check("tanh.approx.f32 %d, %a;", [values; 3], |a, _, _| (f64::from(f(a)).tanh() as f32).to_bits());
    }
    let special = |op: &str, x: f32| f32::from_bits(run_one(&format!("{op} %d, %a;"), [x.to_bits(), 0, 0]));
    assert_eq!(special("ex2.approx.ftz.f32", f32::NEG_INFINITY), 0.0);
    assert_eq!(special("ex2.approx.ftz.f32", f32::INFINITY), f32::INFINITY);
    assert_eq!(special("ex2.approx.ftz.f32", -127.0), 0.0);
    assert_eq!(special("ex2.approx.f32", -127.0), 2_f32.powi(-127));
    assert!(special("ex2.approx.ftz.f32", f32::NAN).is_nan());
    assert_eq!(special("tanh.approx.f32", f32::NEG_INFINITY), -1.0);
    assert!(special("tanh.approx.f32", f32::NAN).is_nan());
    assert_eq!(special("lg2.approx.ftz.f32", 8.0), 3.0);
    assert_eq!(special("lg2.approx.f32", 0.0), f32::NEG_INFINITY);
    assert_eq!(special("rcp.approx.ftz.f32", 0.0), f32::INFINITY);
}

#[test]
fn comparisons_with_nan() {
    let holds = |relation: &str, a: f32, b: f32| {
        let body = format!("setp.{relation}.f32 %p0, %a, %b; selp.b32 %d, 1, 0, %p0;");
        run_one(&body, [a.to_bits(), b.to_bits(), 0]) == 1
    };
    assert!(holds("lt", 1.0, 2.0) && !holds("lt", 2.0, 1.0) && !holds("lt", f32::NAN, 1.0));
    assert!(holds("ltu", 1.0, 2.0) && !holds("ltu", 2.0, 1.0) && holds("ltu", f32::NAN, 1.0));
    assert!(holds("ne", 1.0, 2.0) && !holds("ne", f32::NAN, 2.0) && holds("neu", f32::NAN, 2.0));
    assert!(holds("num", 1.0, 2.0) && !holds("num", f32::NAN, 2.0) && holds("nan", f32::NAN, 2.0));
    assert!(holds("geu", 2.0, 2.0) && holds("leu", 2.0, 2.0) && holds("equ", f32::NAN, 2.0));
}

/// Pairs of halves that meet at rounding boundaries.
fn halves(seed: u32) -> [u32; 32] {
    mixed(seed).map(|word| word.wrapping_mul(0x9e37_79b1) & 0xbfff_bfff)
}

#[test]
fn half_precision_pairs() {
    let inputs = [halves(1), halves(2), halves(3)];
    let pair = |f: &dyn Fn(f64, f64, f64) -> f64, words: [u32; 3]| {
        (0..2).fold(0, |out, part| {
            let [a, b, c] = words.map(|word| f16::from_bits((word >> (16 * part)) as u16).to_f64());
            let result = f(a, b, c);
            // One rounding: by way of f32 when that is exact, which sums of two halves are.
            out | u32::from(f16::from_f32(result as f32).to_bits()) << (16 * part)
        })
    };
    check("add.rn.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a + b, [a, b, c]));
    check("mul.rn.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a * b, [a, b, c]));
    check("max.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a.max(b), [a, b, c]));
    check("add.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a + b, [a, b, c]));
    check("sub.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a - b, [a, b, c]));
    check("sub.rn.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a - b, [a, b, c]));
    check("min.f16x2 %d, %a, %b;", inputs, |a, b, c| pair(&|a, b, _| a.min(b), [a, b, c]));
    check("tanh.approx.f16x2 %d, %a;", inputs, |a, b, c| pair(&|a, _, _| a.tanh(), [a, b, c]));
    check("neg.f16x2 %d, %a;", inputs, |a, _, _| a ^ 0x8000_8000);
    check("abs.f16x2 %d, %a;", inputs, |a, _, _| a & 0x7fff_7fff);
    let one = f16::from_f32(1.0).to_bits();
    let fma = |a: u16, b: u16, c: u16| {
        let body = "mov.b32 {%h0, _}, %a; mov.b32 {%h1, _}, %b; mov.b32 {%h2, _}, %c;
                    fma.rn.f16 %h3, %h0, %h1, %h2; cvt.u32.u16 %d, %h3;";
        run_one(body, [a.into(), b.into(), c.into()]) as u16
    };
    // 1 + (1 + 2^-10)^2 needs the product whole: 2 + 2^-9 + 2^-20 lies just above a tie.
    assert_eq!(fma(one + 1, one + 1, one), f16::from_f32(2.0).to_bits() + 1);
    assert_eq!(fma(0x7bff, one * 2, 0), 0x7c00);
}

#[test]
fn exponentials_of_pairs() {
    let values = mixed(9).map(|word| {
        let x = |word: u32| f16::from_f32((word % 4096) as f32 / 256.0 - 12.0).to_bits();
        u32::from(x(word)) | u32::from(x(word >> 12)) << 16
    });
    check("ex2.approx.f16x2 %d, %a;", [values; 3], |a, _, _| {
        let one = |bits: u32| f16::from_f32(f16::from_bits(bits as u16).to_f64().exp2() as f32).to_bits();
        u32::from(one(a)) | u32::from(one(a >> 16)) << 16
    });
    let bf = |x: f32| u32::from(bf16::from_f32(x).to_bits()) * 0x1_0001;
    assert_eq!(run_one("fma.rn.bf16x2 %d, %a, %b, %c;", [bf(1.5), bf(-2.0), bf(0.25)]), bf(-2.75));
}

#[test]
fn double_precision() {
    let body = "cvt.f64.f32 %l0, %a; cvt.f64.f32 %l1, %b; fma.rn.f64 %l2, %l0, %l1, %l0; cvt.rn.f32.f64 %d, %l2;";
    let f = f32::from_bits;
    check(body, [floats(2), floats(5), floats(9)], |a, b, _| {
        let (a, b) = (f64::from(f(a)), f64::from(f(b)));
        canonical(a.mul_add(b, a) as f32)
    });
}
