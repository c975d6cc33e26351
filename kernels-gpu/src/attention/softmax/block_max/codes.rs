//! From the scores of a block to the codes of P: the rows' maxima, the exponents that they make, float16 exponentials.

use super::{BlockMax, NEG_INFINITY};
use crate::attention::KEY_TILES;
use crate::ptx::math::{
    cvt_f32_f16_high, cvt_f32_f16_low, cvt_rp_f16_f32, ex2_approx_f16x2, fma_rn_f16x2, max_nan_f16x2, mul_rn_f32, prmt,
};
use crate::ptx::shuffle::shfl_bfly;

/// 255 and 1024 as pairs of float16: `255 e + 1024` has the rounded code of P in its low byte.
pub(super) const CODES: u32 = 0x5bf8_5bf8;
pub(super) const HALF_MAGIC: u32 = 0x6400_6400;

/// What P of a block is made with.
pub(crate) struct Exponents<const MT: usize> {
    /// The block's exponents, negated, as pairs of equal float16.
    pub(super) minus_m: [[u32; 2]; MT],
    pub(super) row_scales: [[u32; 2]; MT],
}

impl<const MT: usize, const LANE_SUMS: bool> BlockMax<MT, LANE_SUMS> {
    /// The rows' maxima over the `tiles` n8 tiles of the quad's four lanes, for two rows at once: (row g, row g+8) in the halves.
    #[inline(always)]
    pub(super) unsafe fn maxima(scores: &[[[u32; KEY_TILES]; 2]; MT], tiles: usize) -> [u32; MT] {
        unsafe { Self::quad_maxima(Self::lane_maxima(scores, tiles)) }
    }

    /// The same of the lane's own keys.
    #[inline(always)]
    pub(crate) fn lane_maxima(scores: &[[[u32; KEY_TILES]; 2]; MT], tiles: usize) -> [u32; MT] {
        let mut maxima = [0; MT];
        unroll!(0..MT, |mt| {
            let mut max = [NEG_INFINITY; 2];
            unroll!(0..2, |half| {
                let t = &scores[mt][half];
                // Three at a time: sm_90 has an instruction for that. NaN stays: a row that sees one is NaN.
                let mut two = [max_nan_f16x2(t[0], t[1]), max_nan_f16x2(t[2], t[3])];
                unroll!(2..KEY_TILES / 2, |i| {
                    if 2 * i < tiles {
                        two[i % 2] = max_nan_f16x2(max_nan_f16x2(two[i % 2], t[2 * i]), t[2 * i + 1]);
                    }
                });
                max[half] = max_nan_f16x2(two[0], two[1]);
            });
            maxima[mt] = max_nan_f16x2(prmt(max[0], max[1], 0x5410), prmt(max[0], max[1], 0x7632));
        });
        maxima
    }

    /// Those of a quad's lanes put together.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn quad_maxima(mut maxima: [u32; MT]) -> [u32; MT] {
        unroll!(0..MT, |mt| {
            unsafe {
                let max = max_nan_f16x2(maxima[mt], shfl_bfly::<1>(maxima[mt]));
                maxima[mt] = max_nan_f16x2(max, shfl_bfly::<2>(max));
            }
        });
        maxima
    }

    /// What P of a block is made with, whose rows have these maxima.
    #[inline(always)]
    pub(crate) fn exponents_of(maxima: &[u32; MT], row_scales: [[u32; 2]; MT]) -> Exponents<MT> {
        Exponents { minus_m: Self::negated(maxima, &row_scales), row_scales }
    }

    /// The block's exponents, negated, as pairs of equal float16.
    #[inline(always)]
    fn negated(maxima: &[u32; MT], row_scales: &[[u32; 2]; MT]) -> [[u32; 2]; MT] {
        let mut minus_m = [[0; 2]; MT];
        unroll!(0..MT, |mt| {
            let row_max = [cvt_f32_f16_low(maxima[mt]), cvt_f32_f16_high(maxima[mt])];
            unroll!(0..2, |half| {
                // A row that sees no key of the block has minus infinity here; any finite exponent serves it.
                let t = if row_max[half] < -65504.0 { -65504.0 } else { row_max[half] };
                let m = cvt_rp_f16_f32(mul_rn_f32(t, cvt_f32_f16_low(row_scales[mt][half])));
                minus_m[mt][half] = m ^ 0x8000_8000;
            });
        });
        minus_m
    }

    /// The codes of P of two neighbouring tiles of row `(mt, half)`: a register of an A fragment.
    #[inline(always)]
    pub(super) fn codes(
        scores: &[[[u32; KEY_TILES]; 2]; MT],
        exponents: &Exponents<MT>,
        mt: usize,
        half: usize,
        tile: usize,
    ) -> u32 {
        let (row_scale, minus_m) = (exponents.row_scales[mt][half], exponents.minus_m[mt][half]);
        let code = |tile: usize| {
            let e = ex2_approx_f16x2(fma_rn_f16x2(scores[mt][half][tile], row_scale, minus_m));
            fma_rn_f16x2(e, CODES, HALF_MAGIC)
        };
        prmt(code(tile), code(tile + 1), 0x6420)
    }
}
