//! Memory layouts shared by the kernels, the host and the tests.
//!
//! Everything is a `const fn` on plain integers, proven in the tests below;
//! no kernel and no host function computes one of these addresses by other means.
//!
//! # Quantized K and V: blocks of [`KV_BLOCK`] keys
//!
//! A block is what one iteration of the attention loop consumes, and it is contiguous in global memory in exactly
//! the bytes that shared memory holds, so that a tile is one linear copy (`cp.async` on sm_80, one `cp.async.bulk`
//! on sm_90). Rows are [`ROW_BYTES`] = 32 bytes, one k-step of `mma.m16n8k32`:
//!
//! ```text
//! K block  [head_dim/32 panels][128 keys      ][32 dims]     K row = the dims of a panel, in order
//! V block  [4 panels          ][head_dim dims ][32 keys]     V row = the keys of a panel, permuted (key_slot); rows: v_row
//! ```
//!
//! Inside a panel the 16-byte half of a row is exchanged where bit 2 of the row is set ([`swizzle`]): eight
//! consecutive rows then cover all 32 banks once, and the pattern is the 32-byte swizzle of `wgmma` descriptors
//! (PTX ISA, "Shared Memory Matrix Layout"). K's bytes are its codes, V's are its codes and [`V_OFFSET`].

pub mod page;
pub mod v4;

/// Keys in one K or V block; the unit of P's scale (the block maximum) and of the attention loop.
pub const KV_BLOCK: usize = 128;
/// Bytes in one row of a panel: the k extent of `mma.m16n8k32`.
pub const ROW_BYTES: usize = 32;
/// Panels of a V block.
pub const V_PANELS: usize = KV_BLOCK / ROW_BYTES;
/// What the packed bytes of V have more than its codes, -127 to 127: they are unsigned, so that sums of their products with P are
/// not negative.
pub const V_OFFSET: u8 = 128;
/// [`V_OFFSET`] in each byte of a word. Added to or taken from signed bytes, it changes their top bits.
pub const V_OFFSETS: u32 = u32::from_ne_bytes([V_OFFSET; 4]);
/// Version of the packed blocks, counted up with every change of their bytes or of what they mean. Version 1 had V's codes signed and its
/// rows in the order of the dims; version 2 had the means over all tokens taken out and one scale a channel of V.
pub const PACKED_FORMAT: u32 = 3;
/// The first tokens of a head: K's offset is made of them.
pub const OFFSET_TOKENS: usize = 64;
/// The tokens of a block of V keep scales of their own where the largest is more than this times the smallest.
pub const V_SCALE_RATIO: f32 = 12.0;
/// And those of a head's first block where the largest is more than this times the first token's: a decoder's attention sink, whose
/// weight would leave the others' no bits of P.
pub const V_FIRST_RATIO: f32 = 2.5;
/// The tokens of a block of K share a scale where the largest is at most this times the smallest, but for a head's first block.
pub const K_SCALE_RATIO: f32 = 4.0;
/// A scale of one token of V is the power of two of a multiple of one over this: its logarithm is exact, so that it can be added
/// to a score.
pub const V_SCALE_STEPS: usize = 16;
/// `2^(i/16)`, rounded to nearest.
#[rustfmt::skip]
#[expect(clippy::approx_constant, reason = "a row of a table")]
pub const V_SCALE_FRACTIONS: [f32; V_SCALE_STEPS] = [
    1.0, 1.044_273_7, 1.090_507_7, 1.138_788_6, 1.189_207_1, 1.241_857_8, 1.296_839_6, 1.354_255_6,
    1.414_213_5, 1.476_826_2, 1.542_210_8, 1.610_490_3, 1.681_792_9, 1.756_252_2, 1.834_008_1, 1.915_206_6,
];
/// Scales of V in a head's first block that need no unit: the kernels' sums of P V hold those, and what is 2^30 times smaller beside.
pub const V_UNIT_SCALES: core::ops::RangeInclusive<f32> = 1.0 / (1_u64 << 40) as f32..=(1_u64 << 20) as f32;
/// Smallest scale, so that its reciprocal is a normal number.
pub const MIN_SCALE: f32 = 1.0 / (1_u128 << 120) as f32;
/// Largest scale of a token of Q or K. Louder ones saturate: their scores are beyond any softmax, and the scores of other keys of the
/// block keep their bits beside them.
pub const MAX_SCALE: f32 = (1_u64 << 20) as f32;
/// The unit of the default scheme's scores in float16, a power of two: a row's scale over it is its factor in float16.
pub const SCORE_UNIT: f32 = 1.0 / 256.0;
/// Scales of Q whose quotient with [`SCORE_UNIT`] float16 has with all its bits, and whose scores have enough steps there.
pub const ROW_SCALES: core::ops::RangeInclusive<f32> = 1.0 / (1 << 22) as f32..=128.0;
/// Scores of a larger magnitude are not left to float16.
pub const SCORE_RANGE: f32 = 32_768.0;

/// Query rows, from a multiple of so many on, that take a block in 16 bits together or not at all (docs/kernel-abi.md, "narrow").
pub const NARROW_ROWS: usize = 64;
/// The scores of codes that 16 bits drop, a power of two: a row's unit is that of so many.
pub const NARROW_STEP: f32 = 256.0;
/// The least unit of a row's scores in 16 bits: a weight is zero before they end, 1024 units below the largest.
pub const NARROW_LEAST: f32 = 9.0 / 1024.0;
/// The largest: beyond, a step of a score is too much of a weight.
pub const NARROW_MOST: f32 = 0.25;
/// Of every eight tiles of eight keys, a bit each from the lowest, those whose exponentials in 16 bits are polynomials.
#[inline(always)]
#[must_use]
pub const fn narrow_polynomials(head_dim: usize) -> u32 {
    if head_dim == 64 { NARROW_POLYNOMIALS } else { 0 }
}

const NARROW_POLYNOMIALS: u32 = 0b1000_1000;
/// The polynomial `(c2 f + c1) f + c0`, near `2^(f - 10)` for f within half of 0: bits of float16.
pub const NARROW_POLYNOMIAL: [u16; 3] = [0x1400, 0x11a0, 0x0bb1];

/// What a row's scale counts as, where the least of many is asked for that take a block in 16 bits: nothing for no row, past the end of a
/// tile; and where float16 does not have the scale, so little that none of them does.
#[inline(always)]
#[must_use]
pub fn narrow_scale(q_scale: f32) -> f32 {
    if q_scale == 0.0 {
        f32::INFINITY
    } else if q_scale < *ROW_SCALES.start() || q_scale > *ROW_SCALES.end() {
        0.0
    } else {
        q_scale
    }
}

/// A bias below this hides its key (docs/kernel-abi.md, "What changes a score").
pub const BIAS_HIDES: f32 = -45_000.0;

/// What a row's largest possible score is made of: times the largest scale of a block's keys it is no smaller than any of their scores
/// in magnitude, also in float16's unit. Infinite where float16 does not do for the row's scale. `c` is the scores' factor.
#[inline(always)]
#[must_use]
pub fn row_reach(head_dim: usize, c: f32, q_scale: f32) -> f32 {
    if q_scale == 0.0 {
        // No row: past the end of a tile.
        return 0.0;
    }
    if q_scale < *ROW_SCALES.start() || q_scale > *ROW_SCALES.end() {
        return f32::INFINITY;
    }
    let scale = if q_scale < SCORE_UNIT { SCORE_UNIT } else { q_scale };
    (127 * 127 * head_dim) as f32 * c.abs() * scale
}

/// Head dims that have kernels; those between are padded ([`packed_dim`]).
pub const HEAD_DIMS: [usize; 6] = [32, 64, 96, 128, 256, 512];

/// Head dims are multiples of this: 16 bytes of float16, and whole groups of what the rotations and the output's stores take.
pub const HEAD_DIM_STEP: usize = 8;

/// The dims that a head of so many has in the packed operands and in the kernels, zeros behind its own: the least of [`HEAD_DIMS`] that
/// are enough; 0 where none is.
#[must_use]
pub const fn packed_dim(head_dim: usize) -> usize {
    let mut i = 0;
    while i < HEAD_DIMS.len() {
        if head_dim <= HEAD_DIMS[i] {
            return HEAD_DIMS[i];
        }
        i += 1;
    }
    0
}

/// Dims that the rotation of Q and K mixes: the largest power of two that divides the packed head dim.
///
/// The rotation is a Hadamard transform of each so many dims, not normalised: scores of rotated Q and K are this many times the scores.
/// An outlier channel becomes a little of every dim, and a token's scale no longer stands for that channel alone.
#[must_use]
pub const fn rotation(head_dim: usize) -> usize {
    // rust-cuda's code generator miscounts zeros of 64 bits (docs/codegen.md).
    #[cfg(all(target_arch = "nvptx64", feature = "cuda-std"))]
    let head_dim = head_dim as u32;
    1 << head_dim.trailing_zeros()
}

/// From this magnitude of an element, or of what is taken out of K, a float16 token of Q or K is rotated in units of [`LOUD_UNIT`]: sums of
/// smaller ones stay within float16.
#[inline(always)]
#[must_use]
pub const fn loud(head_dim: usize) -> f32 {
    ((1 << 15) / rotation(head_dim)) as f32
}

/// The unit of loud tokens: with it every float16 token's sums stay within float16.
pub const LOUD_UNIT: f32 = 1024.0;
/// The unit of float16 tokens of V, for the same reason.
pub const V_UNIT_16: f32 = 4.0;
/// A scale, in the unit of what is rotated, that float16 has no reciprocal of is taken times [`FAINT_FACTOR`], as what is rotated is.
pub const LEAST_SCALE_16: f32 = 1.0 / (1 << 15) as f32;
/// With it all scales of tokens that are not zero have reciprocals.
pub const FAINT_FACTOR: f32 = (1 << 16) as f32;
/// The largest float16.
pub const MAX_16: f32 = 65_504.0;

/// Dims that change sign before the rotation, a bit each: without, a constant would go into one dim.
/// The fractions of the square roots of the first sixteen primes.
#[rustfmt::skip]
const SIGNS: [u32; SIGN_WORDS] = [
    0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
    0xcbbb_9d5d, 0x629a_292a, 0x9159_015a, 0x152f_ecd8, 0x6733_2667, 0x8eb4_4a87, 0xdb0c_2e0d, 0x47b5_481d,
];

/// Words of the signs of the widest head's dims.
pub(crate) const SIGN_WORDS: usize = HEAD_DIMS[HEAD_DIMS.len() - 1] / 32;

/// Whether dim `dim` of Q and K changes its sign before the rotation.
#[inline(always)]
#[must_use]
pub const fn negative(dim: usize) -> bool {
    signs(dim) >> (dim % 32) & 1 == 1
}

/// [`negative`] of the 32 dims that `dim` is of, a bit each from the lowest.
#[inline(always)]
#[must_use]
pub const fn signs(dim: usize) -> u32 {
    SIGNS[dim / 32]
}

/// Dims that the rotation of V mixes: four neighbours, which one lane has in the end.
pub const V_ROTATION: usize = 4;

/// Four neighbouring dims of V rotated, twice as long as before: a Hadamard transform whose last input has its sign changed, so that
/// a constant stays spread.
#[inline(always)]
#[must_use]
pub fn rotate_v([a, b, c, d]: [f32; V_ROTATION]) -> [f32; V_ROTATION] {
    let ([sum, difference], [sum_cd, difference_cd]) = ([a + b, a - b], [c + d, c - d]);
    [sum + difference_cd, difference + sum_cd, sum - difference_cd, difference - sum_cd]
}

/// The largest magnitude of the first and the third, and of the second and the fourth, that [`rotate_v`] gives.
#[inline(always)]
#[must_use]
pub fn rotated_v_maxima([a, b, c, d]: [f32; V_ROTATION]) -> (f32, f32) {
    ((a + b).abs() + (c - d).abs(), (a - b).abs() + (c + d).abs())
}

/// What [`rotate_v`] was given, four times as large.
#[inline(always)]
#[must_use]
pub fn rotate_v_back([a, b, c, d]: [f32; V_ROTATION]) -> [f32; V_ROTATION] {
    let ([even, even_difference], [odd, odd_difference]) = ([a + c, a - c], [b + d, b - d]);
    [even + odd, even - odd, odd_difference + even_difference, odd_difference - even_difference]
}

/// Bytes of one K or V block.
#[must_use]
pub const fn block_bytes(head_dim: usize) -> usize {
    KV_BLOCK * head_dim
}

/// Blocks that hold `seqlen_kv` keys; the last one is padded with codes of zero.
#[must_use]
pub const fn kv_blocks(seqlen_kv: usize) -> usize {
    seqlen_kv.div_ceil(KV_BLOCK)
}

/// Byte of `(row, byte)` in a panel of 32-byte rows: the 16-byte halves swap where bit 2 of `row` is set.
#[inline(always)]
#[must_use]
pub const fn swizzle(row: usize, byte: usize) -> usize {
    (row * ROW_BYTES + byte) ^ ((row & 4) << 2)
}

/// Byte of `(key, dim)` in a K block.
#[inline(always)]
#[must_use]
pub const fn k_offset(key: usize, dim: usize) -> usize {
    dim / ROW_BYTES * (KV_BLOCK * ROW_BYTES) + swizzle(key, dim % ROW_BYTES)
}

/// Byte of `(key, dim)` in a V block.
#[inline(always)]
#[must_use]
pub const fn v_offset(key: usize, dim: usize, head_dim: usize) -> usize {
    key / ROW_BYTES * (head_dim * ROW_BYTES) + swizzle(v_row(dim), key_slot(key % ROW_BYTES))
}

/// Dims that [`v_row`] permutes among themselves.
pub const V_GROUP: usize = 32;

/// Where dim `dim` stands among the rows of a panel of V.
///
/// The accumulators of four n8 tiles leave lane `t` of a quad with the columns `8j+2t` and `8j+2t+1` (`j` the tile). With V's rows in
/// this order these are the eight neighbours `8t..8t+8` of 32 dims, which are one store of the output: row = `8*(dim/2%4) + 2*(dim/8%4) +
/// dim%2`.
#[inline(always)]
#[must_use]
pub const fn v_row(dim: usize) -> usize {
    let (group, quad, tile, odd) = (dim / V_GROUP, dim / 8 % 4, dim / 2 % 4, dim % 2);
    V_GROUP * group + 8 * tile + 2 * quad + odd
}

/// The packed byte of a code of V, or the code of a packed byte: they differ in the top bit.
#[inline(always)]
#[must_use]
pub const fn v_byte(code: i8) -> i8 {
    code.wrapping_add(V_OFFSET as i8)
}

/// Where key `key` (0..32) of a panel stands in a row of V.
///
/// The accumulator of `mma.m16n8k32` leaves lane `t` of a quad with the scores of keys `8j+2t` and `8j+2t+1`
/// (`j` the n8 tile); its A operand wants k indices `4t..4t+4` and `16+4t..16+4t+4` in that lane. Numbering V's keys
/// so makes one the other without a shuffle: slot = `16*(j/2) + 4*t + 2*(j%2) + key%2`.
///
/// ```text
/// key   0  1  2  3  4  5  6  7   8  9 10 11 12 13 14 15   (and the same again, +16)
/// slot  0  1  4  5  8  9 12 13   2  3  6  7 10 11 14 15
/// ```
#[inline(always)]
#[must_use]
pub const fn key_slot(key: usize) -> usize {
    let (half, tile, pair, odd) = (key / 16, key / 8 % 2, key / 2 % 4, key % 2);
    16 * half + 4 * pair + 2 * tile + odd
}

/// The key at slot `slot` (0..32) of a row of V: the inverse of [`key_slot`].
#[inline(always)]
#[must_use]
pub const fn slot_key(slot: usize) -> usize {
    let (half, pair, tile, odd) = (slot / 16, slot / 4 % 4, slot / 2 % 2, slot % 2);
    16 * half + 8 * tile + 2 * pair + odd
}

/// [`slot_key`] of slot `8 * octet + i`: `i` in bits is (pair, tile, odd).
#[inline(always)]
#[must_use]
pub const fn octet_key(octet: u32, i: usize) -> u32 {
    let (pair, tile, odd) = (i as u32 / 4, i as u32 / 2 % 2, i as u32 % 2);
    octet / 2 * 16 + octet % 2 * 4 + 8 * tile + 2 * pair + odd
}

const _: () = {
    let mut slot = 0;
    while slot < ROW_BYTES {
        assert!(octet_key(slot as u32 / 8, slot % 8) as usize == slot_key(slot));
        slot += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_slot_is_a_permutation_that_matches_accumulator_and_operand() {
        let mut seen = [false; 32];
        for n8 in 0..4 {
            for t in 0..4 {
                for odd in 0..2 {
                    let slot = key_slot(8 * n8 + 2 * t + odd);
                    assert!(!core::mem::replace(&mut seen[slot], true));
                    // A operand (PTX ISA, mma.m16n8k32 .s8): lane t holds k = 4t..4t+4 in a0, 16+4t..16+4t+4 in a2
                    assert_eq!(slot % 16 / 4, t);
                    assert_eq!(slot / 16, n8 / 2);
                    assert_eq!(slot_key(slot), 8 * n8 + 2 * t + odd);
                }
            }
        }
        assert!(seen.iter().all(|&s| s));
    }

    #[test]
    fn blocks_are_covered_once() {
        for head_dim in HEAD_DIMS {
            let (mut k, mut v) = ([false; 128 * 512], [false; 128 * 512]);
            for key in 0..KV_BLOCK {
                for dim in 0..head_dim {
                    assert!(!core::mem::replace(&mut k[k_offset(key, dim)], true));
                    assert!(!core::mem::replace(&mut v[v_offset(key, dim, head_dim)], true));
                }
            }
            assert!(k[..block_bytes(head_dim)].iter().all(|&s| s) && v[..block_bytes(head_dim)].iter().all(|&s| s));
        }
    }

    #[test]
    fn a_lane_has_eight_neighbouring_dims_of_v() {
        for (t, tile, odd) in (0..4).flat_map(|t| (0..4).flat_map(move |tile| (0..2).map(move |odd| (t, tile, odd)))) {
            // C operand (PTX ISA, mma.m16n8k32): lane t of a quad holds the columns 2t and 2t+1 of a tile.
            assert_eq!(v_row(8 * t + 2 * tile + odd), 8 * tile + 2 * t + odd);
        }
        assert!((0..512).all(|dim| v_row(dim) / V_GROUP == dim / V_GROUP));
    }

    #[test]
    fn packed_bytes_change_with_their_version() {
        // FNV-1a of where every byte of a block goes and of V's bytes.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut mix = |x: usize| hash = (hash ^ x as u64).wrapping_mul(0x0100_0000_01b3);
        for head_dim in HEAD_DIMS {
            for (key, dim) in (0..KV_BLOCK).flat_map(|key| (0..head_dim).map(move |dim| (key, dim))) {
                mix(k_offset(key, dim));
                mix(v_offset(key, dim, head_dim));
            }
        }
        (-127..=127).for_each(|code: i8| mix(v_byte(code) as u8 as usize));
        assert_eq!((PACKED_FORMAT, hash), (3, 0xd28b_aa67_6e01_3fc7), "new bytes need a new version");
    }

    #[test]
    fn bytes_of_v_are_unsigned_and_come_back() {
        for code in -127..=127_i8 {
            assert_eq!(i32::from(v_byte(code) as u8), i32::from(code) + i32::from(V_OFFSET));
            assert_eq!(v_byte(v_byte(code)), code);
        }
    }

    #[test]
    fn four_dims_of_v_come_back_and_a_constant_stays_spread() {
        let x = [1.0, -2.0, 3.0, 5.0];
        assert_eq!(rotate_v_back(rotate_v(x)), x.map(|x| 4.0 * x));
        assert_eq!(rotate_v([1.0; 4]).map(f32::abs), [2.0; 4]);
    }

    #[test]
    fn fractions_of_scales_are_powers() {
        let bits = [
            0x3f80_0000,
            0x3f85_aac3,
            0x3f8b_95c2,
            0x3f91_c3d3,
            0x3f98_37f0,
            0x3f9e_f532,
            0x3fa5_fed7,
            0x3fad_583f,
            0x3fb5_04f3,
            0x3fbd_08a4,
            0x3fc5_672a,
            0x3fce_248c,
            0x3fd7_44fd,
            0x3fe0_ccdf,
            0x3fea_c0c7,
            0x3ff5_257d,
        ];
        assert_eq!(V_SCALE_FRACTIONS.map(f32::to_bits), bits);
    }

    #[test]
    fn a_rotation_divides_its_head_dim() {
        assert_eq!(HEAD_DIMS.map(rotation), [32, 64, 32, 128, 256, 512]);
        for first in [0, 256] {
            let negative_dims = (first..first + 256).filter(|&dim| negative(dim)).count();
            assert!((96..160).contains(&negative_dims), "{negative_dims}");
        }
    }

    #[test]
    fn packed_dims_are_the_next_ones() {
        for (head_dim, packed) in
            [(8, 32), (32, 32), (40, 64), (80, 96), (104, 128), (136, 256), (256, 256), (264, 512), (520, 0)]
        {
            assert_eq!(packed_dim(head_dim), packed);
        }
        assert!(
            HEAD_DIMS.into_iter().all(|head_dim| packed_dim(head_dim) == head_dim && head_dim % HEAD_DIM_STEP == 0)
        );
    }

    #[test]
    fn eight_rows_of_one_half_cover_all_banks() {
        for half in 0..2 {
            let mut banks = [false; 8];
            for row in 0..8 {
                assert!(!core::mem::replace(&mut banks[swizzle(row, 16 * half) / 16 % 8], true));
            }
        }
    }
}
