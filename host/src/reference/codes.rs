//! Rotations, scales and codes of single tokens (docs/kernel-abi.md, "Quantization").

use int_flash_attention_kernels::layout::{
    MAX_SCALE, MIN_SCALE, OFFSET_TOKENS, V_ROTATION, V_SCALE_FRACTIONS, V_SCALE_STEPS, negative, rotate_v,
    rotate_v_back, rotation,
};

/// The largest INT8 code.
pub(super) const R: f32 = 127.0;

/// Rotates a token of Q or K: signs, then the butterflies of neighbours first.
#[inline(always)]
pub(super) fn rotate(x: &mut [f32]) {
    for (dim, x) in x.iter_mut().enumerate() {
        if negative(dim) {
            *x = -*x;
        }
    }
    butterflies(x);
}

/// Undoes [`rotate`].
pub(super) fn rotate_back(x: &mut [f32]) {
    butterflies(x);
    let factor = 1.0 / rotation(x.len()) as f32;
    for (dim, x) in x.iter_mut().enumerate() {
        *x *= if negative(dim) { -factor } else { factor };
    }
}

#[inline(always)]
fn butterflies(x: &mut [f32]) {
    let size = rotation(x.len());
    let mut half = 1;
    if size >= 8 {
        // The first three of the steps below, in registers.
        for eight in x.as_chunks_mut::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *eight;
            let [a, b, c, d, e, f, g, h] = [a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h];
            let [a, b, c, d, e, f, g, h] = [a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h];
            *eight = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h];
        }
        half = 8;
    }
    while half < size {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Rotates a token of V, four dims at a time.
pub(super) fn rotate_token_of_v(x: &mut [f32]) {
    for four in x.as_chunks_mut::<V_ROTATION>().0 {
        *four = rotate_v(*four);
    }
}

/// Undoes [`rotate_token_of_v`].
pub(super) fn rotate_token_of_v_back(x: &mut [f32]) {
    for four in x.as_chunks_mut::<V_ROTATION>().0 {
        *four = rotate_v_back(*four).map(|x| x * (1.0 / V_ROTATION as f32));
    }
}

/// What is taken out of all tokens of a head of K, `[token][dim]`: in a channel in which its first tokens have one sign, the middle between
/// the smallest and the largest of them, but no more than twice the one next to zero. So no token of them becomes larger in any channel.
pub(super) fn k_offset(head: &[f32], head_dim: usize) -> Vec<f32> {
    let (mut low, mut high) = (vec![f32::INFINITY; head_dim], vec![f32::NEG_INFINITY; head_dim]);
    for token in head.chunks_exact(head_dim).take(OFFSET_TOKENS) {
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(token) {
            (*low, *high) = (low.min(x), high.max(x));
        }
    }
    low.iter().zip(high).map(|(&low, high)| offset(low, high)).collect()
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
            rotate(&mut rx);
            rotate(&mut ry);
            assert!((dot(&rx, &ry) - dot(&x, &y) * rotation(d) as f64).abs() < 1e-3, "{d}");
            rotate_back(&mut rx);
            assert!(rx.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-6), "{d}");
        }
    }

    #[test]
    fn no_first_token_is_larger_without_the_offset() {
        for values in
            [[1.0, 2.0, 9.0], [-3.0, -3.5, -8.0], [-1.0, 2.0, 9.0], [5.0, 5.0, 5.0], [1.0, 2.0, f32::INFINITY]]
        {
            let m = k_offset(&values, 1)[0];
            assert!(values.iter().all(|x| (x - m).abs() <= x.abs()), "{values:?} less {m}");
        }
        assert_eq!(k_offset(&[20.0, 22.0, 19.0], 1), [20.5]);
        assert_eq!(k_offset(&[-1.0, 2.0], 1), [0.0]);
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
