//! Which worker takes which blocks of keys, of lengths that only the device knows.
//!
//! The list of all work has for each sequence each tile of rows (of a head of K and V), and for each of these its units in order: the blocks
//! that some row sees, or, where the split is fixed, pieces of so many absolute blocks. Every worker has an equal share of the list:
//!
//! ```text
//! tiles      |----0----|----1----|--2--|------3------|
//! workers    |0......|1......|2......|3......|4......|
//! places      0       1 2     3 4   5 6      7        worker + tile: no two pieces have one, and those of a tile follow one another
//! ```
//!
//! The merge finds the pieces of its tile by the same sums.

use crate::division::div_rem;
use crate::layout::KV_BLOCK;
use crate::params::SplitParams;

/// The first key that a new token sees: `attention::window` in 32 bits, for sequences that end together and are at most `2^31` long.
#[inline(always)]
pub(crate) fn first_key(split: &SplitParams, seqlen_kv: u32, token: u32) -> u32 {
    (seqlen_kv + token).saturating_sub(split.seqlen_q.saturating_add(split.window_left))
}

/// Behind the last key that a new token sees.
#[inline(always)]
pub(crate) fn end_key(split: &SplitParams, seqlen_kv: u32, token: u32) -> u32 {
    let end = (seqlen_kv + token + 1).saturating_add(split.window_right).saturating_sub(split.seqlen_q);
    if end < seqlen_kv { end } else { seqlen_kv }
}

/// Whether some new token does not see some key of a block of the sequence.
#[inline(always)]
pub(crate) fn is_edge(split: &SplitParams, seqlen_kv: u32, block: u32) -> bool {
    let first = block * KV_BLOCK as u32;
    first < first_key(split, seqlen_kv, split.seqlen_q - 1) || first + KV_BLOCK as u32 > end_key(split, seqlen_kv, 0)
}

/// A length as the table has room for it.
#[inline(always)]
pub(crate) fn clamp(split: &SplitParams, seqlen_kv: u32) -> u32 {
    // SAFETY: the divisor is a constant that is not zero. (A length of up to 2^32 - 1 has at most 2^25 blocks.)
    if seqlen_kv / KV_BLOCK as u32 >= split.max_blocks { split.max_blocks * KV_BLOCK as u32 } else { seqlen_kv }
}

/// The units of a sequence, the same for each of its tiles: none of a sequence without keys, else one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    /// The first block that a row sees.
    pub first_block: u32,
    /// Behind the last one.
    pub end_block: u32,
    /// The first unit: a multiple of it is the first block.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Units {
    /// Of a sequence of `seqlen_kv` keys, clamped.
    #[inline(always)]
    pub(crate) fn of(split: &SplitParams, seqlen_kv: u32) -> Self {
        // The first token sees the first of them, the last token the sequence's last key.
        let first_block = first_key(split, seqlen_kv, 0) / KV_BLOCK as u32;
        let end_block = seqlen_kv.div_ceil(KV_BLOCK as u32);
        if split.split_blocks == 0 {
            return Self { first_block, end_block, first: first_block, count: end_block - first_block };
        }
        // SAFETY: not zero.
        let (first, end) = unsafe {
            let (first, _) = div_rem(first_block, split.split_blocks);
            let (whole, rest) = div_rem(end_block, split.split_blocks);
            (first, whole + (rest != 0) as u32)
        };
        Self { first_block, end_block, first, count: end - first }
    }
}

/// Tiles of a sequence.
#[inline(always)]
pub(crate) fn tiles(split: &SplitParams) -> u32 {
    split.heads_kv * split.row_tiles
}

/// Units of a worker, where there are `total` in all.
#[inline(always)]
pub(crate) fn share(split: &SplitParams, total: u32) -> u32 {
    // SAFETY: the host's plan has a worker.
    let (whole, rest) = unsafe { div_rem(total, split.workers) };
    let equal = whole + (rest != 0) as u32;
    if split.split_blocks == 0 && equal < split.min_blocks {
        split.min_blocks
    } else if equal == 0 {
        1
    } else {
        equal
    }
}

/// The pieces of tile `tile` (of all tiles), which has `count` units and of which worker `worker` has the first ones, `left` of its
/// share being left: the first one's place, and how many there are.
#[inline(always)]
pub(crate) fn pieces(split: &SplitParams, worker: u32, tile: u32, count: u32, left: u32, share: u32) -> (u32, u32) {
    if split.split_blocks != 0 {
        return (tile * split.max_splits, count);
    }
    if count == 0 {
        return (0, 0);
    }
    // SAFETY: a share is not zero.
    let (whole, rest) = unsafe { div_rem(count.saturating_sub(left), share) };
    (worker + tile, 1 + whole + (rest != 0) as u32)
}

/// The place of a worker's piece of a tile that begins at unit `unit` of it.
#[inline(always)]
pub(crate) fn place(split: &SplitParams, worker: u32, tile: u32, unit: u32) -> u32 {
    if split.split_blocks != 0 { tile * split.max_splits + unit } else { worker + tile }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::params::{Global, UNLIMITED};
    use std::collections::HashMap;
    use std::vec::Vec;

    fn split(split_blocks: u32, workers: u32, min_blocks: u32, window_left: u32) -> SplitParams {
        let max_blocks: u32 = 40;
        SplitParams {
            seqlens_kv: Global::NULL,
            heads_kv: 2,
            group: 10,
            seqlen_q: 2,
            row_tiles: 2,
            max_blocks,
            workers,
            min_blocks,
            split_blocks,
            max_splits: if split_blocks == 0 { 0 } else { max_blocks.div_ceil(split_blocks) },
            window_left,
            window_right: 0,
            ..SplitParams::NONE
        }
    }

    #[test]
    fn keys_and_blocks_are_those_of_the_window() {
        use crate::attention::window::Window;
        let sides = [0, 1, 5, 100, 127, 128, 300, UNLIMITED];
        for (window_left, window_right) in sides.into_iter().flat_map(|left| sides.map(|right| (left, right))) {
            for (seqlen_q, seqlen_kv) in [(1, 1), (1, 128), (8, 5), (3, 700), (8, 385), (2, 129), (1, 256), (5, 0)] {
                let split = SplitParams { seqlen_q, window_left, window_right, ..split(0, 1, 1, 0) };
                let window = Window::<KV_BLOCK> { seqlen_q, seqlen_kv, left: window_left, right: window_right };
                for (token, block) in (0..seqlen_q).flat_map(|token| (0..8).map(move |block| (token, block))) {
                    let within = |key: u32| key.saturating_sub(128 * block).min(128) as i32;
                    assert_eq!(within(first_key(&split, seqlen_kv, token)), window.first_in_block(token, block));
                    assert_eq!(within(end_key(&split, seqlen_kv, token)), window.end_in_block(token, block));
                }
                let (units, blocks) = (Units::of(&split, seqlen_kv), window.blocks(0, seqlen_q));
                assert_eq!(units.count > 0, seqlen_kv > 0);
                if blocks.end > blocks.first {
                    assert_eq!((units.first_block, units.end_block), (blocks.first, blocks.end));
                }
                for block in units.first_block..units.end_block {
                    let edge = block < blocks.full_from || block >= blocks.full_to;
                    assert_eq!(is_edge(&split, seqlen_kv, block), edge, "{split:?} {seqlen_kv} {block}");
                }
            }
        }
    }

    /// Every block of every tile is of one worker, and the places that the merge reads are those that the workers write.
    #[test]
    fn pieces_cover_all_blocks_once_and_their_places_follow_one_another() {
        let lengths = [700, 0, 1, 128, 129, 5000, u32::MAX, 1, 3000];
        for (split_blocks, workers, min_blocks, left) in [
            (0, 7, 1, UNLIMITED),
            (0, 200, 4, UNLIMITED),
            (0, 1, 1, 300),
            (3, 7, 1, UNLIMITED),
            (3, 500, 1, 1000),
            (1, 3, 9, 0),
        ] {
            let split = SplitParams { batch: lengths.len() as u32, ..split(split_blocks, workers, min_blocks, left) };
            let units: Vec<Units> = lengths.iter().map(|&length| Units::of(&split, clamp(&split, length))).collect();
            let per = tiles(&split);
            let total: u32 = units.iter().map(|units| units.count * per).sum();
            let mut list = Vec::new();
            for (sequence, units) in units.iter().enumerate() {
                for tile in 0..per {
                    list.extend((0..units.count).map(|unit| (sequence as u32 * per + tile, unit)));
                }
            }
            assert_eq!(list.len(), total as usize);
            let share = share(&split, total);
            let mut written: HashMap<u32, u32> = HashMap::new();
            for (index, &(tile, unit)) in list.iter().enumerate() {
                let worker = index as u32 / share;
                assert!(worker < workers);
                let place = place(&split, worker, tile, unit);
                assert!((place as usize) < crate::config::decode::partials(&split));
                assert_eq!(*written.entry(place).or_insert(tile), tile, "two tiles at one place");
            }
            let mut begin = 0;
            let mut read = 0;
            for tile in 0..split.batch * per {
                let count = units[(tile / per) as usize].count;
                if count > 0 {
                    let (first, pieces) = pieces(&split, begin / share, tile, count, share - begin % share, share);
                    assert!((first..first + pieces).all(|place| written.get(&place) == Some(&tile)));
                    read += pieces;
                }
                begin += count;
            }
            assert_eq!(read as usize, written.len());
        }
    }

    #[test]
    fn lengths_are_cut_where_the_table_ends() {
        let split = split(0, 1, 1, UNLIMITED);
        assert_eq!([0, 5119, 5120, 5121, u32::MAX].map(|length| clamp(&split, length)), [0, 5119, 5120, 5120, 5120]);
    }
}
