//! V: one scale a channel (or, as in arXiv 2409.16997, section 3.2, one a head), keys packed along the row.
//!
//! A lane quantizes eight keys of four dims: that is eight neighbouring bytes in each of these dims' packed rows, so the
//! transposition happens in registers. Four lanes hold the octets of a row of 32 keys, a warp 32 of these rows.

use super::launch::QUANTIZE_THREADS;
use super::pack::quantize4;
use super::scale::reciprocal;
use super::tile::{Tile, float_address, tile_address};
use crate::division::div_rem;
use crate::element::{Element, Vector};
use crate::layout::{KV_BLOCK, ROW_BYTES, V_OFFSETS, V_PANELS, block_bytes, octet_key, swizzle, v_row};
use crate::ptx::global::st_global_cs_v2_u32;
use crate::ptx::math::{fma_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_f32, ld_shared_v4_u32, st_shared_f32};
use crate::ptx::special::tid_x;

/// Dims of a lane.
const DIMS: usize = 4;
/// How many rows further the lane's dims stand than the first, which is a multiple of four: all four are swizzled alike.
const FURTHER: [usize; DIMS] = [0, 1, 8, 9];
const WARPS: u32 = QUANTIZE_THREADS as u32 / 32;

const _: () = {
    let mut dim = 0;
    while dim < 256 {
        let (first, row) = (v_row(dim - dim % DIMS), v_row(dim));
        assert!(row == first + FURTHER[dim % DIMS] && row & 4 == first & 4);
        dim += 1;
    }
};

/// Means and reciprocals of the scales to shared memory, behind the tile; a barrier must follow. `channel` loads a channel's
/// mean and scale.
#[inline(always)]
pub(crate) unsafe fn load_channels(head_dim: u32, channel: impl Fn(usize) -> (f32, f32)) {
    let mut at = tid_x();
    while at < head_dim {
        let (mean, scale) = channel(at as usize);
        unsafe {
            st_shared_f32(float_address(at), mean);
            st_shared_f32(float_address(head_dim + at), reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32));
        }
        at += QUANTIZE_THREADS as u32;
    }
}

/// Quantizes and packs a tile of V; `out` is the head's bytes.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element>(tile: &Tile, head_dim: u32, out: *mut u8) {
    // a warp's unit: 32 keys of 32 dims; the next is as many units on as there are warps
    let groups = head_dim / 32;
    let (panels_on, groups_on) = unsafe { div_rem(WARPS, groups) };
    let (mut panel, mut group) = unsafe { div_rem(tid_x() / 32, groups) };
    while panel < tile.padded / ROW_BYTES as u32 {
        unsafe { quantize_unit::<E>(tile, panel, 32 * group, head_dim, out) };
        (panel, group) = (panel + panels_on, group + groups_on);
        if group >= groups {
            (panel, group) = (panel + 1, group - groups);
        }
    }
}

/// The lane's vectors of its eight keys.
#[inline(always)]
unsafe fn load_keys<E: Element>(first_row: u32, octet: u32, row_bytes: u32, byte: u32) -> [Vector; 8] {
    let even = tile_address(first_row + octet_key(octet, 0), row_bytes, byte);
    let odd = tile_address(first_row + octet_key(octet, 1), row_bytes, byte);
    let mut keys = [[0; 4]; 8];
    unroll!(0..8, |i| {
        // the keys of an octet are two neighbours, and these again 2, 8 and 10 rows on: no bit that `tile_address` looks at
        let at = if i % 2 == 0 { even } else { odd } + (octet_key(0, i) - octet_key(0, i % 2)) * row_bytes;
        keys[i] = unsafe {
            if E::BYTES == 4 {
                ld_shared_v4_u32(at)
            } else {
                let low = ld_shared_v2_u32(at);
                [low[0], low[1], 0, 0]
            }
        };
    });
    keys
}

#[inline(always)]
unsafe fn quantize_unit<E: Element>(tile: &Tile, panel: u32, first_dim: u32, head_dim: u32, out: *mut u8) {
    unsafe {
        let (octet, dim) = (tid_x() % 4, first_dim + DIMS as u32 * (tid_x() % 32 / 4));
        let row = panel * ROW_BYTES as u32;
        let keys = load_keys::<E>(row, octet, head_dim * E::BYTES as u32, dim * E::BYTES as u32);
        let mean = ld_shared_v4_f32(float_address(dim));
        let inverse = ld_shared_v4_f32(float_address(head_dim + dim));
        let masks = masks(row, octet, tile.count);

        let token = tile.first + row;
        let block = (token / KV_BLOCK as u32) as usize;
        let panel_bytes = head_dim as usize * ROW_BYTES;
        let panel = (token / ROW_BYTES as u32) as usize % V_PANELS;
        let to = out.wrapping_add(block * block_bytes(head_dim as usize) + panel * panel_bytes);
        let to = to.wrapping_add(swizzle(v_row(dim as usize), 8 * octet as usize));
        unroll!(0..DIMS, |i| {
            let x = |key: usize| E::get(&keys[key], i) - mean[i];
            let low = quantize4::<E>([x(0), x(1), x(2), x(3)], inverse[i]) & masks[0] ^ V_OFFSETS;
            let high = quantize4::<E>([x(4), x(5), x(6), x(7)], inverse[i]) & masks[1] ^ V_OFFSETS;
            st_global_cs_v2_u32(true, to.wrapping_add(FURTHER[i] * ROW_BYTES), [low, high]);
        });
    }
}

/// 0xff in the bytes of the lane's keys that exist.
#[inline(always)]
fn masks(row: u32, octet: u32, count: u32) -> [u32; 2] {
    let mut masks = [u32::MAX; 2];
    if row + ROW_BYTES as u32 > count {
        masks = [0; 2];
        unroll!(0..8, |i| {
            if row + octet_key(octet, i) < count {
                masks[i / 4] |= 0xff << (8 * (i % 4));
            }
        });
    }
    masks
}
