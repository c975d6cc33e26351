//! What a special block needs, in a body that is rare: nothing of it is in registers before.

use super::Kernel;
use super::ring::RingState;
use super::rows::Rows;
use crate::attention::sequence::at;
use crate::attention::softmax::{BlockScales, Notes, SpecialBlock};
use crate::params::AttentionParams;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::ld_shared_u32;

/// What a special block needs, worked out anew where it is rare.
pub(super) struct Special<'a, K> {
    pub rows: &'a Rows<'a, K>,
    pub now: RingState,
    pub block: u32,
}

impl<K: Kernel> SpecialBlock for Special<'_, K> {
    #[inline(always)]
    fn params(&self) -> &AttentionParams {
        self.rows.params
    }

    #[inline(always)]
    fn head_dim(&self) -> usize {
        K::HEAD_DIM
    }

    #[inline(always)]
    unsafe fn scales(&self) -> BlockScales {
        unsafe { self.rows.scales(self.now) }
    }

    #[inline(always)]
    unsafe fn q_scale(&self, _: usize, half: usize) -> f32 {
        let first = self.rows.read_tile().first_row(K::TILE_M);
        unsafe { self.rows.q_scales(self.rows.find_lane(), first)[0][half] }
    }

    #[inline(always)]
    unsafe fn has_keys(&self) -> bool {
        unsafe { self.scales() }.k >= 0.0
    }

    #[inline(always)]
    fn keys(&self, mt: usize, half: usize) -> [i32; 2] {
        let window = self.rows.read_tile().sequence.window(self.rows.params).anew();
        let (lane, block) = (self.rows.find_lane(), opaque(self.block));
        let row = lane.query(mt, half);
        let first = 2 * lane.quad as i32;
        [window.first_in_block(row, block) - first, window.end_in_block(row, block) - first]
    }

    #[inline(always)]
    fn first_own(&self) -> i32 {
        0
    }

    #[inline(always)]
    fn v_scale(&self) -> impl Fn(i32) -> f32 {
        // SAFETY: K has landed, and with it the block's scales; and one of the block's keys.
        let number = unsafe { ld_shared_u32(self.rows.rings.block_scales(self.now) + 12) };
        let first = at(self.rows.params.v_scale, number, self.rows.params.blocks.scale_bytes);
        let first = first.wrapping_add(2 * self.rows.find_lane().quad as usize);
        move |key| unsafe { ld_global_nc_f32(first.wrapping_add(key as usize)) }
    }

    #[inline(always)]
    unsafe fn v_unit(&self) -> f32 {
        unsafe { ld_global_nc_f32(self.rows.read_tile().sequence.v_unit(self.rows.params)) }
    }

    #[inline(always)]
    fn notes(&self) -> Notes {
        self.rows.notes()
    }
}
