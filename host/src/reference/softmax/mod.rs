//! The softmax of one row and one block of keys, in both schemes (docs/kernel-abi.md has the arithmetic).

mod block_max;
mod float_max;
mod running_max;
mod tables;

pub(super) use block_max::BlockMax;
pub(super) use float_max::FloatMax;
pub(super) use running_max::RunningMax;
pub(super) use tables::{Tables, tables};

use super::head::Head;
use int_flash_attention_kernels::layout::KV_BLOCK;
use std::ops::Range;

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
    /// What the block's `P V` is multiplied with, in the block's unit: the scale of V.
    pub(super) value: f64,
    /// Whether the row sum is that of the codes, so that the weights add to one whatever the codes are.
    pub(super) of_codes: bool,
    /// How far the scores may be off on a GPU, in powers of two.
    pub(super) error: f64,
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
    /// Whether the scores have the share of K's offset.
    const BIASED: bool = false;
}

/// The exponent of a block that a row whose scores leave float32 has: any, so large that no other block counts.
const EXPONENT_LIMIT: f32 = 1e30;

impl Codes {
    /// With the code of each key, and the least and the most that it may be; their sums.
    #[inline(always)]
    pub(super) fn fill<const BOUNDS: bool>(
        &mut self,
        code: impl Fn(usize) -> u8,
        ends: impl Fn(usize) -> [u8; 2],
    ) -> [i32; 3] {
        let mut sums = [0; 3];
        for j in 0..KV_BLOCK {
            self.p[j] = i16::from(code(j));
        }
        // A loop of its own, which becomes one of vectors.
        sums[0] = self.p.iter().map(|&p| i32::from(p)).sum();
        if BOUNDS {
            for j in 0..KV_BLOCK {
                let (p, [low, high]) = (self.p[j] as u8, ends(j));
                self.slack[j] = i16::from((p - low).max(high - p));
                sums[1] += i32::from(low);
                sums[2] += i32::from(high);
            }
        }
        sums
    }
}

impl BlockSums {
    /// Of codes whose sum is the row's, with these sums, and the least and the most of them.
    pub(super) fn of_codes(exponent: f64, sums: [i32; 3], value: f64) -> Self {
        let [sum, low, high] = sums.map(f64::from);
        Self { exponent, sum, low, high, value, of_codes: true, error: 0.0 }
    }

    /// Of a row that sees what is no number.
    const NAN: Self = Self { exponent: f64::NAN, ..Self::all(f64::NAN) };
    /// Of a block whose keys are all hidden.
    const UNSEEN: Self = Self { exponent: -(EXPONENT_LIMIT as f64), ..Self::all(0.0) };

    const fn all(x: f64) -> Self {
        Self { exponent: x, sum: x, low: x, high: x, value: x, of_codes: true, error: 0.0 }
    }
}
