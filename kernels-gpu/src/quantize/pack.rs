//! Floats to bytes, and bytes to floats, without conversion instructions (they run at a quarter of the rate).

use crate::ptx::math::{add_rn_f32, prmt};

/// 1.5 * 2^23: added to an integer's neighbourhood it rounds to nearest even, and the integer is in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// `clamp(rne(x * inverse))` of four values as bytes, the first lowest.
#[inline(always)]
pub(crate) fn quantize4(x: [f32; 4], inverse: [f32; 4]) -> u32 {
    let byte = |i: usize| add_rn_f32((x[i] * inverse[i]).max(-127.0).min(127.0), ROUNDER).to_bits();
    prmt(prmt(byte(0), byte(1), 0x0040), prmt(byte(2), byte(3), 0x0040), 0x5410)
}

/// The four signed bytes of `word` as floats, exactly.
#[inline(always)]
pub(crate) fn dequantize4(word: u32) -> [f32; 4] {
    /// 2^23 in bits: with a byte in the low bits, 2^23 plus that byte.
    const BIAS: u32 = 0x4b00_0000;
    let unsigned = word ^ 0x8080_8080;
    let float = |select| add_rn_f32(f32::from_bits(prmt(unsigned, BIAS, select)), -(8_388_608.0 + 128.0));
    [float(0x7440), float(0x7441), float(0x7442), float(0x7443)]
}
