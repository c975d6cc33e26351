//! What Q, K and V are rotated by, and in which units float16 does it.

use super::HEAD_DIMS;

/// Dims that the rotation of Q and K mixes: the largest power of two that divides the packed head dim.
///
/// The rotation is a Hadamard transform of each so many dims, not normalised: scores of rotated Q and K are this many times the scores.
/// An outlier channel becomes a little of every dim, and a token's scale no longer stands for that channel alone.
#[must_use]
pub const fn rotation(head_dim: usize) -> usize {
    // rust-cuda's code generator miscounts zeros of 64 bits (docs/codegen.md).
    #[cfg(all(target_arch = "nvptx64", feature = "cuda-std"))]
    let head_dim = head_dim as u32;
    1 << head_dim.trailing_zeros()
}

/// From this magnitude of an element, or of what is taken out of K, a float16 token of Q or K is rotated in units of [`LOUD_UNIT`]: sums of
/// smaller ones stay within float16.
#[inline(always)]
#[must_use]
pub const fn loud(head_dim: usize) -> f32 {
    ((1 << 15) / rotation(head_dim)) as f32
}

/// The unit of loud tokens: with it every float16 token's sums stay within float16.
pub const LOUD_UNIT: f32 = 1024.0;
/// The unit of float16 tokens of V, for the same reason.
pub const V_UNIT_16: f32 = 4.0;
/// A scale, in the unit of what is rotated, that float16 has no reciprocal of is taken times [`FAINT_FACTOR`], as what is rotated is.
pub const LEAST_SCALE_16: f32 = 1.0 / (1 << 15) as f32;
/// With it all scales of tokens that are not zero have reciprocals.
pub const FAINT_FACTOR: f32 = (1 << 16) as f32;
/// The largest float16.
pub const MAX_16: f32 = 65_504.0;

/// Dims that change sign before the rotation, a bit each: without, a constant would go into one dim.
/// The fractions of the square roots of the first sixteen primes.
#[rustfmt::skip]
const SIGNS: [u32; SIGN_WORDS] = [
    0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
    0xcbbb_9d5d, 0x629a_292a, 0x9159_015a, 0x152f_ecd8, 0x6733_2667, 0x8eb4_4a87, 0xdb0c_2e0d, 0x47b5_481d,
];

/// Words of the signs of the widest head's dims.
pub(crate) const SIGN_WORDS: usize = HEAD_DIMS[HEAD_DIMS.len() - 1] / 32;

/// Whether dim `dim` of Q and K changes its sign before the rotation.
#[inline(always)]
#[must_use]
pub const fn negative(dim: usize) -> bool {
    signs(dim) >> (dim % 32) & 1 == 1
}

/// [`negative`] of the 32 dims that `dim` is of, a bit each from the lowest.
#[inline(always)]
#[must_use]
pub const fn signs(dim: usize) -> u32 {
    SIGNS[dim / 32]
}

/// Dims that the rotation of V mixes: four neighbours, which one lane has in the end.
pub const V_ROTATION: usize = 4;

/// Four neighbouring dims of V rotated, twice as long as before: a Hadamard transform whose last input has its sign changed, so that
/// a constant stays spread.
#[inline(always)]
#[must_use]
pub fn rotate_v([a, b, c, d]: [f32; V_ROTATION]) -> [f32; V_ROTATION] {
    let ([sum, difference], [sum_cd, difference_cd]) = ([a + b, a - b], [c + d, c - d]);
    [sum + difference_cd, difference + sum_cd, sum - difference_cd, difference - sum_cd]
}

/// The largest magnitude of the first and the third, and of the second and the fourth, that [`rotate_v`] gives.
#[inline(always)]
#[must_use]
pub fn rotated_v_maxima([a, b, c, d]: [f32; V_ROTATION]) -> (f32, f32) {
    ((a + b).abs() + (c - d).abs(), (a - b).abs() + (c + d).abs())
}

/// What [`rotate_v`] was given, four times as large.
#[inline(always)]
#[must_use]
pub fn rotate_v_back([a, b, c, d]: [f32; V_ROTATION]) -> [f32; V_ROTATION] {
    let ([even, even_difference], [odd, odd_difference]) = ([a + c, a - c], [b + d, b - d]);
    [even + odd, even - odd, odd_difference + even_difference, odd_difference - even_difference]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_dims_of_v_come_back_and_a_constant_stays_spread() {
        let x = [1.0, -2.0, 3.0, 5.0];
        assert_eq!(rotate_v_back(rotate_v(x)), x.map(|x| 4.0 * x));
        assert_eq!(rotate_v([1.0; 4]).map(f32::abs), [2.0; 4]);
    }

    #[test]
    fn a_rotation_divides_its_head_dim() {
        assert_eq!(HEAD_DIMS.map(rotation), [32, 64, 32, 128, 256, 512]);
        for first in [0, 256] {
            let negative_dims = (first..first + 256).filter(|&dim| negative(dim)).count();
            assert!((96..160).contains(&negative_dims), "{negative_dims}");
        }
    }
}
