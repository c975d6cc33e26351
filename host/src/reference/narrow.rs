//! Narrow blocks: scores in 16 bits (docs/kernel-abi.md, "narrow").

use super::head::Head;
use super::softmax::{BlockSums, Codes, Tables, tables};
use crate::round::{f16_bits_rn, f16_from_f64, f16_magnitude_bits_coarse, f32_from_f16_bits, round_ties_even};
use half::f16;
use int_flash_attention_kernels::layout::{
    KV_BLOCK, NARROW_LEAST, NARROW_MOST, NARROW_POLYNOMIAL, NARROW_ROWS, NARROW_STEP, narrow_polynomials, narrow_scale,
};
use std::ops::Range;

/// Units below the largest at which scores end.
const DEPTH: i32 = 1024;

/// A row, and those that take a block with it.
pub(super) struct NarrowRow {
    q_scale: f32,
    /// The least and the largest scale of these rows.
    least: f32,
    most: f32,
}

impl NarrowRow {
    pub(super) fn new(head: &Head<'_>, row: usize) -> Self {
        let first = row / NARROW_ROWS * NARROW_ROWS;
        let rows = &head.q_scale[first..head.q_scale.len().min(first + NARROW_ROWS)];
        // `min` and `max` pass over what is no number.
        let least = rows.iter().copied().map(narrow_scale).fold(f32::INFINITY, f32::min);
        Self { q_scale: head.q_scale[row], least, most: rows.iter().copied().fold(0.0, f32::max) }
    }

    /// The unit of the row's scores of a block, if the block is narrow for it.
    pub(super) fn unit(&self, head: &Head<'_>, block: usize) -> Option<f32> {
        let unit = head.narrow_unit[block];
        let narrow = unit * self.least >= NARROW_LEAST && unit * self.most <= NARROW_MOST;
        (narrow && !head.v_block_scale[block].is_nan()).then_some(self.q_scale * unit)
    }

    #[inline(always)]
    pub(super) fn block<const BOUNDS: bool>(
        &self,
        unit: f32,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums {
        let upper = |j: usize| scores[j] >> NARROW_STEP.log2() as u32;
        let largest = keys.clone().map(upper).fold(i32::MIN, i32::max);
        let factor = f32_from_f16_bits(f16_bits_rn(unit));
        let below = |j: usize| if keys.contains(&j) { (largest - upper(j)).min(DEPTH) } else { DEPTH };
        let (tables, polynomials) = (tables(), narrow_polynomials(head.d));
        let polynomial = |j: usize| polynomials >> (j / 8 % 8) & 1 == 1;
        let index = |j: usize| {
            let x = -f64::from(below(j)) * f64::from(factor);
            usize::from(f16_magnitude_bits_coarse(x).min(Tables::LAST))
        };
        let code = |j: usize| if polynomial(j) { polynomial_code(below(j), factor) } else { tables.p[index(j)] };
        let ends = |j: usize| if polynomial(j) { [code(j); 2] } else { tables.ends[index(j)] };
        let exponent = unit * (largest as f32 + 0.5);
        let sums = codes.fill::<BOUNDS>(code, ends);
        BlockSums::of_codes(exponent.into(), sums, head.v_block_scale[block].into())
    }
}

/// The code of P whose exponential is a polynomial, so many units below the largest: the same on every machine.
fn polynomial_code(below: i32, factor: f32) -> u8 {
    let [c0, c1, c2] = NARROW_POLYNOMIAL.map(|c| f64::from(f16::from_bits(c)));
    let rounded = |x: f64| f64::from(f16_from_f64(x));
    let y = rounded((10.0 - f64::from(below) * f64::from(factor)).max(0.0));
    let integer = rounded(y + 1536.0) - 1536.0;
    let f = rounded(y - integer);
    let e = rounded(rounded(f * c2 + c1) * f + c0) * integer.exp2();
    round_ties_even(255.0 * e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows from the polynomial's error (0.24 %) and from the step of its argument (2^-7, half of which moves a weight by 0.27 %): at
    /// most a code from that of the exact exponential, 255 at the largest score and 0 where scores end.
    #[test]
    fn polynomials_are_within_a_code_of_the_exponential() {
        let ends = [NARROW_LEAST, 0.0121, 0.02, 0.0333, 0.1, NARROW_MOST];
        for factor in ends.map(|factor| f32_from_f16_bits(f16_bits_rn(factor))) {
            assert_eq!((polynomial_code(0, factor), polynomial_code(DEPTH, factor)), (255, 0), "{factor}");
            for below in 0..=DEPTH {
                let exact = 255.0 * (-f64::from(below) * f64::from(factor)).exp2();
                let code = f64::from(polynomial_code(below, factor));
                assert!((code - exact).abs() <= 0.5 + exact * 0.0054, "{below} of {factor}: {code} {exact}");
            }
        }
    }

    #[test]
    fn scores_end_where_weights_are_zero() {
        let bits = f16_bits_rn(NARROW_LEAST * DEPTH as f32);
        assert_eq!((tables().p[usize::from(bits)], tables().ends[usize::from(bits)]), (0, [0; 2]));
        assert_eq!(f32_from_f16_bits(f16_bits_rn(NARROW_LEAST)), NARROW_LEAST);
    }
}
