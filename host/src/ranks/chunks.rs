//! Which tokens a rank has.

use int_flash_attention_kernels::layout::{KV_BLOCK, kv_blocks};
use std::ops::Range;

/// Chunk number `chunk` of `count` of so many tokens. Chunks are of whole blocks of 128, but for the last one's tail, so that blocks are those
/// of the whole sequence; they differ by a block at most, and the first is never empty. A chunk that there is not has no tokens.
pub(super) fn chunk(tokens: usize, count: usize, chunk: usize) -> Range<usize> {
    if chunk >= count {
        return tokens..tokens;
    }
    // Numbers of ranks and tokens that nobody has checked.
    let (blocks, count) = (kv_blocks(tokens) as u128, count as u128);
    let start = |chunk: usize| (chunk as u128 * blocks).div_ceil(count).saturating_mul(KV_BLOCK as u128);
    let start = |chunk: usize| start(chunk).min(tokens as u128) as usize;
    start(chunk)..start(chunk + 1)
}

/// The chunks of a rank, those of no tokens left out; a rank that there is not has none. In zigzag order it has one of the first half and its mirror image of the second: a
/// causal query sees all before it, so that all ranks have the same work. The last rank's are neighbours, and one: fewer launches, and fewer states to be merged.
pub(super) fn chunks(tokens: usize, ranks: usize, zigzag: bool, rank: usize) -> Vec<Range<usize>> {
    let of_two = |number| chunk(tokens, 2 * ranks, number);
    let all = match zigzag {
        _ if rank >= ranks => return Vec::new(),
        true => vec![of_two(rank), of_two(2 * ranks - 1 - rank)],
        false => vec![chunk(tokens, ranks, rank)],
    };
    let mut own: Vec<Range<usize>> = Vec::new();
    for chunk in all.into_iter().filter(|chunk| !chunk.is_empty()) {
        match own.last_mut() {
            Some(before) if before.end == chunk.start => before.end = chunk.end,
            _ => own.push(chunk),
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_all_tokens_once_and_as_long() {
        for (tokens, ranks) in [(1, 1), (1000, 2), (1025, 3), (4096, 4), (5000, 8), (128 * 8, 8)] {
            for zigzag in [false, true] {
                let mut all: Vec<_> = (0..ranks).flat_map(|rank| chunks(tokens, ranks, zigzag, rank)).collect();
                all.sort_by_key(|chunk| chunk.start);
                assert_eq!((all[0].start, all[all.len() - 1].end), (0, tokens));
                assert!(all.windows(2).all(|two| two[0].end == two[1].start && two[0].end % KV_BLOCK == 0), "{all:?}");
                let blocks = |rank| -> usize {
                    chunks(tokens, ranks, zigzag, rank).iter().map(|chunk| kv_blocks(chunk.len())).sum()
                };
                let (least, most) = ((0..ranks).map(blocks).min().unwrap(), (0..ranks).map(blocks).max().unwrap());
                assert!(most - least <= if zigzag { 2 } else { 1 }, "{all:?}");
            }
        }
    }
}
