//! Variables of a CTA that are needed now and then: in shared memory meanwhile, not in registers.
//!
//! ptxas keeps what it can compute once, special registers included, in registers from there to the last use, and the loop has none to
//! spare: what would be spilled to local memory stands here.

use crate::attention::softmax::{BlockScales, value_weight};
use crate::attention::window::Blocks;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{
    ld_shared_f32, ld_shared_v2_u32, ld_shared_v4_u32, st_shared_f32, st_shared_u32, st_shared_v2_u32, st_shared_v4_u32,
};
use crate::ptx::special::tid_x;

/// The query rows of a CTA.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// First row.
    pub row: u32,
    pub head_q: u32,
    pub batch: u32,
}

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
    pub(crate) unsafe fn store(&self, predicate: bool, tile: &Tile, common_factor: f32, blocks: &Blocks) {
        let Tile { row, head_q, batch } = *tile;
        unsafe { st_shared_v4_u32(predicate, self.address, [row, head_q, batch, common_factor.to_bits()]) };
        unsafe { st_shared_v2_u32(predicate, self.address + 16, [blocks.full_from, blocks.full_to]) };
    }

    /// # Safety
    /// [`Self::store`] and a barrier are behind.
    #[inline(always)]
    pub(crate) unsafe fn tile(&self) -> Tile {
        let [row, head_q, batch, _] = unsafe { ld_shared_v4_u32(self.address) };
        Tile { row, head_q, batch }
    }

    /// `full_from` and `full_to` of the tile's blocks, see [`Self::tile`].
    #[inline(always)]
    pub(crate) unsafe fn full(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + 16) }
    }

    /// The common factor of the keys, see [`Self::tile`].
    #[inline(always)]
    pub(crate) unsafe fn common_factor(&self) -> f32 {
        unsafe { ld_shared_f32(self.address + 12) }
    }

    /// Stores the unit of the head's values; see [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_unit(&self, predicate: bool, unit: f32) {
        unsafe { st_shared_u32(predicate, self.address + 24, unit.to_bits()) }
    }

    /// Stores the scales of a block of K and of V, beside those of the block before; visible after the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store_scales(&self, predicate: bool, block: u32, k: f32, v: f32) {
        unsafe { st_shared_v2_u32(predicate, self.scales_of(block), [k.to_bits(), v.to_bits()]) }
    }

    #[inline(always)]
    fn scales_of(&self, block: u32) -> u32 {
        self.address + 48 + block % 2 * 8
    }

    /// The scales of a block, in the unit of the head's values, and the reach of the warp's rows; see [`Self::tile`].
    #[inline(always)]
    pub(crate) unsafe fn scales(&self, block: u32) -> BlockScales {
        let [k, v] = unsafe { ld_shared_v2_u32(self.scales_of(block)) }.map(f32::from_bits);
        unsafe { self.scales_with(k, v) }
    }

    /// The same of a block with these scales.
    #[inline(always)]
    pub(crate) unsafe fn scales_with(&self, k: f32, v: f32) -> BlockScales {
        let (unit, reach) = unsafe { (ld_shared_f32(self.address + 24), self.reach(opaque(tid_x()) / 32)) };
        BlockScales { k, v: value_weight(v, unit), reach }
    }

    /// Stores the reach of a warp's rows, the same by all its lanes; see [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_reach(&self, warp: u32, reach: f32) {
        unsafe { st_shared_f32(self.address + 32 + 4 * warp, reach) }
    }

    /// The reach of a warp's rows, see [`Self::tile`].
    #[inline(always)]
    pub(crate) unsafe fn reach(&self, warp: u32) -> f32 {
        unsafe { ld_shared_f32(self.address + 32 + 4 * warp) }
    }
}
