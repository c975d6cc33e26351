//! Scales from largest magnitudes (docs/kernel-abi.md, "Quantization").

use crate::layout::{MAX_SCALE, MIN_SCALE, V_SCALE_FRACTIONS, V_SCALE_STEPS, V_UNIT_SCALES};

/// `scale(amax)` of a finite `amax`, with the correctly rounded quotient; `fma` is `a * b + c` with one rounding.
///
/// The quotient by a constant takes three instructions instead of a division's twenty: the product with its reciprocal, corrected
/// by its exact remainder. The tests show it equal to the division for every significand; scaling by a power of two changes
/// nothing while the remainder is exact, which it is wherever the result is above [`MIN_SCALE`].
#[inline(always)]
#[allow(clippy::manual_clamp)] // `clamp` asserts its bounds, and a kernel has no panic
pub(crate) fn scale(amax: f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const INVERSE: f32 = 1.0 / 127.0;
    let estimate = amax * INVERSE;
    let quotient = fma(fma(-127.0, estimate, amax), INVERSE, estimate);
    quotient.max(MIN_SCALE).min(1.0 / MIN_SCALE)
}

/// The scale of a token of Q or K with a finite `amax`: at most [`MAX_SCALE`], and 1 for one of zeros.
#[inline(always)]
pub(crate) fn token_scale(amax: f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let scale = scale(amax, fma).min(MAX_SCALE);
    if amax == 0.0 { 1.0 } else { scale }
}

/// `1 / scale`, correctly rounded, of a scale from [`scale`]; `approximate` is within one unit in the last place.
///
/// One Newton step with an exact residual: the instructions that ptxas makes of `rcp.rn.f32`, without the branch for
/// numbers whose reciprocal is not normal. The tests show it for every significand and every estimate so close, but for
/// the significand of all ones with an estimate below; the hardware's is above, or `rcp.rn.f32` would be wrong too.
#[inline(always)]
pub(crate) fn reciprocal(scale: f32, approximate: impl Fn(f32) -> f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let estimate = approximate(scale);
    fma(estimate, fma(-scale, estimate, 1.0), estimate)
}

/// The bits of a float's fraction that [`round_up`] clears to leave 10.
pub(crate) const BEYOND_10_BITS: u32 = 0x1fff;

/// The next float up without the low bits `beyond`: with a fraction of 10 bits a scale is exact in float16 once a power of
/// two is taken out.
#[inline(always)]
pub(crate) fn round_up(scale: f32, beyond: u32) -> f32 {
    f32::from_bits((scale.to_bits() + beyond) & !beyond)
}

/// A scale rounded up to a power of `2^(1/16)`.
#[inline(always)]
pub(crate) fn round_up_to_step(scale: f32) -> f32 {
    const FRACTION: u32 = 0x007f_ffff;
    let one = 1.0_f32.to_bits();
    let fraction = f32::from_bits(scale.to_bits() & FRACTION | one);
    let mut up = 2.0_f32;
    unroll!(0..V_SCALE_STEPS, |i| {
        let step = V_SCALE_FRACTIONS[V_SCALE_STEPS - 1 - i];
        up = if fraction <= step { step } else { up };
    });
    // 2 is a fraction of 1 and a carry.
    f32::from_bits((scale.to_bits() & !FRACTION) + (up.to_bits() - one))
}

/// The unit of a head of V whose first block has this largest scale.
#[inline(always)]
pub(crate) fn v_unit(largest: f32) -> f32 {
    let near = largest >= *V_UNIT_SCALES.start() && largest <= *V_UNIT_SCALES.end();
    if largest > MIN_SCALE && !near { f32::from_bits(largest.to_bits() & 0x7f80_0000) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[allow(clippy::manual_clamp)]
    fn by_division(amax: f32) -> f32 {
        (amax / 127.0).max(MIN_SCALE).min(1.0 / MIN_SCALE)
    }

    #[test]
    fn quotient_is_the_division_for_every_significand() {
        for exponent in [127, 14, 253] {
            for significand in 0..1 << 23 {
                let amax = f32::from_bits(exponent << 23 | significand);
                assert_eq!(scale(amax, f32::mul_add).to_bits(), by_division(amax).to_bits(), "{amax:e}");
            }
        }
    }

    #[test]
    fn quotient_is_the_division_for_every_exponent() {
        for exponent in 0..255 {
            for significand in (0..1 << 23).step_by(10007).chain([0, 1, 0x7e_0000, 0x7e_0001, (1 << 23) - 1]) {
                let amax = f32::from_bits(exponent << 23 | significand);
                assert_eq!(scale(amax, f32::mul_add).to_bits(), by_division(amax).to_bits(), "{amax:e}");
            }
        }
        assert_eq!(scale(0.0, f32::mul_add), MIN_SCALE);
        assert_eq!(token_scale(0.0, f32::mul_add), 1.0);
        assert_eq!(token_scale(f32::MAX, f32::mul_add), MAX_SCALE);
    }

    #[test]
    fn reciprocal_is_the_division_for_every_significand_and_estimate() {
        const ALL_ONES: u32 = 0x7f_ffff;
        for significand in 0..1_u32 << 23 {
            let scale = f32::from_bits(127 << 23 | significand);
            let nearest = (1.0 / scale).to_bits();
            let ulp = if significand == 0 { 2f64.powi(-23) } else { 2f64.powi(-24) };
            for steps in [-1, 0, 1] {
                let estimate = f32::from_bits(nearest.wrapping_add_signed(steps));
                // |estimate - 1/scale| <= ulp, times scale; the product is exact
                let close = (f64::from(estimate) * f64::from(scale) - 1.0).abs() <= ulp * f64::from(scale);
                if close && (significand, steps) != (ALL_ONES, -1) {
                    assert_eq!(reciprocal(scale, |_| estimate, f32::mul_add), 1.0 / scale, "{scale:e}, {steps}");
                }
            }
        }
    }

    #[test]
    fn rounding_up_leaves_10_bits() {
        for bits in (MIN_SCALE.to_bits()..=(1.0 / MIN_SCALE).to_bits()).step_by(4099) {
            let (x, up) = (f32::from_bits(bits), round_up(f32::from_bits(bits), BEYOND_10_BITS));
            assert!(up >= x && up.to_bits() - bits < 0x2000 && up.to_bits() & 0x1fff == 0);
            assert_eq!(round_up(x, 0), x);
        }
    }

    #[test]
    fn steps_are_the_next_at_or_above() {
        let steps = |exponent: i32| V_SCALE_FRACTIONS.map(|step| step * (exponent as f32).exp2());
        for bits in (MIN_SCALE.to_bits()..=(1.0 / MIN_SCALE).to_bits()).step_by(4099).chain([1.0_f32.to_bits()]) {
            let x = f32::from_bits(bits);
            let exponent = (bits >> 23) as i32 - 127;
            let next = steps(exponent).into_iter().chain(steps(exponent + 1)).find(|&step| step >= x);
            assert_eq!(Some(round_up_to_step(x)), next, "{x:e}");
            assert_eq!(round_up_to_step(round_up_to_step(x)), round_up_to_step(x));
        }
    }

    #[test]
    fn units_are_powers_of_two_near_scales_that_need_one() {
        for (largest, unit) in [
            (0.0, 1.0),
            (MIN_SCALE, 1.0),
            (3.0, 1.0),
            (1.5 * 2f32.powi(50), 2f32.powi(50)),
            (2f32.powi(-60), 2f32.powi(-60)),
        ] {
            assert_eq!(v_unit(largest), unit);
        }
    }
}
