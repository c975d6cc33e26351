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
    /// The most warps of one CTA.
    pub most_warps: usize,
    /// CTAs of so many warps that an SM should hold; written into the PTX as `.minnctapersm`.
    pub min_ctas: usize,
    /// The most keys up to which it was measured to be faster than quantization and attention by two kernels, however many queries there are.
    pub any_queries: usize,
    /// The same where a head of K and V has no more queries than keys: with more, attention is what counts, and its own kernels are faster.
    pub to_keys: usize,
    /// The same where the last CTAs fill nine tenths of the multiprocessors: a CTA with many keys takes long, and few of them at last make all wait.
    pub to_keys_filled: usize,
}

macro_rules! short_variants {
    ($($name:ident { head_dim: $d:literal, m16_tiles: $mt:literal, most_warps: $warps:literal, min_ctas: $ctas:literal,
        any_queries: $any:literal, to_keys: $to:literal, to_keys_filled: $filled:literal })*) => {
        &[$(ShortVariant {
            name: stringify!($name), head_dim: $d, m16_tiles: $mt, most_warps: $warps, min_ctas: $ctas,
            any_queries: $any, to_keys: $to, to_keys_filled: $filled,
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

/// How a kernel is launched for some lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortLaunch {
    /// Warps of a CTA.
    pub warps: usize,
    /// Dynamic shared memory of a CTA.
    pub shared_bytes: usize,
    /// CTAs that share the rows of a head of K and V.
    pub parts: usize,
}

impl ShortVariant {
    /// Whether it is faster than two kernels; as of [`launch`](Self::launch). `mean_kv`: keys of a sequence, of unlike ones on the average.
    #[must_use]
    pub fn pays(
        &self,
        (heads_kv, group): (usize, usize),
        (seqlen_q, seqlen_kv): (usize, usize),
        mean_kv: usize,
        multiprocessors: usize,
        shared_bytes: usize,
    ) -> bool {
        if seqlen_kv <= self.any_queries {
            return true;
        }
        if group * seqlen_q > seqlen_kv || seqlen_kv > self.to_keys_filled {
            return false;
        }
        if mean_kv <= self.to_keys {
            return true;
        }
        // A second round of CTAs costs as much as the first; that of two kernels less, which have paid for their launches.
        let launch = self.launch((heads_kv, group), (seqlen_q, seqlen_kv), multiprocessors, shared_bytes);
        let slots = self.ctas(launch.warps, shared_bytes, seqlen_kv) * multiprocessors;
        let ctas = heads_kv * launch.parts;
        ctas <= slots && 10 * ctas >= 9 * slots
    }

    /// Query rows that a warp has at a time.
    #[must_use]
    pub const fn tile_m(&self) -> usize {
        16 * self.m16_tiles
    }

    /// Dynamic shared memory of a CTA of so many warps for so many keys.
    #[must_use]
    pub const fn shared_bytes(&self, warps: usize, seqlen_kv: usize) -> usize {
        let (blocks, keys) = (kv_blocks(seqlen_kv), padded_keys(seqlen_kv));
        warps_offset(self.head_dim, blocks, keys) + warps * warp_bytes(self.head_dim, self.m16_tiles)
    }

    /// The most keys whose codes fit so much shared memory of a CTA.
    #[must_use]
    pub const fn most_keys(&self, shared_bytes: usize) -> usize {
        let mut keys = 0;
        while self.shared_bytes(FEW_WARPS, keys + ROW_BYTES) <= shared_bytes {
            keys += ROW_BYTES;
        }
        keys
    }

    /// CTAs of so many warps that an SM holds, of GPUs that give one of them so much shared memory at most.
    const fn ctas(&self, warps: usize, shared_bytes: usize, seqlen_kv: usize) -> usize {
        // 1 KiB of each is the system's, and an SM has that much more than it gives to one.
        const SYSTEM: usize = 1 << 10;
        let by_memory = (shared_bytes + SYSTEM) / (self.shared_bytes(warps, seqlen_kv) + SYSTEM);
        let by_registers = self.min_ctas * self.most_warps / warps;
        if by_memory < by_registers { by_memory } else { by_registers }
    }

    /// The launch for `heads_kv` heads of K and V, each of `group` heads of `seqlen_q` queries, on a GPU of so many multiprocessors that gives a
    /// CTA so much shared memory; `seqlen_kv` is at most [`most_keys`](Self::most_keys) of that.
    ///
    /// CTAs have as many warps as leave the multiprocessors the fewest without work. A head of K and V has as few CTAs as give all multiprocessors
    /// theirs.
    #[must_use]
    pub fn launch(
        &self,
        (heads_kv, group): (usize, usize),
        (seqlen_q, seqlen_kv): (usize, usize),
        multiprocessors: usize,
        shared_bytes: usize,
    ) -> ShortLaunch {
        let tiles = group * seqlen_q.div_ceil(self.tile_m());
        let slots = |warps| self.ctas(warps, shared_bytes, seqlen_kv) * multiprocessors;
        let parts = |warps: usize| {
            let rounds = tiles.div_ceil(warps);
            rounds.div_ceil(rounds.div_ceil((slots(warps) / heads_kv.max(1)).max(1)).max(1)).max(1)
        };
        // Tiles that are worked on at a time, over all multiprocessors, until the last CTA is done.
        let busy = |warps: usize| {
            let waves = (heads_kv * parts(warps)).div_ceil(slots(warps).max(1)).max(1);
            let rounds = tiles.div_ceil(parts(warps) * warps).max(1);
            if slots(warps) == 0 { 0 } else { heads_kv * tiles / (waves * rounds) }
        };
        // As many in fewer CTAs: K and V are quantized at once. But one that is alone on a multiprocessor waits for itself, which pays where K and V are
        // much of the work and are quantized once less.
        let instead = |more: usize, warps: usize| {
            let less = parts(more) < parts(warps) && (group * seqlen_q).div_ceil(parts(more)) <= seqlen_kv;
            more <= tiles.div_ceil(parts(more)).max(FEW_WARPS) && (slots(more) > multiprocessors || less)
        };
        let mut warps = FEW_WARPS / 2;
        for more in [FEW_WARPS, self.most_warps / 2, self.most_warps] {
            if busy(more) > busy(warps) || busy(more) == busy(warps) && instead(more, warps) {
                warps = more;
            }
        }
        ShortLaunch { warps, shared_bytes: self.shared_bytes(warps, seqlen_kv), parts: parts(warps) }
    }
}

/// The grid: heads of K and V and sequences, one of which is in front (`ShortParams::sequences_first`), and the CTAs that share the rows of a head; none
/// where a GPU has no such.
#[must_use]
pub fn short_grid(heads_kv: usize, sequences: usize, parts: usize, sequences_first: bool) -> Option<[u32; 3]> {
    let (first, second) = if sequences_first { (sequences, heads_kv) } else { (heads_kv, sequences) };
    let first = i32::try_from(first).ok()?;
    Some([first as u32, u16::try_from(second).ok()?.into(), u16::try_from(parts).ok()?.into()])
}

/// Warps of the smaller CTAs.
pub const FEW_WARPS: usize = 4;

/// The warps that quantize K, or V: of a large CTA one half each, so that code is waited for by the two halves at once; of a small one all of
/// them both.
#[inline(always)]
#[must_use]
pub const fn team_warps(warps: u32) -> u32 {
    if warps >= 2 * FEW_WARPS as u32 {
        warps / 2
    } else if warps > FEW_WARPS as u32 {
        FEW_WARPS as u32
    } else {
        warps
    }
}

/// The most warps of K's team that look for the ranges of its channels: the first tokens are no more work, and where the ranges wait is no larger.
pub const RANGES_WARPS: usize = FEW_WARPS;

/// Keys that have a place: whole panels of a block.
#[inline(always)]
#[must_use]
pub const fn padded_keys(seqlen_kv: usize) -> usize {
    (seqlen_kv + (ROW_BYTES - 1)) & !(ROW_BYTES - 1)
}

/// Dims of a token that a lane holds. A token in few lanes is rotated with fewer exchanges, by more code, which a launch waits for; but a tile's 16 rows
/// are to have work for all lanes.
#[must_use]
pub const fn lane_dims(head_dim: usize) -> usize {
    if head_dim < 64 { 16 } else { 32 }
}

/// Bytes of a warp's area: its queries as they come and their codes, and in their place scores of a block, or what special blocks need; notes, sums, and
/// scale and bias of each row.
#[must_use]
pub const fn warp_bytes(head_dim: usize, mt: usize) -> usize {
    rows_offset(head_dim, mt) + 2 * 4 * 16 * mt
}

/// Bytes of a warp's queries as they come, in halves.
#[must_use]
pub const fn arrivals_bytes(head_dim: usize, mt: usize) -> usize {
    2 * 16 * mt * head_dim
}

/// Where a warp's notes begin in its area, and behind them its sums.
#[must_use]
pub const fn notes_offset(head_dim: usize, mt: usize) -> usize {
    let (queries, scores) = (arrivals_bytes(head_dim, mt) + 16 * mt * head_dim, 2 * 16 * mt * KV_BLOCK);
    if queries > scores { queries } else { scores }
}

// Special blocks need no more.
const _: () = assert!(SCRATCH_BYTES <= 2 * 16 * KV_BLOCK);

/// Where the scales of a warp's rows are in its area, and behind them their biases.
#[must_use]
pub const fn rows_offset(head_dim: usize, mt: usize) -> usize {
    notes_offset(head_dim, mt) + 16 * mt * NOTE_BYTES + 32 * 16 * mt
}

/// How often a warp takes [`lane_dims`] a lane, until it has its tile of query rows.
#[must_use]
pub const fn queries_rounds(head_dim: usize, mt: usize) -> usize {
    16 * mt * head_dim / (32 * lane_dims(head_dim))
}

/// Where what is said of the head begins: behind the signs of the dims, 4 bytes each at most, and K's offset.
#[must_use]
pub const fn head_offset(head_dim: usize) -> usize {
    2 * 4 * head_dim
}

/// Bytes of the three numbers of each key: of K its scale and then its factor; of V the largest magnitude and then the reciprocal of its
/// scale; and V's scale.
pub const NUMBERS_BYTES: usize = 3 * 4 * KV_BLOCK;

/// Where the blocks' scales begin, 16 bytes each: behind `v_unit` and what the CTA works on.
#[must_use]
pub const fn blocks_offset(head_dim: usize) -> usize {
    head_offset(head_dim) + 32
}

/// Where the keys' numbers begin.
#[inline(always)]
#[must_use]
pub const fn numbers_offset(head_dim: usize, blocks: usize) -> usize {
    blocks_offset(head_dim) + 16 * blocks
}

/// Where the codes of K begin, and behind them V's.
#[inline(always)]
#[must_use]
pub const fn codes_offset(head_dim: usize, blocks: usize) -> usize {
    // Eight rows of a panel are all banks.
    // Masked: of a number that the compiler does not know, `next_multiple_of` is a division's worth of instructions, at each use.
    const ROW: usize = 256;
    (numbers_offset(head_dim, blocks) + NUMBERS_BYTES * blocks + (ROW - 1)) & !(ROW - 1)
}

/// Where the areas of the warps begin.
#[inline(always)]
#[must_use]
pub const fn warps_offset(head_dim: usize, blocks: usize, keys: usize) -> usize {
    codes_offset(head_dim, blocks) + 2 * keys * head_dim
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: ShortVariant = ShortVariant {
        name: "",
        head_dim: 64,
        m16_tiles: 1,
        most_warps: 16,
        min_ctas: 1,
        any_queries: 0,
        to_keys: 0,
        to_keys_filled: 0,
    };
    /// Of an H200.
    const SHARED: usize = 227 << 10;

    #[test]
    fn parts_fill_the_card_and_none_is_empty() {
        let parts = |heads, group, lengths| V.launch((heads, group), lengths, 132, SHARED).parts;
        // Heads enough.
        assert_eq!(parts(1024, 1, (257, 257)), 1);
        assert_eq!(parts(384, 1, (512, 512)), 1);
        // 32 rounds of 128 rows for 20 heads, in 13 places each: 11 CTAs of 3 rounds.
        assert_eq!(parts(20, 1, (4096, 77)), 11);
        for (heads, group, rows) in [(1, 1, 1), (1, 8, 1), (3, 2, 130), (7, 1, 5000), (1000, 4, 1)] {
            let ShortLaunch { warps, parts, .. } = V.launch((heads, group), (rows, 100), 132, SHARED);
            let rounds = (group * rows.div_ceil(16)).div_ceil(warps);
            assert!(parts >= 1 && parts <= rounds, "{heads} {group} {rows}: {parts}");
            assert!(parts == 1 || parts * heads <= 16 / warps * 132, "{heads} {group} {rows}: {parts}");
        }
    }

    #[test]
    fn warps_are_those_that_have_work() {
        let warps = |heads, lengths| V.launch((heads, 1), lengths, 132, SHARED).warps;
        // 17 tiles are three rounds of eight warps, but two of sixteen, of which one has a tile for one warp; 32 are two of sixteen.
        assert_eq!(
            [(1024, (257, 257)), (384, (512, 512)), (384, (128, 128))].map(|(h, lengths)| warps(h, lengths)),
            [8, 16, 8]
        );
        // One CTA of sixteen, or two of eight that would quantize K and V twice.
        assert_eq!(warps(128, (512, 512)), 16);
        // Four tiles for four warps, two for two.
        assert_eq!(
            [(384, (64, 64)), (3072, (32, 32)), (384, (17, 64))].map(|(h, lengths)| warps(h, lengths)),
            [4, 2, 4]
        );
        // One CTA of eight at a time, where two of four have room, or have none.
        let wide = ShortVariant { head_dim: 128, most_warps: 8, ..V };
        let warps = |keys| wide.launch((192, 1), (keys, keys), 132, SHARED).warps;
        assert_eq!([64, 128, 256, 384].map(warps), [4, 4, 4, 8]);
    }

    #[test]
    fn keys_that_fit_are_the_most() {
        for v in SHORT {
            for bytes in [48 << 10, 99 << 10, 227 << 10] {
                let (most, of) = (v.most_keys(bytes), |keys| v.shared_bytes(FEW_WARPS, keys));
                assert!(most > 0 && of(most) <= bytes && of(most + 1) > bytes, "{}", v.name);
                let launch = v.launch((1, 1), (1000, most), 132, bytes);
                assert!(launch.shared_bytes <= bytes, "{}: {launch:?}", v.name);
            }
            // Whole rounds.
            assert_eq!(v.tile_m() * v.head_dim % (32 * lane_dims(v.head_dim)), 0);
        }
    }
}
