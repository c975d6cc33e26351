//! Scores to P, in float32 (docs/kernel-abi.md, "Decode").

use super::scores::{MAGIC, MAGIC_BITS, Mask, Scores, first_key};
use super::walk::Block;
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::config::decode::SCALE_BYTES;
use crate::layout::V_OFFSET;
use crate::params::DecodeParams;
use crate::ptx::math::{
    dp4a_u32_u32, ex2_approx_ftz_f32, fma_rn_f32, lg2_approx_ftz_f32, max_nan_f32, mul_rn_f32, prmt, rcp_approx_ftz_f32,
};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::ld_shared_v2_u32;
use crate::ptx::shuffle::shfl_bfly;

/// The largest code of P.
const R: f32 = 255.0;

/// The lane's two rows over the blocks so far.
pub(crate) struct Softmax {
    /// The running reference exponent: the largest score so far.
    reference: [f32; 2],
    /// The sum of the exponentials.
    sum: [f32; 2],
}

/// P of a block, and what its products enter with.
pub(crate) struct Weights {
    /// A fragments: `[step of 32 keys][register]`, four keys a register in the order of `layout::key_slot`.
    pub p: [[u32; 4]; KEY_STEPS],
    /// `-128 * sum p` of each row: what V's bytes have more than its codes.
    pub offset: [i32; 2],
    /// `w * G/255`.
    pub factor: [f32; 2],
    /// What the rows so far are multiplied with.
    pub rescale: [f32; 2],
}

impl Weights {
    /// What sums of products of P and V's bytes begin as: the offset, and what makes them floats.
    #[inline(always)]
    pub(crate) fn first_sums(&self) -> [i32; 4] {
        let [a, b] = self.offset;
        [MAGIC_BITS + a, MAGIC_BITS + a, MAGIC_BITS + b, MAGIC_BITS + b]
    }
}

/// The larger of a value's in the four lanes of a quad, NaN where one is.
#[inline(always)]
unsafe fn quad_max(mut value: f32) -> f32 {
    unsafe {
        value = max_nan_f32(value, f32::from_bits(shfl_bfly::<1>(value.to_bits())));
        max_nan_f32(value, f32::from_bits(shfl_bfly::<2>(value.to_bits())))
    }
}

/// The sum over the four lanes of a quad.
#[inline(always)]
unsafe fn quad_sum(mut value: f32) -> f32 {
    unsafe {
        value += f32::from_bits(shfl_bfly::<1>(value.to_bits()));
        value + f32::from_bits(shfl_bfly::<2>(value.to_bits()))
    }
}

impl Softmax {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { reference: [f32::NEG_INFINITY; 2], sum: [0.0; 2] }
    }

    /// Takes the scores of a block, to be multiplied with `unit`, and its scales at a shared address.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn block(
        &mut self,
        scores: &mut Scores,
        block: &Block,
        params: &DecodeParams,
        unit: [f32; 2],
        scales: u32,
        edge: bool,
    ) -> Weights {
        let mut weights = Weights { p: [[0; 4]; KEY_STEPS], offset: [0; 2], factor: [0.0; 2], rescale: [0.0; 2] };
        let mut largest = [f32::NEG_INFINITY; 2];
        unroll!(0..2, |half| {
            unroll!(0..KEY_TILES, |tile| {
                largest[half] = max_nan_f32(largest[half], max_nan_f32(scores[half][tile][0], scores[half][tile][1]));
            });
            largest[half] = unsafe { quad_max(largest[half]) };
        });
        let unseen = largest.map(|largest| largest == f32::NEG_INFINITY);
        let mut shift = [0.0; 2];
        unroll!(0..2, |half| {
            shift[half] = if unseen[half] { 0.0 } else { mul_rn_f32(largest[half], unit[half]) };
        });
        // e, summed up, and g.
        let mut sum = [0.0; 2];
        let values = scales + SCALE_BYTES as u32 / 2 + 4 * first_key(0);
        unroll!(0..KEY_TILES, |tile| {
            let scale = unsafe { ld_shared_v2_u32(values + 32 * tile as u32) };
            unroll!(0..2, |half| {
                unroll!(0..2, |i| {
                    let e = ex2_approx_ftz_f32(fma_rn_f32(scores[half][tile][i], unit[half], -shift[half]));
                    sum[half] += e;
                    scores[half][tile][i] = mul_rn_f32(e, f32::from_bits(scale[i]));
                });
            });
        });
        // Now: a shuffle stays where it is, and until the sums are made all exponentials take registers, beside g.
        let sum = sum.map(|sum| unsafe { quad_sum(sum) });
        if edge {
            // Scales of hidden keys may be no numbers.
            let mask = Mask::new(block, params);
            unroll!(0..2, |half| {
                unroll!(0..KEY_TILES, |tile| {
                    unroll!(0..2, |i| {
                        let seen = selp_b32(mask.sees(half, tile, i), scores[half][tile][i].to_bits(), 0);
                        scores[half][tile][i] = f32::from_bits(seen);
                    });
                });
            });
        }
        unroll!(0..2, |half| {
            let mut largest = 0.0;
            unroll!(0..KEY_TILES, |tile| {
                largest = max_nan_f32(largest, max_nan_f32(scores[half][tile][0], scores[half][tile][1]));
            });
            largest = unsafe { quad_max(largest) };
            let to_codes = if largest > 0.0 { mul_rn_f32(rcp_approx_ftz_f32(largest), R) } else { 0.0 };
            unroll!(0..KEY_STEPS, |step| {
                unroll!(0..2, |upper| {
                    let mut codes = [[0; 2]; 2];
                    unroll!(0..2, |i| {
                        unroll!(0..2, |j| {
                            let g = scores[half][4 * step + 2 * upper + i][j];
                            codes[i][j] = fma_rn_f32(g, to_codes, MAGIC).to_bits();
                        });
                    });
                    let [low, high] = codes.map(|pair| prmt(pair[0], pair[1], 0x0040));
                    weights.p[step][half + 2 * upper] = prmt(low, high, 0x5410);
                });
            });
            let mut codes = 0;
            unroll!(0..KEY_STEPS, |step| {
                unroll!(0..2, |upper| {
                    codes = dp4a_u32_u32(weights.p[step][half + 2 * upper], 0x0101_0101, codes);
                });
            });
            unsafe {
                codes += shfl_bfly::<1>(codes as u32) as i32;
                codes += shfl_bfly::<2>(codes as u32) as i32;
            }
            weights.offset[half] = -i32::from(V_OFFSET) * codes;

            let exponent = if unseen[half] { f32::NEG_INFINITY } else { shift[half] };
            let reference = max_nan_f32(self.reference[half], exponent);
            let base = if reference == f32::NEG_INFINITY { 0.0 } else { reference };
            let (rescale, weight) =
                (ex2_approx_ftz_f32(self.reference[half] - base), ex2_approx_ftz_f32(exponent - base));
            self.reference[half] = reference;
            self.sum[half] = fma_rn_f32(sum[half], weight, self.sum[half] * rescale);
            weights.rescale[half] = rescale;
            weights.factor[half] = mul_rn_f32(weight, mul_rn_f32(largest, 1.0 / R));
        });
        weights
    }

    /// What the output of row `half` is to be multiplied with, and its log-sum-exp in base 2; of a row that sees no key 0 and minus infinity.
    #[inline(always)]
    pub(crate) fn finish(&self, half: usize) -> (f32, f32) {
        if self.reference[half] == f32::NEG_INFINITY {
            return (0.0, f32::NEG_INFINITY);
        }
        (rcp_approx_ftz_f32(self.sum[half]), self.reference[half] + lg2_approx_ftz_f32(self.sum[half]))
    }
}
