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
/// Version of the packed blocks, counted up with every change of their bytes. Version 1 had V's codes signed and its rows in the order of
/// the dims.
pub const PACKED_FORMAT: u32 = 2;
/// Tokens that one partial result of the K/V statistics covers.
pub const STATS_CHUNK: usize = 512;
/// Interleaved accumulators of a statistics chunk: token `t` of a chunk is added to accumulator `t % STATS_LANES`.
pub const STATS_LANES: usize = 8;
/// Head dims that have kernels.
pub const HEAD_DIMS: [usize; 5] = [32, 64, 96, 128, 256];

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
            let (mut k, mut v) = ([false; 128 * 256], [false; 128 * 256]);
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
        assert!((0..256).all(|dim| v_row(dim) / V_GROUP == dim / V_GROUP));
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
        assert_eq!((PACKED_FORMAT, hash), (2, 0x840e_709d_5870_7fc7), "new bytes need a new version");
    }

    #[test]
    fn bytes_of_v_are_unsigned_and_come_back() {
        for code in -127..=127_i8 {
            assert_eq!(i32::from(v_byte(code) as u8), i32::from(code) + i32::from(V_OFFSET));
            assert_eq!(v_byte(v_byte(code)), code);
        }
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
