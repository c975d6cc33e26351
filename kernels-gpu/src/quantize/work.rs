//! Which CTA of `quantize_*` does what.
//!
//! CTAs start in the order of their numbers. A head's statistics come before the tiles that are quantized with them, so that
//! a CTA only ever waits for CTAs that have started; and they come [`Work::lead`] heads before, close enough that the
//! second reading of K and V is served by L2, far enough that nobody waits long.

use super::launch::{MAX_GRID, SLICE_BYTES, tile_tokens};
use crate::layout::{KV_BLOCK, STATS_CHUNK, kv_blocks};

/// Quotient and remainder by a divisor that is not 0.
#[inline(always)]
pub(crate) const fn div_rem(a: u32, b: u32) -> (u32, u32) {
    // SAFETY: heads, groups, chunks, tiles and vectors are counted from 1 (docs/kernel-abi.md); a check would need a panic.
    unsafe { core::hint::assert_unchecked(b != 0) };
    (a / b, a % b)
}

/// The work of one launch; counts are for one head of K and V and the heads of Q that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Heads of K and V, over all batches.
    pub heads: u32,
    /// CTAs for the statistics of K and V; 0 where Q alone is quantized.
    pub stats: u32,
    /// Tiles of K; V has as many.
    pub keys: u32,
    /// Tiles of Q.
    pub queries: u32,
    /// Heads whose statistics come before the first tile, at most `heads`.
    pub lead: u32,
}

/// What a CTA does, for a head of K and V and those of Q that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Statistics of a chunk and slice of K or V.
    Stats,
    /// A tile of K (even numbers) or of V (odd).
    KeysValues,
    /// A tile of Q.
    Queries,
}

impl Work {
    /// The work of a problem whose K and V (`with_kv`), Q (`with_q`) or all three are quantized. `resident` is how many
    /// CTAs the device holds at a time. `None` where the CTAs leave the grid's range.
    #[must_use]
    pub const fn new(shape: &Shape, with_q: bool, with_kv: bool, resident: usize) -> Option<Self> {
        let Shape { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim, element_bytes } = *shape;
        let tokens = tile_tokens(head_dim, element_bytes);
        let stats = 2 * (head_dim * element_bytes / SLICE_BYTES) * seqlen_kv.div_ceil(STATS_CHUNK);
        let keys = (kv_blocks(seqlen_kv) * KV_BLOCK).div_ceil(tokens);
        let Some(queries) = seqlen_q.div_ceil(tokens).checked_mul(heads_q / heads_kv) else { return None };
        let Some(heads) = batch.checked_mul(heads_kv) else { return None };
        let (stats, keys) = if with_kv { (stats, keys) } else { (0, 0) };
        let queries = if with_q { queries } else { 0 };
        let each = stats + 2 * keys + queries;
        match heads.checked_mul(each) {
            Some(ctas) if ctas <= MAX_GRID as usize && each > 0 => {
                let lead = resident.div_ceil(each);
                let lead = if lead < heads { lead } else { heads };
                Some(Self {
                    heads: heads as u32,
                    stats: stats as u32,
                    keys: keys as u32,
                    queries: queries as u32,
                    lead: lead as u32,
                })
            }
            _ => None,
        }
    }

    /// CTAs of the launch.
    #[must_use]
    pub const fn ctas(&self) -> u32 {
        self.heads * (self.stats + self.tiles())
    }

    /// The kernel's last parameters, in order.
    #[must_use]
    pub const fn parameters(&self) -> [u32; 5] {
        [self.heads, self.stats, self.keys, self.queries, self.lead]
    }

    /// Tiles of all three operands.
    const fn tiles(&self) -> u32 {
        2 * self.keys + self.queries
    }

    /// What CTA number `cta` does: for which head, and the number of the chunk and slice or of the tile.
    #[inline(always)]
    #[must_use]
    pub const fn item(&self, cta: u32) -> (Item, u32, u32) {
        let before = self.lead * self.stats;
        if cta < before {
            let (head, index) = div_rem(cta, self.stats);
            return (Item::Stats, head, index);
        }
        // then heads in turn, the statistics of one and the tiles of an earlier one; tiles alone in the end
        let cta = cta - before;
        let mixed = (self.heads - self.lead) * (self.stats + self.tiles());
        let (head, at) = if cta < mixed {
            let (head, at) = div_rem(cta, self.stats + self.tiles());
            if at < self.stats {
                return (Item::Stats, head + self.lead, at);
            }
            (head, at - self.stats)
        } else {
            let (head, at) = div_rem(cta - mixed, self.tiles());
            (head + self.heads - self.lead, at)
        };
        // the tiles read last come first: they are in L2 if any are
        if at >= 2 * self.keys {
            (Item::Queries, head, at - 2 * self.keys)
        } else {
            (Item::KeysValues, head, 2 * self.keys - 1 - at)
        }
    }
}

/// The sizes that [`Work`] follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Batches.
    pub batch: usize,
    /// Heads of Q in a batch, a multiple of `heads_kv`.
    pub heads_q: usize,
    /// Heads of K and V in a batch, at least 1.
    pub heads_kv: usize,
    /// Tokens of Q.
    pub seqlen_q: usize,
    /// Tokens of K and V.
    pub seqlen_kv: usize,
    /// Dims of a row.
    pub head_dim: usize,
    /// Bytes of an element.
    pub element_bytes: usize,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashMap;

    const SHAPE: Shape =
        Shape { batch: 2, heads_q: 6, heads_kv: 3, seqlen_q: 700, seqlen_kv: 1300, head_dim: 64, element_bytes: 2 };

    /// Every item once, and no tile before the statistics of its head.
    #[test]
    fn each_item_comes_once_and_after_what_it_needs() {
        for (with_q, with_kv) in [(true, true), (true, false), (false, true)] {
            for resident in [1, 30, 100, 100_000] {
                let work = Work::new(&SHAPE, with_q, with_kv, resident).unwrap();
                let mut seen = HashMap::new();
                for cta in 0..work.ctas() {
                    let (item, head, index) = work.item(cta);
                    assert!(head < work.heads);
                    let count = match item {
                        Item::Stats => work.stats,
                        Item::Queries => work.queries,
                        Item::KeysValues => 2 * work.keys,
                    };
                    assert!(index < count);
                    assert!(seen.insert((item as u32, head, index), cta).is_none());
                    if item != Item::Stats {
                        assert!((0..work.stats).all(|i| seen.contains_key(&(Item::Stats as u32, head, i))));
                    }
                }
            }
        }
    }

    #[test]
    fn work_that_does_not_fit_is_none() {
        let work = Work::new(&SHAPE, true, true, 1).unwrap();
        assert_eq!((work.heads, work.stats, work.keys, work.queries, work.lead), (6, 12, 6, 6, 1));
        assert_eq!(work.ctas(), 6 * (12 + 12 + 6));
        assert_eq!(Work::new(&Shape { batch: 1 << 40, ..SHAPE }, true, true, 1), None);
        assert_eq!(Work::new(&Shape { seqlen_q: 1 << 45, ..SHAPE }, true, true, 1), None);
    }
}
