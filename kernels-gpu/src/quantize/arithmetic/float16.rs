//! Dims as float16, two in a word, the first in the low half: half as many instructions, shuffles and registers as float32 takes, and no conversion.
//!
//! Float16 holds sums of so many dims unless they are loud, of which a token is brought into a unit of its own. Codes are `rne(x * (1/scale))` by one instruction for two
//! of them: 1536 added in float16 leaves an integer in the low byte. What float16 has no reciprocal for is far below what else a token may be (`FAINT_FACTOR`).

use super::{Rotated, Token, Unit, Values};
use crate::element::{F16, Vector};
use crate::layout::{FAINT_FACTOR, LEAST_SCALE_16, LOUD_UNIT, V_ROTATION, V_UNIT_16};
use crate::params::QuantizeParams;
use crate::ptx::math::{
    abs_f16x2, add_rn_f16x2, cvt_f32_f16_high, cvt_f32_f16_low, cvt_rn_f16x2_f32, cvt_rn_satfinite_f16x2_f32,
    fma_rn_f16x2, fma_rn_f32, high_twice, low_twice, max_f32, max_nan_f16x2, max_nan_f32, mul_rn_f16x2, mul_rn_f32,
    prmt, rcp_approx_ftz_f32, sub_rn_f16x2,
};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_u32};
use crate::ptx::shuffle::{shfl_sync_bfly_b32, vote_any};
use crate::quantize::scale::reciprocal;
use crate::rotation::{Dims, TokenLane};

/// 1536 twice: added, it rounds to an integer, which is in the low byte.
const ROUNDER: u32 = 0x6600_6600;
/// 1 and 2^-10 twice, negative.
const MINUS_ONE: u32 = Unit::ONE.minus_reciprocal;
const MINUS_QUIET: u32 = 0x9400_9400;
const SIGNS: u32 = 0x8000_8000;
/// 2^8 twice, whose square is [`FAINT_FACTOR`], and 1 twice.
const FAINT_ROOT: u32 = 0x5c00_5c00;
const ONE: u32 = 0x3c00_3c00;
/// A quarter twice, of V's unit.
const QUARTER: u32 = 0x3400_3400;

const _: () = assert!(LOUD_UNIT == 1024.0 && FAINT_FACTOR == 65536.0 && V_UNIT_16 == 4.0);

/// `N` dims of Q or K in the first `N / 2` words.
#[derive(Clone, Copy)]
pub(crate) struct Halves<const N: usize>([u32; N]);

impl Rotated for F16 {
    const HALF: bool = true;
    type Token<const N: usize> = Halves<N>;
    type Values = HalfValues;

    #[inline(always)]
    fn rotates(_: &QuantizeParams) -> bool {
        true
    }

    #[inline(always)]
    fn put<const N: usize>(x: &mut Halves<N>, i: usize, vector: &Vector) {
        unroll!(0..4, |word| {
            x.0[4 * i + word] = vector[word];
        });
    }

    #[inline(always)]
    fn values(vector: &Vector) -> HalfValues {
        HalfValues(*vector)
    }

    #[inline(always)]
    unsafe fn put_offsets<const N: usize>(x: &mut Halves<N>, i: usize, at: u32) {
        Self::put(x, i, &unsafe { ld_shared_v4_u32(at) });
    }

    #[inline(always)]
    unsafe fn offsets4(at: u32, quad: usize) -> [f32; 4] {
        let [a, b] = unsafe { ld_shared_v2_u32(at + 8 * quad as u32) };
        [cvt_f32_f16_low(a), cvt_f32_f16_high(a), cvt_f32_f16_low(b), cvt_f32_f16_high(b)]
    }
}

/// Sum and difference of a word's halves.
#[inline(always)]
fn within(word: u32) -> u32 {
    fma_rn_f16x2(high_twice(word), 0xbc00_3c00, low_twice(word))
}

/// What the sum and the difference of are four rotated dims of V, in V's unit.
#[inline(always)]
fn v_sums(a: u32, b: u32) -> (u32, u32) {
    let (a, b) = (mul_rn_f16x2(a, QUARTER), mul_rn_f16x2(b, QUARTER));
    // (a + b, a - b) of the first two, (c - d, c + d) of the second.
    (within(a), fma_rn_f16x2(high_twice(b), 0x3c00_bc00, low_twice(b)))
}

/// The larger half in float32.
#[inline(always)]
fn larger(word: u32) -> f32 {
    max_nan_f32(cvt_f32_f16_low(word), cvt_f32_f16_high(word))
}

/// The factor of the dims that makes quotients of them, twice, of this reciprocal of their scale.
#[inline(always)]
fn twice(inverse: f32) -> u32 {
    cvt_rn_satfinite_f16x2_f32(inverse, inverse)
}

/// The low bytes of both halves of two words.
#[inline(always)]
fn bytes(a: u32, b: u32) -> u32 {
    prmt(a, b, 0x6420)
}

impl<const N: usize> Dims<N> for Halves<N> {
    #[inline(always)]
    fn here<const H: usize>(&mut self) {
        let x = &mut self.0;
        if H == 1 {
            unroll!(0..N / 2, |i| {
                x[i] = within(x[i]);
            });
        } else {
            unroll!(0..N / 4, |pair| {
                let i = pair / (H / 2) * H + pair % (H / 2);
                let (a, b) = (x[i], x[i + H / 2]);
                (x[i], x[i + H / 2]) = (add_rn_f16x2(a, b), sub_rn_f16x2(a, b));
            });
        }
    }

    #[inline(always)]
    unsafe fn across(&mut self, mask: u32, second: u32) {
        let sign = ONE | (second & 1) * SIGNS;
        unroll!(0..N / 2, |i| {
            let other = unsafe { shfl_sync_bfly_b32(self.0[i], mask) };
            // One rounding of a sum: the product is exact.
            self.0[i] = fma_rn_f16x2(self.0[i], sign, other);
        });
    }
}

impl<const N: usize> Token<N> for Halves<N> {
    #[inline(always)]
    fn none() -> Self {
        Self([0; N])
    }

    #[inline(always)]
    fn of(x: &[f32; N]) -> Self {
        let mut words = [0; N];
        unroll!(0..N / 2, |i| {
            words[i] = cvt_rn_f16x2_f32(x[2 * i + 1], x[2 * i]);
        });
        Self(words)
    }

    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        if i.is_multiple_of(2) { cvt_f32_f16_low(self.0[i / 2]) } else { cvt_f32_f16_high(self.0[i / 2]) }
    }

    #[inline(always)]
    fn take_out(&mut self, others: &Self, unit: Unit) {
        unroll!(0..N / 2, |i| {
            self.0[i] = fma_rn_f16x2(others.0[i], unit.minus_reciprocal, self.0[i]);
        });
    }

    #[inline(always)]
    fn negate(&mut self, signs: u32) {
        unroll!(0..N / 2, |i| {
            let [first, second] = [signs >> (2 * i) & 1, signs >> (2 * i + 1) & 1];
            self.0[i] ^= first << 15 | second << 31;
        });
    }

    #[inline(always)]
    fn rotate_v(&mut self) -> Unit {
        let x = &mut self.0;
        unroll!(0..N / V_ROTATION, |i| {
            let (s, t) = v_sums(x[2 * i], x[2 * i + 1]);
            (x[2 * i], x[2 * i + 1]) = (add_rn_f16x2(s, t), sub_rn_f16x2(s, t));
        });
        Unit { minus_reciprocal: QUARTER ^ SIGNS, unit: V_UNIT_16, reciprocal: 1.0 / V_UNIT_16 }
    }

    #[inline(always)]
    fn largest(&self) -> f32 {
        let x = &self.0;
        let mut amax = [abs_f16x2(x[0]), abs_f16x2(x[1])];
        unroll!(2..N / 2, |i| {
            amax[i % 2] = max_nan_f16x2(amax[i % 2], abs_f16x2(x[i]));
        });
        larger(max_nan_f16x2(amax[0], amax[1]))
    }

    #[inline(always)]
    unsafe fn quieten(&mut self, place: &TokenLane, limit: f32, loud: bool) -> Unit {
        let loud = loud | (self.largest() >= limit);
        let mut unit = Unit::ONE;
        unsafe {
            if vote_any(loud) {
                let of_token = place.over_many_lanes(f32::from_bits(selp_b32(loud, 1.0_f32.to_bits(), 0)), max_f32);
                let of_token = of_token > 0.0;
                let float = |loud: f32| f32::from_bits(selp_b32(of_token, loud.to_bits(), 1.0_f32.to_bits()));
                unit = Unit {
                    minus_reciprocal: selp_b32(of_token, MINUS_QUIET, MINUS_ONE),
                    unit: float(LOUD_UNIT),
                    reciprocal: float(1.0 / LOUD_UNIT),
                };
                unroll!(0..N / 2, |i| {
                    self.0[i] = mul_rn_f16x2(self.0[i], unit.minus_reciprocal ^ SIGNS);
                });
            }
        }
        unit
    }

    #[inline(always)]
    unsafe fn encode(&mut self, scale: f32, unit: Unit, _: f32) {
        let x = &mut self.0;
        let mut scale = mul_rn_f32(scale, unit.reciprocal);
        let faint = scale < LEAST_SCALE_16;
        if unsafe { vote_any(faint) } {
            let factor = f32::from_bits(selp_b32(faint, FAINT_FACTOR.to_bits(), 1.0_f32.to_bits()));
            scale = mul_rn_f32(scale, factor);
            let root = selp_b32(faint, FAINT_ROOT, ONE);
            unroll!(0..N / 2, |i| {
                x[i] = mul_rn_f16x2(mul_rn_f16x2(x[i], root), root);
            });
        }
        let inverse = twice(reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32));
        unroll!(0..N / 2, |i| {
            x[i] = fma_rn_f16x2(x[i], inverse, ROUNDER);
        });
    }

    #[inline(always)]
    fn codes4(&self, quad: usize) -> u32 {
        bytes(self.0[2 * quad], self.0[2 * quad + 1])
    }
}

/// Eight dims of V.
#[derive(Clone, Copy)]
pub(crate) struct HalfValues([u32; 4]);

impl Values for HalfValues {
    #[inline(always)]
    fn rotate(&mut self) -> f32 {
        let x = &mut self.0;
        let mut amax = [0; 2];
        unroll!(0..2, |i| {
            let (s, t) = v_sums(x[2 * i], x[2 * i + 1]);
            amax[i] = add_rn_f16x2(abs_f16x2(s), abs_f16x2(t));
            (x[2 * i], x[2 * i + 1]) = (add_rn_f16x2(s, t), sub_rn_f16x2(s, t));
        });
        larger(max_nan_f16x2(amax[0], amax[1])) * V_UNIT_16
    }

    #[inline(always)]
    fn largest_rotated(&self) -> f32 {
        let mut copy = *self;
        copy.rotate()
    }

    #[inline(always)]
    unsafe fn encode(keys: [&Self; 4], inverse: [f32; 4]) -> [u32; 8] {
        let mut x = keys.map(|key| key.0);
        let mut inverse = inverse.map(|inverse| mul_rn_f32(inverse, V_UNIT_16));
        let faint = inverse.map(|inverse| inverse > 1.0 / LEAST_SCALE_16);
        if unsafe { vote_any(faint[0] | faint[1] | faint[2] | faint[3]) } {
            unroll!(0..4, |key| {
                let factor = selp_b32(faint[key], (1.0 / FAINT_FACTOR).to_bits(), 1.0_f32.to_bits());
                inverse[key] = mul_rn_f32(inverse[key], f32::from_bits(factor));
                let root = selp_b32(faint[key], FAINT_ROOT, ONE);
                unroll!(0..4, |i| {
                    x[key][i] = mul_rn_f16x2(mul_rn_f16x2(x[key][i], root), root);
                });
            });
        }
        unroll!(0..4, |key| {
            let inverse = twice(inverse[key]);
            unroll!(0..4, |i| {
                x[key][i] = fma_rn_f16x2(x[key][i], inverse, ROUNDER);
            });
        });
        let mut words = [0; 8];
        unroll!(0..4, |i| {
            // Of two keys each, the codes of a dim beside each other.
            let (low, high) = (prmt(x[0][i], x[1][i], 0x6240), prmt(x[2][i], x[3][i], 0x6240));
            (words[2 * i], words[2 * i + 1]) = (prmt(low, high, 0x5410), prmt(low, high, 0x7632));
        });
        words
    }
}
