//! Roundings that the GPU does in one instruction and Rust's standard library does not have.

use half::{bf16, f16};

/// `value` as float16, to nearest even, rounded once (`half` drops bits of a float64 that decide ties).
#[inline]
pub(crate) fn f16_from_f64(value: f64) -> f16 {
    f16::from_bits(bits_from_f64::<10, 15>(value))
}

/// `value` as bfloat16, to nearest even, rounded once.
#[inline]
pub(crate) fn bf16_from_f64(value: f64) -> bf16 {
    bf16::from_bits(bits_from_f64::<7, 127>(value))
}

/// A float with `FRACTION` bits of fraction and the exponent bias `BIAS`, in the upper bits of 16.
#[inline]
fn bits_from_f64<const FRACTION: u32, const BIAS: i32>(value: f64) -> u16 {
    let sign = ((value.to_bits() >> 63) as u16) << 15;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7fff;
    }
    // Steps of the result are powers of two, so scaling is exact and one rounding to an integer is the rounding.
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - BIAS);
    let steps = round_ties_even(magnitude * power_of_two(FRACTION as i32 - exponent));
    let infinity = 0x7fff >> FRACTION << FRACTION;
    // A carry out of the fraction moves into the exponent by itself; a subnormal has the exponent field 0.
    let bits = (i64::from(exponent + BIAS - 1) << FRACTION) + steps.min(4096.0) as i64;
    sign | if exponent > BIAS { infinity } else { bits.min(i64::from(infinity)) as u16 }
}

/// `2^exponent`, exact, for exponents of normal float64.
#[inline]
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// To the nearest integer, ties to even, for magnitudes below 2^51 (an addition; `round_ties_even` may be a call).
#[inline]
pub(crate) fn round_ties_even(value: f64) -> f64 {
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    (value + ROUNDER) - ROUNDER
}

/// The float16 bits nearest to `value`, ties to even; branch-free, so that loops of it vectorize.
#[inline(always)]
pub(crate) fn f16_bits_rn(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Normal result: move the exponent's bias, round at bit 13 (a carry goes into the exponent, at the end to infinity).
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    // Subnormal result: adding 0.5 puts the units of 2^-24 into the last bits of the fraction, rounded by the adder.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let special = if magnitude > 0x7f80_0000 { 0x7fff } else { 0x7c00 };
    let result = if magnitude >= 143 << 23 { special } else { finite };
    (sign | result) as u16
}

/// The float16 bits at or above `value`, a float32 whose magnitude is below 65504 (`cvt.rp.f16.f32`).
pub(crate) fn f16_bits_rp(value: f32) -> u16 {
    let nearest = f16::from_bits(f16_bits_rn(value));
    if nearest.to_f32() >= value {
        return nearest.to_bits();
    }
    match nearest.to_bits() {
        0 | 0x8000 => 1,
        negative if negative & 0x8000 != 0 => negative - 1,
        positive => positive + 1,
    }
}

/// Float16 bits as float32, exactly; branch-free, for finite numbers.
#[inline(always)]
pub(crate) fn f32_from_f16_bits(bits: u16) -> f32 {
    let magnitude = f32::from_bits((u32::from(bits) & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
    f32::from_bits(magnitude.to_bits() | (u32::from(bits) & 0x8000) << 16)
}

/// The bits of the float16 nearest to the exact value of `x`, ties to even, for `x <= 0`; exact where the result's
/// magnitude is a normal float16 below 32768. Smaller magnitudes give a result below 2^-14, larger ones one above 16384.
#[inline(always)]
pub(crate) fn f16_magnitude_bits_coarse(x: f64) -> u16 {
    let magnitude = x.to_bits() & 0x7fff_ffff_ffff_ffff;
    let odd = (magnitude >> 42) & 1;
    let rounded = (magnitude + 0x1ff_ffff_ffff + odd) >> 42;
    (rounded as i64 - (1008 << 10)).clamp(0, 0x7800) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbours(bits: u16) -> (f64, f64) {
        (f64::from(f16::from_bits(bits)), f64::from(f16::from_bits(bits + 1)))
    }

    #[test]
    fn f16_from_f64_rounds_at_every_midpoint() {
        for bits in 0..0x7bff_u16 {
            let (low, high) = neighbours(bits);
            let middle = (low + high) / 2.0;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            for sign in [1.0, -1.0] {
                let flag = if sign < 0.0 { 0x8000 } else { 0 };
                assert_eq!(f16_from_f64(sign * low).to_bits(), flag | bits);
                assert_eq!(f16_from_f64(sign * middle).to_bits(), flag | even);
                // Below the last bit of a float32: two roundings would take it for the midpoint.
                assert_eq!(f16_from_f64(sign * middle * (1.0 + 1e-15)).to_bits(), flag | (bits + 1));
                assert_eq!(f16_from_f64(sign * middle * (1.0 - 1e-15)).to_bits(), flag | bits);
            }
        }
        assert_eq!(f16_from_f64(65519.99), f16::MAX);
        assert_eq!(f16_from_f64(65520.0), f16::INFINITY);
        assert_eq!(f16_from_f64(1e300), f16::INFINITY);
        assert!(f16_from_f64(f64::NAN).is_nan());
        assert_eq!(bf16_from_f64(1.0 + 1.0 / 256.0), bf16::ONE);
        assert_eq!(bf16_from_f64(3.0e-39), bf16::from_f32(3.0e-39));
    }

    #[test]
    fn f32_conversions_agree_with_half() {
        for i in 0..1_u32 << 18 {
            let value = f32::from_bits(i.wrapping_mul(16411).wrapping_add(i >> 3));
            if !value.is_nan() {
                assert_eq!(f16_bits_rn(value), f16::from_f32_const(value).to_bits(), "{value:e}");
            }
        }
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            if value.is_finite() {
                assert_eq!(f32_from_f16_bits(bits), value.to_f32());
                assert_eq!(f16_bits_rn(value.to_f32()), bits);
                if value.to_f32().abs() < 32768.0 {
                    let up = value.to_f32() + value.to_f32().abs() * 1e-5 + 1e-12;
                    assert_eq!(f16::from_bits(f16_bits_rp(value.to_f32())), value);
                    assert!(f16::from_bits(f16_bits_rp(up)).to_f32() >= up);
                    assert!(f16::from_bits(f16_bits_rp(up)) > value);
                }
            }
        }
    }

    #[test]
    fn coarse_rounding_is_exact_where_it_says() {
        for bits in 0x400..0x77ff_u16 {
            let (low, high) = neighbours(bits);
            let middle = (low + high) / 2.0;
            assert_eq!(f16_magnitude_bits_coarse(-low), bits);
            assert_eq!(f16_magnitude_bits_coarse(-middle), if bits % 2 == 0 { bits } else { bits + 1 });
            assert_eq!(f16_magnitude_bits_coarse(-middle * (1.0 + 1e-15)), bits + 1);
        }
        assert!(f16_magnitude_bits_coarse(-1e-9) < 0x400 && f16_magnitude_bits_coarse(0.0) == 0);
        assert!(f16_magnitude_bits_coarse(-1e9) > 0x7400);
    }
}
