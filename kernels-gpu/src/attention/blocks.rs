//! Where a CTA is among its blocks of keys.

use super::{Args, Place};
use crate::layout::KV_BLOCK;

/// The block that a CTA is at.
///
/// The end is counted towards, and all else that depends on a block follows from these two: the loop has no register to spare.
pub(crate) struct Blocks {
    /// Its number among the blocks of all heads; 2^32 of them fit into no memory.
    at: u32,
    /// Blocks behind it.
    pub left: u32,
}

impl Blocks {
    /// The first of `blocks`, of which there is one at least.
    #[inline(always)]
    pub(crate) fn new(args: &Args, place: &Place, blocks: u32) -> Self {
        Self { at: place.head_kv as u32 * args.seqlen_kv.div_ceil(KV_BLOCK as u32), left: blocks - 1 }
    }

    /// Goes to the next block, if there is one.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> bool {
        let more = self.left > 0;
        self.at += 1;
        self.left = self.left.wrapping_sub(1);
        more
    }

    /// The number, among the blocks of all heads, of the block `ahead` further on, or of the last one.
    #[inline(always)]
    pub(crate) fn index(&self, ahead: u32) -> usize {
        (self.at + if ahead < self.left { ahead } else { self.left }) as usize
    }

    /// Zero and one by turns.
    #[inline(always)]
    pub(crate) fn parity(&self) -> u32 {
        self.at % 2
    }
}
