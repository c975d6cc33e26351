//! Which CTA of `quantize_*` does what.
//!
//! CTAs start in the order of their numbers (x, then y, then z). A round, all CTAs of the same y and z, is the statistics of
//! one operand of a head, K or V, and the tiles of another, [`Work::lead`] before. So a CTA only ever waits for CTAs that have started; and
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

/// The work of one launch. Operands are counted through the heads of K and V: K of the first, V of the first, K of the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Operands: twice the heads of K and V, over all batches.
    pub operands: u32,
    /// Operands whose statistics come before the first tile, at most `operands`.
    pub lead: u32,
    /// Operands whose statistics come before the first tile of Q, twice `lead`: Q is read only once, so it can come when nobody
    /// waits for anything any more.
    pub lead_queries: u32,
    /// CTAs for the statistics of an operand; 0 where Q alone is quantized.
    pub stats: u32,
    /// Tiles of an operand.
    pub keys: u32,
    /// Heads of Q that share one of K and V; 0 where Q is not quantized.
    pub group: u32,
    /// Tiles of a head of Q.
    pub queries: Divisor,
    /// Heads of K and V in a batch.
    pub heads_kv: Divisor,
    /// Parts of a row of which the statistics are taken apart.
    pub slices: Divisor,
}

/// What a CTA does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Statistics of a chunk and slice of an operand.
    Stats,
    /// A tile of an operand.
    KeysValues,
    /// A tile of the heads of Q that share an operand's head.
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
        let stats = if with_kv { slices * seqlen_kv.div_ceil(STATS_CHUNK) } else { 0 };
        let keys = if with_kv { (kv_blocks(seqlen_kv) * KV_BLOCK).div_ceil(tokens) } else { 0 };
        let group = if with_q { heads_q / heads_kv } else { 0 };
        let queries = seqlen_q.div_ceil(tokens);
        let Some(all_queries) = queries.checked_mul(group) else { return None };
        let each = stats + keys + all_queries.div_ceil(2);
        let Some(heads) = batch.checked_mul(heads_kv) else { return None };
        if each == 0 || each > MAX_GRID || heads > MAX_GRID / 4 {
            return None;
        }
        let operands = 2 * heads;
        let lead = if with_kv { resident.div_ceil(each) } else { 0 };
        let lead = if lead < operands { lead } else { operands };
        Some(Self {
            operands: operands as u32,
            lead: lead as u32,
            lead_queries: 2 * lead as u32,
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
        let rounds = self.operands + if self.group > 0 { self.lead_queries } else { self.lead };
        let y = if rounds < ROUNDS_Y { rounds } else { ROUNDS_Y };
        [self.stats + self.keys + self.half_queries(), y, rounds.div_ceil(ROUNDS_Y)]
    }

    /// Tiles of Q that come with K of a head; the rest comes with V.
    #[inline(always)]
    const fn half_queries(&self) -> u32 {
        (self.group * self.queries.value).div_ceil(2)
    }

    /// Heads of K and V, over all batches.
    #[inline(always)]
    #[must_use]
    pub const fn heads(&self) -> u32 {
        self.operands / 2
    }

    /// The kernel's last parameters, in order.
    #[must_use]
    pub const fn parameters(&self) -> [u32; 15] {
        let Self { operands, lead, lead_queries, stats, keys, group, queries, heads_kv, slices } = *self;
        [
            operands,
            lead,
            lead_queries,
            stats,
            keys,
            group,
            queries.value,
            queries.magic,
            queries.shift,
            heads_kv.value,
            heads_kv.magic,
            heads_kv.shift,
            slices.value,
            slices.magic,
            slices.shift,
        ]
    }

    /// What CTA `[x, y, z]` does: for which operand, and the number of the chunk and slice or of the tile. There is no such
    /// operand where a round has statistics or tiles only, and no such tile where Q has an odd number of them.
    #[inline(always)]
    #[must_use]
    pub const fn item(&self, [x, y, z]: [u32; 3]) -> (Item, u32, u32) {
        let round = z * ROUNDS_Y + y;
        if x < self.stats {
            return (Item::Stats, round, x);
        }
        let at = x - self.stats;
        if at >= self.keys {
            let operand = round.wrapping_sub(self.lead_queries);
            (Item::Queries, operand, at - self.keys + self.half_queries() * (operand % 2))
        } else {
            // the tiles read last come first: they are in L2 if any are
            (Item::KeysValues, round.wrapping_sub(self.lead), self.keys - 1 - at)
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
                    let (item, operand, index) = work.item([x, row % y, row / y]);
                    let queries = work.group * work.queries.value;
                    if operand >= work.operands || item == Item::Queries && index >= queries {
                        continue;
                    }
                    // Q's tiles are those of a head
                    let of = if item == Item::Queries { operand / 2 } else { operand };
                    assert!(seen.insert((item as u32, of, index)));
                    let needed = if item == Item::Queries { operand / 2 * 2 } else { operand };
                    if item != Item::Stats {
                        assert!((0..work.stats).all(|i| seen.contains(&(Item::Stats as u32, needed, i))));
                    }
                }
                let largest =
                    |item: Item| seen.iter().filter(|i| i.0 == item as u32).map(|i| i.2 + 1).max().unwrap_or(0);
                let queries = work.group * work.queries.value;
                assert_eq!(seen.len(), (work.operands * (work.stats + work.keys) + work.heads() * queries) as usize);
                assert_eq!(largest(Item::Stats), work.stats);
                assert_eq!(largest(Item::KeysValues), work.keys);
                assert_eq!(largest(Item::Queries), queries);
            }
        }
    }

    #[test]
    fn divisors_divide() {
        let edges = [0, 1, 2, 3, 5, 96, 127, 128, 1 << 16, (1 << 30) - 1, 1 << 30, (1 << 31) - 2, (1 << 31) - 1];
        for value in edges.into_iter().chain(1..200).filter(|&value| value > 0) {
            let divisor = Divisor::new(value);
            for n in edges
                .into_iter()
                .chain((0..100).map(|i| i * 21_474_836))
                .chain((1..20).map(|i| (i as u64 * value as u64).min(1 << 31) as u32).map(|n| n.max(1) - 1))
            {
                if n < 1 << 31 {
                    assert_eq!(divisor.div_rem(n), (n / value, n % value), "{n} / {value}");
                }
            }
        }
    }

    #[test]
    fn work_that_does_not_fit_is_none() {
        let work = Work::new(&SHAPE, true, true, 1).unwrap();
        assert_eq!(
            (work.operands, work.lead, work.stats, work.keys, work.group, work.queries.value),
            (12, 1, 6, 6, 2, 3)
        );
        assert_eq!(work.grid(), [6 + 6 + 3, 12 + 2, 1]);
        assert_eq!(Work::new(&Shape { batch: 1 << 40, ..SHAPE }, true, true, 1), None);
        assert_eq!(Work::new(&Shape { seqlen_q: 1 << 45, ..SHAPE }, true, true, 1), None);
    }
}
