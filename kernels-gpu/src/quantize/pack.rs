//! Floats to bytes without conversion instructions (they run at a quarter of the rate).

use crate::ptx::math::{add_rn_f32, prmt};

/// 1.5 * 2^23: added to an integer's neighbourhood it rounds to nearest even, and the integer is in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// `rne(y)` in the lowest byte of a word, of a `y` from -127.5 to 127.5; other bits are any.
#[inline(always)]
pub(crate) fn code(y: f32) -> u32 {
    add_rn_f32(y, ROUNDER).to_bits()
}

/// The codes of four numbers as bytes, the first lowest.
#[inline(always)]
pub(crate) fn codes4(y: [f32; 4]) -> u32 {
    let pair = |a: f32, b: f32| prmt(code(a), code(b), 0x0040);
    prmt(pair(y[0], y[1]), pair(y[2], y[3]), 0x5410)
}

/// A word with its byte `i` replaced by the lowest of another; bytes behind it are any.
#[inline(always)]
pub(crate) fn with_byte(word: u32, i: usize, byte: u32) -> u32 {
    match i {
        0 => byte,
        1 => prmt(word, byte, 0x3240),
        2 => prmt(word, byte, 0x3410),
        _ => prmt(word, byte, 0x4210),
    }
}

/// The largest quotients that are codes.
///
/// This matters where a scale is the largest there is. Float16 has no such values: there the quotient rounds to 127 at most, as the scale comes from
/// the largest magnitude.
#[inline(always)]
#[allow(clippy::manual_clamp)] // `clamp` asserts its bounds, and a kernel has no panic
pub(crate) fn clamp(y: f32) -> f32 {
    y.max(-127.0).min(127.0)
}
