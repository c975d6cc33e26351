//! The two numeric schemes of the online softmax (docs/kernel-abi.md has the arithmetic).

mod block_max;
mod paper;

pub(crate) use block_max::BlockMax;
pub(crate) use paper::Paper;

use super::exchange::Exchange;
use super::output::{Accumulator, Probabilities};
use super::{Args, KEY_STEPS};
use crate::ptx::math::{cvt_rn_f32_s32, dp4a_u32_u32, fma_rn_f32};
use crate::ptx::special::shfl_bfly;

/// What the attention loop asks of a scheme; `D` the head dim, `MT` the m16 tiles of a warp.
pub(crate) trait Softmax<const D: usize, const MT: usize>: Sized {
    /// The scores of one block in registers.
    type Scores;
    /// What [`Self::weigh`] needs of each row.
    type Exponents;
    /// What the output update needs of each row.
    type Row;

    /// The unit of a head's scores, a power of two.
    unsafe fn unit(args: &Args, head_kv: u64) -> f32;

    /// Of rows with these scales (any for a row that is not there), in a head with this unit.
    fn new(args: &Args, unit: f32, q_scale: [[f32; 2]; MT]) -> Self;

    /// What all keys of a head with this unit have in common in their factors.
    fn key_unit(args: &Args, unit: f32) -> f32;

    /// What a key's sums are multiplied with.
    fn key_factor(key_unit: f32, k_scale: f32) -> f32;

    fn empty() -> Self::Scores;

    /// Takes the scores of two neighbouring keys of row `(mt, half)`: accumulators read as floats, still `MAGIC` too large,
    /// with the keys' `[factor, bias, factor, bias]`.
    fn put(&self, scores: &mut Self::Scores, mt: usize, half: usize, tile: usize, sums: [f32; 2], key: [f32; 4]);

    /// Takes the exact scores of two neighbouring keys of row `(mt, half)`, with the keys' factors.
    fn put_exact(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        factors: [f32; 2],
    );

    /// Makes the scores of a row against the keys from `keys` on minus infinity, counted from this lane's first key: it has the
    /// keys `8 * tile` and `8 * tile + 1` of each of its tiles. Negative where the row sees none.
    fn hide<const TEAM: usize>(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32);

    /// The exponents of a block's rows.
    unsafe fn exponents<const TEAM: usize>(
        &mut self,
        scores: &Self::Scores,
        exchange: &Exchange<MT, TEAM>,
    ) -> Self::Exponents;

    /// P of the keys of step `step`: exponentials, as A fragments.
    fn step(&mut self, scores: &Self::Scores, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT];

    /// Exponentials of the warp's keys: its part of P, given to the team.
    #[inline(always)]
    unsafe fn probabilities<const TEAM: usize>(
        &mut self,
        scores: Self::Scores,
        exchange: &Exchange<MT, TEAM>,
    ) -> (Probabilities<MT>, Self::Exponents) {
        let exponents = unsafe { self.exponents(&scores, exchange) };
        let mut p = [[[0; 4]; KEY_STEPS]; MT];
        unroll!(0..KEY_STEPS / TEAM, |step| {
            let codes = self.step(&scores, &exponents, step);
            unroll!(0..MT, |mt| {
                p[mt][step] = codes[mt];
            });
            unsafe { exchange.share(&p, step) };
        });
        (p, exponents)
    }

    /// The state moved on by a block. Rescales the `tiles` tiles of the output when its reference exponent moves.
    unsafe fn weigh(
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

/// What a row's output is made of: `o * factor - offset` in units of V's scales.
#[derive(Clone, Copy)]
pub(crate) struct Finished {
    pub factor: f32,
    /// The share of V's bytes that [`V_OFFSET`](crate::layout::V_OFFSET) has.
    pub offset: f32,
    /// All bits, or none for a row that sees no key.
    pub seen: u32,
    /// The log-sum-exp in base 2.
    pub lse: f32,
}

impl Finished {
    /// Of a row that sees no key.
    pub(crate) const UNSEEN: Self = Self { factor: 0.0, offset: 0.0, seen: 0, lse: f32::NEG_INFINITY };

    /// The output element of a row that sees keys, in a channel of V with this scale and mean.
    #[inline(always)]
    pub(crate) fn output(&self, o: f32, scale: f32, mean: f32) -> f32 {
        fma_rn_f32(fma_rn_f32(o, self.factor, -self.offset), scale, mean)
    }
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
