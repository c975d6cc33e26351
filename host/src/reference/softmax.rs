//! The softmax of one row and one block of keys, in both schemes (docs/kernel-abi.md has the arithmetic).

use super::head::Head;
use crate::round::{
    f16_bits_rn, f16_bits_rp, f16_from_f64, f16_magnitude_bits_coarse, f32_from_f16_bits, round_ties_even,
};
use half::f16;
use int_flash_attention_kernels::layout::KV_BLOCK;
use std::ops::Range;
use std::sync::OnceLock;

/// Largest relative error of `ex2.approx.f16` (PTX ISA, "ex2": 2^-9.9).
pub(super) const EX2_F16_ERROR: f64 = 0.001_046_8;
/// More than the largest relative error of `ex2.approx.ftz.f32` (PTX ISA, "ex2": 2^-22), against the rounded exact value.
const EX2_F32_ERROR: f64 = 1.0 / (1 << 21) as f64;

/// P of a block: codes, and how far each may be off on a GPU (0 or 1; only written where bounds are asked for).
pub(super) struct Codes {
    pub(super) p: [i16; KV_BLOCK],
    pub(super) slack: [i16; KV_BLOCK],
}

/// What a block adds to its row, besides `P V`.
pub(super) struct BlockSums {
    /// The exponent (base 2) of the block's unit.
    pub(super) exponent: f64,
    /// The row sum, and the least and most that it may be on a GPU.
    pub(super) sum: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// A numeric scheme's softmax.
pub(super) trait Softmax {
    /// Of query row `row`.
    fn new(head: &Head<'_>, row: usize) -> Self;

    /// Codes and sums of block `block`, of which the keys `keys` are seen. `BOUNDS`: fill in slack, low and high.
    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums;

    /// What a weight of one is in P, and in the row sum.
    const ONE: (f64, f64);
    /// Whether the weights add to one whatever the codes are.
    const NORMALIZED: bool;
}

/// u8 P scaled by the block's own row maximum, float16 arithmetic.
pub(super) struct BlockMax {
    qs: f32,
    tables: &'static Tables,
}

impl Softmax for BlockMax {
    const ONE: (f64, f64) = (1.0, 255.0);
    const NORMALIZED: bool = true;

    fn new(head: &Head<'_>, row: usize) -> Self {
        // Not below the smallest float16, so that a masked score stays minus infinity.
        let qs = (head.q_scale[row] * (1.0 / head.kappa)).min(1.0).max((-24_f32).exp2());
        Self { qs: f32_from_f16_bits(f16_bits_rn(qs)), tables: tables() }
    }

    #[inline(always)]
    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums {
        let kf = &head.key_factor[block * KV_BLOCK..][..KV_BLOCK];
        let mut t = [0.0_f32; KV_BLOCK];
        for j in 0..KV_BLOCK {
            // A kernel's fma(MAGIC + s, kf, -MAGIC * kf): with kf's 22 bits the last product is exact, and this is it.
            t[j] = f32_from_f16_bits(f16_bits_rn(scores[j] as f32 * kf[j]));
        }
        t[..keys.start].fill(f32::NEG_INFINITY);
        t[keys.end..].fill(f32::NEG_INFINITY);
        let max = t[keys].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let m = f64::from(f32_from_f16_bits(f16_bits_rp(max * self.qs)));

        let mut index = [0_u16; KV_BLOCK];
        for (index, &t) in index.iter_mut().zip(&t) {
            // Exact in float64 where the sum is above -16, and P is 0 below.
            let x = f64::from(t) * f64::from(self.qs) - m;
            *index = f16_magnitude_bits_coarse(x).min(Tables::LAST);
        }
        let (mut sum, mut low, mut high) = (0, 0, 0);
        for (j, &index) in index.iter().enumerate() {
            let [p, p_low, p_high] = self.tables.codes[index as usize];
            codes.p[j] = i16::from(p);
            sum += i32::from(p);
            if BOUNDS {
                codes.slack[j] = i16::from((p - p_low).max(p_high - p));
                low += i32::from(p_low);
                high += i32::from(p_high);
            }
        }
        BlockSums { exponent: m, sum: sum.into(), low: low.into(), high: high.into() }
    }
}

/// P for every float16 exponent argument `x <= 0`, by the bits of `-x`.
struct Tables {
    /// The code; the least and the most that a GPU's `ex2.approx.f16` may make of it.
    codes: Vec<[u8; 3]>,
}

impl Tables {
    /// The bits of 16: from there on P is 0.
    const LAST: u16 = 0x4c00;
}

/// The float16 in `[low, high]` that is nearest to its ends.
fn f16_range(low: f64, high: f64) -> (f64, f64) {
    let up = |x: f64| {
        let nearest = f16_from_f64(x);
        if f64::from(nearest) < x { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
    };
    let down = |x: f64| {
        let nearest = f16_from_f64(x);
        if f64::from(nearest) > x { f16::from_bits(nearest.to_bits() - 1) } else { nearest }
    };
    (up(low).into(), down(high).into())
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        // fma_f16(e, 255, 1024): steps of 1 above 1024, so the low byte is 255 e rounded to nearest even.
        let code = |e: f64| round_ties_even(255.0 * e) as u8;
        let codes = (0..=Tables::LAST).map(|bits| {
            let e = (-f64::from(f16::from_bits(bits))).exp2();
            let (low, high) = f16_range(e * (1.0 - EX2_F16_ERROR), e * (1.0 + EX2_F16_ERROR));
            [code(f16_from_f64(e).into()), code(low), code(high)]
        });
        Tables { codes: codes.collect() }
    })
}

/// int8 P scaled by the running maximum, float32 arithmetic (arXiv 2409.16997, algorithm 1).
pub(super) struct RunningMax {
    row_scale: f32,
    max: f32,
}

impl Softmax for RunningMax {
    const ONE: (f64, f64) = (127.0, 1.0);
    const NORMALIZED: bool = false;

    fn new(head: &Head<'_>, row: usize) -> Self {
        Self { row_scale: head.q_scale[row] * head.c, max: f32::NEG_INFINITY }
    }

    #[inline(always)]
    fn block<const BOUNDS: bool>(
        &mut self,
        head: &Head<'_>,
        block: usize,
        scores: &[i32; KV_BLOCK],
        keys: Range<usize>,
        codes: &mut Codes,
    ) -> BlockSums {
        let k_scale = &head.key_factor[block * KV_BLOCK..][..KV_BLOCK];
        let mut s = [f32::NEG_INFINITY; KV_BLOCK];
        for j in keys.clone() {
            s[j] = scores[j] as f32 * (self.row_scale * k_scale[j]);
            self.max = self.max.max(s[j]);
        }
        let mut sum = 0.0;
        for (j, &s) in s.iter().enumerate() {
            let e = if keys.contains(&j) { f64::from(f64::from(s - self.max).exp2() as f32) } else { 0.0 };
            let p = round_ties_even(127.0 * e);
            codes.p[j] = p as i16;
            sum += e;
            if BOUNDS {
                let low = round_ties_even(127.0 * e * (1.0 - EX2_F32_ERROR));
                let high = round_ties_even(127.0 * e * (1.0 + EX2_F32_ERROR));
                codes.slack[j] = (high - low) as i16;
            }
        }
        BlockSums {
            exponent: self.max.into(),
            sum,
            low: sum * (1.0 - EX2_F32_ERROR),
            high: sum * (1.0 + EX2_F32_ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_code_is_off_by_one_at_most() {
        let codes = &tables().codes;
        assert_eq!((codes[0], codes[Tables::LAST as usize]), ([255; 3], [0; 3]));
        for (bits, &[p, low, high]) in codes.iter().enumerate() {
            assert!(low <= p && p <= high && high - p <= 1 && p - low <= 1, "{bits:#x}: {low} {p} {high}");
        }
        // What the coarse rounding of tiny arguments relies on.
        assert!(codes[..=0x400].iter().all(|&codes| codes == [255; 3]));
    }
}
