//! The two numeric schemes of the online softmax (docs/kernel-abi.md has the arithmetic).

mod block_max;
mod paper;

pub(crate) use block_max::BlockMax;
pub(crate) use paper::Paper;

use super::KEY_STEPS;
use super::epilogue::Finished;
use super::output::{Accumulator, Probabilities};
use super::sequence::Sequence;
use crate::params::AttentionParams;
use crate::ptx::math::{cvt_rn_f32_s32, dp4a_u32_u32};
use crate::ptx::shuffle::shfl_bfly;

/// 2^23 + 2^22 as bits. An int32 sum that starts here and moves by less than 2^22 is, read as a float, 12582912 + sum.
pub(crate) const MAGIC_BITS: i32 = 0x4b40_0000;
/// The same as a float.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// Warps that share query rows, each with some of a block's keys.
pub(crate) trait Team<const MT: usize> {
    /// How many.
    const WARPS: usize;
    /// The largest of the members' maxima of each row (pairs of float16).
    unsafe fn largest(&self, own: [u32; MT]) -> [u32; MT];
}

/// A warp that has its rows for itself.
pub(crate) struct Alone;

impl<const MT: usize> Team<MT> for Alone {
    const WARPS: usize = 1;

    #[inline(always)]
    unsafe fn largest(&self, own: [u32; MT]) -> [u32; MT] {
        own
    }
}

/// What the attention loop asks of a scheme; `MT` the m16 tiles of a warp.
pub(crate) trait Softmax<const MT: usize>: Sized {
    /// The scores of one block in registers.
    type Scores;
    /// What [`Self::add_block`] needs of each row.
    type Exponents;
    /// What the output update needs of each row.
    type Row;

    /// `kappa` of docs/kernel-abi.md: a power of two that the scores of a head are multiplied with.
    unsafe fn kappa(params: &AttentionParams, sequence: &Sequence, head_dim: usize) -> f32;

    /// Of rows with these scales (any for a row that is not there), in a head with this kappa.
    fn new(params: &AttentionParams, kappa: f32, q_scale: [[f32; 2]; MT]) -> Self;

    /// What all keys of a head with this kappa have in common in their factors.
    fn common_factor(params: &AttentionParams, kappa: f32) -> f32;

    /// What a key's sums are multiplied with.
    fn key_factor(common_factor: f32, k_scale: f32) -> f32;

    fn empty() -> Self::Scores;

    /// Makes scores of the integer sums of two neighbouring keys of row `(mt, half)`: accumulators read as floats, which are still
    /// `MAGIC` too large, with the keys' `[factor, -MAGIC * factor, factor, -MAGIC * factor]`.
    fn scores_of_magic(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        key: [f32; 4],
    );

    /// Makes scores of the integer sums of two neighbouring keys of row `(mt, half)`, with the keys' factors.
    fn scores_of_sums(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        factors: [f32; 2],
    );

    /// Makes the scores of a row against the keys from `keys` on minus infinity, counted from this lane's first key: it has the
    /// keys `8 * tile` and `8 * tile + 1` of each of its `tiles` tiles. Negative where the row sees none.
    fn hide_from(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize);

    /// The same of the keys before `keys`.
    fn hide_before(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize);

    /// The exponents of a block's rows.
    unsafe fn exponents<T: Team<MT>>(&mut self, scores: &Self::Scores, team: &T) -> Self::Exponents;

    /// P of the keys of step `step`: exponentials, as A fragments.
    fn step(&mut self, scores: &Self::Scores, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT];

    /// Adds a block to the row sums. Rescales the `tiles` tiles of the output where a row's reference exponent moves.
    unsafe fn add_block(
        &mut self,
        exponents: Self::Exponents,
        p: &Probabilities<MT>,
        acc: &mut Accumulator<MT>,
        tiles: usize,
    ) -> Self::Row;

    /// The output element after a block, of which `sum` is P times the bytes of V.
    fn accumulate(o: f32, sum: i32, row: &Self::Row, mt: usize, half: usize) -> f32;

    /// Row `(mt, half)` after the last block.
    unsafe fn finish(&self, mt: usize, half: usize) -> Finished;
}

/// The sums of P over the lane's own keys, of the rows in the two halves of a fragment.
#[inline(always)]
fn lane_sums(p: &[[u32; 4]; KEY_STEPS]) -> [f32; 2] {
    let mut sums = [0; 2];
    unroll!(0..KEY_STEPS, |step| {
        unroll!(0..4, |register| {
            sums[register % 2] = dp4a_u32_u32(p[step][register], 0x0101_0101, sums[register % 2]);
        });
    });
    sums.map(cvt_rn_f32_s32)
}

/// The sum over the four lanes of a quad.
#[inline(always)]
unsafe fn quad_sum(mut sum: f32) -> f32 {
    unsafe {
        sum += f32::from_bits(shfl_bfly::<1>(sum.to_bits()));
        sum + f32::from_bits(shfl_bfly::<2>(sum.to_bits()))
    }
}
