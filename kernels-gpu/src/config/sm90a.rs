//! Shared memory and registers of the kernels for sm_90a.

use super::{NOTE_BYTES, SCRATCH_BYTES};
use crate::layout::{KV_BLOCK, block_bytes};
use crate::params::{AttentionParams, UNLIMITED};

/// Query rows of a CTA's tile.
#[must_use]
pub const fn tile_m(warpgroups: usize) -> usize {
    WARPGROUP_ROWS * warpgroups
}

/// Whether all tiles but the last of each head are equally long: every row sees every key, and the sequences are of one length.
#[inline(always)]
#[must_use]
pub const fn tiles_are_alike(params: &AttentionParams) -> bool {
    params.window_left & params.window_right == UNLIMITED && params.seqlens.packed_q == 0
}

/// CTAs of a launch on a GPU of so many multiprocessors: those of the first row share the beginning of the list of tiles, all others have a tile
/// each. `None` where the list is longer than a kernel counts.
#[must_use]
pub const fn grid(params: &AttentionParams, tiles: u64, multiprocessors: u32) -> Option<[u32; 3]> {
    // A CTA's place in the list goes less than two rounds past the end.
    if tiles + 2 * multiprocessors as u64 > u32::MAX as u64 {
        return None;
    }
    let tiles = tiles as u32;
    let ctas = if tiles < multiprocessors { tiles } else { multiprocessors };
    let short = params.seqlens.packed_q == 0 && params.seqlen_kv <= NO_OWN_ROUNDS_TO;
    let rows = match tiles.checked_div(ctas) {
        Some(rounds) if !tiles_are_alike(params) && !short => 1 + own_rounds(rounds),
        _ => 1,
    };
    Some([ctas, rows, 1])
}

/// Where all sequences are of one length, the most keys with which no round of tiles is given to CTAs of their own: eight blocks, of which the start of a
/// CTA is worth two or three. Measured: faster by a tenth up to there; with twice as many keys no faster at d=64, and slower at d=128.
const NO_OWN_ROUNDS_TO: u32 = 8 * KV_BLOCK as u32;

/// How many of so many rounds of tiles are given to CTAs of their own: enough to make up for what the others have unevenly, and no more, as a
/// CTA that starts waits for its first tile, which one that stays has long brought.
const fn own_rounds(rounds: u32) -> u32 {
    match rounds {
        0..2 => 0,
        2 => 1,
        3..=17 => 2,
        18..=383 => rounds / 6,
        _ => 64,
    }
}

/// Threads of the producers' warpgroup.
pub const PRODUCERS: usize = 128;
/// Query rows of a consumer warpgroup.
pub const WARPGROUP_ROWS: usize = 64;
/// Tiles of Q in shared memory: one in use, one on its way.
pub const Q_BUFFERS: usize = 2;

/// Bytes of a warpgroup's tile of Q: panels of 32 dims as in a K block, with 64 rows.
#[must_use]
pub const fn q_bytes(head_dim: usize) -> usize {
    WARPGROUP_ROWS * head_dim
}

/// In a buffer of Q, where the rows' scales begin, behind the tiles of all warpgroups.
#[must_use]
pub const fn q_scale_offset(head_dim: usize, warpgroups: usize) -> usize {
    warpgroups * q_bytes(head_dim)
}

/// In a buffer of Q, where the words begin that say which tile it is.
#[must_use]
pub const fn tile_offset(head_dim: usize, warpgroups: usize) -> usize {
    q_scale_offset(head_dim, warpgroups) + warpgroups * 4 * WARPGROUP_ROWS
}

/// Bytes of a buffer of Q with all that comes with it.
#[must_use]
pub const fn q_buffer_bytes(head_dim: usize, warpgroups: usize) -> usize {
    tile_offset(head_dim, warpgroups) + 256
}

/// Where the ring of K begins.
#[must_use]
pub const fn k_offset(head_dim: usize, warpgroups: usize) -> usize {
    Q_BUFFERS * q_buffer_bytes(head_dim, warpgroups)
}

/// Where the ring of V begins.
#[must_use]
pub const fn v_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    k_offset(head_dim, warpgroups) + slots * block_bytes(head_dim)
}

/// Where the ring of key factors begins; a block of them goes with each K block.
#[must_use]
pub const fn factor_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    v_offset(head_dim, warpgroups, slots) + slots * block_bytes(head_dim)
}

/// Bytes of the scales of a block.
pub const BLOCK_SCALES_BYTES: usize = 16;
/// Bytes of what a warp keeps of its warpgroup's rows.
pub const REACH_BYTES: usize = 16;

/// Where the scales of blocks begin, twice as many as there are slots: a block's are needed for longer than its slot of K.
#[must_use]
pub const fn block_scales_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    factor_offset(head_dim, warpgroups, slots) + slots * 4 * KV_BLOCK
}

/// Where each warp has the reach of its warpgroup's rows (`layout::row_reach`), and their least and largest scale.
#[must_use]
pub const fn reach_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    block_scales_offset(head_dim, warpgroups, slots) + 2 * slots * BLOCK_SCALES_BYTES
}

/// Where the warps' notes of special blocks begin.
#[must_use]
pub const fn notes_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    reach_offset(head_dim, warpgroups, slots) + 4 * warpgroups * REACH_BYTES
}

/// Where the warps' words for special blocks begin.
#[must_use]
pub const fn scratch_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    notes_offset(head_dim, warpgroups, slots) + warpgroups * WARPGROUP_ROWS * NOTE_BYTES
}

/// Where the consumers' sums begin, 16 bytes a thread.
#[must_use]
pub const fn sums_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    scratch_offset(head_dim, warpgroups, slots) + 4 * warpgroups * SCRATCH_BYTES
}

/// Where the barriers begin.
#[must_use]
pub const fn barrier_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    sums_offset(head_dim, warpgroups, slots) + 128 * warpgroups * 16
}

/// Shared memory of a CTA: two barriers for each slot of K and of V and for each buffer of Q.
#[must_use]
pub const fn shared_bytes(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    barrier_offset(head_dim, warpgroups, slots) + 8 * 2 * (2 * slots + Q_BUFFERS)
}

/// Threads of a CTA: the consumers' warpgroups and the producers.
#[must_use]
pub const fn threads(warpgroups: usize) -> usize {
    128 * warpgroups + PRODUCERS
}

/// Registers of a consumer thread, of 2 or 3 warpgroups: an SM has 65536, and the producers keep [`producer_registers`].
#[must_use]
pub const fn consumer_registers(warpgroups: usize) -> u32 {
    match warpgroups {
        2 => 232,
        _ => 160,
    }
}

/// Registers of a producer thread.
#[must_use]
pub const fn producer_registers(warpgroups: usize) -> u32 {
    match warpgroups {
        2 => 40,
        _ => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SeqLens;

    /// Head dim, warpgroups and ring slots of each row of the table.
    macro_rules! shapes {
        ($($name:ident { head_dim: $d:literal, scheme: $scheme:ident, warpgroups: $wgs:literal, slots: $slots:literal, $($more:tt)* })*) => {
            [$(($d, $wgs, $slots)),*]
        };
    }

    /// Shared memory that a CTA may have on compute capability 9.0.
    const MOST_SHARED: usize = 227 << 10;

    #[test]
    fn parts_of_shared_memory_follow_each_other_aligned_and_fit() {
        for (d, wgs, slots) in crate::config::rows::sm90a_rows!(shapes) {
            let mut end = 0;
            let mut part = |start: usize, bytes: usize, align: usize| {
                assert!(start >= end, "d{d}: {start} lies in the part before, which ends at {end}");
                assert!(start.is_multiple_of(align), "d{d}: {start} is not a multiple of {align}");
                end = start + bytes;
            };
            for buffer in 0..Q_BUFFERS {
                let base = buffer * q_buffer_bytes(d, wgs);
                // The panels of a wgmma operand: its 32-byte swizzle goes by the address, in steps of 256 bytes.
                for group in 0..wgs {
                    part(base + group * q_bytes(d), q_bytes(d), 256);
                }
                part(base + q_scale_offset(d, wgs), wgs * WARPGROUP_ROWS * 4, 16);
                // Five words and the unit of the scores, written 16 and 8 bytes at a time.
                part(base + tile_offset(d, wgs), 24, 16);
            }
            for slot in 0..slots {
                part(k_offset(d, wgs) + slot * block_bytes(d), block_bytes(d), 256);
            }
            for slot in 0..slots {
                part(v_offset(d, wgs, slots) + slot * block_bytes(d), block_bytes(d), 256);
            }
            for slot in 0..slots {
                part(factor_offset(d, wgs, slots) + slot * 4 * KV_BLOCK, 4 * KV_BLOCK, 16);
            }
            part(block_scales_offset(d, wgs, slots), 2 * slots * BLOCK_SCALES_BYTES, 16);
            part(reach_offset(d, wgs, slots), 4 * wgs * REACH_BYTES, 16);
            part(notes_offset(d, wgs, slots), wgs * WARPGROUP_ROWS * NOTE_BYTES, 16);
            part(scratch_offset(d, wgs, slots), 4 * wgs * SCRATCH_BYTES, 4);
            part(sums_offset(d, wgs, slots), 128 * wgs * 16, 16);
            part(barrier_offset(d, wgs, slots), 8 * 2 * (Q_BUFFERS + 2 * slots), 8);
            assert!(end <= shared_bytes(d, wgs, slots) && end <= MOST_SHARED, "d{d}: {end}");
        }
    }

    #[test]
    fn all_ctas_have_tiles() {
        let packed = SeqLens { packed_q: 1, ..SeqLens::NONE };
        let of = |seqlens| AttentionParams { seqlens, ..AttentionParams::NONE };
        for (tiles, ctas) in [(0, 132), (1, 132), (263, 132), (264, 132), (396, 132), (5280, 132), (1 << 31, 2), (7, 3)]
        {
            let [x, y, z] = grid(&of(packed), tiles, ctas).unwrap();
            assert!(z == 1 && u64::from(x * (y - 1)) < tiles.max(1) && y < 1 << 16, "{tiles} {ctas}: {x} {y}");
            assert_eq!(grid(&of(SeqLens::NONE), tiles, ctas), Some([x, 1, 1]));
        }
        assert_eq!(grid(&of(packed), 5280, 132), Some([132, 7, 1]));
        assert_eq!(grid(&of(packed), u64::from(u32::MAX), 132), None);
        let causal = |seqlen_kv| AttentionParams { seqlen_kv, window_right: 0, ..AttentionParams::NONE };
        assert_eq!([1024, 1025].map(|n| grid(&causal(n), 768, 132)), [Some([132, 1, 1]), Some([132, 3, 1])]);
    }

    #[test]
    fn registers_fit() {
        for (_, wgs, _) in crate::config::rows::sm90a_rows!(shapes) {
            let (consumer, producer) = (consumer_registers(wgs), producer_registers(wgs));
            assert!([consumer, producer].iter().all(|n| n % 8 == 0 && (24..=256).contains(n)), "{consumer} {producer}");
            assert!(128 * (wgs as u32 * consumer + producer) <= 65536, "{wgs} warpgroups");
        }
    }
}
