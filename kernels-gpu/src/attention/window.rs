//! Which keys a query sees, and which blocks of keys a tile of queries has to visit.
//!
//! Query `i` stands beside key `i + seqlen_kv - seqlen_q`: the sequences end together. It sees the keys from `left` before that one
//! to `right` behind it (docs/kernel-abi.md, "Window"). Left out on a side, the window has no end there; `right = 0` is the causal
//! mask. Blocks are the absolute blocks of `KEYS` keys, so what a row computes does not depend on the tile that it is in.

use crate::layout::KV_BLOCK;
use crate::params::{AttentionParams, UNLIMITED};
use crate::ptx::opaque::opaque;

/// The window of a launch, for blocks of `KEYS` keys.
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

impl Window<KV_BLOCK> {
    /// The window of an INT8 kernel.
    #[inline(always)]
    pub(crate) fn of(params: &AttentionParams) -> Self {
        let AttentionParams { seqlen_q, seqlen_kv, window_left: left, window_right: right, .. } = *params;
        Self { seqlen_q, seqlen_kv, left, right }
    }
}

impl<const KEYS: usize> Window<KEYS> {
    /// The same, for use in a loop: nothing is computed of it in front of the loop, to be in registers across.
    #[inline(always)]
    pub(crate) fn anew(self) -> Self {
        Self { seqlen_q: opaque(self.seqlen_q), seqlen_kv: opaque(self.seqlen_kv), ..self }
    }

    /// The first key that a row sees. 64 bits: an unlimited side, as any other, is only subtracted or added.
    #[inline(always)]
    fn from(&self, row: u32) -> u32 {
        self.clamp(self.beside(row) - i64::from(self.left))
    }

    /// Behind the last key that a row sees.
    #[inline(always)]
    fn to(&self, row: u32) -> u32 {
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
        let (first, end) = (self.from(row) / KEYS as u32, self.to(last).div_ceil(KEYS as u32));
        Blocks {
            first,
            full_from: self.from(last).div_ceil(KEYS as u32),
            full_to: self.to(row) / KEYS as u32,
            end: if end < first { first } else { end },
        }
    }

    /// The first key of block `block` that a row sees, counted from the block's first; `KEYS` where that is a later one.
    #[inline(always)]
    pub(crate) fn from_in_block(&self, row: u32, block: u32) -> i32 {
        Self::in_block(self.from(row), block)
    }

    /// Behind the last key of block `block` that a row sees, counted from the block's first; 0 where that is an earlier one.
    #[inline(always)]
    pub(crate) fn to_in_block(&self, row: u32, block: u32) -> i32 {
        Self::in_block(self.to(row), block)
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

    /// Whether every row sees every key.
    #[inline(always)]
    pub(crate) fn hides_nothing(&self) -> bool {
        self.left & self.right == UNLIMITED
    }
}
