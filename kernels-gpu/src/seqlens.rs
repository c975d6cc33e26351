//! Sequences of lengths of their own: where their tokens and tiles lie (docs/kernel-abi.md, "Sequences of unlike lengths").
//!
//! Nothing here trusts the offsets, which are a device's memory: whatever they say, tokens, tiles and blocks stay inside of what the
//! launch was planned for.

#[cfg(target_arch = "nvptx64")]
use crate::division::div_rem;
use crate::layout::KV_BLOCK;
#[cfg(target_arch = "nvptx64")]
use crate::params::Global;
use crate::params::SeqLens;
#[cfg(target_arch = "nvptx64")]
use crate::ptx::global::ld_global_nc_u32;

/// The tokens of a sequence in one of the tensors.
#[cfg(any(test, target_arch = "nvptx64"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// The tensor's batch that they are of: the only one where sequences are packed.
    pub batch: u32,
    /// The first one in it.
    pub first: u32,
    /// How many.
    pub len: u32,
}

#[cfg(any(test, target_arch = "nvptx64"))]
impl Tokens {
    /// Of a sequence that packed tokens have from `begin` to before `end`: inside of `total`, and not more than `longest`.
    #[inline(always)]
    const fn packed([begin, end]: [u32; 2], total: u32, longest: u32) -> Self {
        let first = if begin < total { begin } else { total };
        let end = if end < total { end } else { total };
        let len = end.saturating_sub(first);
        Self { batch: 0, first, len: if len < longest { len } else { longest } }
    }

    /// Of a sequence of a dense batch.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    const fn dense(sequence: u32, len: u32) -> Self {
        Self { batch: sequence, first: 0, len }
    }
}

/// The number of the tile of `unit` tokens, which is not zero, in which the sequence begins whose tokens do at `begin`: every packed
/// sequence begins a tile. Monotone, and there is room for a sequence's tiles before the next one's, as `ceil(n/unit)` is at most
/// `(begin+n)/unit - begin/unit + 1`.
#[inline(always)]
#[must_use]
pub const fn first_tile(begin: u32, sequence: u32, unit: u32) -> u32 {
    // Checked, as a panic has no place on the device.
    match begin.checked_div(unit) {
        Some(whole) => whole + sequence,
        None => 0,
    }
}

/// Tiles of `unit` tokens, by [`first_tile`], of a head of so many packed tokens; some are of no sequence.
#[inline(always)]
#[must_use]
pub const fn packed_tiles(total: u32, sequences: u32, unit: u32) -> u32 {
    first_tile(total, sequences, unit)
}

/// The sequence of tile `tile` of `unit` tokens, and the tile's number in it, which may be past the sequence's end. `begin` says where
/// a sequence begins.
#[cfg(any(test, target_arch = "nvptx64"))]
#[inline(always)]
fn find_tile(begin: impl Fn(u32) -> u32, total: u32, sequences: u32, unit: u32, tile: u32) -> (u32, u32) {
    let first_tile = |sequence| {
        let begin = begin(sequence);
        first_tile(if begin < total { begin } else { total }, sequence, unit)
    };
    let (mut low, mut high) = (0, sequences);
    // The last one that begins at or before the tile is in low..high, if any does.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if first_tile(middle) <= tile {
            low = middle;
        } else {
            high = middle;
        }
    }
    let first = first_tile(low);
    // Offsets that are no offsets may have none; no sequence has so many tiles.
    (low, if first <= tile { tile - first } else { u32::MAX.checked_div(unit).unwrap_or(0) })
}

impl SeqLens {
    /// Blocks of K and V of a head of the tensors.
    #[inline(always)]
    #[must_use]
    pub const fn kv_blocks(&self, sequences: u32) -> u32 {
        if self.packed_kv == 0 {
            self.total_kv.div_ceil(KV_BLOCK as u32)
        } else {
            packed_tiles(self.total_kv, sequences, KV_BLOCK as u32)
        }
    }

    /// Tiles of queries of a head of the tensors, by [`first_tile`] where they are packed.
    #[inline(always)]
    #[must_use]
    pub const fn q_tiles(&self, sequences: u32, unit: u32) -> u32 {
        if self.packed_q == 0 { self.total_q.div_ceil(unit) } else { packed_tiles(self.total_q, sequences, unit) }
    }

    /// Tiles of queries of attention on a head of the tensors: where they are packed by [`first_tile`], or as many of each sequence as
    /// the longest may have, whichever is less.
    #[inline(always)]
    #[must_use]
    pub const fn query_tiles(&self, sequences: u32, longest: u32, unit: u32) -> u32 {
        match self.tiles_of_each(sequences, longest, unit) {
            0 => self.q_tiles(sequences, unit),
            each => each * sequences,
        }
    }

    /// How many of these each packed sequence has, where all have as many; else 0.
    #[inline(always)]
    const fn tiles_of_each(&self, sequences: u32, longest: u32, unit: u32) -> u32 {
        let each = longest.div_ceil(unit);
        let fewer = each as u64 * sequences as u64 <= packed_tiles(self.total_q, sequences, unit) as u64;
        if self.packed_q != 0 && fewer { each } else { 0 }
    }

    /// The first block of a sequence of K and V in a head of the tensors.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    pub(crate) fn first_block(&self, sequence: u32, kv: &Tokens) -> u32 {
        if self.packed_kv == 0 { 0 } else { first_tile(kv.first, sequence, KV_BLOCK as u32) }
    }
}

#[cfg(target_arch = "nvptx64")]
impl SeqLens {
    /// The sequence of tile `tile` of [`query_tiles`](Self::query_tiles), packed ones, and the tile's number in it, which may be past the
    /// sequence's end.
    ///
    /// # Safety
    /// As of [`q`](Self::q).
    #[inline(always)]
    pub(crate) unsafe fn of_query_tile(&self, sequences: u32, longest: u32, unit: u32, tile: u32) -> (u32, u32) {
        match self.tiles_of_each(sequences, longest, unit) {
            // SAFETY: the caller's promise.
            0 => unsafe { sequence_of_tile(self.cu_seqlens_q, self.total_q, sequences, unit, tile) },
            // SAFETY: not zero.
            each => unsafe { div_rem(tile, each) },
        }
    }

    /// The queries of a sequence, of which there are at most `longest`.
    ///
    /// # Safety
    /// The arrays that are there have the lengths that docs/kernel-abi.md says, and the sequence is one of the launch's.
    #[inline(always)]
    pub(crate) unsafe fn q(&self, sequence: u32, longest: u32) -> Tokens {
        if self.packed_q == 0 {
            Tokens::dense(sequence, longest)
        } else {
            let ends = unsafe { [load(self.cu_seqlens_q, sequence), load(self.cu_seqlens_q, sequence + 1)] };
            Tokens::packed(ends, self.total_q, longest)
        }
    }

    /// The keys of a sequence, as [`q`](Self::q).
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(crate) unsafe fn kv(&self, sequence: u32, longest: u32) -> Tokens {
        let mut tokens = Tokens::dense(sequence, longest);
        if self.packed_kv != 0 {
            let ends = unsafe { [load(self.cu_seqlens_kv, sequence), load(self.cu_seqlens_kv, sequence + 1)] };
            tokens = Tokens::packed(ends, self.total_kv, longest);
        }
        if !self.seqlens_kv.is_null() {
            let len = unsafe { load(self.seqlens_kv, sequence) };
            tokens.len = if len < tokens.len { len } else { tokens.len };
        }
        tokens
    }
}

/// The sequence that tile `tile` of `unit` packed tokens is of, and the tile's number in it, which may be past the sequence's end.
///
/// # Safety
/// There are `sequences` offsets, at least one, and another.
#[cfg(target_arch = "nvptx64")]
#[inline(always)]
pub(crate) unsafe fn sequence_of_tile(
    offsets: Global<u32>,
    total: u32,
    sequences: u32,
    unit: u32,
    tile: u32,
) -> (u32, u32) {
    find_tile(|sequence| unsafe { load(offsets, sequence) }, total, sequences, unit, tile)
}

#[cfg(target_arch = "nvptx64")]
#[inline(always)]
unsafe fn load(array: Global<u32>, index: u32) -> u32 {
    unsafe { ld_global_nc_u32(array.ptr().wrapping_add(index as usize).cast()) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Lengths of 0, 1, around tiles, and one that is long.
    const LENGTHS: [u32; 14] = [0, 1, 127, 128, 129, 0, 0, 300, 64, 1, 1, 0, 1000, 0];

    fn offsets(lengths: &[u32]) -> Vec<u32> {
        let mut sum = 0;
        core::iter::once(0)
            .chain(lengths.iter().map(|n| {
                sum += n;
                sum
            }))
            .collect()
    }

    #[test]
    fn every_tile_of_every_sequence_is_found_and_has_a_place() {
        for rotated in 0..LENGTHS.len() {
            let mut lengths = LENGTHS;
            lengths.rotate_left(rotated);
            let cu = offsets(&lengths);
            let (total, sequences) = (cu[lengths.len()], lengths.len() as u32);
            for unit in [1, 64, 128, 192, 512] {
                let mut found = Vec::new();
                for tile in 0..packed_tiles(total, sequences, unit) {
                    let (sequence, index) = find_tile(|s| cu[s as usize], total, sequences, unit, tile);
                    if index < lengths[sequence as usize].div_ceil(unit) {
                        found.push((sequence, index));
                    }
                }
                let all = (0..sequences).flat_map(|s| (0..lengths[s as usize].div_ceil(unit)).map(move |i| (s, i)));
                assert!(found.into_iter().eq(all), "{unit} {rotated}");
            }
        }
    }

    #[test]
    fn tiles_of_attention_are_the_fewer_ones() {
        let tiles = |total_q, sequences, longest, packed_q| {
            SeqLens { total_q, packed_q, ..SeqLens::NONE }.query_tiles(sequences, longest, 64)
        };
        // As many as have rows, in place of half as many again.
        assert_eq!(tiles(9216, 256, 64, 1), 256);
        assert_eq!(tiles(9216, 256, 65, 1), 400);
        assert_eq!(tiles(300, 1, 300, 0), 5);
        assert_eq!(tiles(u32::MAX - 255, 200, u32::MAX, 1), u32::MAX / 64 - 3 + 200);
    }

    #[test]
    fn an_empty_sequence_has_a_tile() {
        let cu = offsets(&LENGTHS);
        let (total, sequences) = (cu[LENGTHS.len()], LENGTHS.len() as u32);
        for sequence in 0..sequences {
            let first = first_tile(cu[sequence as usize], sequence, 128);
            assert_eq!(find_tile(|s| cu[s as usize], total, sequences, 128, first), (sequence, 0));
        }
    }

    #[test]
    fn offsets_that_are_none_stay_inside() {
        let total = 700;
        for cu in
            [[0, 600, 100, 700, 50], [5, 4, 3, 2, 1], [u32::MAX; 5], [900, 0, 900, 0, 900], [0, 0, 0, 0, u32::MAX]]
        {
            for sequence in 0..4_u32 {
                let tokens = Tokens::packed([cu[sequence as usize], cu[sequence as usize + 1]], total, 650);
                assert!(tokens.first + tokens.len <= total && tokens.len <= 650);
                let first = first_tile(tokens.first, sequence, 128);
                assert!(first + tokens.len.div_ceil(128) <= packed_tiles(total, 4, 128));
            }
            for (unit, tile) in
                [64, 128, 192].into_iter().flat_map(|u| (0..packed_tiles(total, 4, u)).map(move |t| (u, t)))
            {
                let (sequence, index) = find_tile(|s| cu[s as usize], total, 4, unit, tile);
                assert!(sequence < 4 && index.checked_mul(unit).is_some());
            }
        }
    }
}
