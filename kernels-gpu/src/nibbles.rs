//! V in 4 bits to bytes and back, in the registers of the lanes that multiply with it (`layout::v4`).

use crate::division::div_rem;
use crate::layout::v4::{v4_nibble_by, v4_range, v4_reciprocal};
use crate::ptx::math::{fma_rn_f16x2, max_f16x2, min_f16x2, prmt};
use crate::ptx::shuffle::shfl_bfly;

/// Four n8 tiles of V's bytes, a k step each: B operands of `mma.m16n8k32`, `[tile][register]`.
pub(crate) type Bytes = [[u32; 2]; 4];

/// The upper bytes of two float16 from 1024 to 1279, whose lower ones are what is more than 1024.
const OF_1024: u32 = 0x6464_6464;
/// Two float16 of each: 1, -64 and -1024.
const ONE: u32 = 0x3c00_3c00;
const MINUS_64: u32 = 0xd400_d400;
const MINUS_1024: u32 = 0xe400_e400;

/// The bytes of a lane's nibbles and their keys' steps, 16 bytes each.
///
/// Two keys at a time, exactly: with a nibble in the bits 4 to 7 of a float16 of 64 that is `64 + c`, and `m*(64 + c) + (1024 + b - 64*m)` has the byte
/// `b + m*c` in its lowest bits.
#[inline(always)]
pub(crate) fn unpack(nibbles: [u32; 4], steps: [u32; 4]) -> Bytes {
    const OF_64: u32 = 0x5400_5400;
    let mut bytes = [[0; 2]; 4];
    unroll!(0..2, |half| {
        let mut pairs = [[0; 4]; 2];
        unroll!(0..2, |pair| {
            let (word, range) = (nibbles[2 * half + pair], steps[2 * half + pair]);
            let step = fma_rn_f16x2(prmt(range, OF_1024, 0x4341), ONE, MINUS_1024);
            let from = fma_rn_f16x2(step, MINUS_64, prmt(range, OF_1024, 0x4240));
            let of_tile = [word << 4, word, word >> 4, word >> 8];
            unroll!(0..4, |tile| {
                pairs[pair][tile] = fma_rn_f16x2(of_tile[tile] & 0x00f0_00f0 | OF_64, step, from);
            });
        });
        unroll!(0..4, |tile| {
            bytes[tile][half] = prmt(pairs[0][tile], pairs[1][tile], 0x6420);
        });
    });
    bytes
}

/// The nibbles of a lane's bytes, and the steps of its keys: [`unpack`]'s arguments.
///
/// # Safety
/// All 32 lanes of a converged warp call it, with bytes of the same group of dims and panel of keys.
#[inline(always)]
pub(crate) unsafe fn pack(bytes: &Bytes) -> ([u32; 4], [u32; 4]) {
    let (mut nibbles, mut steps) = ([0; 4], [0; 4]);
    unroll!(0..4, |word| {
        // Two keys, as float16 of 1024 and a byte; over the tiles, and over the lanes that have the same keys.
        let two = |tile: usize| prmt(bytes[tile][word / 2], OF_1024, if word % 2 == 0 { 0x4140 } else { 0x4342 });
        let x = [two(0), two(1), two(2), two(3)];
        let mut low = min_f16x2(min_f16x2(x[0], x[1]), min_f16x2(x[2], x[3]));
        let mut high = max_f16x2(max_f16x2(x[0], x[1]), max_f16x2(x[2], x[3]));
        unsafe {
            low = min_f16x2(low, shfl_bfly::<4>(low));
            high = max_f16x2(high, shfl_bfly::<4>(high));
            low = min_f16x2(low, shfl_bfly::<8>(low));
            high = max_f16x2(high, shfl_bfly::<8>(high));
            low = min_f16x2(low, shfl_bfly::<16>(low));
            high = max_f16x2(high, shfl_bfly::<16>(high));
        }
        unroll!(0..2, |i| {
            let of_key = |two: u32| two >> (16 * i) & 0xff;
            let range = v4_range(of_key(low), of_key(high));
            // SAFETY: a step is not zero.
            let reciprocal = unsafe { div_rem(v4_reciprocal(1) - 1, range.1) }.0 + 1;
            steps[word] |= (range.0 | range.1 << 8) << (16 * i);
            unroll!(0..4, |tile| {
                nibbles[word] |= v4_nibble_by(reciprocal, of_key(x[tile]), range) << (16 * i + 4 * tile);
            });
        });
    });
    (nibbles, steps)
}
