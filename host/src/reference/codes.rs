//! Rotations, scales and codes of single tokens (docs/kernel-abi.md, "Quantization").

use crate::dtype::DType;
use crate::problem::Scheme;
use int_flash_attention_kernels::layout::{
    FAINT_FACTOR, LEAST_SCALE_16, LOUD_UNIT, MAX_16, MAX_SCALE, MIN_SCALE, OFFSET_TOKENS, V_ROTATION,
    V_SCALE_FRACTIONS, V_SCALE_STEPS, V_UNIT_16, loud, negative, rotate_v, rotate_v_back, rotation,
};

/// The largest INT8 code.
pub(super) const R: f32 = 127.0;

/// What tokens are rotated in, and their quotients with the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Float32,
    /// Of float16 tensors in the default scheme.
    Float16,
}

impl Arithmetic {
    pub fn of(scheme: Scheme, dtype: DType) -> Self {
        if scheme.rotates() && dtype == DType::F16 { Self::Float16 } else { Self::Float32 }
    }

    /// A number rounded to the type.
    #[inline(always)]
    fn round(self, x: f32) -> f32 {
        if self == Self::Float16 { to_float16(x) } else { x }
    }

    /// Takes `offset` out of a token of Q or K and rotates it: signs, then the butterflies of neighbours first. In what unit the result is.
    #[inline(always)]
    pub fn rotate(self, x: &mut [f32], offset: Option<&[f32]>) -> f32 {
        let mut unit = 1.0;
        if self == Self::Float16 {
            let largest = |x: &[f32]| x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            if largest(x).max(offset.map_or(0.0, largest)) >= loud(x.len()) {
                unit = LOUD_UNIT;
            }
        }
        let factor = 1.0 / unit;
        if unit != 1.0 {
            x.iter_mut().for_each(|x| *x = self.round(*x * factor));
        }
        if let Some(offset) = offset {
            // One rounding of a product and a difference.
            x.iter_mut().zip(offset).for_each(|(x, &offset)| *x = self.round(*x - self.round(offset) * factor));
        }
        negate(x);
        match self {
            Self::Float32 => butterflies::<false>(x),
            Self::Float16 => butterflies::<true>(x),
        }
        unit
    }

    /// Rotates a token of V, four dims at a time. In what unit the result is.
    #[inline(always)]
    pub fn rotate_v(self, x: &mut [f32]) -> f32 {
        for four in x.as_chunks_mut::<V_ROTATION>().0 {
            *four = match self {
                Self::Float32 => rotate_v(*four),
                Self::Float16 => {
                    let [a, b, c, d] = four.map(|x| self.round(x * (1.0 / V_UNIT_16)));
                    let [s, t, u, v] = [a + b, a - b, c - d, c + d].map(|x| self.round(x));
                    [s + u, t + v, s - u, t - v].map(|x| self.round(x))
                }
            };
        }
        if self == Self::Float16 { V_UNIT_16 } else { 1.0 }
    }

    /// Of a scale in the unit of what is rotated, the factors of a quotient, which are taken one after the other.
    #[inline(always)]
    pub fn inverse(self, scale: f32) -> [f32; 2] {
        match self {
            Self::Float32 => [1.0, 1.0 / scale],
            Self::Float16 => {
                let factor = if scale < LEAST_SCALE_16 { FAINT_FACTOR } else { 1.0 };
                let inverse = 1.0 / (scale * factor);
                [factor, if inverse > MAX_16 { MAX_16 } else { to_float16(inverse) }]
            }
        }
    }
}

/// Rounded to float16, of magnitudes that it has. A sum of two float16 numbers may be rounded to float32 before: 24 bits are enough.
#[inline(always)]
fn to_float16(x: f32) -> f32 {
    // Below 2^-14 in steps of 2^-24, which are the last bits of what is near 0.75.
    const STEPS: f32 = 0.75;
    let bits = x.to_bits();
    let rounded = f32::from_bits((bits + 0x0fff + (bits >> 13 & 1)) & !0x1fff);
    if x.abs() < 1.0 / (1 << 14) as f32 { ((x + STEPS) - STEPS).copysign(x) } else { rounded }
}

/// Changes the signs of the dims that the rotation changes.
#[inline(always)]
fn negate(x: &mut [f32]) {
    for (dim, x) in x.iter_mut().enumerate() {
        if negative(dim) {
            *x = -*x;
        }
    }
}

/// Undoes [`Arithmetic::rotate`].
pub(super) fn rotate_back(x: &mut [f32]) {
    butterflies::<false>(x);
    let factor = 1.0 / rotation(x.len()) as f32;
    for (dim, x) in x.iter_mut().enumerate() {
        *x *= if negative(dim) { -factor } else { factor };
    }
}

/// In float16 where `HALF`.
#[inline(always)]
fn butterflies<const HALF: bool>(x: &mut [f32]) {
    let round = |x: f32| if HALF { to_float16(x) } else { x };
    let size = rotation(x.len());
    let mut half = 1;
    if size >= 8 {
        // The first three of the steps below, in registers.
        for eight in x.as_chunks_mut::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *eight;
            let [a, b, c, d, e, f, g, h] = [a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h].map(round);
            let [a, b, c, d, e, f, g, h] = [a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h].map(round);
            *eight = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h].map(round);
        }
        half = 8;
    }
    while half < size {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (round(*a + *b), round(*a - *b));
            }
        }
        half *= 2;
    }
}

/// Undoes [`Arithmetic::rotate_v`].
pub(super) fn rotate_token_of_v_back(x: &mut [f32]) {
    for four in x.as_chunks_mut::<V_ROTATION>().0 {
        *four = rotate_v_back(*four).map(|x| x * (1.0 / V_ROTATION as f32));
    }
}

/// What is taken out of all tokens of a head of K, `[token][dim]`: in a channel in which its first tokens have one sign, the middle between
/// the smallest and the largest of them, but no more than twice the one next to zero. So no token of them becomes larger in any channel.
pub(super) fn k_offset(head: &[f32], head_dim: usize, arithmetic: Arithmetic) -> Vec<f32> {
    let (mut low, mut high) = (vec![f32::INFINITY; head_dim], vec![f32::NEG_INFINITY; head_dim]);
    for token in head.chunks_exact(head_dim).take(OFFSET_TOKENS) {
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(token) {
            (*low, *high) = (low.min(x), high.max(x));
        }
    }
    low.iter().zip(high).map(|(&low, high)| arithmetic.round(offset(low, high))).collect()
}

fn offset(low: f32, high: f32) -> f32 {
    let middle = (low + high) * 0.5;
    if low > 0.0 && low <= high && high < f32::INFINITY {
        middle.min(2.0 * low)
    } else if high < 0.0 && low <= high && low > f32::NEG_INFINITY {
        middle.max(2.0 * high)
    } else {
        0.0
    }
}

/// The largest magnitude, or NaN where an element is not finite.
#[inline(always)]
pub(super) fn amax(x: &[f32]) -> f32 {
    // Bits of magnitudes are in the order of the magnitudes, and loops of integers become vectors.
    let bits = x.iter().fold(0, |most, x| x.abs().to_bits().max(most));
    if bits < f32::INFINITY.to_bits() { f32::from_bits(bits) } else { f32::NAN }
}

/// The scale that maps `amax` to 127, kept where its reciprocal is a normal number. Not to all but 127.5, which would be a smaller step:
/// the rotation of a token with one channel has one magnitude in all dims, and all would be too small.
fn scale(amax: f32) -> f32 {
    (amax / R).clamp(MIN_SCALE, 1.0 / MIN_SCALE)
}

/// The scale of a token of Q or K: 1 for one of zeros.
pub(super) fn token_scale(amax: f32) -> f32 {
    if amax == 0.0 {
        1.0
    } else if amax.is_nan() {
        amax
    } else {
        scale(amax).min(MAX_SCALE)
    }
}

/// The scale of a token of V, or of the tokens of a block or head.
pub(super) fn v_scale(amax: f32) -> f32 {
    scale(amax)
}

/// Rounded up to a fraction of 10 bits.
pub(super) fn round_up_to_10_bits(scale: f32) -> f32 {
    if scale.is_nan() { scale } else { f32::from_bits((scale.to_bits() + 0x1fff) & !0x1fff) }
}

/// Rounded up to a power of `2^(1/16)`.
pub(super) fn round_up_to_step(scale: f32) -> f32 {
    if scale.is_nan() {
        return scale;
    }
    let bits = scale.to_bits();
    let (exponent, fraction) = (bits & 0x7f80_0000, f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000));
    let below = V_SCALE_FRACTIONS.iter().filter(|&&step| step < fraction).count();
    if below == V_SCALE_STEPS {
        f32::from_bits(exponent + 0x0080_0000)
    } else {
        f32::from_bits(exponent | V_SCALE_FRACTIONS[below].to_bits() & 0x007f_ffff)
    }
}

/// The logarithm of what [`round_up_to_step`] gives, exactly.
pub(super) fn log2_of_step(scale: f32) -> f32 {
    (scale.log2() * V_SCALE_STEPS as f32).round() / V_SCALE_STEPS as f32
}

/// `clamp(rne(x * inverse))`, and 0 for what is no number.
#[inline(always)]
pub(super) fn code(x: f32, inverse: f32) -> i8 {
    // 1.5 * 2^23 rounds to nearest even, as the kernels do it; the clamp first keeps the sum in its range.
    const ROUNDER: f32 = 12_582_912.0;
    let steps = (x * inverse).clamp(-R, R) + ROUNDER;
    // The integer is in its last bits; a conversion of floats would not become one of vectors.
    if steps.is_nan() { 0 } else { steps.to_bits() as i8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_come_back_and_scores_are_as_many_times_the_scores() {
        for d in [32, 64, 80, 96, 128, 256] {
            let x: Vec<f32> = (0..d).map(|i| ((i * i) as f32).sin()).collect();
            let y: Vec<f32> = (0..d).map(|i| ((7 * i) as f32).cos() + 1.0).collect();
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum::<f64>();
            let (mut rx, mut ry) = (x.clone(), y.clone());
            Arithmetic::Float32.rotate(&mut rx, None);
            Arithmetic::Float32.rotate(&mut ry, None);
            assert!((dot(&rx, &ry) - dot(&x, &y) * rotation(d) as f64).abs() < 1e-3, "{d}");
            rotate_back(&mut rx);
            assert!(rx.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-6), "{d}");
        }
    }

    #[test]
    fn float16_is_rounded_as_it_is_defined() {
        let near = (0..0x7bff_u16).flat_map(|bits| {
            let [low, high] = [bits, bits + 1].map(|bits| half::f16::from_bits(bits).to_f32());
            let middle = (low + high) / 2.0;
            [low, middle, f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1)]
        });
        for x in near.flat_map(|x| [x, -x]) {
            assert_eq!(to_float16(x).to_bits(), half::f16::from_f32(x).to_f32().to_bits(), "{x:e}");
        }
    }

    #[test]
    fn float16_tokens_of_any_magnitude_are_within_a_step() {
        for d in [32, 64, 96, 128, 256, 512] {
            for magnitude in [6e-8_f32, 1e-6, 1e-3, 1.0, 60.0, 500.0, 3e4, 65504.0] {
                let element = |i: usize| half::f16::from_f32(magnitude * ((i * i) as f32).sin()).to_f32();
                let exact: Vec<f32> = (0..d).map(element).collect();
                let offset: Vec<f32> = (0..d).map(|i| if i % 5 == 0 { -magnitude } else { 0.0 }).collect();
                let offset: Vec<f32> = offset.into_iter().map(to_float16).collect();
                let within = |rotated: &[f32], unit: f32, scale: f32, exact: &[f32]| {
                    let [factor, inverse] = Arithmetic::Float16.inverse(scale / unit);
                    for (x, exact) in rotated.iter().zip(exact) {
                        let steps = f64::from(code(x * factor, inverse)) - f64::from(*exact) / f64::from(scale);
                        assert!(steps.abs() <= 1.0, "{steps} steps of d={d}, {magnitude:e}");
                    }
                };
                let (mut x, mut wide) = (exact.clone(), exact.clone());
                let unit = Arithmetic::Float16.rotate(&mut x, Some(&offset));
                Arithmetic::Float32.rotate(&mut wide, Some(&offset));
                within(&x, unit, token_scale(amax(&x) * unit), &wide);
                let (mut x, mut wide) = (exact.clone(), exact);
                let unit = Arithmetic::Float16.rotate_v(&mut x);
                Arithmetic::Float32.rotate_v(&mut wide);
                // Elements below 2^-12 lose bits.
                if magnitude > 1e-5 {
                    within(&x, unit, v_scale(amax(&x) * unit), &wide);
                }
            }
        }
    }

    #[test]
    fn no_first_token_is_larger_without_the_offset() {
        for values in
            [[1.0, 2.0, 9.0], [-3.0, -3.5, -8.0], [-1.0, 2.0, 9.0], [5.0, 5.0, 5.0], [1.0, 2.0, f32::INFINITY]]
        {
            let m = k_offset(&values, 1, Arithmetic::Float32)[0];
            assert!(values.iter().all(|x| (x - m).abs() <= x.abs()), "{values:?} less {m}");
        }
        assert_eq!(k_offset(&[20.0, 22.0, 19.0], 1, Arithmetic::Float32), [20.5]);
        assert_eq!(k_offset(&[-1.0, 2.0], 1, Arithmetic::Float32), [0.0]);
    }

    #[test]
    fn steps_are_at_or_above_and_close() {
        for i in 0..10_000 {
            let x = (1.0 + i as f32 / 10_000.0) * ((i % 60) as f32 - 30.0).exp2();
            let step = round_up_to_step(x);
            assert!(x <= step && step < x * 1.0443, "{x} {step}");
            assert_eq!(round_up_to_step(step), step);
            let log = f64::from(log2_of_step(step));
            assert!((log.exp2() / f64::from(step) - 1.0).abs() < 1e-7, "{step}");
        }
    }
}
