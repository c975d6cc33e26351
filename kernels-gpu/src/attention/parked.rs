//! What a CTA needs now and then: in shared memory meanwhile, not in registers.
//!
//! ptxas keeps what it can compute once, special registers included, in registers from there to the last use, and the loop has none to
//! spare: what would be spilled to local memory stands here.

use crate::ptx::shared::{ld_shared_f32, ld_shared_v4_u32, st_shared_v2_u32, st_shared_v4_u32};

/// The query rows of a CTA.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// First row.
    pub row: u32,
    pub head_q: u32,
    pub batch: u32,
    pub heads_q: u32,
}

/// [`PARKED_BYTES`](crate::config::PARKED_BYTES) of shared memory.
pub(crate) struct Parked {
    address: u32,
}

impl Parked {
    #[inline(always)]
    pub(crate) fn new(address: u32) -> Self {
        Self { address }
    }

    /// Stores all, where `predicate`; visible after the next barrier.
    ///
    /// # Safety
    /// The bytes belong to nothing else.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, predicate: bool, tile: &Tile, key_unit: f32) {
        unsafe {
            st_shared_v4_u32(predicate, self.address, [tile.row, tile.head_q, tile.batch, tile.heads_q]);
            st_shared_v2_u32(predicate, self.address + 16, [key_unit.to_bits(), 0]);
        }
    }

    /// # Safety
    /// [`Self::store`] and a barrier are behind.
    #[inline(always)]
    pub(crate) unsafe fn tile(&self) -> Tile {
        let [row, head_q, batch, heads_q] = unsafe { ld_shared_v4_u32(self.address) };
        Tile { row, head_q, batch, heads_q }
    }

    /// The unit of the key factors, see [`Self::tile`].
    #[inline(always)]
    pub(crate) unsafe fn key_unit(&self) -> f32 {
        unsafe { ld_shared_f32(self.address + 16) }
    }
}
