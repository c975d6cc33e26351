//! The producers: a thread for the blocks of K and V, a warp for the keys' factors, a thread for the blocks' scales, a warp for the tiles
//! of Q.

use super::Kernel;
use super::ring::{RingState, Rings};
use super::tile_order::{QueryTile, TileOrder};
use crate::attention::sequence::{Cursor, at, is_paged};
use crate::attention::softmax::{Softmax, value_weight};
use crate::attention::window::Blocks;
use crate::config::sm90a::{self, WARPGROUP_ROWS, q_bytes};
use crate::layout::{KV_BLOCK, ROW_BYTES, block_bytes, swizzle};
use crate::params::AttentionParams;
use crate::ptx::bulk;
use crate::ptx::cp_async::{commit_group, cp_async_4_zfill, cp_async_16_zfill, wait_group};
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::mbarrier;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::tid_x;

/// The blocks of keys that are brought for a tile: those that any of its rows sees.
#[inline(always)]
pub(crate) fn brought<K: Kernel>(params: &AttentionParams, tile: &QueryTile) -> Blocks {
    if tile.has_rows(K::TILE_M) {
        tile.sequence.window(params).blocks(tile.first_row(K::TILE_M), K::TILE_M)
    } else {
        Blocks { first: 0, full_from: 0, full_to: 0, end: 0 }
    }
}

/// All tiles of the CTA, by the warps of the producers: one code for what a tile is, which all of them fetch together, and then each its part.
#[inline(always)]
pub(crate) unsafe fn run<K: Kernel>(params: &AttentionParams, rings: &Rings<K>) {
    let warp = tid_x() / 32 % 4;
    let by_one = warp == 0 || warp == 3;
    if by_one && tid_x() % 32 != 0 || warp == 3 && !K::Softmax::SPECIAL {
        return;
    }
    let mut state = RingState::first();
    let mut order = TileOrder::<K>::first(params);
    while order.left(params) {
        unsafe {
            let tile = order.tile(params);
            // Opaque: the loop would become four.
            state = match opaque(warp) {
                0 => blocks::<K>(params, rings, &tile, state),
                1 => factors::<K>(params, rings, &tile, state),
                2 => tiles::<K>(params, rings, &tile, state),
                _ => block_scales::<K>(params, rings, &tile, state),
            };
        }
        order.advance();
    }
}

/// Blocks of K and V of a tile, by one thread.
#[inline(always)]
unsafe fn blocks<K: Kernel>(
    params: &AttentionParams,
    rings: &Rings<K>,
    tile: &QueryTile,
    state: RingState,
) -> RingState {
    let bytes = block_bytes(K::HEAD_DIM) as u32;
    let (mut at_k, mut at_v) = (state, state);
    let Blocks { first, end, .. } = brought::<K>(params, tile);
    let sequence = tile.sequence;
    let mut cursor = unsafe { Cursor::new(params, &sequence, first, first < end) };
    let mut left = end - first;
    while left > 0 {
        unsafe {
            let number = cursor.number(params, || sequence);
            cursor.advance(params, || (sequence, end - left + 1), left > 1);
            rings.k().wait_empty(at_k);
            mbarrier::arrive_expect(rings.k().full(at_k), bytes);
            let k = at(params.k, number, params.blocks.k_bytes);
            bulk::copy(rings.k().address(at_k), k, bytes, rings.k().full(at_k));
            at_k = rings.k().next(at_k);
            rings.v().wait_empty(at_v);
            mbarrier::arrive_expect(rings.v().full(at_v), bytes);
            let v = at(params.v, number, params.blocks.v_bytes);
            bulk::copy(rings.v().address(at_v), v, bytes, rings.v().full(at_v));
            at_v = rings.v().next(at_v);
        }
        left -= 1;
    }
    at_k
}

/// The factors of the keys of a tile, by one warp: a lane has the four keys whose sums one consumer lane has in two n8 tiles,
/// so that they are one load there.
#[inline(always)]
unsafe fn factors<K: Kernel>(
    params: &AttentionParams,
    rings: &Rings<K>,
    tile: &QueryTile,
    state: RingState,
) -> RingState {
    let lane = tid_x() % 32;
    let key = 16 * (lane / 4) + 2 * (lane % 4);
    let mut k = state;
    let Blocks { first, end, .. } = brought::<K>(params, tile);
    let common_factor = K::Softmax::common_factor(params, K::HEAD_DIM);
    let sequence = tile.sequence;
    let mut cursor = unsafe { Cursor::new(params, &sequence, first, first < end) };
    // What a page has behind the last key may be anything.
    let ragged = is_paged(params) && end * KV_BLOCK as u32 > sequence.seqlen_kv;
    let mut left = end - first;
    while left > 0 {
        unsafe {
            let number = cursor.number(params, || sequence);
            let source = at(params.k_scale, number, params.blocks.scale_bytes).wrapping_add(key as usize);
            cursor.advance(params, || (sequence, end - left + 1), left > 1);
            let scales = [0, 1, 8, 9].map(|key| ld_global_nc_f32(source.add(key)));
            let k_scale = ld_global_nc_f32(sequence.k_block_scale(params, end - left));
            let shrink = K::Softmax::shrink(params, K::HEAD_DIM, k_scale);
            rings.k().wait_empty(k);
            // NaN where they do not share a scale.
            let other = vote_any(scales.iter().any(|&scale| scale != k_scale) || (ragged && left == 1));
            let unit = if other { f32::NAN } else { K::Softmax::narrow_unit(params, K::HEAD_DIM, k_scale) };
            let common_factor = common_factor * shrink;
            let factors = scales.map(|scale| K::Softmax::key_factor(common_factor, scale).to_bits());
            st_shared_v4_u32(true, rings.factors(k) + 16 * lane, factors);
            if K::Softmax::NARROW {
                st_shared_v2_u32(lane == 0, rings.block_scales(k) + 8, [unit.to_bits(), number]);
            }
            mbarrier::arrive(rings.k().full(k));
            k = rings.k().next(k);
        }
        left -= 1;
    }
    k
}

/// The scales of the blocks of a tile, by one thread.
#[inline(always)]
unsafe fn block_scales<K: Kernel>(
    params: &AttentionParams,
    rings: &Rings<K>,
    tile: &QueryTile,
    state: RingState,
) -> RingState {
    let mut k = state;
    let Blocks { first, end, .. } = brought::<K>(params, tile);
    let v_unit = unsafe { ld_global_nc_f32(tile.sequence.v_unit(params)) };
    let mut k_block = tile.sequence.k_block_scale(params, first);
    let mut v_block = tile.sequence.v_block_scale(params, first);
    let mut left = end - first;
    while left > 0 {
        unsafe {
            let scales = [ld_global_nc_f32(k_block), value_weight(ld_global_nc_f32(v_block), v_unit)];
            rings.k().wait_empty(k);
            st_shared_v2_u32(true, rings.block_scales(k), scales.map(f32::to_bits));
            mbarrier::arrive(rings.k().full(k));
            k = rings.k().next(k);
            k_block = k_block.add(1);
            v_block = v_block.add(1);
        }
        left -= 1;
    }
    k
}

/// A tile of Q and what the consumers need to know of it, by one warp.
#[inline(always)]
unsafe fn tiles<K: Kernel>(params: &AttentionParams, rings: &Rings<K>, tile: &QueryTile, q: RingState) -> RingState {
    unsafe {
        rings.q().wait_empty(q);
        let buffer = rings.q().address(q);
        let about = buffer + sm90a::tile_offset(K::HEAD_DIM, K::WGS) as u32;
        tile.publish(tid_x() % 32 == 0, about);
        if tile.has_rows(K::TILE_M) {
            rows::<K>(params, tile, buffer);
        }
        commit_group();
        wait_group::<0>();
        bulk::fence_proxy();
        mbarrier::arrive(rings.q().full(q));
    }
    rings.q().next(q)
}

/// Requests the rows of a tile and their scales, this lane's part: zero past the end, 16 bytes of a row to where `wgmma` wants them.
#[inline(always)]
unsafe fn rows<K: Kernel>(params: &AttentionParams, tile: &QueryTile, buffer: u32) {
    let first = tile.first_row(K::TILE_M);
    let rows = tile.sequence.seqlen_q - first;
    let scales = tile.sequence.q_scale(params, first);
    let mut row = tid_x() % 32;
    while row < K::TILE_M {
        let at = sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * row;
        unsafe { cp_async_4_zfill(buffer + at, scales.add(row as usize), if row < rows { 4 } else { 0 }) };
        row += 32;
    }
    let source = tile.sequence.q(params, K::HEAD_DIM, first);
    let chunks = (K::HEAD_DIM / 16) as u32;
    let mut chunk = tid_x() % 32;
    // A bound that the compiler does not see: unrolled, the loop would need more registers than a producer has.
    let end = opaque(K::TILE_M * chunks);
    while chunk < end {
        let (row, part) = (chunk / chunks, chunk % chunks);
        let (group, row_of_group) = (row / WARPGROUP_ROWS as u32, row % WARPGROUP_ROWS as u32);
        let panel = group * q_bytes(K::HEAD_DIM) as u32 + part / 2 * (WARPGROUP_ROWS * ROW_BYTES) as u32;
        let at = panel + swizzle(row_of_group as usize, 16 * (part % 2) as usize) as u32;
        let bytes = if row < rows { 16 } else { 0 };
        unsafe { cp_async_16_zfill(buffer + at, source.add(16 * chunk as usize), bytes) };
        chunk += 32;
    }
}
