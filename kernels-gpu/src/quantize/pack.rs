//! Floats to bytes without conversion instructions (they run at a quarter of the rate).

use crate::element::Element;
use crate::ptx::math::{add_rn_f32, mul_rn_f32, prmt};

/// 1.5 * 2^23: added to an integer's neighbourhood it rounds to nearest even, and the integer is in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// `clamp(rne(x * inverse))` of four values as bytes, the first lowest.
///
/// The clamp matters where the scale would be beyond 2^120. Float16 has no such values (`E::CLAMPS`): there the product is at
/// most 127 and a rounding error, as rounding is monotonic and the scale comes from the largest magnitude.
#[inline(always)]
pub(crate) fn quantize4<E: Element>(x: [f32; 4], inverse: f32) -> u32 {
    let clamp = |y: f32| if E::CLAMPS { y.max(-127.0).min(127.0) } else { y };
    let byte = |i: usize| add_rn_f32(clamp(mul_rn_f32(x[i], inverse)), ROUNDER).to_bits();
    prmt(prmt(byte(0), byte(1), 0x0040), prmt(byte(2), byte(3), 0x0040), 0x5410)
}
