//! Dims as float32: of bfloat16 and float32 tensors.

use super::{Rotated, Token, Unit, Values};
use crate::element::{Bf16, Element, F16OfPaper, F32, Vector};
use crate::layout::{V_ROTATION, rotate_v, rotated_v_maxima};
use crate::params::QuantizeParams;
use crate::ptx::math::{fma_rn_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::shared::ld_shared_v4_u32;
use crate::ptx::shuffle::vote_any;
use crate::quantize::pack::{clamp, code, codes4, with_byte};
use crate::quantize::scale::reciprocal;
use crate::rotation::TokenLane;

macro_rules! in_float32 {
    ($($element:ty, $rotates:expr;)*) => {$(
        impl Rotated for $element {
            const HALF: bool = false;
            type Token<const N: usize> = [f32; N];
            type Values = FloatValues<{ <$element>::LANES }>;

            #[inline(always)]
            fn rotates(params: &QuantizeParams) -> bool {
                $rotates(params)
            }

            #[inline(always)]
            fn put<const N: usize>(x: &mut [f32; N], i: usize, vector: &Vector) {
                unroll!(0..Self::LANES, |j| {
                    x[i * Self::LANES + j] = Self::get(vector, j);
                });
            }

            #[inline(always)]
            fn values(vector: &Vector) -> Self::Values {
                let mut x = [0.0; 8];
                unroll!(0..Self::LANES, |i| {
                    x[i] = Self::get(vector, i);
                });
                FloatValues(x)
            }

            #[inline(always)]
            unsafe fn put_offsets<const N: usize>(x: &mut [f32; N], i: usize, at: u32) {
                unroll!(0..Self::LANES / 4, |quad| {
                    let four = unsafe { Self::offsets4(at, quad) };
                    unroll!(0..4, |j| {
                        x[i * Self::LANES + 4 * quad + j] = four[j];
                    });
                });
            }

            #[inline(always)]
            unsafe fn offsets4(at: u32, quad: usize) -> [f32; 4] {
                unsafe { ld_shared_v4_u32(at + 16 * quad as u32) }.map(f32::from_bits)
            }
        }
    )*};
}
in_float32! {
    F16OfPaper, |_| false;
    Bf16, |params: &QuantizeParams| params.rotate != 0;
    F32, |params: &QuantizeParams| params.rotate != 0;
}

impl<const N: usize> Token<N> for [f32; N] {
    #[inline(always)]
    fn none() -> Self {
        [0.0; N]
    }

    #[inline(always)]
    fn of(x: &[f32; N]) -> Self {
        *x
    }

    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        self[i]
    }

    #[inline(always)]
    fn take_out(&mut self, others: &Self, _: Unit) {
        unroll!(0..N, |i| {
            self[i] -= others[i];
        });
    }

    #[inline(always)]
    fn negate(&mut self, signs: u32) {
        unroll!(0..N, |i| {
            self[i] = f32::from_bits(self[i].to_bits() ^ signs << (31 - i) & 1 << 31);
        });
    }

    #[inline(always)]
    fn rotate_v(&mut self) -> Unit {
        let x = self;
        unroll!(0..N / V_ROTATION, |i| {
            let four = rotate_v([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
            (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]) = (four[0], four[1], four[2], four[3]);
        });
        Unit::ONE
    }

    #[inline(always)]
    fn largest(&self) -> f32 {
        // As a tree: the tokens of other warps do not hide 32 steps.
        let x = self;
        let mut amax = [x[0].abs(), x[1].abs(), x[2].abs(), x[3].abs()];
        unroll!(4..N, |i| {
            amax[i % 4] = max_nan_f32(amax[i % 4], x[i].abs());
        });
        max_nan_f32(max_nan_f32(amax[0], amax[1]), max_nan_f32(amax[2], amax[3]))
    }

    #[inline(always)]
    unsafe fn quieten(&mut self, _: &TokenLane, _: f32, _: bool) -> Unit {
        Unit::ONE
    }

    #[inline(always)]
    unsafe fn encode(&mut self, scale: f32, _: Unit, largest: f32) {
        let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
        unroll!(0..N, |i| {
            self[i] = mul_rn_f32(self[i], inverse);
        });
        if unsafe { vote_any(scale >= largest) } {
            unroll!(0..N, |i| {
                self[i] = clamp(self[i]);
            });
        }
    }

    #[inline(always)]
    fn codes4(&self, quad: usize) -> u32 {
        let x = self;
        codes4([x[4 * quad], x[4 * quad + 1], x[4 * quad + 2], x[4 * quad + 3]])
    }
}

/// `L` dims of V.
#[derive(Clone, Copy)]
pub(crate) struct FloatValues<const L: usize>([f32; 8]);

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
    unsafe fn encode(keys: [&Self; 4], inverse: [f32; 4]) -> [u32; 8] {
        let mut words = [0; 8];
        unroll!(0..4, |key| {
            unroll!(0..L, |dim| {
                words[dim] = with_byte(words[dim], key, code(clamp(mul_rn_f32(keys[key].0[dim], inverse[key]))));
            });
        });
        words
    }
}
