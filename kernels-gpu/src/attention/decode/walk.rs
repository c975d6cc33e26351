//! A worker's way through its share of the work.

use super::scan::{Beginning, beginning, length};
use super::schedule::{Units, place, tiles};
use crate::division::div_rem;
use crate::params::DecodeParams;
use crate::ptx::global::ld_global_nc_u32;
use crate::ptx::special::tid_x;

/// A block of keys and the tile of rows that looks at it.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Whether there is one.
    pub exists: bool,
    pub sequence: u32,
    /// Keys of the sequence.
    pub seqlen_kv: u32,
    /// The tile among those of the sequence.
    pub tile: u32,
    /// The block's number in the sequence.
    pub block: u32,
    /// Behind the last block of the piece that it belongs to.
    pub piece_end: u32,
    /// The unit among those of the tile, at the beginning of the piece.
    unit: u32,
    /// What the block table says, which may be anything.
    pub page: u32,
    /// Alternately 0 and 1.
    pub parity: u32,
}

impl Block {
    /// Whether it is the last one of its piece.
    #[inline(always)]
    pub(crate) fn ends_piece(&self) -> bool {
        self.block + 1 == self.piece_end
    }

    /// Whether the table has a page for it: else its keys are hidden.
    #[inline(always)]
    pub(crate) fn has_page(&self, params: &DecodeParams) -> bool {
        self.page < params.page_count
    }

    /// Whether its page has V in 4 bits, of a pool that has such.
    #[inline(always)]
    pub(crate) fn is_v4(&self, params: &DecodeParams) -> bool {
        self.page >= params.v8_pages
    }

    /// The place of the piece's results.
    #[inline(always)]
    pub(crate) fn place(&self, params: &DecodeParams, worker: u32) -> u32 {
        place(&params.split, worker, self.sequence * tiles(&params.split) + self.tile, self.unit)
    }
}

/// Where a worker is.
pub(crate) struct Walk {
    at: Block,
    units: Units,
    /// Units of the share that are behind the piece.
    left: u32,
}

impl Walk {
    /// The beginning of a worker's share, where it has one.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn start(params: &DecodeParams, worker: u32) -> Option<Self> {
        let split = &params.split;
        unsafe {
            let Beginning { sequence, length, unit, count } = beginning(split, tid_x() % 32, worker)?;
            let units = Units::of(split, length);
            if units.count == 0 {
                return None;
            }
            let (tile, unit) = div_rem(unit, units.count);
            // No units, or no such tile, only where lengths change under the kernel's hands.
            let tile = tile.min(tiles(split) - 1);
            let at = Block {
                exists: false,
                sequence,
                seqlen_kv: length,
                tile,
                block: 0,
                piece_end: 0,
                unit,
                page: 0,
                parity: 1,
            };
            Some(Self { at, units, left: count })
        }
    }

    /// Where the way begins: no block yet.
    #[inline(always)]
    pub(crate) fn nowhere(&self) -> Block {
        self.at
    }

    /// The next block.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn advance(&mut self, params: &DecodeParams) -> Block {
        self.at.block += 1;
        if !self.at.exists || self.at.block == self.at.piece_end {
            if self.left == 0 {
                self.at.exists = false;
                return self.at;
            }
            // The first unit of all is where the way begins; then the next of the tile, or the first of the next tile.
            if self.at.exists {
                self.at.unit += 1;
                if self.at.block == self.units.end_block {
                    self.at.unit = 0;
                    unsafe { self.next_tile(params) };
                }
            }
            if self.left == 0 {
                self.at.exists = false;
                return self.at;
            }
            self.at.exists = true;
            self.enter(params);
        }
        unsafe { self.look_up(params) };
        self.at
    }

    /// On to the next tile that has units.
    #[inline(always)]
    unsafe fn next_tile(&mut self, params: &DecodeParams) {
        let split = &params.split;
        self.at.tile += 1;
        if self.at.tile < tiles(split) {
            return;
        }
        self.at.tile = 0;
        loop {
            self.at.sequence += 1;
            if self.at.sequence >= split.batch {
                // Only where lengths change under the kernel's hands.
                (self.at.sequence, self.left) = (split.batch - 1, 0);
                return;
            }
            self.at.seqlen_kv = unsafe { length(split, self.at.sequence) };
            self.units = Units::of(split, self.at.seqlen_kv);
            if self.units.count > 0 {
                return;
            }
        }
    }

    /// On to the piece that begins at the unit. With the first one, the merge gets to know of all.
    #[inline(always)]
    fn enter(&mut self, params: &DecodeParams) {
        let (split, unit) = (&params.split, self.at.unit);
        let per = split.split_blocks;
        let Units { first_block, end_block, first, .. } = self.units;
        if per == 0 {
            self.at.block = first_block + unit;
            self.at.piece_end = end_block.min(self.at.block + self.left);
            self.left -= self.at.piece_end - self.at.block;
        } else {
            self.at.block = first_block.max((first + unit) * per);
            self.at.piece_end = end_block.min((first + unit + 1) * per);
            self.left -= 1;
        }
    }

    /// Reads the block's page from the table; nobody waits for it here.
    #[inline(always)]
    unsafe fn look_up(&mut self, params: &DecodeParams) {
        let row = self.at.sequence as usize * params.table_stride as usize;
        let entry = params.block_table.ptr().wrapping_add(row + self.at.block as usize);
        self.at.parity ^= 1;
        self.at.page = unsafe { ld_global_nc_u32(entry.cast()) };
    }
}
