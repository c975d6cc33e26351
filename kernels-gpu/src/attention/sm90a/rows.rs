//! A warpgroup's rows of a query tile: what the loop asks of them, and what it looks up for them in shared memory.

use super::Kernel;
use super::ring::{RingState, Rings};
use super::scheduler_barrier::SchedulerBarrier;
use super::tile_order::QueryTile;
use crate::attention::lane::Lane;
use crate::attention::softmax::{BlockScales, Notes, Softmax};
use crate::attention::window::Blocks;
use crate::config::sm90a::{self, WARPGROUP_ROWS};
use crate::config::{NOTE_BYTES, SCRATCH_BYTES};
use crate::layout::{NARROW_LEAST, NARROW_MOST};
use crate::params::AttentionParams;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_f32, ld_shared_u32, ld_shared_v2_u32, ld_shared_v4_f32};
use crate::ptx::shuffle::{first_lane, vote_any};
use crate::ptx::special::tid_x;

/// A warpgroup's rows of a query tile.
pub(crate) struct Rows<'a, K> {
    pub(super) params: &'a AttentionParams,
    pub(super) rings: &'a Rings<K>,
    pub(super) barrier: SchedulerBarrier<K>,
    /// Shared addresses of the tile's buffer and of the warpgroup's rows of Q in it.
    pub(super) buffer: u32,
    pub(super) q: u32,
    pub(super) group: u32,
    /// Shared address of the warp's [`Rings::reach`]; uniform, so that it is ready before a block's scales are.
    pub(super) reach: u32,
    /// The blocks that these rows see.
    pub(super) blocks: Blocks,
    /// Whether this lane speaks for its warp at the barriers of the rings.
    pub(super) elected: bool,
}

impl<K: Kernel> Rows<'_, K> {
    /// The steps of the last block that have keys which any of the warpgroup's rows sees.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(super) unsafe fn last_steps(&self) -> u32 {
        unsafe { first_lane(ld_shared_u32(self.reach + 12)) }
    }

    /// Whether a block is narrow for the warpgroup's rows.
    #[inline(always)]
    pub(super) unsafe fn is_narrow(&self, state: RingState) -> bool {
        unsafe {
            let [_, v, unit, _] = ld_shared_v4_f32(self.rings.block_scales(state));
            let [_, least, most, _] = ld_shared_v4_f32(self.reach);
            let within = mul_rn_f32(unit, least) >= NARROW_LEAST && mul_rn_f32(unit, most) <= NARROW_MOST;
            vote_any(within && !v.is_nan())
        }
    }

    /// Whether all of the rows see all keys of a block. One branch around all masks is a jump less for most blocks; not in a body of its own, where ptxas
    /// then moves exponentials in front of the turn.
    #[inline(always)]
    pub(super) fn sees_all(&self, block: u32) -> bool {
        !K::APART && block >= self.blocks.full_from && block < self.blocks.full_to
    }

    /// Calls `hide` for each row with where its window begins (`LEFT`) or ends in a block, counted from the lane's first key, if it does there
    /// for some row.
    #[inline(always)]
    pub(super) fn mask<const LEFT: bool>(&self, block: u32, mut hide: impl FnMut(usize, i32)) {
        if if LEFT { block >= self.blocks.full_from } else { block < self.blocks.full_to } {
            return;
        }
        let (lane, window) = (self.find_lane(), self.read_tile().sequence.window(self.params));
        unroll!(0..2, |half| {
            // Opaque: where each row's window ends would be in registers across the loop.
            let row = Lane { row: opaque(lane.row), ..lane }.query(0, half);
            let key = if LEFT { window.first_in_block(row, block) } else { window.end_in_block(row, block) };
            hide(half, key - 2 * lane.quad as i32);
        });
    }

    /// The scales of a block whose K has landed, and the reach of the warpgroup's rows.
    #[inline(always)]
    pub(super) unsafe fn scales(&self, state: RingState) -> BlockScales {
        if !K::Softmax::SPECIAL {
            return BlockScales { k: 0.0, v: 1.0, reach: 0.0 };
        }
        let [k, v] = unsafe { ld_shared_v2_u32(self.rings.block_scales(state)) }.map(f32::from_bits);
        BlockScales { k, v, reach: unsafe { ld_shared_f32(self.reach) } }
    }

    /// The scales of the lane's rows, in the tile whose first row is `first`.
    #[inline(always)]
    pub(super) unsafe fn q_scales(&self, lane: Lane, first: u32) -> [[f32; 2]; 1] {
        let at = self.buffer + sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * (lane.query(0, 0) - first);
        unsafe { [[ld_shared_f32(at), ld_shared_f32(at + 32)]] }
    }

    /// The unit of the scores of a narrow block, without the row's scale.
    #[inline(always)]
    pub(super) unsafe fn narrow_unit(&self, state: RingState) -> f32 {
        unsafe { ld_shared_f32(self.rings.block_scales(state) + 8) }
    }

    /// The scales of the lane's two rows.
    #[inline(always)]
    pub(super) unsafe fn own_q_scales(&self) -> [f32; 2] {
        let thread = opaque(tid_x());
        let row = self.group * WARPGROUP_ROWS as u32 + 16 * (thread / 32 % 4) + thread % 32 / 4;
        let at = self.buffer + sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * row;
        unsafe { [ld_shared_f32(at), ld_shared_f32(at + 32)] }
    }

    /// The scales of the warpgroup's rows `row` and `row + 32`.
    #[inline(always)]
    pub(super) unsafe fn q_scales_of_two_rows(&self, row: u32) -> [f32; 2] {
        let of_group = sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * self.group * WARPGROUP_ROWS as u32;
        let at = self.buffer + of_group + 4 * row;
        unsafe { [ld_shared_f32(at), ld_shared_f32(at + 128)] }
    }

    /// Where the warp keeps its notes: from the row of the lane's quad on.
    #[inline(always)]
    pub(super) fn notes(&self) -> Notes {
        let thread = opaque(tid_x());
        let row = 16 * (thread / 32) + thread % 32 / 4;
        let own = self.rings.notes() + row * NOTE_BYTES as u32;
        let scratch = self.rings.scratch() + thread / 32 * SCRATCH_BYTES as u32 + 4 * (thread % 32);
        Notes { own, first: own, bytes: 0, scratch, sums: self.rings.sums() + 16 * thread }
    }

    #[inline(always)]
    pub(super) fn read_tile(&self) -> QueryTile {
        // SAFETY: the buffer is full.
        unsafe { QueryTile::read(self.buffer + sm90a::tile_offset(K::HEAD_DIM, K::WGS) as u32) }
    }

    /// This lane, computed anew where it is seldom needed: registers are what the loop is short of.
    #[inline(always)]
    pub(super) fn find_lane(&self) -> Lane {
        let row = self.read_tile().first_row(K::TILE_M) + self.group * WARPGROUP_ROWS as u32;
        lane(row, opaque(tid_x()))
    }
}

/// A lane of the warpgroup whose rows begin at `row`: its warp has 16 of them.
#[inline(always)]
pub(super) fn lane(row: u32, thread: u32) -> Lane {
    Lane::new(thread, row + 16 * (thread / 32 % 4))
}
