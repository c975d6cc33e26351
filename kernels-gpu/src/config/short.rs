//! The kernels for short K and V: one launch from float tensors to the output (`attention/short`).

use super::{NOTE_BYTES, SCRATCH_BYTES, rows::short_rows};
use crate::layout::{KV_BLOCK, ROW_BYTES, kv_blocks};

/// One kernel for short K and V and how it is launched; of the default scheme, for every GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortVariant {
    /// Its PTX module and its entry point there.
    pub name: &'static str,
    /// Head dimension.
    pub head_dim: usize,
    /// m16 tiles of query rows that a warp has at a time.
    pub m16_tiles: usize,
    /// Warps of one CTA.
    pub warps: usize,
    /// CTAs an SM should hold; written into the PTX as `.minnctapersm`.
    pub min_ctas: usize,
    /// The most keys up to which it was measured to be faster than quantization and attention by two kernels; with more the library takes
    /// these.
    pub to_keys: usize,
}

macro_rules! short_variants {
    ($($name:ident { head_dim: $d:literal, m16_tiles: $mt:literal, warps: $warps:literal, min_ctas: $ctas:literal,
        to_keys: $to:literal })*) => {
        &[$(ShortVariant {
            name: stringify!($name), head_dim: $d, m16_tiles: $mt, warps: $warps, min_ctas: $ctas, to_keys: $to,
        }),*]
    };
}

/// All kernels for short K and V.
pub const SHORT: &[ShortVariant] = short_rows!(short_variants);

/// The kernel for short K and V of a head dim.
#[must_use]
pub fn short(head_dim: usize) -> Option<&'static ShortVariant> {
    SHORT.iter().find(|v| v.head_dim == head_dim)
}

impl ShortVariant {
    /// Threads of one CTA.
    #[must_use]
    pub const fn threads(&self) -> usize {
        32 * self.warps
    }

    /// Query rows that a warp has at a time.
    #[must_use]
    pub const fn tile_m(&self) -> usize {
        16 * self.m16_tiles
    }

    /// Dynamic shared memory of one CTA for so many keys.
    #[must_use]
    pub const fn shared_bytes(&self, seqlen_kv: usize) -> usize {
        let (blocks, keys) = (kv_blocks(seqlen_kv), padded_keys(seqlen_kv));
        codes_offset(self.head_dim, self.m16_tiles, self.warps, blocks) + 2 * keys * self.head_dim
    }

    /// The most keys whose codes fit so much shared memory of a CTA.
    #[must_use]
    pub const fn most_keys(&self, shared_bytes: usize) -> usize {
        let mut keys = 0;
        while self.shared_bytes(keys + ROW_BYTES) <= shared_bytes {
            keys += ROW_BYTES;
        }
        keys
    }

    /// CTAs that an SM holds, of GPUs that give one of them so much shared memory at most.
    #[must_use]
    pub const fn ctas(&self, shared_bytes: usize, seqlen_kv: usize) -> usize {
        // 1 KiB of each is the system's, and an SM has that much more than it gives to one.
        const SYSTEM: usize = 1 << 10;
        let by_memory = (shared_bytes + SYSTEM) / (self.shared_bytes(seqlen_kv) + SYSTEM);
        if by_memory < self.min_ctas { by_memory } else { self.min_ctas }
    }

    /// CTAs that share the rows of a head of K and V: as few as give all multiprocessors their CTAs, and none without rows.
    #[must_use]
    pub fn parts(&self, heads_kv: usize, group: usize, seqlen_q: usize, slots: usize) -> usize {
        let rounds = (group * seqlen_q.div_ceil(self.tile_m())).div_ceil(self.warps);
        rounds.div_ceil(rounds.div_ceil((slots / heads_kv.max(1)).max(1)).max(1)).max(1)
    }
}

/// Keys that have a place: whole panels of a block.
#[inline(always)]
#[must_use]
pub const fn padded_keys(seqlen_kv: usize) -> usize {
    seqlen_kv.next_multiple_of(ROW_BYTES)
}

/// Bytes of a warp's area: its queries as they come, then their codes, then what it needs for special blocks, all in one place; notes, sums, and
/// scale and bias of each row.
#[must_use]
pub const fn warp_bytes(head_dim: usize, mt: usize) -> usize {
    rows_offset(head_dim, mt) + 2 * 4 * 16 * mt
}

/// Where a warp's notes begin in its area, and behind them its sums.
#[must_use]
pub const fn notes_offset(head_dim: usize, mt: usize) -> usize {
    // In halves: four vectors of each lane at a time.
    let queries = 32 * 4 * 16 * queries_rounds(head_dim, mt);
    if queries > SCRATCH_BYTES { queries } else { SCRATCH_BYTES }
}

/// Where the scales of a warp's rows are in its area, and behind them their biases.
#[must_use]
pub const fn rows_offset(head_dim: usize, mt: usize) -> usize {
    notes_offset(head_dim, mt) + 16 * mt * NOTE_BYTES + 32 * 16 * mt
}

/// How often a warp takes 32 dims a lane, until it has its tile of query rows.
#[must_use]
pub const fn queries_rounds(head_dim: usize, mt: usize) -> usize {
    (16 * mt * head_dim).div_ceil(32 * 32)
}

/// Where the signs of the dims begin, 4 bytes each at most, and behind them K's offset.
#[must_use]
pub const fn tables_offset(head_dim: usize, mt: usize, warps: usize) -> usize {
    warps * warp_bytes(head_dim, mt)
}

/// Where what is said of the head begins: `v_unit`.
#[must_use]
pub const fn head_offset(head_dim: usize, mt: usize, warps: usize) -> usize {
    tables_offset(head_dim, mt, warps) + 2 * 4 * head_dim
}

/// Where the blocks' scales begin, 16 bytes each.
#[must_use]
pub const fn blocks_offset(head_dim: usize, mt: usize, warps: usize) -> usize {
    head_offset(head_dim, mt, warps) + 16
}

/// Bytes of the three numbers of each key: of K its scale and then its factor; of V the largest magnitude and then the reciprocal of its
/// scale; and V's scale.
pub const NUMBERS_BYTES: usize = 3 * 4 * KV_BLOCK;

/// Where the keys' numbers begin.
#[inline(always)]
#[must_use]
pub const fn numbers_offset(head_dim: usize, mt: usize, warps: usize, blocks: usize) -> usize {
    blocks_offset(head_dim, mt, warps) + 16 * blocks
}

/// Where the codes of K begin, and behind them V's.
#[inline(always)]
#[must_use]
pub const fn codes_offset(head_dim: usize, mt: usize, warps: usize, blocks: usize) -> usize {
    // Eight rows of a panel are all banks.
    (numbers_offset(head_dim, mt, warps, blocks) + NUMBERS_BYTES * blocks).next_multiple_of(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_card_and_none_is_empty() {
        let v = ShortVariant { name: "", head_dim: 64, m16_tiles: 1, warps: 4, min_ctas: 3, to_keys: 0 };
        // Heads enough.
        assert_eq!(v.parts(1024, 1, 257, 396), 1);
        assert_eq!(v.parts(384, 1, 512, 396), 1);
        // 64 rounds of 64 rows for 20 heads, in 19 places each: 16 CTAs of 4 rounds.
        assert_eq!(v.parts(20, 1, 4096, 396), 16);
        for (heads, group, rows) in [(1, 1, 1), (1, 8, 1), (3, 2, 130), (7, 1, 5000), (1000, 4, 1)] {
            let parts = v.parts(heads, group, rows, 396);
            let rounds = (group * rows.div_ceil(16)).div_ceil(4);
            assert!(parts >= 1 && parts <= rounds, "{heads} {group} {rows}: {parts}");
            assert!(parts == 1 || parts * heads <= 396, "{heads} {group} {rows}: {parts}");
        }
    }

    #[test]
    fn keys_that_fit_are_the_most() {
        for v in SHORT {
            for bytes in [48 << 10, 99 << 10, 227 << 10] {
                let most = v.most_keys(bytes);
                assert!(most > 0 && v.shared_bytes(most) <= bytes && v.shared_bytes(most + 1) > bytes, "{}", v.name);
            }
            // Codes of queries take the place of the first round's vectors.
            assert!(v.tile_m() * v.head_dim <= 32 * 4 * 16);
        }
    }
}
