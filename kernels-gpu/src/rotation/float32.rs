//! Dims as float32: of bfloat16 and float32 tensors.

use super::{Dims, Place, Unit, Values};
use crate::layout::{V_ROTATION, rotate_v, rotated_v_maxima};
use crate::ptx::math::{fma_rn_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::shuffle::{shfl_sync_bfly_b32, vote_any};
use crate::quantize::pack::{clamp, code, codes4, with_byte};
use crate::quantize::scale::reciprocal;

/// `N` dims of Q or K.
#[derive(Clone, Copy)]
pub(crate) struct Floats<const N: usize>(pub [f32; N]);

impl<const N: usize> Dims<N> for Floats<N> {
    #[inline(always)]
    fn none() -> Self {
        Self([0.0; N])
    }

    #[inline(always)]
    fn of(x: &[f32; N]) -> Self {
        Self(*x)
    }

    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        self.0[i]
    }

    #[inline(always)]
    fn take_out(&mut self, others: &Self, _: Unit) {
        unroll!(0..N, |i| {
            self.0[i] -= others.0[i];
        });
    }

    #[inline(always)]
    fn negate(&mut self, signs: u32) {
        unroll!(0..N, |i| {
            self.0[i] = f32::from_bits(self.0[i].to_bits() ^ signs << (31 - i) & 1 << 31);
        });
    }

    #[inline(always)]
    fn here<const H: usize>(&mut self) {
        let x = &mut self.0;
        unroll!(0..N / 2, |pair| {
            let i = pair / H * 2 * H + pair % H;
            let (a, b) = (x[i], x[i + H]);
            (x[i], x[i + H]) = (a + b, a - b);
        });
    }

    #[inline(always)]
    unsafe fn across(&mut self, mask: u32, second: u32) {
        let sign = f32::from_bits(1.0_f32.to_bits() | second << 31);
        unroll!(0..N, |i| {
            let other = f32::from_bits(unsafe { shfl_sync_bfly_b32(self.0[i].to_bits(), mask) });
            // One rounding of a sum: the product is exact.
            self.0[i] = fma_rn_f32(self.0[i], sign, other);
        });
    }

    #[inline(always)]
    fn rotate_v(&mut self) -> Unit {
        let x = &mut self.0;
        unroll!(0..N / V_ROTATION, |i| {
            let four = rotate_v([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
            (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]) = (four[0], four[1], four[2], four[3]);
        });
        Unit::ONE
    }

    #[inline(always)]
    fn largest(&self) -> f32 {
        // As a tree: the tokens of other warps do not hide 32 steps.
        let x = &self.0;
        let mut amax = [x[0].abs(), x[1].abs(), x[2].abs(), x[3].abs()];
        unroll!(4..N, |i| {
            amax[i % 4] = max_nan_f32(amax[i % 4], x[i].abs());
        });
        max_nan_f32(max_nan_f32(amax[0], amax[1]), max_nan_f32(amax[2], amax[3]))
    }

    #[inline(always)]
    unsafe fn quieten(&mut self, _: &Place, _: f32, _: bool) -> Unit {
        Unit::ONE
    }

    #[inline(always)]
    unsafe fn encode(&mut self, scale: f32, _: Unit, _: bool, largest: f32) {
        let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
        unroll!(0..N, |i| {
            self.0[i] = mul_rn_f32(self.0[i], inverse);
        });
        if unsafe { vote_any(scale >= largest) } {
            unroll!(0..N, |i| {
                self.0[i] = clamp(self.0[i]);
            });
        }
    }

    #[inline(always)]
    fn codes4(&self, quad: usize) -> u32 {
        let x = &self.0;
        codes4([x[4 * quad], x[4 * quad + 1], x[4 * quad + 2], x[4 * quad + 3]])
    }
}

/// `L` dims of V.
#[derive(Clone, Copy)]
pub(crate) struct FloatValues<const L: usize>(pub [f32; 8]);

impl<const L: usize> Values for FloatValues<L> {
    #[inline(always)]
    fn rotate(&mut self) -> f32 {
        let largest = self.largest_rotated();
        let x = &mut self.0;
        unroll!(0..L / V_ROTATION, |i| {
            let four = rotate_v([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
            (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]) = (four[0], four[1], four[2], four[3]);
        });
        largest
    }

    #[inline(always)]
    fn largest_rotated(&self) -> f32 {
        let (x, mut amax) = (&self.0, [0.0; 2]);
        unroll!(0..L / V_ROTATION, |i| {
            let maxima = rotated_v_maxima([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
            amax[i] = max_nan_f32(maxima.0, maxima.1);
        });
        if L == 8 { max_nan_f32(amax[0], amax[1]) } else { amax[0] }
    }

    #[inline(always)]
    unsafe fn encode(keys: [&Self; 4], inverse: [f32; 4], _: bool) -> [u32; 8] {
        let mut words = [0; 8];
        unroll!(0..4, |key| {
            unroll!(0..L, |dim| {
                words[dim] = with_byte(words[dim], key, code(clamp(mul_rn_f32(keys[key].0[dim], inverse[key]))));
            });
        });
        words
    }
}
