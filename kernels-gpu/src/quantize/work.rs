//! Which CTA of `quantize_*` does what.
//!
//! Every CTA converts a run of tiles, of [`KV_BLOCK`] tokens of a head each, and none waits for another. The runs of K come first, then those of Q,
//! then those of V: a multiprocessor works on one operand at a time, whose instructions it then has near, and the shortest runs are last.
//! Runs are long where there are tiles enough for all multiprocessors: what a CTA does once, of which making K's offset is the most, is
//! done less often.

use crate::division::{div_rem, div_rem_or_one};
use crate::layout::KV_BLOCK;
use crate::params::QuantizeParams;
use crate::quantize::launch::{MAX_GRID, padded};
use crate::seqlens::packed_tiles;

/// The runs of a launch. The host works them out: a CTA asks for nothing before it knows its own.
#[repr(C)]
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

/// Runs that are enough for all multiprocessors, in the dims that each has of a token: a CTA's threads go by them. These are 1024 runs of 128 dims,
/// four for each CTA that an H200 holds at a time. Twice as many are twice as many starts of CTAs, each of which costs as many instructions as three
/// quarters of a tile: 3 % less bandwidth there at 4096 tokens (docs/kernel-log/quantizer.md).
const ENOUGH: u32 = 1 << 17;
/// Tiles of the longest run.
const LONGEST: u32 = 16;

impl Work {
    /// None.
    pub const NONE: Self = Self { run: 0, kv_runs: 0, q_runs: 0, group: 0, heads_kv: 0, batch: 0 };

    /// The runs that the parameters ask for, whatever theirs are.
    #[must_use]
    pub fn new(p: &QuantizeParams) -> Self {
        let group = p.heads_q.checked_div(p.heads_kv).unwrap_or(0);
        let packed = (if p.quantize_kv != 0 { p.seqlens.packed_kv } else { p.seqlens.packed_q }) != 0;
        let (seqlens, sequences) = (&p.seqlens, if packed { p.batch } else { 0 });
        let kv = if p.quantize_kv != 0 { seqlens.total_kv } else { 0 };
        let q = if group != 0 { seqlens.total_q } else { 0 };
        let batch = if packed { 1 } else { p.batch };
        Self::of_tokens(batch, sequences, p.heads_kv, group, [kv, q], padded(p.head_dim as usize) as u32)
    }

    /// Of so many tokens of K and of Q, none where they are not quantized; with so many `sequences` where they are packed.
    const fn of_tokens(batch: u32, sequences: u32, heads_kv: u32, group: u32, [kv, q]: [u32; 2], padded: u32) -> Self {
        let [kv_tiles, q_tiles] = [runs(kv, sequences, 1), runs(q, sequences, 1)];
        let each = 2 * kv_tiles as u64 + group as u64 * q_tiles as u64;
        let all = (batch as u64 * heads_kv as u64).saturating_mul(each);
        // As many as there may be are enough for a run of any length.
        let all = if all < (LONGEST * ENOUGH) as u64 { all as u32 } else { LONGEST * ENOUGH };
        // Of the smallest CTAs no more are on a multiprocessor.
        let dims = if padded < 64 { 64 } else { padded };
        let run = all >> (ENOUGH.trailing_zeros() - dims.trailing_zeros());
        let run = if run < 1 {
            1
        } else if run > LONGEST {
            LONGEST
        } else {
            run
        };
        // A power of two: heads' tiles often are, and their last runs are as long as the others.
        let run = 1 << (31 - (run + run / 3).leading_zeros());
        Self { run, kv_runs: runs(kv, sequences, run), q_runs: runs(q, sequences, run), group, heads_kv, batch }
    }

    /// Heads of Q that share a head of K and V; 0 where Q is not quantized.
    #[inline(always)]
    #[must_use]
    pub const fn group(&self) -> u32 {
        self.group
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
            let (run, heads) = (self.run, self.batch * self.heads_kv);
            let (kv_ctas, q_ctas) = (heads * self.kv_runs, heads * self.group * self.q_runs);
            let of_kv = cta < kv_ctas || cta >= kv_ctas + q_ctas;
            if of_kv {
                let (operand, index) =
                    if cta < kv_ctas { (Operand::Keys, cta) } else { (Operand::Values, cta - kv_ctas - q_ctas) };
                let (head, tile) = div_rem(index, self.kv_runs);
                let (batch, head_kv) = div_rem(head, self.heads_kv);
                return Item { batch, head_kv, operand, tile: tile * run, tiles: run };
            }
            let (head, tile) = div_rem(cta - kv_ctas, self.q_runs);
            let (head, of_group) = div_rem_or_one(head, self.group);
            let (batch, head_kv) = div_rem(head, self.heads_kv);
            Item { batch, head_kv, operand: Operand::Queries(of_group), tile: tile * run, tiles: run }
        }
    }
}

/// Runs of a head of so many tokens, of which there may be none; with a run of its own for each sequence where they are packed.
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
            let work = Work::of_tokens(batch, 0, heads_kv, group, [kv_tiles * TILE, q_tiles * TILE - 5], 128);
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
            [1, 1023, 1024, 2047, 4095, 4096, 1 << 20, u32::MAX / 256].map(|tiles| Work::of_tokens(
                1,
                0,
                1,
                0,
                [tiles * TILE, 0],
                128
            )
            .run),
            [1, 1, 2, 4, 8, 8, 16, 16]
        );
    }

    #[test]
    fn more_tiles_than_a_grid_has_are_none() {
        let tokens = [TILE << 24, 1];
        assert_eq!(Work::of_tokens(1, 0, 63, 1, tokens, 64).ctas(), Some(63 * ((2 << 20) + 1)));
        assert_eq!(Work::of_tokens(1, 0, 1 << 10, 1, tokens, 64).ctas(), None);
        assert_eq!(Work::of_tokens(u32::MAX, 0, u32::MAX, 1, tokens, 64).ctas(), None);
    }
}
