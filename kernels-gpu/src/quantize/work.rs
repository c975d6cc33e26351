//! Which CTA of `quantize_*` does what.
//!
//! CTAs start in the order of their numbers (x, then y, then z). A round, all CTAs of the same y and z, is the statistics of
//! one head and the tiles of another, [`Work::lead`] heads before. So a CTA only ever waits for CTAs that have started; and
//! the lead is such that nobody waits long, and that the second reading of K and V is served by L2.

use super::launch::{MAX_GRID, SLICE_BYTES, tile_tokens};
use crate::layout::{KV_BLOCK, STATS_CHUNK, kv_blocks};

/// A number that is divided by many times: a product and a shift instead of the twenty instructions of a division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divisor {
    /// The number, at least 1.
    pub value: u32,
    /// `2^(31 + log) / value`, rounded up, where `2^log` is the power of two from `value` on.
    pub magic: u32,
    /// `31 + log`.
    pub shift: u32,
}

impl Divisor {
    /// The divisor `value`, at least 1.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        let shift = 31 + (value as u64).next_power_of_two().trailing_zeros();
        Self { value, magic: (1_u64 << shift).div_ceil(value as u64) as u32, shift }
    }

    /// Quotient and remainder of a number below 2^31.
    #[inline(always)]
    #[must_use]
    pub const fn div_rem(&self, n: u32) -> (u32, u32) {
        let quotient = ((n as u64 * self.magic as u64) >> (self.shift & 63)) as u32;
        (quotient, n - quotient * self.value)
    }
}

/// The work of one launch; counts are for one head of K and V and the heads of Q that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Heads of K and V, over all batches.
    pub heads: u32,
    /// Heads whose statistics come before the first tile, at most `heads`.
    pub lead: u32,
    /// CTAs for the statistics of K and V; 0 where Q alone is quantized.
    pub stats: u32,
    /// Tiles of K; V has as many.
    pub keys: u32,
    /// Heads of Q that share one of K and V.
    pub group: u32,
    /// Tiles of a head of Q.
    pub queries: Divisor,
    /// Heads of K and V in a batch.
    pub heads_kv: Divisor,
    /// Parts of a row of which the statistics are taken apart.
    pub slices: Divisor,
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
        let slices = head_dim * element_bytes / SLICE_BYTES;
        let stats = if with_kv { 2 * slices * seqlen_kv.div_ceil(STATS_CHUNK) } else { 0 };
        let keys = if with_kv { (kv_blocks(seqlen_kv) * KV_BLOCK).div_ceil(tokens) } else { 0 };
        let group = if with_q { heads_q / heads_kv } else { 0 };
        let queries = seqlen_q.div_ceil(tokens);
        let Some(all_queries) = queries.checked_mul(group) else { return None };
        let each = stats + 2 * keys + all_queries;
        let Some(heads) = batch.checked_mul(heads_kv) else { return None };
        if each == 0 || each > MAX_GRID || heads > MAX_GRID {
            return None;
        }
        let lead = if with_kv { resident.div_ceil(each) } else { 0 };
        Some(Self {
            heads: heads as u32,
            lead: (if lead < heads { lead } else { heads }) as u32,
            stats: stats as u32,
            keys: keys as u32,
            group: group as u32,
            queries: Divisor::new(queries as u32),
            heads_kv: Divisor::new(heads_kv as u32),
            slices: Divisor::new(slices as u32),
        })
    }

    /// The launch's grid.
    #[must_use]
    pub const fn grid(&self) -> [u32; 3] {
        let rounds = self.heads + self.lead;
        let y = if rounds < ROUNDS_Y { rounds } else { ROUNDS_Y };
        [self.stats + 2 * self.keys + self.group * self.queries.value, y, rounds.div_ceil(ROUNDS_Y)]
    }

    /// The kernel's last parameters, in order.
    #[must_use]
    pub const fn parameters(&self) -> [u32; 14] {
        let Self { heads, lead, stats, keys, group, queries, heads_kv, slices } = *self;
        [
            heads, lead, stats, keys, group,
            queries.value, queries.magic, queries.shift,
            heads_kv.value, heads_kv.magic, heads_kv.shift,
            slices.value, slices.magic, slices.shift,
        ]
    }

    /// What CTA `[x, y, z]` does: for which head, and the number of the chunk and slice or of the tile. There is no such head
    /// where a round has statistics or tiles only.
    #[inline(always)]
    #[must_use]
    pub const fn item(&self, [x, y, z]: [u32; 3]) -> (Item, u32, u32) {
        let round = z * ROUNDS_Y + y;
        if x < self.stats {
            return (Item::Stats, round, x);
        }
        let (head, at) = (round.wrapping_sub(self.lead), x - self.stats);
        if at >= 2 * self.keys {
            (Item::Queries, head, at - 2 * self.keys)
        } else {
            // the tiles read last come first: they are in L2 if any are
            (Item::KeysValues, head, 2 * self.keys - 1 - at)
        }
    }
}

/// Rounds of the same z.
const ROUNDS_Y: u32 = 1 << 15;

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
    use std::collections::HashSet;

    const SHAPE: Shape =
        Shape { batch: 2, heads_q: 6, heads_kv: 3, seqlen_q: 700, seqlen_kv: 1300, head_dim: 64, element_bytes: 2 };

    /// Every item once, and no tile before the statistics of its head.
    #[test]
    fn each_item_comes_once_and_after_what_it_needs() {
        for (with_q, with_kv) in [(true, true), (true, false), (false, true)] {
            for (resident, batch) in [(1, 2), (30, 2), (100, 2), (100_000, 2), (5, 12_000)] {
                let work = Work::new(&Shape { batch, ..SHAPE }, with_q, with_kv, resident).unwrap();
                let [x, y, z] = work.grid();
                let mut seen = HashSet::new();
                for cta in 0..u64::from(x) * u64::from(y) * u64::from(z) {
                    let (row, x) = ((cta / u64::from(x)) as u32, (cta % u64::from(x)) as u32);
                    let (item, head, index) = work.item([x, row % y, row / y]);
                    if head >= work.heads {
                        continue;
                    }
                    assert!(seen.insert((item as u32, head, index)));
                    if item != Item::Stats {
                        assert!((0..work.stats).all(|i| seen.contains(&(Item::Stats as u32, head, i))));
                    }
                }
                let each = work.stats + 2 * work.keys + work.group * work.queries.value;
                let largest = |item: Item| seen.iter().filter(|i| i.0 == item as u32).map(|i| i.2 + 1).max().unwrap_or(0);
                assert_eq!(seen.len(), (work.heads * each) as usize);
                assert_eq!(largest(Item::Stats), work.stats);
                assert_eq!(largest(Item::KeysValues), 2 * work.keys);
                assert_eq!(largest(Item::Queries), work.group * work.queries.value);
            }
        }
    }

    #[test]
    fn divisors_divide() {
        let edges = [0, 1, 2, 3, 5, 96, 127, 128, 1 << 16, (1 << 30) - 1, 1 << 30, (1 << 31) - 2, (1 << 31) - 1];
        for value in edges.into_iter().chain(1..200).filter(|&value| value > 0) {
            let divisor = Divisor::new(value);
            for n in edges.into_iter().chain((0..100).map(|i| i * 21_474_836)).chain((1..20).map(|i| (i as u64 * value as u64).min(1 << 31) as u32).map(|n| n.max(1) - 1)) {
                if n < 1 << 31 {
                    assert_eq!(divisor.div_rem(n), (n / value, n % value), "{n} / {value}");
                }
            }
        }
    }

    #[test]
    fn work_that_does_not_fit_is_none() {
        let work = Work::new(&SHAPE, true, true, 1).unwrap();
        assert_eq!((work.heads, work.lead, work.stats, work.keys, work.group, work.queries.value), (6, 1, 12, 6, 2, 3));
        assert_eq!(work.grid(), [12 + 12 + 6, 7, 1]);
        assert_eq!(Work::new(&Shape { batch: 1 << 40, ..SHAPE }, true, true, 1), None);
        assert_eq!(Work::new(&Shape { seqlen_q: 1 << 45, ..SHAPE }, true, true, 1), None);
    }
}
