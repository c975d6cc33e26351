//! Arithmetic that Rust has no operator for on the device (PTX ISA 9.7.1 integer, 9.7.3 float, 9.7.4 half).
//!
//! A `u32` named `*2` or `h` holds two float16, the first in the low half.

use core::arch::asm;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident($a:ty) -> $d:ty = $ptx:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name(a: $a) -> $d {
            let d;
            // SAFETY: register arithmetic of the one thread; sm_80 or newer.
            unsafe { asm!(concat!($ptx, " {}, {};"), out(reg32) d, in(reg32) a, options(pure, nomem, nostack)) }
            d
        }
    )*};
}

macro_rules! ternary {
    ($($(#[$doc:meta])* $name:ident($a:ty, $b:ty, $c:ty) -> $d:ty = $ptx:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name(a: $a, b: $b, c: $c) -> $d {
            let d;
            // SAFETY: register arithmetic of the one thread; sm_80 or newer.
            unsafe {
                asm!(concat!($ptx, " {}, {}, {}, {};"), out(reg32) d, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
            }
            d
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident($a:ty, $b:ty) -> $d:ty = $ptx:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name(a: $a, b: $b) -> $d {
            let d;
            // SAFETY: register arithmetic of the one thread; sm_80 or newer.
            unsafe { asm!(concat!($ptx, " {}, {}, {};"), out(reg32) d, in(reg32) a, in(reg32) b, options(pure, nomem, nostack)) }
            d
        }
    )*};
}

unary! {
    /// 2^a; relative error at most 2^-22.5 over the range (PTX ISA 9.7.3, `ex2`), subnormal results flushed to zero.
    ex2_approx_ftz_f32(f32) -> f32 = "ex2.approx.ftz.f32";
    /// 2^a of two float16; relative error at most 2^-9.9 (PTX ISA 9.7.4, `ex2`).
    ex2_approx_f16x2(u32) -> u32 = "ex2.approx.f16x2";
    /// log2(a); absolute error at most 2^-22.6 for a in [0.5, 2], relative 2^-22 elsewhere.
    lg2_approx_ftz_f32(f32) -> f32 = "lg2.approx.ftz.f32";
    /// An integer rounded to float32: exact up to 2^24.
    cvt_rn_f32_s32(i32) -> f32 = "cvt.rn.f32.s32";
    /// Magnitudes of two float16.
    abs_f16x2(u32) -> u32 = "abs.f16x2";
    /// 1/a; at most 1 ulp off.
    rcp_approx_ftz_f32(f32) -> f32 = "rcp.approx.ftz.f32";
}

binary! {
    /// Two float16 from two floats, nearest even; `b` goes to the low half.
    cvt_rn_f16x2_f32(f32, f32) -> u32 = "cvt.rn.f16x2.f32";
    /// Two bfloat16 from two floats, nearest even; `b` goes to the low half.
    cvt_rn_bf16x2_f32(f32, f32) -> u32 = "cvt.rn.bf16x2.f32";
    /// Two float16 from two floats, nearest even, at most the largest finite magnitude; `b` goes to the low half. (PTX ISA 8.1.)
    cvt_rn_satfinite_f16x2_f32(f32, f32) -> u32 = "cvt.rn.satfinite.f16x2.f32";
    /// Two bfloat16 from two floats, nearest even, at most the largest finite magnitude; `b` goes to the low half. (PTX ISA 8.1.)
    cvt_rn_satfinite_bf16x2_f32(f32, f32) -> u32 = "cvt.rn.satfinite.bf16x2.f32";
    /// Sums of float16, rounded to nearest, never contracted.
    add_rn_f16x2(u32, u32) -> u32 = "add.rn.f16x2";
    /// Differences of float16, rounded to nearest, never contracted.
    sub_rn_f16x2(u32, u32) -> u32 = "sub.rn.f16x2";
    /// Products of float16, rounded to nearest, never contracted.
    mul_rn_f16x2(u32, u32) -> u32 = "mul.rn.f16x2";
    /// The larger of each of two float16.
    max_f16x2(u32, u32) -> u32 = "max.f16x2";
    /// The larger of each of two float16; NaN where one is.
    max_nan_f16x2(u32, u32) -> u32 = "max.NaN.f16x2";
    /// The smaller of each of two float16.
    min_f16x2(u32, u32) -> u32 = "min.f16x2";
    /// The larger of each of two bfloat16.
    max_bf16x2(u32, u32) -> u32 = "max.bf16x2";
    /// The smaller of each of two bfloat16.
    min_bf16x2(u32, u32) -> u32 = "min.bf16x2";
    /// The sums of two pairs of 16-bit integers, modulo 2^16. (PTX ISA 8.0, sm_90; with [`max_s16x2`] of the result one instruction.)
    add_s16x2(u32, u32) -> u32 = "add.s16x2";
    /// The larger of each of two signed 16-bit integers. (PTX ISA 8.0, sm_90; of three as fast as of two.)
    max_s16x2(u32, u32) -> u32 = "max.s16x2";
    /// The larger of two integers.
    max_s32(i32, i32) -> i32 = "max.s32";
    /// a, b bits to the left; nothing is left of it from 32 on.
    shl_b32(u32, u32) -> u32 = "shl.b32";
    /// Addition rounded to nearest, never contracted.
    add_rn_f32(f32, f32) -> f32 = "add.rn.f32";
    /// Product rounded to nearest, never contracted.
    mul_rn_f32(f32, f32) -> f32 = "mul.rn.f32";
    /// The larger of two floats; of a number and none, the number.
    max_f32(f32, f32) -> f32 = "max.f32";
    /// The smaller of two floats; of a number and none, the number.
    min_f32(f32, f32) -> f32 = "min.f32";
    /// The larger of two floats; NaN where one is.
    max_nan_f32(f32, f32) -> f32 = "max.NaN.f32";
    /// The smaller of two floats; NaN where one is.
    min_nan_f32(f32, f32) -> f32 = "min.NaN.f32";
}

ternary! {
    /// The sum of the four products of unsigned bytes, plus c.
    dp4a_u32_u32(u32, u32, i32) -> i32 = "dp4a.u32.u32";
    /// a*b + c with one rounding.
    fma_rn_f32(f32, f32, f32) -> f32 = "fma.rn.f32";
    /// a*b + c of two float16, one rounding each.
    fma_rn_f16x2(u32, u32, u32) -> u32 = "fma.rn.f16x2";
    /// a*b + c of two float16, one rounding each, and zero where that is negative.
    fma_rn_relu_f16x2(u32, u32, u32) -> u32 = "fma.rn.relu.f16x2";
    /// a*b + c modulo 2^32.
    mad_lo_u32(u32, u32, u32) -> u32 = "mad.lo.u32";
    /// Byte permutation: byte i of the result is byte `c >> 4i & 7` of the pair (a low, b high).
    prmt(u32, u32, u32) -> u32 = "prmt.b32";
}

/// The low half twice. Of what reads it in float16, ptxas makes a modifier.
#[inline(always)]
#[must_use]
pub fn low_twice(a: u32) -> u32 {
    let d;
    // SAFETY: register arithmetic of the one thread.
    unsafe {
        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; mov.b32 {0}, {{l, l}}; }}", out(reg32) d, in(reg32) a, options(pure, nomem, nostack));
    }
    d
}

/// The high half twice, likewise.
#[inline(always)]
#[must_use]
pub fn high_twice(a: u32) -> u32 {
    let d;
    // SAFETY: register arithmetic of the one thread.
    unsafe {
        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; mov.b32 {0}, {{h, h}}; }}", out(reg32) d, in(reg32) a, options(pure, nomem, nostack));
    }
    d
}

/// A float rounded towards plus infinity to float16, in the low half.
#[inline(always)]
#[must_use]
pub fn cvt_rp_f16_f32(a: f32) -> u32 {
    let d;
    // SAFETY: register arithmetic of the one thread.
    unsafe {
        asm!("{{ .reg .b16 h; cvt.rp.f16.f32 h, {1}; mov.b32 {0}, {{h, h}}; }}", out(reg32) d, in(reg32) a, options(pure, nomem, nostack));
    }
    d
}

/// The float value of the low float16 of `a`.
#[inline(always)]
#[must_use]
pub fn cvt_f32_f16_low(a: u32) -> f32 {
    let d;
    // SAFETY: register arithmetic of the one thread.
    unsafe {
        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; cvt.f32.f16 {0}, l; }}", out(reg32) d, in(reg32) a, options(pure, nomem, nostack));
    }
    d
}

/// The float value of the high float16 of `a`.
#[inline(always)]
#[must_use]
pub fn cvt_f32_f16_high(a: u32) -> f32 {
    let d;
    // SAFETY: register arithmetic of the one thread.
    unsafe {
        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; cvt.f32.f16 {0}, h; }}", out(reg32) d, in(reg32) a, options(pure, nomem, nostack));
    }
    d
}
