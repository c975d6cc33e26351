//! Which CTA of `quantize_*` does what.
//!
//! Every CTA converts a run of tiles, of [`KV_BLOCK`] tokens of a head each, and none waits for another. The runs of a head of K and V come first,
//! K and V in turn: of each kind there are always some on a multiprocessor, which are bound by different things. Behind them come the
//! runs of Q of the heads that share it, which find the first tokens of K in L2. Runs are long where there are tiles enough for all
//! multiprocessors: what a CTA does once, of which making K's offset is the most, is done less often.

use crate::division::div_rem;
use crate::layout::KV_BLOCK;
use crate::params::QuantizeParams;
use crate::quantize::launch::MAX_GRID;
use crate::seqlens::packed_tiles;

/// The runs of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Tiles of a run.
    run: u32,
    /// Runs of a head of K, and of V.
    kv_runs: u32,
    /// Runs of a head of Q.
    q_runs: u32,
    /// Heads of Q that share a head of K and V; 0 where Q is not quantized.
    group: u32,
    /// Heads of K and V in a sequence.
    heads_kv: u32,
    /// Batches of the tensors: sequences, or one of them all packed.
    batch: u32,
}

/// What a CTA converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A block of K.
    Keys,
    /// A block of V.
    Values,
    /// A tile of this one of the heads of Q that share the head of K and V.
    Queries(u32),
}

/// A CTA's run of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// The batch of the tensors: the sequence, where they are not packed.
    pub batch: u32,
    /// The head of K and V in the sequence.
    pub head_kv: u32,
    /// Of what it is.
    pub operand: Operand,
    /// The first tile's number in the head. Where sequences are packed, the run's number times the tiles of a run:
    /// [`seqlens::first_tile`](crate::seqlens::first_tile) says of whole runs which are a sequence's.
    pub tile: u32,
    /// How many tiles, where the head has so many.
    pub tiles: u32,
}

/// Tiles from which a run has two; from twice as many on it has [`LONGEST`].
const MANY: u64 = 4096;
/// Tiles of the longest run.
const LONGEST: u32 = 4;

impl Work {
    /// The runs that the parameters ask for. `heads_kv` is not zero.
    #[inline(always)]
    #[must_use]
    pub fn new(p: &QuantizeParams) -> Self {
        // SAFETY: there is a head.
        let group = unsafe { div_rem(p.heads_q, p.heads_kv) }.0;
        let packed = (if p.quantize_kv != 0 { p.seqlens.packed_kv } else { p.seqlens.packed_q }) != 0;
        let (seqlens, sequences) = (&p.seqlens, if packed { p.batch } else { 0 });
        let kv = if p.quantize_kv != 0 { seqlens.total_kv } else { 0 };
        let q = if group != 0 { seqlens.total_q } else { 0 };
        Self::of_tokens(if packed { 1 } else { p.batch }, sequences, p.heads_kv, group, [kv, q])
    }

    /// Of so many tokens of K and of Q, none where they are not quantized; with so many `sequences` where they are packed.
    #[inline(always)]
    const fn of_tokens(batch: u32, sequences: u32, heads_kv: u32, group: u32, [kv, q]: [u32; 2]) -> Self {
        let [kv_tiles, q_tiles] = [runs(kv, sequences, 1), runs(q, sequences, 1)];
        let each = 2 * kv_tiles as u64 + group as u64 * q_tiles as u64;
        let all = (batch as u64 * heads_kv as u64).saturating_mul(each);
        let run = if all >= 2 * MANY {
            LONGEST
        } else if all >= MANY {
            2
        } else {
            1
        };
        Self { run, kv_runs: runs(kv, sequences, run), q_runs: runs(q, sequences, run), group, heads_kv, batch }
    }

    /// Heads of Q that share a head of K and V; 0 where Q is not quantized.
    #[inline(always)]
    #[must_use]
    pub const fn group(&self) -> u32 {
        self.group
    }

    /// Runs of a head of K and V and the heads of Q that share it.
    #[inline(always)]
    const fn each(&self) -> u32 {
        2 * self.kv_runs + self.group * self.q_runs
    }

    /// The CTAs of a launch, or `None` where there are more than a grid has.
    #[must_use]
    pub fn ctas(&self) -> Option<u32> {
        let each = 2 * u64::from(self.kv_runs) + u64::from(self.group) * u64::from(self.q_runs);
        let all = u128::from(each) * u128::from(self.heads_kv) * u128::from(self.batch);
        if all <= MAX_GRID as u128 { Some(all as u32) } else { None }
    }

    /// What CTA number `cta` does.
    #[inline(always)]
    #[must_use]
    pub fn item(&self, cta: u32) -> Item {
        // SAFETY: a CTA has a tile, so a head has tiles, and a tile of Q is one of its head's.
        unsafe {
            let (head, index) = div_rem(cta, self.each());
            let (batch, head_kv) = div_rem(head, self.heads_kv);
            if index < 2 * self.kv_runs {
                let operand = if index % 2 == 0 { Operand::Keys } else { Operand::Values };
                return Item { batch, head_kv, operand, tile: index / 2 * self.run, tiles: self.run };
            }
            let (of_group, tile) = div_rem(index - 2 * self.kv_runs, self.q_runs);
            Item { batch, head_kv, operand: Operand::Queries(of_group), tile: tile * self.run, tiles: self.run }
        }
    }
}

/// Runs of a head of so many tokens, of which there may be none; with a run of its own for each sequence where they are packed.
#[inline(always)]
const fn runs(tokens: u32, sequences: u32, tiles: u32) -> u32 {
    let unit = tiles * KV_BLOCK as u32;
    if sequences == 0 || tokens == 0 { tokens.div_ceil(unit) } else { packed_tiles(tokens, sequences, unit) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    const TILE: u32 = KV_BLOCK as u32;

    #[test]
    fn every_tile_comes_once() {
        for (batch, kv_tiles, group) in [(2, 11, 2), (2, 0, 2), (2, 11, 0), (40, 31, 0), (17, 30, 2)] {
            let (heads_kv, q_tiles) = (3, 6);
            let work = Work::of_tokens(batch, 0, heads_kv, group, [kv_tiles * TILE, q_tiles * TILE - 5]);
            let mut tiles = HashSet::new();
            for item in (0..work.ctas().unwrap()).map(|cta| work.item(cta)) {
                let of_head = if let Operand::Queries(_) = item.operand { q_tiles } else { kv_tiles };
                assert!(item.batch < batch && item.head_kv < heads_kv && item.tile < of_head);
                for tile in item.tile..(item.tile + item.tiles).min(of_head) {
                    assert!(tiles.insert(Item { tile, tiles: 1, ..item }));
                }
            }
            assert_eq!(tiles.len(), (batch * heads_kv * (2 * kv_tiles + group * q_tiles)) as usize);
        }
    }

    #[test]
    fn runs_are_long_where_there_are_tiles_enough() {
        assert_eq!(
            [1, 2047, 2048, 4095, 4096, 1 << 20].map(|tiles| Work::of_tokens(1, 0, 1, 0, [tiles * TILE, 0]).run),
            [1, 1, 2, 2, 4, 4]
        );
    }

    #[test]
    fn more_tiles_than_a_grid_has_are_none() {
        let tokens = [TILE << 23, 1];
        assert_eq!(Work::of_tokens(1, 0, 63, 1, tokens).ctas(), Some(63 * ((2 << 21) + 1)));
        assert_eq!(Work::of_tokens(1, 0, 1 << 10, 1, tokens).ctas(), None);
        assert_eq!(Work::of_tokens(u32::MAX, 0, u32::MAX, 1, tokens).ctas(), None);
    }
}
