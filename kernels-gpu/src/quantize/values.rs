//! V: one scale a channel (or, as in arXiv 2409.16997, section 3.2, one a head), keys packed along the row.
//!
//! A lane quantizes eight keys of one vector of dims: that is eight neighbouring bytes in each of these dims' packed rows,
//! so the transposition happens in registers. Shared memory only turns the rows of a block into one linear copy.

use super::launch::{shared_bytes, threads};
use super::pack::quantize4;
use super::place::{ByChannel, spread};
use super::scale::reciprocal;
use crate::element::{BATCH, Element, Rows, Vector, load_batch};
use crate::ptx::global::{ld_global_nc_v4_f32, st_global_v4_u32};
use crate::ptx::math::{fma_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v2_u32};
use crate::ptx::special::{bar_sync, tid_x};
use crate::smem;

/// One block of 128 tokens of a head.
pub(crate) struct Block {
    /// The head's rows.
    pub rows: Rows,
    /// First token of the block.
    pub first: u32,
    /// Tokens of the block that exist, 1 to 128.
    pub count: u32,
    /// `v_mean` of the head.
    pub mean: *const f32,
    /// `v_scale` of the head.
    pub scale: *const f32,
    /// Dims of a row.
    pub head_dim: u32,
    /// All packed blocks.
    pub out: *mut u8,
    /// Which of them this is.
    pub index: u32,
}

/// Quantizes and packs a block of V.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element>(block: &Block) {
    unsafe {
        let mut pass = 0;
        while pass < ByChannel::<E>::passes(block.head_dim) {
            let place = ByChannel::<E>::of_lane(block.head_dim, pass);
            let keys = load_keys(&place, block);
            let mean = channels::<E>(block.mean.wrapping_add(place.dim()));
            let scale = channels::<E>(block.scale.wrapping_add(place.dim()));
            let masks = masks(&place, block.count);
            unroll!(0..E::LANES, |dim| {
                let inverse = reciprocal(scale[dim], rcp_approx_ftz_f32, fma_rn_f32);
                let x = |i: usize| E::get(&keys[i], dim) - mean[dim];
                let low = quantize4([x(0), x(1), x(2), x(3)], [inverse; 4]) & masks[0];
                let high = quantize4([x(4), x(5), x(6), x(7)], [inverse; 4]) & masks[1];
                st_shared_v2_u32(place.has(), smem::base() + place.shared_offset(dim), [low, high]);
            });
            pass += 1;
        }
        bar_sync();
        store_block::<E>(block);
    }
}

/// The lane's vectors of its eight keys; a key past the end is read as the last one, and masked later.
#[inline(always)]
unsafe fn load_keys<E: Element>(place: &ByChannel<E>, block: &Block) -> [Vector; BATCH] {
    let at = |i: usize| (block.first + place.key(i).min(block.count - 1), place.vector());
    unsafe { load_batch::<E>(&block.rows, at) }
}

/// One float for each dim of a vector.
#[inline(always)]
unsafe fn channels<E: Element>(from: *const f32) -> [f32; 8] {
    unsafe {
        let low = ld_global_nc_v4_f32(from);
        let high = if E::LANES == 8 { ld_global_nc_v4_f32(from.wrapping_add(4)) } else { [0.0; 4] };
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }
}

/// 0xff in the bytes of the lane's keys that exist.
#[inline(always)]
fn masks<E: Element>(place: &ByChannel<E>, count: u32) -> [u32; 2] {
    let mut masks = [0; 2];
    unroll!(0..8, |i| {
        if place.key(i) < count {
            masks[i / 4] |= 0xff << (8 * (i % 4));
        }
    });
    masks
}

/// Copies the block from shared memory, 16 bytes a lane, in order.
#[inline(always)]
unsafe fn store_block<E: Element>(block: &Block) {
    let bytes = shared_bytes(block.head_dim as usize) as u32;
    let step = 16 * threads(block.head_dim as usize) as u32;
    let out = block.out.wrapping_add(opaque(block.index) as usize * bytes as usize);
    let mut at = 16 * tid_x();
    while at < bytes {
        unsafe {
            st_global_v4_u32(true, out.wrapping_add(at as usize), ld_shared_v4_u32(smem::base() + spread::<E>(at)))
        }
        at += step;
    }
}
