//! Variables of a CTA that are needed now and then: in shared memory meanwhile, not in registers.
//!
//! ptxas keeps what it can compute once, special registers included, in registers from there to the last use, and the loop has none to
//! spare: what would be spilled to local memory stands here.

use super::numbers::BLOCKS_AHEAD;
use crate::attention::sequence::Sequence;
use crate::attention::softmax::{BlockScales, value_weight};
use crate::attention::window::Blocks;
use crate::config::sm80::{MAX_WARPS, VARS_BYTES};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{
    ld_shared_f32, ld_shared_u32, ld_shared_v2_u32, ld_shared_v4_u32, st_shared_f32, st_shared_u32, st_shared_v2_u32,
    st_shared_v4_u32,
};
use crate::ptx::special::tid_x;

/// Where the reach of each warp's rows is, behind the first row, its head, the common factor, the blocks and the lengths.
const REACH: u32 = 32;
/// Where the sequence's first block and its first query are, and the number of the last block.
const FIRST_BLOCK: u32 = REACH + 4 * MAX_WARPS as u32;
/// Where the unit of the head's values is.
const UNIT: u32 = FIRST_BLOCK + 16;
/// Where the scales of two blocks of K and of V are, each pair loaded at once.
const SCALES: u32 = UNIT + 8;
/// Where the numbers of [`NUMBERS`] blocks are.
const NUMBER: u32 = SCALES + 2 * 8;
/// A power of two.
const NUMBERS: u32 = 4;

const _: () = assert!((NUMBER + 4 * NUMBERS) as usize <= VARS_BYTES && SCALES.is_multiple_of(8));
const _: () = assert!(VARS_BYTES.is_multiple_of(16) && BLOCKS_AHEAD < NUMBERS);

/// [`VARS_BYTES`](crate::config::sm80::VARS_BYTES) of shared memory.
pub(crate) struct SharedVars {
    address: u32,
}

impl SharedVars {
    #[inline(always)]
    pub(crate) fn new(address: u32) -> Self {
        Self { address }
    }

    /// Stores all, where `predicate`; visible after the next barrier.
    ///
    /// # Safety
    /// The bytes belong to nothing else.
    #[inline(always)]
    pub(crate) unsafe fn store(
        &self,
        predicate: bool,
        row: u32,
        sequence: &Sequence,
        common_factor: f32,
        blocks: &Blocks,
    ) {
        let Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv, first_block } = *sequence;
        let of_blocks = [blocks.full_from, blocks.full_to, seqlen_q, seqlen_kv];
        unsafe {
            st_shared_v4_u32(predicate, self.address, [row, head_q, batch, common_factor.to_bits()]);
            st_shared_v4_u32(predicate, self.address + 16, of_blocks);
            let last_block = blocks.end.wrapping_sub(1);
            st_shared_v4_u32(predicate, self.address + FIRST_BLOCK, [first_block, index_kv, first_q, last_block]);
        }
    }

    /// The CTA's first query row.
    ///
    /// # Safety
    /// [`Self::store`] and a barrier are behind.
    #[inline(always)]
    pub(crate) unsafe fn row(&self) -> u32 {
        unsafe { ld_shared_u32(self.address) }
    }

    /// Its sequence, see [`Self::row`]: three loads, where [`Sequence::new`] looks into lists and divides.
    #[inline(always)]
    pub(crate) unsafe fn sequence(&self) -> Sequence {
        unsafe {
            let [_, head_q, batch, _] = ld_shared_v4_u32(self.address);
            let [first_block, index_kv, first_q, _] = ld_shared_v4_u32(self.address + FIRST_BLOCK);
            let [seqlen_q, seqlen_kv] = self.lengths();
            Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv, first_block }
        }
    }

    /// `full_from` and `full_to` of the tile's blocks, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn full(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + 16) }
    }

    /// `seqlen_q` and `seqlen_kv` of the tile's sequence, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn lengths(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + 24) }
    }

    /// `first_block` and `index_kv` of the tile's sequence, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn first_block(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + FIRST_BLOCK) }
    }

    /// The last of the tile's blocks, if there is one, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn last_block(&self) -> u32 {
        unsafe { ld_shared_u32(self.address + FIRST_BLOCK + 12) }
    }

    /// The common factor of the keys, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn common_factor(&self) -> f32 {
        unsafe { ld_shared_f32(self.address + 12) }
    }

    /// Stores the unit of the head's values; see [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_unit(&self, predicate: bool, unit: f32) {
        unsafe { st_shared_u32(predicate, self.address + UNIT, unit.to_bits()) }
    }

    /// Stores the scales of a block of K and of V, beside those of the block before; visible after the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store_scales(&self, predicate: bool, block: u32, scales: [f32; 2]) {
        unsafe { st_shared_v2_u32(predicate, self.scales_of(block), scales.map(f32::to_bits)) }
    }

    /// Stores the number of a block, beside those of the three before; visible after the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store_number(&self, predicate: bool, block: u32, number: u32) {
        unsafe { st_shared_u32(predicate, self.number_of(block), number) }
    }

    /// The number of a block ([`Numbers`](super::numbers::Numbers)).
    #[inline(always)]
    pub(crate) unsafe fn number(&self, block: u32) -> u32 {
        unsafe { ld_shared_u32(self.number_of(block)) }
    }

    #[inline(always)]
    fn number_of(&self, block: u32) -> u32 {
        self.address + NUMBER + block % NUMBERS * 4
    }

    #[inline(always)]
    fn scales_of(&self, block: u32) -> u32 {
        self.address + SCALES + block % 2 * 8
    }

    /// The scales of a block, in the unit of the head's values, and the reach of the warp's rows; see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn scales(&self, block: u32) -> BlockScales {
        unsafe { self.scales_with(ld_shared_v2_u32(self.scales_of(block)).map(f32::from_bits)) }
    }

    /// The same of a block with these scales.
    #[inline(always)]
    pub(crate) unsafe fn scales_with(&self, [k, v]: [f32; 2]) -> BlockScales {
        let (unit, reach) = unsafe { (ld_shared_f32(self.address + UNIT), self.reach(opaque(tid_x()) / 32)) };
        BlockScales { k, v: value_weight(v, unit), reach }
    }

    /// Stores the reach of a warp's rows, the same by all its lanes; see [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_reach(&self, warp: u32, reach: f32) {
        unsafe { st_shared_f32(self.address + REACH + 4 * warp, reach) }
    }

    /// The reach of a warp's rows, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn reach(&self, warp: u32) -> f32 {
        unsafe { ld_shared_f32(self.address + REACH + 4 * warp) }
    }
}
