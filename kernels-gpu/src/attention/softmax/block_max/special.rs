//! Blocks that float16 does not do for: scores beyond its range, and values with scales of their own (docs/kernel-abi.md, "special").
//!
//! The rows' scores become exponent arguments of P in their place, and from there on the block goes the way of all others, but for what
//! is noted of each row until it is added. Rows of the warp for which the block is plain keep their scores.

use super::{BlockMax, NEG_INFINITY, score_factor};
use crate::attention::KEY_TILES;
use crate::attention::softmax::{Notes, Softmax, SpecialBlock, Team, quad_sum, reciprocal_of_power, value_weight};
use crate::config::NOTE_BYTES;
use crate::layout::{SCORE_RANGE, SCORE_UNIT, V_SCALE_STEPS, row_reach};
use crate::ptx::barrier::warp_sync;
use crate::ptx::math::{
    add_rn_f32, cvt_f32_f16_high, cvt_f32_f16_low, cvt_rn_f16x2_f32, ex2_approx_ftz_f32, lg2_approx_ftz_f32,
    max_nan_f32, min_nan_f32, mul_rn_f32,
};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{
    ld_shared_f32, ld_shared_u32, ld_shared_v4_u32, st_shared_f32, st_shared_u32, st_shared_v4_u32,
};
use crate::ptx::shuffle::{shfl_bfly, vote_any};
use crate::ptx::special::tid_x;

/// 1 as a pair of float16.
const ONES: u32 = 0x3c00_3c00;
/// Exponents of blocks are within these bounds: a row whose scores leave float32 has one key, whichever.
const EXPONENT_LIMIT: f32 = 1e30;
/// Added to a float below 2^22 and taken away again, it rounds it to an integer.
const ROUNDER: f32 = 12_582_912.0;

impl<const MT: usize, const LANE_SUMS: bool> BlockMax<MT, LANE_SUMS> {
    /// [`Softmax::special`].
    #[inline(always)]
    pub(super) unsafe fn special_scores<T: Team<MT>>(
        scores_of_rows: &mut <Self as Softmax<MT>>::Scores,
        row_scales: &mut [[u32; 2]; MT],
        team: &T,
        block: &impl SpecialBlock,
    ) {
        let tiles = KEY_TILES / T::WARPS;
        let maxima = unsafe { team.largest(Self::maxima(scores_of_rows, tiles)) };
        // The team's maxima are asked for once more, and the notes of a block before have been read.
        unsafe { team.settle() };
        unroll!(0..MT, |mt| {
            let maxima = [cvt_f32_f16_low(maxima[mt]), cvt_f32_f16_high(maxima[mt])];
            unroll!(0..2, |half| {
                let (params, head_dim, scales) = (block.params(), block.head_dim(), unsafe { block.scales() });
                let has_keys = unsafe { block.has_keys() };
                let [first, end] = block.keys(mt, half);
                let keys = [first, selp_b32(has_keys, end as u32, i32::MIN as u32) as i32];
                let (q_scale, largest) = (unsafe { block.q_scale(mt, half) }, hidden_unless(has_keys, maxima[half]));
                let reach = row_reach(head_dim, score_factor(params, head_dim), q_scale);
                // All lanes say the same, and the compiler is to know.
                let mixed = unsafe { vote_any(scales.v.is_nan()) };
                let special = mixed || reach * scales.k > SCORE_RANGE;
                let shrink = <Self as Softmax<MT>>::shrink(params, head_dim, scales.k);
                let scale = mul_rn_f32(mul_rn_f32(q_scale, 1.0 / SCORE_UNIT), reciprocal_of_power(shrink));
                // No key: zero, so that minus infinity less it is no NaN. A plain row keeps its scores: zero less, times one.
                let kept = !special || largest == f32::NEG_INFINITY;
                let base = f32::from_bits(selp_b32(kept, 0, largest.to_bits()));
                let factor = f32::from_bits(selp_b32(special, scale.to_bits(), 1.0_f32.to_bits()));
                let row = Row { block, has_keys, keys, mixed, base, factor };
                let (sum, loudest) = unsafe { row.arguments(&mut scores_of_rows[mt][half], tiles) };
                let value =
                    if mixed { value_weight(ex2_approx_ftz_f32(loudest), unsafe { block.v_unit() }) } else { scales.v };
                let exponent = max_nan_f32(mul_rn_f32(largest, scale), -EXPONENT_LIMIT);
                let exponent = min_nan_f32(exponent, EXPONENT_LIMIT);
                // Each lane of a quad adds what it reads, where lanes add up their own keys.
                let share = if LANE_SUMS { 255.0 / 4.0 } else { 255.0 };
                let note = [
                    selp_b32(special, exponent.to_bits(), f32::NAN.to_bits()),
                    value.to_bits(),
                    mul_rn_f32(unsafe { quad_sum(sum) }, share).to_bits(),
                    row_scales[mt][half],
                ];
                unsafe { st_shared_v4_u32(tid_x() % 4 == 0, block.notes().own + of_row(mt, half), note) };
                row_scales[mt][half] = selp_b32(special, ONES, row_scales[mt][half]);
            });
        });
    }

    /// Notes the exponents of P, by which a block's weight for its values differs from that in the row sums.
    #[inline(always)]
    pub(super) unsafe fn note_exponents(minus_m: &[[u32; 2]; MT], notes: Notes) {
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                // Written and read by one lane of a quad so far.
                let at = notes.own + of_row(mt, half) + 4;
                let factor = ex2_approx_ftz_f32(-cvt_f32_f16_low(minus_m[mt][half]));
                if tid_x() % 4 == 0 {
                    unsafe { st_shared_f32(at, mul_rn_f32(ld_shared_f32(at), factor)) };
                }
            });
        });
    }

    /// The noted exponents of the rows for which the block is special take the place of those of P.
    ///
    /// # Safety
    /// In whole warps, and behind a barrier of the team.
    #[inline(always)]
    pub(super) unsafe fn recall_exponents(notes: Notes, max: &mut [[f32; 2]; MT]) {
        unsafe { warp_sync() };
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let exponent = unsafe { ld_shared_f32(notes.own + of_row(mt, half)) };
                max[mt][half] =
                    f32::from_bits(selp_b32(exponent.is_nan(), max[mt][half].to_bits(), exponent.to_bits()));
            });
        });
    }

    /// And so do their row sums, and their scales of the values.
    ///
    /// # Safety
    /// As [`Self::recall_exponents`].
    #[inline(always)]
    pub(super) unsafe fn recall_sums<T: Team<MT>>(notes: Notes, sums: &mut [[f32; 2]; MT], value: &mut [[f32; 2]; MT]) {
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let [exponent, scale, _, _] =
                    unsafe { ld_shared_v4_u32(notes.own + of_row(mt, half)) }.map(f32::from_bits);
                let mut sum = 0.0;
                unroll!(0..T::WARPS, |member| {
                    let theirs = notes.first + member as u32 * notes.bytes + of_row(mt, half);
                    sum += unsafe { ld_shared_f32(theirs + 8) };
                });
                if !exponent.is_nan() {
                    value[mt][half] = scale;
                    sums[mt][half] = sum;
                }
            });
        });
    }
}

/// A row of a special block.
struct Row<'a, B> {
    block: &'a B,
    /// Whether the block has keys; else its scores are of whatever was read in their place.
    has_keys: bool,
    /// The first and behind the last key that it sees.
    keys: [i32; 2],
    /// Whether the block's values have scales of their own.
    mixed: bool,
    /// What is taken from its scores, and then multiplied with them.
    base: f32,
    factor: f32,
}

impl<B: SpecialBlock> Row<'_, B> {
    /// Makes the exponent arguments of P of its scores; the sum of the lane's exponentials, and the largest logarithm of a scale of the
    /// values that the row sees.
    ///
    /// Word by word in shared memory: where it is unrolled on registers, ptxas spills what the loops of plain blocks need.
    #[inline(always)]
    unsafe fn arguments(&self, scores: &mut [u32; KEY_TILES], tiles: usize) -> (f32, f32) {
        let (mixed, scratch) = (self.mixed, self.block.notes().scratch);
        let (mut sum, mut loudest) = (0.0, f32::NEG_INFINITY);
        let v_scale = self.block.v_scale();
        unsafe {
            unroll!(0..KEY_TILES, |tile| {
                if tile < tiles {
                    let scores = selp_b32(self.has_keys, scores[tile], NEG_INFINITY);
                    st_shared_u32(true, scratch + (128 * tile) as u32, scores);
                }
            });
            // Opaque: a number that the compiler sees would unroll the loops.
            if mixed {
                let (mut key, end) = (0, opaque(8 * KEY_TILES as u32) as i32);
                while key < end {
                    loudest = max_nan_f32(loudest, max_nan_f32(self.log(&v_scale, key), self.log(&v_scale, key + 1)));
                    key += 8;
                }
                loudest = quad_max(loudest);
            }
            let quietest = if loudest == f32::NEG_INFINITY { 0.0 } else { -loudest };
            let (mut tile, end) = (0, opaque(tiles as u32));
            while tile < end {
                let at = scratch + 128 * tile;
                let t = ld_shared_u32(at);
                let [low, high] = [cvt_f32_f16_low(t), cvt_f32_f16_high(t)]
                    .map(|t| mul_rn_f32(add_rn_f32(t, -self.base), self.factor));
                let mut argument = cvt_rn_f16x2_f32(high, low);
                let x = [cvt_f32_f16_low(argument), cvt_f32_f16_high(argument)];
                sum += ex2_approx_ftz_f32(x[0]) + ex2_approx_ftz_f32(x[1]);
                if mixed {
                    let key = self.block.first_own() + 8 * tile as i32;
                    let low = add_rn_f32(x[0], add_rn_f32(self.log(&v_scale, key), quietest));
                    let high = add_rn_f32(x[1], add_rn_f32(self.log(&v_scale, key + 1), quietest));
                    argument = cvt_rn_f16x2_f32(high, low);
                }
                st_shared_u32(true, at, argument);
                tile += 1;
            }
            unroll!(0..KEY_TILES, |tile| {
                if tile < tiles {
                    scores[tile] = ld_shared_u32(scratch + (128 * tile) as u32);
                }
            });
        }
        (sum, loudest)
    }

    /// The logarithm of the scale of a value; minus infinity where the row does not see it, whatever it is.
    ///
    /// # Safety
    /// One of the block's keys, counted from the lane's first.
    #[inline(always)]
    unsafe fn log(&self, v_scale: &impl Fn(i32) -> f32, key: i32) -> f32 {
        let steps = mul_rn_f32(lg2_approx_ftz_f32(v_scale(key)), V_SCALE_STEPS as f32);
        let log = mul_rn_f32(add_rn_f32(add_rn_f32(steps, ROUNDER), -ROUNDER), 1.0 / V_SCALE_STEPS as f32);
        hidden_unless(key >= self.keys[0] && key < self.keys[1], log)
    }
}

/// Notes the float16 factor of a row, the last word of its note.
#[inline(always)]
pub(super) unsafe fn note_row_scale(notes: Notes, mt: usize, half: usize, row_scale: u32) {
    unsafe { st_shared_u32(true, notes.own + of_row(mt, half) + 12, row_scale) };
}

/// What [`note_row_scale`] noted.
#[inline(always)]
pub(super) unsafe fn noted_row_scale(notes: Notes, mt: usize, half: usize) -> u32 {
    unsafe { ld_shared_u32(notes.own + of_row(mt, half) + 12) }
}

/// Where row `(mt, half)` is noted, behind the lane's first.
#[inline(always)]
fn of_row(mt: usize, half: usize) -> u32 {
    (NOTE_BYTES * 8 * (2 * mt + half)) as u32
}

/// Minus infinity in place of what a row does not see, whatever it is.
#[inline(always)]
fn hidden_unless(seen: bool, x: f32) -> f32 {
    f32::from_bits(selp_b32(seen, x.to_bits(), f32::NEG_INFINITY.to_bits()))
}

/// The largest of the four lanes of a quad; NaN where one is.
#[inline(always)]
unsafe fn quad_max(mut x: f32) -> f32 {
    unsafe {
        x = max_nan_f32(x, f32::from_bits(shfl_bfly::<1>(x.to_bits())));
        max_nan_f32(x, f32::from_bits(shfl_bfly::<2>(x.to_bits())))
    }
}
