//! Floating-point formats that Rust does not have, roundings that hardware keeps to itself, and `2^x`.

use crate::isa::Rounding;

/// The NaN that PTX arithmetic on `f32` returns, as bits: Rust keeps no promise about those of an `f32` NaN.
pub(crate) const NAN_F32: u32 = 0x7fff_ffff;

/// A binary floating-point format of up to 32 bits.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
}

/// `.f16`.
pub const F16: Format = Format { exponent_bits: 5, mantissa_bits: 10 };
/// `.bf16`.
pub(crate) const BF16: Format = Format { exponent_bits: 8, mantissa_bits: 7 };
/// `.f32`.
pub(crate) const F32: Format = Format { exponent_bits: 8, mantissa_bits: 23 };

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn sign(self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    fn infinity(self) -> u32 {
        self.sign() - (1 << self.mantissa_bits)
    }

    /// The bits of the smallest number that is not subnormal.
    pub(crate) fn smallest_normal(self) -> u32 {
        1 << self.mantissa_bits
    }

    /// The value of the given bits.
    pub fn decode(self, bits: u32) -> f64 {
        let mantissa = f64::from(bits & ((1 << self.mantissa_bits) - 1));
        let exponent = bits >> self.mantissa_bits & ((1 << self.exponent_bits) - 1);
        let scale = |power: i32| f64::from_bits(((1023 + power) as u64) << 52);
        let magnitude = if exponent == (1 << self.exponent_bits) - 1 {
            if mantissa == 0.0 { f64::INFINITY } else { f64::NAN }
        } else {
            let hidden = if exponent == 0 { 0.0 } else { f64::from(1_u32 << self.mantissa_bits) };
            let power = exponent.max(1) as i32 - self.bias() - self.mantissa_bits as i32;
            (hidden + mantissa) * scale(power)
        };
        if bits & self.sign() != 0 { -magnitude } else { magnitude }
    }

    /// The bits of the nearest number, of two the even one.
    pub fn nearest(self, value: f64) -> u32 {
        self.encode(value, Rounding::Rn)
    }

    /// The bits of the value, rounded once.
    pub(crate) fn encode(self, value: f64, rounding: Rounding) -> u32 {
        if value.is_nan() {
            return self.sign() - 1;
        }
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let magnitude = value.abs();
        if magnitude.is_infinite() {
            return sign | self.infinity();
        }
        let away = match rounding {
            Rounding::Rp => sign == 0,
            Rounding::Rm => sign != 0,
            _ => false,
        };
        let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - self.bias());
        let nearest = !matches!(rounding, Rounding::Rz | Rounding::Rm | Rounding::Rp);
        if exponent > self.bias() {
            return sign | (self.infinity() - u32::from(!nearest && !away));
        }
        let quantum = exponent - self.mantissa_bits as i32;
        let scaled = magnitude * f64::from_bits(((1023 - quantum) as u64) << 52);
        let whole = scaled as u32;
        let rest = scaled - f64::from(whole);
        let up = if nearest { rest > 0.5 || (rest == 0.5 && whole & 1 == 1) } else { away && rest > 0.0 };
        // A carry out of the mantissa moves into the exponent, as it should.
        let steps = ((exponent + self.bias() - 1) as u32) << self.mantissa_bits;
        let bits = steps + whole + u32::from(up);
        let overflow = bits >= self.infinity() && !nearest && !away;
        sign | if overflow { self.infinity() - 1 } else { bits.min(self.infinity()) }
    }
}

/// The value of an `f16`; as [`Format::decode`], for all lanes at once.
#[inline(always)]
pub fn f16_to_f32(bits: u32) -> f32 {
    // Scaling by 2^112 moves the exponent from one bias to the other, subnormals included.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// The `f16` nearest to a value; as `Format::encode`, for all lanes at once.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u32 {
    let bits = x.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // Adding one half makes the last bit of the sum worth 2^-24, an `f16`'s smallest step.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let finite = if magnitude < 113 << 23 { small } else { normal };
    let rounded = if magnitude < 143 << 23 { finite } else { 0x7c00 };
    if magnitude > 0x7f80_0000 { 0x7fff } else { sign | rounded }
}

/// `a + b`, rounded to odd: what is not exact gets a last bit of one, so that rounding again goes the right way.
#[inline(always)]
pub fn add_odd(a: f32, b: f32) -> f32 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    let bits = sum.to_bits();
    let even = bits & 1 == 0;
    let outward = even & if bits >> 31 == 1 { error < 0.0 } else { error > 0.0 };
    let inward = even & if bits >> 31 == 1 { error > 0.0 } else { error < 0.0 };
    f32::from_bits(bits.wrapping_add(outward.into()).wrapping_sub(inward.into()))
}

/// To the nearest integer, ties to even.
#[inline(always)]
pub(crate) fn round_even(x: f64) -> f64 {
    const SHIFT: f64 = (1_u64 << 52) as f64;
    let rounded = (x.abs() + SHIFT) - SHIFT;
    if x.abs() < SHIFT { rounded.copysign(x) } else { x }
}

/// `2^x`, within one part in 2^50 for every `f32`, so that rounding it to `f32` is almost always correct rounding.
#[inline(always)]
pub fn exp2(x: f64) -> f64 {
    // ln(2)^k / k!
    const TERMS: [f64; 14] = [
        1.3691488853904128e-12,
        2.5678435993488206e-11,
        4.4455382718708116e-10,
        7.054911620801123e-09,
        1.01780860092397e-07,
        1.321548679014431e-06,
        1.5252733804059841e-05,
        0.0001540353039338161,
        0.0013333558146428443,
        0.009618129107628477,
        0.05550410866482158,
        0.24022650695910072,
        std::f64::consts::LN_2,
        1.0,
    ];
    const SHIFT: f64 = (3_u64 << 51) as f64;
    let clamped = x.clamp(-1000.0, 1000.0);
    let shifted = clamped + SHIFT;
    let rest = clamped - (shifted - SHIFT);
    let power = shifted.to_bits().wrapping_sub(SHIFT.to_bits());
    let mantissa = TERMS.iter().fold(0.0, |sum, term| sum * rest + term);
    let scaled = f64::from_bits(mantissa.to_bits().wrapping_add(power << 52));
    if x.is_nan() { x } else { scaled }
}
