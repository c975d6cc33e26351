//! Conversions and their roundings.

use crate::harness::{check, mixed, run_one};
use half::{bf16, f16};
use proptest::prelude::*;

fn of_float(op: &str, x: f32) -> u32 {
    run_one(&format!("{op} %d, %a;"), [x.to_bits(), 0, 0])
}

#[test]
fn floats_to_integers() {
    let table = [(-2.5, [-2, -2, -3, -2]), (-1.5, [-2, -1, -2, -1]), (0.5, [0, 0, 0, 1]), (1.5, [2, 1, 1, 2])];
    for (x, expected) in table {
        for (rounding, want) in ["rni", "rzi", "rmi", "rpi"].iter().zip(expected) {
            assert_eq!(of_float(&format!("cvt.{rounding}.s32.f32"), x) as i32, want, "{rounding} of {x}");
        }
    }
    assert_eq!(of_float("cvt.rzi.s32.f32", 3e9), i32::MAX as u32);
    assert_eq!(of_float("cvt.rzi.u32.f32", -1.0), 0);
    assert_eq!(of_float("cvt.rzi.u32.f32", 3e9), 3_000_000_000);
    assert_eq!(of_float("cvt.rzi.s32.f32", f32::NAN), 0);
    assert_eq!(of_float("cvt.rni.sat.s8.f32", 200.0) as i32, 127);
    assert_eq!(of_float("cvt.rni.sat.s8.f32", -200.0) as i32, -128);
    assert_eq!(of_float("cvt.rni.sat.u8.f32", 254.5), 254);
    assert_eq!(of_float("cvt.rni.f32.f32", 2.5), 2_f32.to_bits());
}

#[test]
fn integers() {
    let a = [mixed(5); 3];
    check("cvt.s32.s8 %d, %a;", a, |a, _, _| a as i8 as u32);
    check("cvt.u32.u8 %d, %a;", a, |a, _, _| u32::from(a as u8));
    check("cvt.sat.s8.s32 %d, %a;", a, |a, _, _| (a as i32).clamp(-128, 127) as u32);
    check("cvt.sat.u8.s32 %d, %a;", a, |a, _, _| (a as i32).clamp(0, 255) as u32);
    check("cvt.s64.s32 %l0, %a; mov.b64 {_, %d}, %l0;", a, |a, _, _| (a as i32 >> 31) as u32);
    check("cvt.u64.u32 %l0, %a; cvt.s64.s8 %l1, %l0; cvt.u32.u64 %d, %l1;", a, |a, _, _| a as i8 as u32);
    check("cvt.rn.f32.s32 %d, %a;", a, |a, _, _| (a as i32 as f32).to_bits());
    check("cvt.rn.f32.u32 %d, %a;", a, |a, _, _| (a as f32).to_bits());
    check("cvt.rn.f32.u8 %d, %a;", a, |a, _, _| f32::from(a as u8).to_bits());
    let pack = "cvt.pack.sat.s8.s32.b32 %r0, %a, %b, 0; cvt.pack.sat.s8.s32.b32 %d, %c, %a, %r0;";
    assert_eq!(run_one(pack, [300, -5_i32 as u32, 7]), 0x7ffb_077f);
    assert_eq!(run_one("cvt.pack.sat.u16.s32 %d, %a, %b;", [70_000, 5, 0]), 0xffff_0005);
}

#[test]
fn directed_roundings() {
    let x = 1.0 + f32::EPSILON;
    let of = |rounding: &str, x: f32| {
        run_one(&format!("cvt.{rounding}.f16.f32 %h0, %a; cvt.u32.u16 %d, %h0;"), [x.to_bits(), 0, 0])
    };
    assert_eq!([of("rn", x), of("rz", x), of("rm", x), of("rp", x)], [0x3c00, 0x3c00, 0x3c00, 0x3c01]);
    assert_eq!([of("rn", -x), of("rz", -x), of("rm", -x), of("rp", -x)], [0xbc00, 0xbc00, 0xbc01, 0xbc00]);
    assert_eq!([of("rn", 7e4), of("rz", 7e4), of("rm", 7e4), of("rp", 7e4)], [0x7c00, 0x7bff, 0x7bff, 0x7c00]);
    assert_eq!([of("rn", 1e-9), of("rp", 1e-9), of("rm", -1e-9)], [0, 1, 0x8001]);
}

proptest! {
    #[test]
    fn to_half_and_back_as_the_half_crate_does(bits: u32) {
        let x = f32::from_bits(bits);
        prop_assume!(!x.is_nan());
        let down = |ty: &str| {
            let body = format!("cvt.rn.{ty}.f32 %h0, %a; cvt.f32.{ty} %d, %h0;");
            f32::from_bits(run_one(&body, [bits, 0, 0]))
        };
        prop_assert_eq!(down("f16").to_bits(), f16::from_f32(x).to_f32().to_bits());
        prop_assert_eq!(down("bf16").to_bits(), bf16::from_f32(x).to_f32().to_bits());
    }

    #[test]
    fn pairs_put_the_first_operand_above(a in -1e5_f32..1e5, b in -1e5_f32..1e5) {
        let pair = |ty: &str| run_one(&format!("cvt.rn.{ty}.f32 %d, %a, %b;"), [a.to_bits(), b.to_bits(), 0]);
        let (high, low) = (f16::from_f32(a).to_bits(), f16::from_f32(b).to_bits());
        prop_assert_eq!(pair("f16x2"), u32::from(high) << 16 | u32::from(low));
        let (high, low) = (bf16::from_f32(a).to_bits(), bf16::from_f32(b).to_bits());
        prop_assert_eq!(pair("bf16x2"), u32::from(high) << 16 | u32::from(low));
        let relu = run_one("cvt.rn.relu.f16x2.f32 %d, %a, %b;", [(-a.abs()).to_bits(), b.abs().to_bits(), 0]);
        prop_assert_eq!(relu, u32::from(f16::from_f32(b.abs()).to_bits()));
    }
}
