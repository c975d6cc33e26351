//! Which keys a query sees, and which blocks of keys a tile of queries has to visit.
//!
//! Query `i` stands beside key `i + seqlen_kv - seqlen_q`: the sequences end together. It sees the keys from `left` before that one
//! to `right` behind it (docs/kernel-abi.md, "Window"). Left out on a side, the window has no end there; `right = 0` is the causal
//! mask. Blocks are the absolute blocks of `KEYS` keys, so what a row computes does not depend on the tile that it is in.

use crate::layout::KV_BLOCK;
use crate::params::{AttentionParams, UNLIMITED};
#[cfg(target_arch = "nvptx64")]
use crate::ptx::opaque::opaque;

/// The window of a launch on a sequence, for blocks of `KEYS` keys.
#[derive(Clone, Copy)]
pub(crate) struct Window<const KEYS: usize> {
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
    pub left: u32,
    pub right: u32,
}

/// The blocks of keys that a tile of queries visits, in order.
///
/// ```text
/// first     full_from            full_to       end
///   | left edge |  no mask needed   | right edge |
/// ```
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// The first block that any row sees.
    pub first: u32,
    /// From this block on, the left end of the window hides nothing from any row.
    pub full_from: u32,
    /// From this block on, the right end of the window, or of the sequence, hides keys from some row.
    pub full_to: u32,
    /// Behind the last block that any row sees; `first` where there is none.
    pub end: u32,
}

#[cfg(target_arch = "nvptx64")]
impl Blocks {
    /// Those of `KEYS` keys of a launch without a window.
    #[inline(always)]
    pub(crate) fn all<const KEYS: usize>(seqlen_kv: u32) -> Self {
        let (full_to, rest) = (seqlen_kv / KEYS as u32, seqlen_kv % KEYS as u32);
        Self { first: 0, full_from: 0, full_to, end: full_to + u32::from(rest != 0) }
    }
}

impl Window<KV_BLOCK> {
    /// The window of an INT8 kernel on the longest sequences, by which tiles are ordered.
    #[inline(always)]
    pub(crate) fn of(params: &AttentionParams) -> Self {
        Self::of_lengths(params, [params.seqlen_q, params.seqlen_kv])
    }

    /// The window of an INT8 kernel on a sequence of these lengths.
    #[inline(always)]
    pub(crate) fn of_lengths(params: &AttentionParams, [seqlen_q, seqlen_kv]: [u32; 2]) -> Self {
        Self { seqlen_q, seqlen_kv, left: params.window_left, right: params.window_right }
    }
}

impl<const KEYS: usize> Window<KEYS> {
    /// The same, for use in a loop: nothing is computed of it in front of the loop, to be in registers across.
    #[cfg(target_arch = "nvptx64")]
    #[inline(always)]
    pub(crate) fn anew(self) -> Self {
        Self { seqlen_q: opaque(self.seqlen_q), seqlen_kv: opaque(self.seqlen_kv), ..self }
    }

    /// The first key that a row sees. 64 bits: an unlimited side, as any other, is only subtracted or added.
    #[inline(always)]
    fn first_key(&self, row: u32) -> u32 {
        self.clamp(self.beside(row) - i64::from(self.left))
    }

    /// Behind the last key that a row sees.
    #[inline(always)]
    fn end_key(&self, row: u32) -> u32 {
        self.clamp(self.beside(row) + i64::from(self.right) + 1)
    }

    /// The key beside a row; negative where the sequence of keys begins later.
    #[inline(always)]
    fn beside(&self, row: u32) -> i64 {
        i64::from(row) + i64::from(self.seqlen_kv) - i64::from(self.seqlen_q)
    }

    #[inline(always)]
    fn clamp(&self, key: i64) -> u32 {
        let (key, end) = (if key < 0 { 0 } else { key }, i64::from(self.seqlen_kv));
        (if key < end { key } else { end }) as u32
    }

    /// The blocks of the `rows` rows from `row`, which is one that exists.
    #[inline(always)]
    pub(crate) fn blocks(&self, row: u32, rows: u32) -> Blocks {
        let rows = if self.seqlen_q - row < rows { self.seqlen_q - row } else { rows };
        let last = row + rows - 1;
        // Windows of neighbouring rows touch, so together they have no gap.
        let (first, end) = (self.first_key(row) / KEYS as u32, self.end_key(last).div_ceil(KEYS as u32));
        Blocks {
            first,
            full_from: self.first_key(last).div_ceil(KEYS as u32),
            full_to: self.end_key(row) / KEYS as u32,
            end: if end < first { first } else { end },
        }
    }

    /// The first key of block `block` that a row sees, counted from the block's first; `KEYS` where that is a later one.
    #[inline(always)]
    pub(crate) fn first_in_block(&self, row: u32, block: u32) -> i32 {
        Self::in_block(self.first_key(row), block)
    }

    /// Behind the last key of block `block` that a row sees, counted from the block's first; 0 where that is an earlier one.
    #[inline(always)]
    pub(crate) fn end_in_block(&self, row: u32, block: u32) -> i32 {
        Self::in_block(self.end_key(row), block)
    }

    #[inline(always)]
    fn in_block(key: u32, block: u32) -> i32 {
        let rest = key.saturating_sub(block * KEYS as u32);
        if rest > KEYS as u32 { KEYS as i32 } else { rest as i32 }
    }

    /// Whether later rows see more keys, so that tiles of them should be handed out first.
    #[inline(always)]
    pub(crate) fn grows(&self) -> bool {
        self.right != UNLIMITED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u32 = 128;

    fn window(seqlen_q: u32, seqlen_kv: u32, left: u32, right: u32) -> Window<128> {
        Window { seqlen_q, seqlen_kv, left, right }
    }

    /// Whether a row sees a key, by the definition.
    fn sees(w: &Window<128>, row: u32, key: u32) -> bool {
        let distance = i64::from(key) - (i64::from(row) + i64::from(w.seqlen_kv) - i64::from(w.seqlen_q));
        let within = |side: u32, distance: i64| side == UNLIMITED || distance <= i64::from(side);
        within(w.left, -distance) && within(w.right, distance)
    }

    #[test]
    fn tiles_visit_what_their_rows_see() {
        let sides = [0, 1, 5, 100, 127, 128, 300, UNLIMITED];
        for (nq, nkv) in [(1, 1), (1, 700), (300, 300), (70, 400), (400, 70), (300, 1), (129, 257)] {
            for (left, right) in sides.into_iter().flat_map(|left| sides.map(|right| (left, right))) {
                let w = window(nq, nkv, left, right);
                for (row, rows) in [(0, 64), (64, 64), (64, 1), (192, 192)].into_iter().filter(|&(row, _)| row < nq) {
                    let tile = row..nq.min(row + rows);
                    let any = |key: u32| tile.clone().any(|row| sees(&w, row, key));
                    let all = |key: u32| tile.clone().all(|row| sees(&w, row, key));
                    let (blocks, what) = (w.blocks(row, rows), (nq, nkv, left, right, row));
                    assert!(blocks.first <= blocks.end, "{what:?}");
                    for block in 0..nkv.div_ceil(KEYS) {
                        let mut keys = block * KEYS..nkv.min((block + 1) * KEYS);
                        let visited = (blocks.first..blocks.end).contains(&block);
                        assert_eq!(visited, keys.clone().any(any), "{what:?} block {block}");
                        if visited && block >= blocks.full_from && block < blocks.full_to {
                            assert!(keys.len() == KEYS as usize && keys.all(all), "{what:?} block {block}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_see_their_part_of_a_block() {
        for (left, right) in [(0, 0), (3, 200), (130, 0), (UNLIMITED, 7), (40, UNLIMITED), (UNLIMITED, UNLIMITED)] {
            let w = window(200, 330, left, right);
            for (row, block) in (0..200).flat_map(|row| (0..3).map(move |block| (row, block))) {
                let seen = (0..KEYS as i32).filter(|&key| {
                    let absolute = block * KEYS + key as u32;
                    absolute < w.seqlen_kv && sees(&w, row, absolute)
                });
                let visible = w.first_in_block(row, block)..w.end_in_block(row, block);
                assert!(seen.eq(visible), "{left} {right} row {row} block {block}");
            }
        }
    }

    /// The longest sequences that the library takes, and windows of any size.
    #[test]
    fn nothing_wraps() {
        let long = (1 << 31) - 256;
        for (nq, nkv) in [(long, long), (long, 1), (1, long)] {
            for (left, right) in [(0, 0), (UNLIMITED, 0), (u32::MAX - 1, u32::MAX - 1), (1 << 31, 5), (5, 1 << 31)] {
                let w = window(nq, nkv, left, right);
                for row in [0, nq / 2, nq - 1] {
                    let Blocks { first, full_from, full_to, end } = w.blocks(row, 192);
                    let last = i64::from(nkv.div_ceil(KEYS));
                    assert!(first <= end && [end, full_from, full_to].iter().all(|&block| i64::from(block) <= last));
                    let beside = i64::from(row) + i64::from(nkv) - i64::from(nq);
                    if beside >= 0 {
                        let block = beside as u32 / KEYS;
                        assert!((first..end).contains(&block), "{nq} {nkv} {left} {right} {row}");
                        let key = (beside as u32 % KEYS) as i32;
                        assert!(w.first_in_block(row, block) <= key && key < w.end_in_block(row, block));
                    }
                }
            }
        }
    }

    #[test]
    fn orders_of_tiles() {
        let kinds = [(UNLIMITED, UNLIMITED), (UNLIMITED, 0), (5, UNLIMITED), (5, 5)].map(|(left, right)| {
            let w = window(9, 9, left, right);
            w.grows()
        });
        assert_eq!(kinds, [false, true, false, true]);
        let params =
            AttentionParams { window_left: 3, window_right: 4, seqlen_q: 5, seqlen_kv: 6, ..AttentionParams::NONE };
        let Window { seqlen_q, seqlen_kv, left, right } = Window::of(&params);
        assert_eq!([seqlen_q, seqlen_kv, left, right], [5, 6, 3, 4]);
    }
}
