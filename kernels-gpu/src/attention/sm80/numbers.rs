//! The numbers of the blocks to come, by which they are requested: of a paged cache the block table is looked at once for each block, by one
//! thread, long before anybody needs to know.

use super::place::Place;
use super::shared_vars::{NUMBERS, SharedVars};
use crate::attention::sequence::{Cursor, is_paged};
use crate::attention::window::Blocks;
use crate::params::AttentionParams;
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;

/// So many blocks before it is in use, a block's number comes to shared memory. Requests are up to two blocks ahead, and there is a barrier in
/// between.
const BLOCKS_AHEAD: u32 = 3;

const _: () = assert!(BLOCKS_AHEAD < NUMBERS);

/// Those to come. Behind the last block is the last one again.
pub(crate) struct Numbers {
    /// Of the thread that stores numbers: the block that is [`BLOCKS_AHEAD`].
    next: Cursor,
}

impl Numbers {
    /// Stores those of the first blocks, visible after the next barrier. Of blocks that are no pages no others are needed: the numbers of all
    /// are as far from their places.
    #[inline(always)]
    pub(crate) unsafe fn new(params: &AttentionParams, place: &Place, vars: &SharedVars, blocks: &Blocks) -> Self {
        let ahead = if place.thread < BLOCKS_AHEAD { place.thread } else { BLOCKS_AHEAD };
        let (block, last) = (blocks.first + ahead, blocks.end.wrapping_sub(1));
        let is = blocks.first < blocks.end;
        unsafe {
            let next = Cursor::new(params, &place.sequence, if block < last { block } else { last }, is);
            let number = next.number(params, || place.sequence);
            vars.store_number(place.thread <= BLOCKS_AHEAD, block, last, number);
            Self { next }
        }
    }

    /// Stores the number of the page that is [`BLOCKS_AHEAD`] of this block, and asks for the next.
    #[inline(always)]
    pub(crate) unsafe fn advance(&mut self, params: &AttentionParams, vars: &SharedVars, block: u32) {
        if is_paged(params) {
            let ahead = opaque(block) + BLOCKS_AHEAD;
            unsafe {
                let (last, number) = (vars.last_block(), self.next.number(params, || vars.sequence()));
                vars.store_number(opaque(tid_x()) == BLOCKS_AHEAD, ahead, last, number);
                self.next.advance(params, || (vars.sequence(), ahead + 1), ahead < last);
            }
        }
    }
}
