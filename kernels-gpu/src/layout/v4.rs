//! V of a block in 4 bits: what bytes of [`v_byte`](super::v_byte) become, and where they lie (docs/kernel-abi.md, "Pages with V in 4 bits").
//!
//! ```text
//! nibbles  [head_dim/32 groups][4 panels of 32 keys][32 lanes][8 keys][4 dims]
//! steps    [head_dim/32 groups][4 panels of 32 keys][ 4 lanes][8 keys](low, step)
//! ```
//!
//! The lanes are those of a warp that multiplies with V by `mma.m16n8k32`: 16 bytes are a lane's part of four n8 tiles and one k step, which
//! are the group's dims and the panel's keys, and 16 more have those keys' steps. A token has bytes of its own, two of each lane that has it.

use super::{KV_BLOCK, ROW_BYTES, V_GROUP, V_PANELS, key_slot};

/// The largest nibble.
pub const V4_LARGEST: u32 = 15;
/// The largest step: 16 of them are more than the distance of any two bytes.
pub const V4_LARGEST_STEP: u32 = 16;
/// Bytes of the nibbles of a panel's keys in a group of dims.
pub const V4_PANEL_BYTES: usize = ROW_BYTES * V_GROUP / 2;
/// Bytes of their steps.
pub const V4_PANEL_STEP_BYTES: usize = 2 * ROW_BYTES;

/// Bytes of the nibbles of a block, behind which the steps begin.
#[inline(always)]
#[must_use]
pub const fn v4_steps_offset(head_dim: usize) -> usize {
    KV_BLOCK * head_dim / 2
}

/// Bytes of a block, nibbles and steps.
#[inline(always)]
#[must_use]
pub const fn v4_block_bytes(head_dim: usize) -> usize {
    v4_steps_offset(head_dim) + head_dim / V_GROUP * V_PANELS * V4_PANEL_STEP_BYTES
}

/// The lane of four that has a key of a panel, and the key's place among the eight that it has.
const fn lane_and_place(key: usize) -> (usize, usize) {
    let slot = key_slot(key);
    (slot % 16 / 4, slot / 16 * 4 + slot % 4)
}

/// Byte of `(key, dim)` in a block, and the lowest bit of the nibble there.
#[inline(always)]
#[must_use]
pub const fn v4_offset(key: usize, dim: usize) -> (usize, u32) {
    let (group, panel) = (dim / V_GROUP, key / ROW_BYTES);
    let (quad, tile, odd) = (dim / 8 % 4, dim / 2 % 4, dim % 2);
    let (lane, place) = lane_and_place(key % ROW_BYTES);
    let lane = 4 * (2 * quad + odd) + lane;
    ((group * V_PANELS + panel) * V4_PANEL_BYTES + lane * 16 + 2 * place + tile / 2, 4 * (tile % 2) as u32)
}

/// Byte of the lowest byte of the group of dims `group` of a token, behind which its step is.
#[inline(always)]
#[must_use]
pub const fn v4_step_offset(key: usize, group: usize, head_dim: usize) -> usize {
    let (lane, place) = lane_and_place(key % ROW_BYTES);
    v4_steps_offset(head_dim) + (group * V_PANELS + key / ROW_BYTES) * V4_PANEL_STEP_BYTES + 2 * (8 * lane + place)
}

/// What a group's nibbles count from, and their step, for bytes from `low` to `high`: the least step of which 16 are more than they are apart, so that
/// none is farther than half a step from its nibble's; and what leaves as much on both sides, as far as bytes of codes, 1 to 255, go.
#[inline(always)]
#[must_use]
pub const fn v4_range(low: u32, high: u32) -> (u32, u32) {
    let step = (high - low) / 16 + 1;
    let span = V4_LARGEST * step;
    let (middle, last) = ((low + high).saturating_sub(span) / 2, 255 - span);
    let from = if middle < last { middle } else { last };
    (if from == 0 { 1 } else { from }, step)
}

/// What [`v4_nibble_by`] multiplies with instead of dividing by twice the step.
#[inline(always)]
#[must_use]
pub const fn v4_reciprocal(step: u32) -> u32 {
    (1 << 15) / step + 1
}

/// The nibble of a byte, of which the range was made of `(from, step)`.
#[must_use]
pub const fn v4_nibble(byte: u32, range: (u32, u32)) -> u32 {
    v4_nibble_by(v4_reciprocal(range.1), byte, range)
}

/// [`v4_nibble`] with the step's reciprocal: nearest, and even of two as near. Always the upper one would be a part of a code more on average, which
/// attention over many keys sums up beside what cancels.
#[inline(always)]
#[must_use]
pub const fn v4_nibble_by(reciprocal: u32, byte: u32, (from, step): (u32, u32)) -> u32 {
    let twice = (2 * byte + step).saturating_sub(2 * from + 1);
    // Exact for what is less than 2^16 over twice the largest step.
    let lower = (twice * reciprocal) >> 16;
    let nearest = ((twice + lower % 2) * reciprocal) >> 16;
    if nearest < V4_LARGEST { nearest } else { V4_LARGEST }
}

/// The byte that a nibble stands for.
#[inline(always)]
#[must_use]
pub const fn v4_byte(nibble: u32, (from, step): (u32, u32)) -> u32 {
    from + step * nibble
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::page::CACHE_HEAD_DIMS;
    use super::*;
    use std::vec;

    #[test]
    fn every_range_has_nibbles_within_half_a_step_for_all_of_its_bytes() {
        for (low, high) in (1..256).flat_map(|high| (1..=high).map(move |low| (low, high))) {
            let range = v4_range(low, high);
            assert!((1..=V4_LARGEST_STEP).contains(&range.1) && range.0 > 0, "{low} {high}");
            assert!(v4_byte(V4_LARGEST, range) <= 255, "{low} {high}");
            for byte in low..=high {
                let nibble = v4_nibble(byte, range);
                assert!(nibble <= V4_LARGEST, "{low} {byte} {high}");
                assert!(2 * v4_byte(nibble, range).abs_diff(byte) <= range.1, "{low} {byte} {high}");
                // Codes that are nibbles' bytes stay what they are.
                assert_eq!(v4_nibble(v4_byte(nibble, range), range), nibble);
            }
        }
        // Zeros, as of a token that is no number.
        assert_eq!(v4_byte(v4_nibble(128, v4_range(128, 128)), v4_range(128, 128)), 128);
    }

    #[test]
    fn reciprocals_divide() {
        for (step, x) in (1..=V4_LARGEST_STEP).flat_map(|step| (0..=2 * 255 + step).map(move |x| (step, x))) {
            assert_eq!((x * v4_reciprocal(step)) >> 16, x / (2 * step));
        }
    }

    #[test]
    fn roundings_cancel() {
        for step in 1..=V4_LARGEST_STEP {
            let range = (1, step);
            // From one even nibble to another.
            let all = 1..1 + 14 * step;
            let off: i32 = all.map(|byte| v4_byte(v4_nibble(byte, range), range) as i32 - byte as i32).sum();
            assert_eq!(off, 0, "{step}");
        }
    }

    #[test]
    fn nibbles_and_steps_are_covered_once_and_tokens_share_no_byte() {
        for d in CACHE_HEAD_DIMS {
            let (mut nibbles, mut owner) = (vec![0_u8; v4_steps_offset(d)], vec![None; v4_block_bytes(d)]);
            for (key, dim) in (0..KV_BLOCK).flat_map(|key| (0..d).map(move |dim| (key, dim))) {
                let (byte, bit) = v4_offset(key, dim);
                assert_eq!(nibbles[byte] >> bit & 15, 0);
                nibbles[byte] |= 15 << bit;
                assert!(owner[byte].replace(key).is_none_or(|other| other == key));
                let step = v4_step_offset(key, dim / V_GROUP, d);
                for byte in [step, step + 1] {
                    assert!(owner[byte].replace(key).is_none_or(|other| other == key) && byte >= nibbles.len());
                }
            }
            assert!(nibbles.iter().all(|&byte| byte == 255) && owner.iter().all(Option::is_some));
        }
    }

    /// What a lane reads at once is what it multiplies with at once.
    #[test]
    fn a_lane_has_four_tiles_and_a_step_of_keys() {
        for (key, dim) in (0..KV_BLOCK).flat_map(|key| (0..64).map(move |dim| (key, dim))) {
            let (byte, bit) = v4_offset(key, dim);
            // B operand of mma.m16n8k32 (PTX ISA): lane 4n + t has column n, and of its rows those of the slots 4t..4t+4 and 16 more.
            let (tile, column) = (super::super::v_row(dim) / 8, super::super::v_row(dim) % 8);
            let slot = key_slot(key % ROW_BYTES);
            assert_eq!(byte / V4_PANEL_BYTES, tile / 4 * V_PANELS + key / ROW_BYTES);
            assert_eq!(byte % V4_PANEL_BYTES / 16, 4 * column + slot % 16 / 4);
            // A half of a word each, in the order of the operand's bytes; the nibbles there are the tiles'.
            assert_eq!(byte % 16 / 2, slot / 16 * 4 + slot % 4);
            assert_eq!(8 * (byte % 2) + bit as usize, 4 * (tile % 4));
        }
    }
}
