//! The two numeric schemes of the online softmax (docs/kernel-abi.md has the arithmetic).

mod block_max;
#[cfg(kernels = "sm80")]
mod float_max;
mod paper;

#[cfg(any(kernels = "sm80", kernels = "short"))]
pub(crate) use block_max::narrow_magic;
pub(crate) use block_max::{BlockMax, CodeSums, NEG_INFINITY, narrow, score_factor};
#[cfg(kernels = "sm80")]
pub(crate) use float_max::FloatMax;
pub(crate) use paper::Paper;

use super::epilogue::{self, Finished};
use super::output::{Accumulator, Probabilities};
use super::sequence::Sequence;
use super::{KEY_STEPS, KEY_TILES};
use crate::layout::{narrow_scale, row_reach};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::math::{cvt_rn_f32_s32, dp4a_u32_u32, ex2_approx_ftz_f32, fma_rn_f32, max_f32, min_f32, mul_rn_f32};
use crate::ptx::select::selp_b32;
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
    /// All members have got what they asked for: what they have in common may be used again.
    unsafe fn settle(&self);
    /// The members' numbers of each row put together by `join`, in which their order is the same for all or does not matter.
    unsafe fn combine(&self, own: [[f32; 2]; MT], join: impl Fn(f32, f32) -> f32) -> [[f32; 2]; MT];
}

/// A warp that has its rows for itself.
pub(crate) struct Alone;

impl<const MT: usize> Team<MT> for Alone {
    const WARPS: usize = 1;

    #[inline(always)]
    unsafe fn largest(&self, own: [u32; MT]) -> [u32; MT] {
        own
    }

    #[inline(always)]
    unsafe fn settle(&self) {
        unsafe { warp_sync() };
    }

    #[inline(always)]
    unsafe fn combine(&self, own: [[f32; 2]; MT], _: impl Fn(f32, f32) -> f32) -> [[f32; 2]; MT] {
        own
    }
}

/// The scales of a block: the largest of its keys', negative where it has none, and that of its values as [`value_weight`], NaN where they do not share one.
#[derive(Clone, Copy)]
pub(crate) struct BlockScales {
    pub k: f32,
    pub v: f32,
    /// The largest [`row_reach`] of the warp's rows, or of its warpgroup's.
    pub reach: f32,
}

/// What a special block needs besides, asked for where it is needed: a register each, they would be spilled.
pub(crate) trait SpecialBlock {
    fn params(&self) -> &AttentionParams;
    fn head_dim(&self) -> usize;
    unsafe fn scales(&self) -> BlockScales;
    /// The scale of the lane's query in half `half` of m16 tile `mt`; any if it is not there.
    unsafe fn q_scale(&self, mt: usize, half: usize) -> f32;
    /// Whether it has keys: of a paged cache, where the block table has no page for it, it has none, and is mixed.
    unsafe fn has_keys(&self) -> bool;
    /// The first and behind the last key that it sees, counted from the lane's first key of the block, if the block has keys.
    fn keys(&self, mt: usize, half: usize) -> [i32; 2];
    /// The first key of which the lane has a score, counted so.
    fn first_own(&self) -> i32;
    /// The scale of the value of one of the block's keys, counted from the lane's first.
    fn v_scale(&self) -> impl Fn(i32) -> f32;
    /// The unit of the head's values.
    unsafe fn v_unit(&self) -> f32;
    fn notes(&self) -> Notes;
}

/// Shared memory in which a warp keeps what a special block says of its rows until the block is added, a note of
/// [`NOTE_BYTES`](crate::config::NOTE_BYTES) a row: addresses of the lane's first row.
#[derive(Clone, Copy)]
pub(crate) struct Notes {
    pub own: u32,
    /// Of the first warp of the team, and bytes from one to the next.
    pub first: u32,
    pub bytes: u32,
    /// A word of the lane, and each 128 bytes on another, for every n8 tile of a row.
    pub scratch: u32,
    /// Four words of the lane for each m16 tile: its sums, between blocks.
    pub sums: u32,
}

/// What the attention loop asks of a scheme; `MT` the m16 tiles of a warp.
pub(crate) trait Softmax<const MT: usize>: Sized {
    /// The scores of one block in registers.
    type Scores;
    /// The rows' factors of scores.
    type RowScales: Copy;
    /// What P of a block is made with.
    type Exponents;
    /// And what of it [`Self::add_block`] needs.
    type OfRows: Copy;
    /// What the output update needs of each row.
    type Row;

    /// Whether it has special blocks (docs/kernel-abi.md).
    const SPECIAL: bool;
    /// Whether a block is special by its scores, which may be beyond their type.
    const LOUD: bool = Self::SPECIAL;
    /// Whether it has narrow blocks.
    const NARROW: bool = false;
    /// Whether its scores have the share of K's offset.
    const BIASED: bool = false;

    /// Of rows with these scales and products with K's offset (any for a row that is not there).
    ///
    /// # Safety
    /// In whole warps; the notes are the warp's own.
    unsafe fn new(
        params: &AttentionParams,
        q_scale: [[f32; 2]; MT],
        q_bias: impl Fn() -> [[f32; 2]; MT],
        notes: impl Fn() -> Notes,
    ) -> Self;

    /// What all keys have in common in their factors.
    fn common_factor(params: &AttentionParams, head_dim: usize) -> f32;

    /// What a key's sums are multiplied with.
    fn key_factor(common_factor: f32, k_scale: f32) -> f32;

    /// Of no key: all hidden.
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

    /// What the factors of a block's keys are multiplied with, the largest scale among them given: 1, or the power of two that keeps
    /// its scores in their type.
    fn shrink(params: &AttentionParams, head_dim: usize, k_block_scale: f32) -> f32;

    /// The unit of a narrow block's scores, without the row's scale.
    fn narrow_unit(_: &AttentionParams, _head_dim: usize, _k_scale: f32) -> f32 {
        f32::NAN
    }

    /// Whether a block is special for any row of the warp.
    ///
    /// # Safety
    /// In whole warps.
    unsafe fn is_special(scales: &BlockScales) -> bool;

    /// The rows' factors of scores, noted since [`Self::new`]: in registers they would be where these are short.
    unsafe fn row_scales(notes: impl Fn() -> Notes) -> Self::RowScales;

    /// Takes the scores of a block that is special for some row of the warp, hidden where the window says so, and its rows' factors.
    ///
    /// # Safety
    /// By all warps of a team; the addresses are those of the block, and the warp's notes are its own.
    unsafe fn special<T: Team<MT>>(
        scores: &mut Self::Scores,
        row_scales: &mut Self::RowScales,
        team: &T,
        block: &impl SpecialBlock,
    );

    /// The exponents of a block's rows.
    unsafe fn exponents<T: Team<MT>>(
        &mut self,
        scores: &Self::Scores,
        row_scales: Self::RowScales,
        team: &T,
    ) -> Self::Exponents;

    /// Notes the exponents of a special block.
    ///
    /// # Safety
    /// As [`Self::special`].
    unsafe fn note_exponents(exponents: &Self::Exponents, notes: impl Fn() -> Notes);

    /// P of the keys of step `step`: exponentials, as A fragments.
    fn step(&mut self, scores: &Self::Scores, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT];

    /// Adds a block to the row sums, a special one with its notes. Rescales the `tiles` tiles of the output where a row's reference exponent moves.
    unsafe fn add_block<T: Team<MT>>(
        &mut self,
        of_rows: Self::OfRows,
        p: &Probabilities<MT>,
        acc: &mut Accumulator<MT>,
        tiles: usize,
        special: bool,
        scales: impl Fn() -> BlockScales,
        notes: impl Fn() -> Notes,
    ) -> Self::Row;

    /// Scores and exponents of a narrow block as those of any other.
    fn of_narrow(_: narrow::Exponents) -> (Self::Scores, Self::Exponents) {
        unreachable!("a scheme without narrow blocks")
    }

    /// What [`Self::add_block`] needs to know of a block's rows.
    fn of_rows(exponents: &Self::Exponents) -> Self::OfRows;

    /// The same of a narrow block, whose rows have these exponents.
    fn of_narrow_rows(_: [f32; 2]) -> Self::OfRows {
        unreachable!("a scheme without narrow blocks")
    }

    /// The output element after a block, of which `sum` is P times the bytes of V.
    fn accumulate(o: f32, sum: i32, row: &Self::Row, mt: usize, half: usize) -> f32;

    /// What all outputs of a head are multiplied with in the end.
    unsafe fn output_unit(params: &AttentionParams, sequence: &Sequence) -> f32;

    /// Row `(mt, half)` after the last block, with its [`sink_exponent`](Self::sink_exponent).
    unsafe fn finish(&self, mt: usize, half: usize, unit: f32, sink: f32, notes: impl Fn() -> Notes) -> Finished;

    /// The sink of a row in powers of two, in the unit of its scores; minus infinity where there is none.
    unsafe fn sink_exponent(params: &AttentionParams, sequence: &Sequence, row: u32) -> f32 {
        unsafe { epilogue::sink_exponent(params, sequence, row, Self::BIASED) }
    }

    /// Stores the log-sum-exp of a row, where the host wants it.
    unsafe fn store_lse(params: &AttentionParams, sequence: &Sequence, row: u32, finished: &Finished) {
        unsafe { epilogue::store_lse(params, sequence, row, finished, Self::BIASED) }
    }
}

/// Scores in float32: two neighbouring keys of each n8 tile of each row.
pub(crate) type FloatScores<const MT: usize> = [[[[f32; 2]; KEY_TILES]; 2]; MT];

/// Makes the scores of a row minus infinity but for those of the keys that are `visible`, counted from this lane's first.
#[inline(always)]
fn hide(scores: &mut [[f32; 2]; KEY_TILES], tiles: usize, visible: impl Fn(i32) -> bool) {
    unroll!(0..KEY_TILES, |tile| {
        unroll!(0..2, |i| {
            if tile < tiles {
                let s = scores[tile][i].to_bits();
                let seen = selp_b32(visible((8 * tile + i) as i32), s, f32::NEG_INFINITY.to_bits());
                scores[tile][i] = f32::from_bits(seen);
            }
        });
    });
}

/// A row that its sink has joined: `sum` and `reference` are its new ones, and `weight` what the sums of P V are multiplied with besides.
struct Joined {
    sum: f32,
    weight: f32,
    reference: f32,
}

impl Joined {
    /// The sink of a row has the weight `one` where it is at the reference exponent. None, minus infinity, changes no bit.
    #[inline(always)]
    fn new(sum: f32, reference: f32, sink: f32, one: f32) -> Self {
        // A row that is no number keeps the sum that says so.
        let joint = max_f32(reference, sink);
        let weight = ex2_approx_ftz_f32(reference - joint);
        Self { sum: fma_rn_f32(one, ex2_approx_ftz_f32(sink - joint), sum * weight), weight, reference: joint }
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

/// Weights are so many times as large as they are said to be: the sums of P V are taken as the 2^149th part of what they are
/// (`block_max::accumulate`), and the output must stay far from the smallest normal float.
pub(crate) const WEIGHT_UNIT: f32 = (1_u64 << 48) as f32;

/// The scale of a block's values against the head's unit, times [`WEIGHT_UNIT`].
#[inline(always)]
pub(crate) fn value_weight(v_block_scale: f32, v_unit: f32) -> f32 {
    mul_rn_f32(mul_rn_f32(v_block_scale, reciprocal_of_power(v_unit)), WEIGHT_UNIT)
}

/// The reciprocal of a power of two, exactly.
#[inline(always)]
pub(crate) fn reciprocal_of_power(power: f32) -> f32 {
    f32::from_bits((254 << 23) - power.to_bits())
}

/// The least [`narrow_scale`] of rows with these scales, a few in each lane of the warp, and the largest scale.
///
/// # Safety
/// In whole warps.
#[inline(always)]
pub(crate) unsafe fn warp_scales<const N: usize>(q_scale: [f32; N]) -> [f32; 2] {
    let (mut least, mut most) = (f32::INFINITY, 0.0);
    unroll!(0..N, |i| {
        least = min_f32(least, narrow_scale(q_scale[i]));
        most = max_f32(most, q_scale[i]);
    });
    // SAFETY: the caller's.
    let both = |least: f32, most: f32, other: [u32; 2]| {
        let [least_there, most_there] = other.map(f32::from_bits);
        (min_f32(least, least_there), max_f32(most, most_there))
    };
    unsafe {
        (least, most) = both(least, most, [shfl_bfly::<1>(least.to_bits()), shfl_bfly::<1>(most.to_bits())]);
        (least, most) = both(least, most, [shfl_bfly::<2>(least.to_bits()), shfl_bfly::<2>(most.to_bits())]);
        (least, most) = both(least, most, [shfl_bfly::<4>(least.to_bits()), shfl_bfly::<4>(most.to_bits())]);
        (least, most) = both(least, most, [shfl_bfly::<8>(least.to_bits()), shfl_bfly::<8>(most.to_bits())]);
        (least, most) = both(least, most, [shfl_bfly::<16>(least.to_bits()), shfl_bfly::<16>(most.to_bits())]);
    }
    [least, most]
}

/// The largest [`row_reach`] of rows with these scales, a few in each lane of the warp.
///
/// # Safety
/// In whole warps.
#[inline(always)]
pub(crate) unsafe fn warp_reach<const N: usize>(params: &AttentionParams, head_dim: usize, q_scale: [f32; N]) -> f32 {
    let c = score_factor(params, head_dim);
    let mut reach = 0.0;
    unroll!(0..N, |i| {
        reach = max_f32(reach, row_reach(head_dim, c, q_scale[i]));
    });
    unsafe {
        reach = max_f32(reach, f32::from_bits(shfl_bfly::<1>(reach.to_bits())));
        reach = max_f32(reach, f32::from_bits(shfl_bfly::<2>(reach.to_bits())));
        reach = max_f32(reach, f32::from_bits(shfl_bfly::<4>(reach.to_bits())));
        reach = max_f32(reach, f32::from_bits(shfl_bfly::<8>(reach.to_bits())));
        max_f32(reach, f32::from_bits(shfl_bfly::<16>(reach.to_bits())))
    }
}
