//! The online softmax in float32, base 2.

use super::Kernel;
use super::accumulator::Accumulator;
use super::scores::Scores;
use crate::ptx::math::{
    cvt_rn_f16x2_f32, ex2_approx_ftz_f32, fma_rn_f32, lg2_approx_ftz_f32, max_f32, mul_rn_f32, rcp_approx_ftz_f32,
};
use crate::ptx::shuffle::{shfl_bfly, vote_any};

/// A row's reference exponent follows its maximum only when that exceeds it by this. P then reaches 2^8, far below float16's
/// limit and with the same relative precision, and the rescale of the whole output almost never runs.
const SLACK: f32 = 8.0;

/// The state of the warp's rows: `[mt][row g or g + 8]`.
pub(crate) struct Softmax<const MT: usize> {
    /// Reference exponent, the same in the four lanes of a quad.
    reference: [[f32; 2]; MT],
    /// This lane's share of the row sum.
    row_sum: [[f32; 2]; MT],
}

impl<const MT: usize> Softmax<MT> {
    /// The reference starts finite: a row without keys must not meet minus infinity less minus infinity.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { reference: [[f32::MIN; 2]; MT], row_sum: [[0.0; 2]; MT] }
    }

    /// Moves the reference exponents, and the output with them, where a row's maximum is too far above.
    ///
    /// Each lane judges its own share of the row; the quad's maximum is found only if some lane of the warp is beyond the slack.
    #[inline(always)]
    pub(crate) unsafe fn observe<K: Kernel<MT>>(&mut self, s: &Scores<MT>, scale: f32, acc: &mut Accumulator<MT>) {
        let mut max = [[0.0; 2]; MT];
        let mut beyond = false;
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                max[mt][half] = mul_rn_f32(row_max::<K, MT>(s, mt, half), scale);
                beyond |= max[mt][half] > self.reference[mt][half] + SLACK;
            });
        });
        if unsafe { vote_any(beyond) } {
            unsafe { self.advance::<K>(&max, acc) };
        }
    }

    #[inline(always)]
    unsafe fn advance<K: Kernel<MT>>(&mut self, lane_max: &[[f32; 2]; MT], acc: &mut Accumulator<MT>) {
        let mut factor = [[1.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let mut max = max_f32(lane_max[mt][half], self.reference[mt][half]);
                unsafe {
                    max = max_f32(max, f32::from_bits(shfl_bfly::<1>(max.to_bits())));
                    max = max_f32(max, f32::from_bits(shfl_bfly::<2>(max.to_bits())));
                }
                factor[mt][half] = ex2_approx_ftz_f32(self.reference[mt][half] - max);
                self.reference[mt][half] = max;
                self.row_sum[mt][half] *= factor[mt][half];
            });
        });
        acc.scale(K::HEAD_DIM, &factor);
    }

    /// P of the 16 keys of step `step`, as A fragments: an accumulator of scores is the operand's layout already.
    #[inline(always)]
    pub(crate) fn probabilities(&mut self, s: &Scores<MT>, scale: f32, step: usize) -> [[u32; 4]; MT] {
        let mut p = [[0; 4]; MT];
        unroll!(0..4, |register| {
            let (half, tile) = (register % 2, 2 * step + register / 2);
            unroll!(0..MT, |mt| {
                let exp = |i: usize| {
                    ex2_approx_ftz_f32(fma_rn_f32(s[mt][tile][2 * half + i], scale, -self.reference[mt][half]))
                };
                let (low, high) = (exp(0), exp(1));
                self.row_sum[mt][half] += low;
                self.row_sum[mt][half] += high;
                p[mt][register] = cvt_rn_f16x2_f32(high, low);
            });
        });
        p
    }

    /// Of row `(mt, half)`: what the output is multiplied with, and the log-sum-exp in base 2.
    #[inline(always)]
    pub(crate) unsafe fn finish(&self, mt: usize, half: usize) -> (f32, f32) {
        let mut sum = self.row_sum[mt][half];
        unsafe {
            sum += f32::from_bits(shfl_bfly::<1>(sum.to_bits()));
            sum += f32::from_bits(shfl_bfly::<2>(sum.to_bits()));
        }
        // Not `sum > 0`: a sum that is no number has to reach the output.
        if sum == 0.0 {
            (0.0, f32::NEG_INFINITY)
        } else {
            (rcp_approx_ftz_f32(sum), self.reference[mt][half] + lg2_approx_ftz_f32(sum))
        }
    }
}

/// The maximum of this lane's share of a row.
#[inline(always)]
fn row_max<K: Kernel<MT>, const MT: usize>(s: &Scores<MT>, mt: usize, half: usize) -> f32 {
    let pair = |tile: usize| max_f32(s[mt][tile][2 * half], s[mt][tile][2 * half + 1]);
    let mut max = [pair(0), pair(1)];
    unroll!(2..K::KEYS / 8, |tile| {
        max[tile % 2] = max_f32(max[tile % 2], pair(tile));
    });
    max_f32(max[0], max[1])
}
