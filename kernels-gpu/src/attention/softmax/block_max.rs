//! The default scheme: P in u8, scaled by the row's maximum inside the block; float16 exponentials; integer row sums.

use super::{MAGIC, MAGIC_BITS, Softmax, Team, lane_sums, quad_sum};
use crate::attention::epilogue::Finished;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::Sequence;
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::layout::{KV_BLOCK, V_OFFSET};
use crate::params::AttentionParams;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::{
    add_rn_f32, cvt_f32_f16_high, cvt_f32_f16_low, cvt_rn_f16x2_f32, cvt_rp_f16_f32, ex2_approx_f16x2,
    ex2_approx_ftz_f32, fma_rn_f16x2, fma_rn_f32, lg2_approx_ftz_f32, max_f16x2, mul_rn_f32, prmt, rcp_approx_ftz_f32,
};
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::{shfl_bfly, vote_any};

/// 255 and 1024 as pairs of float16: `255 e + 1024` has the rounded code of P in its low byte.
const CODES: u32 = 0x5bf8_5bf8;
const HALF_MAGIC: u32 = 0x6400_6400;
/// Minus infinity in both halves.
const NEG_INFINITY: u32 = 0xfc00_fc00;
/// The reference exponent of a row moves only when a block's maximum exceeds it by this: float32 has the range,
/// and the rescale of the whole output almost never runs.
const SLACK: f32 = 32.0;
/// Weights are 2^48 times as large as the exponents say: the sums of P V are taken as the 2^149th part of what they are
/// ([`SUBNORMAL`]), and the output must stay far from the smallest normal float, the row sum below the largest.
const SHIFT: f32 = 48.0;
/// `2^-SHIFT`.
const DOWN: f32 = 1.0 / (1_u64 << 48) as f32;

/// Their product is 2^149, which no float is.
///
/// P and the bytes of V are unsigned, so a sum of P V is from 0 to `255 * 255 * 128 < 2^23`, and its bits, read as a float, are
/// the sum times 2^-149: floats next to zero (subnormal) have that step, and the arithmetic takes them at full speed. The sums
/// so go into `fma` as they are; converting them would be an instruction of half the rate for each. What V's bytes have too much
/// ([`V_OFFSET`]) leaves the output at the end.
const SUBNORMAL: [f32; 2] = [(1_u128 << 100) as f32, (1_u64 << 49) as f32];

const _: () = assert!(255 * 255 * KV_BLOCK < 1 << 23);

/// `LANE_SUMS`: each lane of a quad adds up P of its own keys, and the quad's four sums are added at the end of the row. Else the
/// tensor cores add up P of all keys of a block: fewer instructions, but on sm_90a a product of `mma.sync` would wait until those
/// of the warpgroup's `wgmma` are done.
pub(crate) struct BlockMax<const MT: usize, const LANE_SUMS: bool> {
    /// The rows' scales over kappa, as pairs of equal float16.
    row_scale: [[u32; 2]; MT],
    /// Reference exponents and row sums.
    reference: [[f32; 2]; MT],
    row_sum: [[f32; 2]; MT],
}

impl<const MT: usize, const LANE_SUMS: bool> BlockMax<MT, LANE_SUMS> {
    /// The rows' maxima over the `tiles` n8 tiles of the quad's four lanes, for two rows at once: (row g, row g+8) in the halves.
    #[inline(always)]
    unsafe fn maxima(scores: &[[[u32; KEY_TILES]; 2]; MT], tiles: usize) -> [u32; MT] {
        let mut maxima = [0; MT];
        unroll!(0..MT, |mt| {
            let mut max = [NEG_INFINITY; 2];
            unroll!(0..2, |half| {
                let t = &scores[mt][half];
                // Three at a time: sm_90 has an instruction for that.
                let mut two = [max_f16x2(t[0], t[1]), max_f16x2(t[2], t[3])];
                unroll!(2..KEY_TILES / 2, |i| {
                    if 2 * i < tiles {
                        two[i % 2] = max_f16x2(max_f16x2(two[i % 2], t[2 * i]), t[2 * i + 1]);
                    }
                });
                max[half] = max_f16x2(two[0], two[1]);
            });
            maxima[mt] = max_f16x2(prmt(max[0], max[1], 0x5410), prmt(max[0], max[1], 0x7632));
        });
        unroll!(0..MT, |mt| {
            unsafe {
                let max = max_f16x2(maxima[mt], shfl_bfly::<1>(maxima[mt]));
                maxima[mt] = max_f16x2(max, shfl_bfly::<2>(max));
            }
        });
        maxima
    }

    /// The block's exponents, negated, as pairs of equal float16.
    #[inline(always)]
    fn negated(&self, maxima: &[u32; MT]) -> [[u32; 2]; MT] {
        let mut minus_m = [[0; 2]; MT];
        unroll!(0..MT, |mt| {
            let row_max = [cvt_f32_f16_low(maxima[mt]), cvt_f32_f16_high(maxima[mt])];
            unroll!(0..2, |half| {
                // A row that sees no key of the block has minus infinity here; any finite exponent serves it.
                let t = if row_max[half] < -65504.0 { -65504.0 } else { row_max[half] };
                let m = cvt_rp_f16_f32(mul_rn_f32(t, cvt_f32_f16_low(self.row_scale[mt][half])));
                minus_m[mt][half] = m ^ 0x8000_8000;
            });
        });
        minus_m
    }

    /// The codes of P of two neighbouring tiles of row `(mt, half)`: a register of an A fragment.
    #[inline(always)]
    fn codes(
        &self,
        scores: &[[[u32; KEY_TILES]; 2]; MT],
        minus_m: &[[u32; 2]; MT],
        mt: usize,
        half: usize,
        tile: usize,
    ) -> u32 {
        let code = |tile: usize| {
            let e = ex2_approx_f16x2(fma_rn_f16x2(scores[mt][half][tile], self.row_scale[mt][half], minus_m[mt][half]));
            fma_rn_f16x2(e, CODES, HALF_MAGIC)
        };
        prmt(code(tile), code(tile + 1), 0x6420)
    }
}

/// Selectors of `prmt` that take these halves of a pair of scores, and the other ones from minus infinity.
const BOTH: u32 = 0x3210;
const LOW: u32 = 0x7610;
const HIGH: u32 = 0x3254;
const NEITHER: u32 = 0x7654;

/// Makes the scores of a row minus infinity but for the halves that `visible` selects in each of its `tiles` tiles.
#[inline(always)]
fn hide(scores: &mut [u32; KEY_TILES], tiles: usize, visible: impl Fn(usize) -> u32) {
    unroll!(0..KEY_TILES, |tile| {
        if tile < tiles {
            scores[tile] = prmt(scores[tile], NEG_INFINITY, visible(tile));
        }
    });
}

/// The sums of P over all keys, of the rows in the two halves of a fragment.
#[inline(always)]
unsafe fn quad_sums(p: &[[u32; 4]; KEY_STEPS]) -> [f32; 2] {
    let mut sum = [MAGIC_BITS; 4];
    unroll!(0..KEY_STEPS, |step| {
        // Ones for B: every column of the product is the row sum.
        sum = unsafe { mma_m16n8k32_s32_u8_u8(p[step], [0x0101_0101; 2], sum) };
    });
    [0, 2].map(|i| add_rn_f32(f32::from_bits(sum[i] as u32), -MAGIC))
}

/// `softmax_scale * log2(e)`.
#[inline(always)]
fn base2(params: &AttentionParams) -> f32 {
    mul_rn_f32(params.softmax_scale, core::f32::consts::LOG2_E)
}

impl<const MT: usize, const LANE_SUMS: bool> Softmax<MT> for BlockMax<MT, LANE_SUMS> {
    type Scores = [[[u32; KEY_TILES]; 2]; MT];
    /// The block's exponents, negated, as pairs of equal float16.
    type Exponents = [[u32; 2]; MT];
    /// The block's weight against the reference exponent.
    type Row = [[f32; 2]; MT];

    /// The power of two that brings the largest possible score of a head into [2^14, 2^15): `2^(14 - exponent)` of it.
    #[inline(always)]
    unsafe fn kappa(params: &AttentionParams, sequence: &Sequence, head_dim: usize) -> f32 {
        let magnitude = f32::from_bits(base2(params).to_bits() & 0x7fff_ffff);
        let k_scale_max = unsafe { ld_global_nc_f32(sequence.k_scale_max(params)) };
        let bound = mul_rn_f32(mul_rn_f32((16129 * head_dim) as f32, k_scale_max), magnitude);
        let exponent = 14 - ((bound.to_bits() >> 23) as i32 - 127);
        let exponent = if exponent > 100 { 100 } else { exponent };
        let exponent = if exponent < -100 { -100 } else { exponent };
        if bound == 0.0 { 1.0 } else { f32::from_bits(((exponent + 127) as u32) << 23) }
    }

    #[inline(always)]
    fn new(_: &AttentionParams, kappa: f32, q_scale: [[f32; 2]; MT]) -> Self {
        // 2^-100 <= kappa <= 2^100, so its reciprocal is exact.
        let inverse = f32::from_bits((254 << 23) - kappa.to_bits());
        let mut row_scale = [[0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let value = mul_rn_f32(q_scale[mt][half], inverse);
                let value = if value > 1.0 { 1.0 } else { value };
                // The smallest float16: zero times minus infinity would not be a number.
                let value = if value < 5.960_464_5e-8 { 5.960_464_5e-8 } else { value };
                row_scale[mt][half] = cvt_rn_f16x2_f32(value, value);
            });
        });
        // Not minus infinity: ptxas would keep that one constant, for the rows without keys, in a register across the loop.
        Self { row_scale, reference: [[f32::MIN; 2]; MT], row_sum: [[0.0; 2]; MT] }
    }

    #[inline(always)]
    fn common_factor(params: &AttentionParams, kappa: f32) -> f32 {
        mul_rn_f32(base2(params), kappa)
    }

    #[inline(always)]
    fn key_factor(common_factor: f32, k_scale: f32) -> f32 {
        // 22 bits: MAGIC times that is exact, so that fma(MAGIC + s, factor, -MAGIC * factor) is s * factor, rounded once.
        f32::from_bits(mul_rn_f32(k_scale, common_factor).to_bits() & !3)
    }

    #[inline(always)]
    fn empty() -> Self::Scores {
        [[[0; KEY_TILES]; 2]; MT]
    }

    #[inline(always)]
    fn scores_of_magic(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        key: [f32; 4],
    ) {
        let low = fma_rn_f32(sums[0], key[0], key[1]);
        let high = fma_rn_f32(sums[1], key[2], key[3]);
        scores[mt][half][tile] = cvt_rn_f16x2_f32(high, low);
    }

    #[inline(always)]
    fn scores_of_sums(
        &self,
        scores: &mut Self::Scores,
        mt: usize,
        half: usize,
        tile: usize,
        sums: [f32; 2],
        factors: [f32; 2],
    ) {
        scores[mt][half][tile] = cvt_rn_f16x2_f32(mul_rn_f32(sums[1], factors[1]), mul_rn_f32(sums[0], factors[0]));
    }

    #[inline(always)]
    fn hide_from(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        hide(&mut scores[mt][half], tiles, |tile| {
            let keys = keys - (8 * tile) as i32;
            selp_b32(keys > 1, BOTH, selp_b32(keys > 0, LOW, NEITHER))
        });
    }

    #[inline(always)]
    fn hide_before(scores: &mut Self::Scores, mt: usize, half: usize, keys: i32, tiles: usize) {
        hide(&mut scores[mt][half], tiles, |tile| {
            let keys = keys - (8 * tile) as i32;
            selp_b32(keys < 1, BOTH, selp_b32(keys < 2, HIGH, NEITHER))
        });
    }

    #[inline(always)]
    unsafe fn exponents<T: Team<MT>>(&mut self, scores: &Self::Scores, team: &T) -> Self::Exponents {
        let maxima = unsafe { team.largest(Self::maxima(scores, KEY_TILES / T::WARPS)) };
        self.negated(&maxima)
    }

    #[inline(always)]
    fn step(&mut self, scores: &Self::Scores, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT] {
        let mut p = [[0; 4]; MT];
        unroll!(0..2, |upper| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    p[mt][half + 2 * upper] = self.codes(scores, exponents, mt, half, 4 * step + 2 * upper);
                });
            });
        });
        p
    }

    #[inline(always)]
    unsafe fn add_block(
        &mut self,
        exponents: Self::Exponents,
        p: &Probabilities<MT>,
        acc: &mut Accumulator<MT>,
        tiles: usize,
    ) -> Self::Row {
        // Before the branch, where they fill the gaps between the exponentials.
        let mut sums = [[0.0; 2]; MT];
        if LANE_SUMS {
            unroll!(0..MT, |mt| {
                sums[mt] = lane_sums(&p[mt]);
            });
        }
        let mut max = [[0.0; 2]; MT];
        let mut moved = false;
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                max[mt][half] = -cvt_f32_f16_low(exponents[mt][half]);
                moved |= max[mt][half] > self.reference[mt][half] + (SHIFT + SLACK);
            });
        });
        if unsafe { vote_any(moved) } {
            let mut factor = [[1.0; 2]; MT];
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    if max[mt][half] > self.reference[mt][half] + (SHIFT + SLACK) {
                        let reference = max[mt][half] - SHIFT;
                        factor[mt][half] = ex2_approx_ftz_f32(self.reference[mt][half] - reference);
                        self.reference[mt][half] = reference;
                        self.row_sum[mt][half] *= factor[mt][half];
                    }
                });
            });
            acc.scale(tiles, &factor);
        }
        let mut weight = [[0.0; 2]; MT];
        unroll!(0..MT, |mt| {
            if !LANE_SUMS {
                sums[mt] = unsafe { quad_sums(&p[mt]) };
            }
            unroll!(0..2, |half| {
                weight[mt][half] = ex2_approx_ftz_f32(max[mt][half] - self.reference[mt][half]);
                self.row_sum[mt][half] = fma_rn_f32(weight[mt][half], sums[mt][half], self.row_sum[mt][half]);
            });
        });
        weight
    }

    #[inline(always)]
    fn accumulate(o: f32, sum: i32, row: &Self::Row, mt: usize, half: usize) -> f32 {
        fma_rn_f32(row[mt][half], f32::from_bits(sum as u32), o)
    }

    #[inline(always)]
    unsafe fn finish(&self, mt: usize, half: usize) -> Finished {
        let sum = self.row_sum[mt][half];
        let sum = if LANE_SUMS { unsafe { quad_sum(sum) } } else { sum };
        if sum > 0.0 {
            let [up, further] = SUBNORMAL;
            Finished {
                factor: mul_rn_f32(mul_rn_f32(rcp_approx_ftz_f32(sum), up), further),
                offset: V_OFFSET.into(),
                seen: u32::MAX,
                lse: self.reference[mt][half] + SHIFT + lg2_approx_ftz_f32(mul_rn_f32(sum, DOWN / 255.0)),
            }
        } else {
            Finished::UNSEEN
        }
    }
}
