//! The scales of blocks, and what a special block needs besides.

use super::Kernel;
use super::place::{Place, notes, place};
use super::shared_vars::SharedVars;
use crate::attention::sequence::{Sequence, at};
use crate::attention::softmax::{BlockScales, Notes, Softmax, SpecialBlock, value_weight};
use crate::attention::window::Window;
use crate::params::AttentionParams;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// The sequence as it is for the addresses of its blocks, where that begins from shared memory: it would be in registers across the loop.
#[inline(always)]
pub(crate) unsafe fn blocks_of(place: &Place, vars: &SharedVars) -> Sequence {
    let [first_block, index_kv] = unsafe { vars.first_block() };
    Sequence { first_block, index_kv, ..place.sequence }
}

/// The scales of a block of K and of V, if there is such a block; else zeros, which are not special.
#[inline(always)]
pub(crate) unsafe fn fetch_scales(params: &AttentionParams, sequence: &Sequence, block: u32, is: bool) -> [f32; 2] {
    let mut scales = [0.0; 2];
    if is {
        scales = unsafe {
            [
                ld_global_nc_f32(sequence.k_block_scale(params, block)),
                ld_global_nc_f32(sequence.v_block_scale(params, block)),
            ]
        };
    }
    scales
}

/// The scales of a block, in the unit of the head's values, and the reach of the warp's rows.
#[inline(always)]
pub(crate) unsafe fn block_scales<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    sequence: &Sequence,
    vars: &SharedVars,
    block: u32,
) -> BlockScales {
    if !K::Softmax::SPECIAL {
        return BlockScales { k: 0.0, v: 1.0, reach: 0.0 };
    }
    let (mut k, mut reach) = (0.0, 0.0);
    if K::Softmax::LOUD {
        k = unsafe { ld_global_nc_f32(sequence.k_block_scale(params, block)) };
    }
    let [v, unit] =
        unsafe { [ld_global_nc_f32(sequence.v_block_scale(params, block)), ld_global_nc_f32(sequence.v_unit(params))] };
    if K::Softmax::LOUD {
        reach = unsafe { vars.reach(opaque(tid_x()) / 32) };
    }
    BlockScales { k, v: value_weight(v, unit), reach }
}

/// What the factors of a block's keys are multiplied with, if there is such a block. Its scales are given where they are loaded ahead.
#[inline(always)]
pub(crate) unsafe fn shrink<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    sequence: impl Fn() -> Sequence,
    block: u32,
    is: bool,
    [k, _]: [f32; 2],
) -> f32 {
    let mut shrink = 1.0;
    if K::AHEAD {
        shrink = K::Softmax::shrink(params, K::HEAD_DIM, k);
    } else if K::Softmax::LOUD && is {
        let k = unsafe { ld_global_nc_f32(sequence().k_block_scale(params, block)) };
        shrink = K::Softmax::shrink(params, K::HEAD_DIM, k);
    }
    shrink
}

/// The unit of a narrow block's scores, without the row's scale.
#[inline(always)]
pub(crate) fn narrow_unit<K: Kernel<MT>, const MT: usize>(params: &AttentionParams, k_block_scale: f32) -> f32 {
    K::Softmax::narrow_unit(params, K::HEAD_DIM, k_block_scale)
}

/// What a special block needs, worked out anew where it is rare.
pub(crate) struct Special<'a, K, const MT: usize> {
    pub params: &'a AttentionParams,
    pub block: u32,
    /// Where they are not in shared memory.
    pub scales: BlockScales,
    pub vars: &'a SharedVars,
    pub kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> Special<'_, K, MT> {
    #[inline(always)]
    fn place(&self) -> Place {
        // SAFETY: in the loop.
        let (row, sequence) = unsafe { (self.vars.row(), self.vars.sequence()) };
        place::<K, MT>(row, sequence, opaque(tid_x()))
    }
}

impl<K: Kernel<MT>, const MT: usize> SpecialBlock for Special<'_, K, MT> {
    #[inline(always)]
    fn params(&self) -> &AttentionParams {
        self.params
    }

    #[inline(always)]
    fn head_dim(&self) -> usize {
        K::HEAD_DIM
    }

    #[inline(always)]
    unsafe fn scales(&self) -> BlockScales {
        if K::AHEAD { unsafe { self.vars.scales(self.block) } } else { self.scales }
    }

    #[inline(always)]
    unsafe fn q_scale(&self, mt: usize, half: usize) -> f32 {
        let place = self.place();
        let row = place.lane.query(mt, half);
        let mut scale = 1.0;
        if row < place.sequence.seqlen_q {
            scale = unsafe { ld_global_nc_f32(place.sequence.q_scale(self.params, row)) };
        }
        scale
    }

    #[inline(always)]
    unsafe fn has_keys(&self) -> bool {
        let mut k = unsafe { self.scales() }.k;
        if !K::Softmax::LOUD {
            let sequence = unsafe { self.vars.sequence() };
            k = unsafe { ld_global_nc_f32(sequence.k_block_scale(self.params, opaque(self.block))) };
        }
        k >= 0.0
    }

    #[inline(always)]
    fn keys(&self, mt: usize, half: usize) -> [i32; 2] {
        // SAFETY: in the loop.
        let window = Window::of_lengths(self.params, unsafe { self.vars.lengths() }).anew();
        let (lane, block) = (self.place().lane, opaque(self.block));
        let row = lane.query(mt, half);
        let first = 2 * lane.quad as i32;
        [window.first_in_block(row, block) - first, window.end_in_block(row, block) - first]
    }

    #[inline(always)]
    fn first_own(&self) -> i32 {
        (self.place().member as usize * 8 * K::KEY_TILES) as i32
    }

    #[inline(always)]
    fn v_scale(&self) -> impl Fn(i32) -> f32 {
        // SAFETY: in the loop; and one of the block's keys.
        let number = unsafe { self.vars.number(self.block) };
        let first = at(self.params.v_scale, number, self.params.blocks.scale_bytes);
        let first = first.wrapping_add(2 * self.place().lane.quad as usize);
        move |key| unsafe { ld_global_nc_f32(first.wrapping_add(key as usize)) }
    }

    #[inline(always)]
    unsafe fn v_unit(&self) -> f32 {
        unsafe { ld_global_nc_f32(self.place().sequence.v_unit(self.params)) }
    }

    #[inline(always)]
    fn notes(&self) -> Notes {
        notes::<K, MT>(opaque(tid_x()))
    }
}
