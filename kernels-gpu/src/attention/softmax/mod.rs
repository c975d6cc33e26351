//! The two numeric schemes of the online softmax (docs/kernel-abi.md has the arithmetic).

mod block_max;
mod paper;

pub(crate) use block_max::BlockMax;
pub(crate) use paper::Paper;

use super::exchange::Exchange;
use super::output::{Accumulator, Probabilities};
use super::{Args, KEY_STEPS};

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

    /// Leaves `keys` (0, 1, 2 or out of that range) of two neighbouring keys, and makes the scores of the others minus infinity.
    fn hide(scores: &mut Self::Scores, mt: usize, half: usize, tile: usize, keys: i32);

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

    /// Whether P is signed.
    const SIGNED: bool;

    /// P times V.
    unsafe fn mma(a: [u32; 4], b: [u32; 2], c: [i32; 4]) -> [i32; 4];

    /// The output element after a block.
    fn accumulate(o: f32, product: f32, row: &Self::Row, mt: usize, half: usize) -> f32;

    /// Of row `(mt, half)`: what the output is multiplied with, and the log-sum-exp in base 2. `None` for a row without keys.
    unsafe fn finish(&self, mt: usize, half: usize) -> Option<(f32, f32)>;
}
