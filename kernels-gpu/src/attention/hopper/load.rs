//! The producers: a thread for the blocks of K and V, a warp for the keys' factors, a warp for the tiles of Q.

use super::Heads;
use super::ring::{Rings, Turn};
use super::work::{Item, Work};
use crate::attention::mask::Mask;
use crate::attention::{Args, Softmax};
use crate::config::hopper::{self, WARPGROUP_ROWS, q_bytes};
use crate::layout::{KV_BLOCK, ROW_BYTES, block_bytes, swizzle};
use crate::ptx::bulk;
use crate::ptx::cp_async::{commit_group, cp_async_4_zfill, cp_async_16, cp_async_16_zfill, wait_group};
use crate::ptx::mbarrier;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::st_shared_v4_u32;
use crate::ptx::special::tid_x;

/// Rows of a CTA's query tile.
pub(crate) const fn tile_m(warpgroups: usize) -> u32 {
    (WARPGROUP_ROWS * warpgroups) as u32
}

/// Blocks of K and V of every tile, by one thread of the calling warp.
#[inline(always)]
pub(crate) unsafe fn blocks<const D: usize, const WGS: usize, const SLOTS: usize, const CAUSAL: bool>(
    args: &Args,
    heads: Heads,
    rings: &Rings<D, WGS, SLOTS>,
) {
    if tid_x() % 32 != 0 {
        return;
    }
    let bytes = block_bytes(D) as u32;
    let stride = u64::from(args.seqlen_kv).div_ceil(KV_BLOCK as u64) * u64::from(bytes);
    let (mut k, mut v) = (Turn::first(), Turn::first());
    let mut work = Work::<D, WGS, CAUSAL>::first();
    while work.left(args, heads) {
        let item = work.item(args, heads);
        let blocks = Mask::<CAUSAL>::new(args, item.m_block * tile_m(WGS), tile_m(WGS)).blocks;
        let mut offset = u64::from(item.head_kv) * stride;
        let mut block = 0;
        while block < blocks {
            unsafe {
                rings.k().wait_empty(k);
                mbarrier::arrive_expect(rings.k().full(k), bytes);
                bulk::copy(rings.k().address(k), args.k.add(offset as usize), bytes, rings.k().full(k));
                k = rings.k().next(k);
                rings.v().wait_empty(v);
                mbarrier::arrive_expect(rings.v().full(v), bytes);
                bulk::copy(rings.v().address(v), args.v.add(offset as usize), bytes, rings.v().full(v));
                v = rings.v().next(v);
            }
            offset += u64::from(bytes);
            block += 1;
        }
        work.advance();
    }
}

/// The factors of the keys of every tile, by one warp: a lane has the four keys whose sums one consumer lane has in two n8 tiles,
/// so that they are one load there.
#[inline(always)]
pub(crate) unsafe fn factors<
    S: Softmax<D, 1>,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const CAUSAL: bool,
>(
    args: &Args,
    heads: Heads,
    rings: &Rings<D, WGS, SLOTS>,
) {
    let lane = tid_x() % 32;
    let key = 16 * (lane / 4) + 2 * (lane % 4);
    let stride = u64::from(args.seqlen_kv).div_ceil(KV_BLOCK as u64) * KV_BLOCK as u64;
    let mut k = Turn::first();
    let mut work = Work::<D, WGS, CAUSAL>::first();
    while work.left(args, heads) {
        let item = work.item(args, heads);
        let blocks = Mask::<CAUSAL>::new(args, item.m_block * tile_m(WGS), tile_m(WGS)).blocks;
        let unit = S::key_unit(args, unsafe { S::unit(args, u64::from(item.head_kv)) });
        let mut source = unsafe { args.k_scale.add((u64::from(item.head_kv) * stride + u64::from(key)) as usize) };
        let mut block = 0;
        while block < blocks {
            unsafe {
                let scales = [*source, *source.add(1), *source.add(8), *source.add(9)];
                rings.k().wait_empty(k);
                let factors = scales.map(|scale| S::key_factor(unit, scale).to_bits());
                st_shared_v4_u32(true, rings.factors(k) + 16 * lane, factors);
                mbarrier::arrive(rings.k().full(k));
                k = rings.k().next(k);
                source = source.add(KV_BLOCK);
            }
            block += 1;
        }
        work.advance();
    }
}

/// Every tile of Q and what the consumers need to know of it, by one warp.
#[inline(always)]
pub(crate) unsafe fn tiles<
    S: Softmax<D, 1>,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const CAUSAL: bool,
>(
    args: &Args,
    heads: Heads,
    rings: &Rings<D, WGS, SLOTS>,
) {
    let mut q = Turn::first();
    let mut work = Work::<D, WGS, CAUSAL>::first();
    while work.left(args, heads) {
        let item = work.item(args, heads);
        unsafe {
            rings.q().wait_empty(q);
            let buffer = rings.q().address(q);
            let about = buffer + hopper::item_offset(D, WGS) as u32;
            item.publish(tid_x() % 32 == 0, about);
            rows::<D, WGS>(args, &item, buffer);
            channels::<D, WGS>(args, &item, buffer);
            commit_group();
            if tid_x() % 32 == 0 {
                Item::publish_unit(about, S::unit(args, item.head_kv.into()));
            }
            wait_group::<0>();
            bulk::fence_proxy();
            mbarrier::arrive(rings.q().full(q));
        }
        q = rings.q().next(q);
        work.advance();
    }
}

/// Requests the rows of a tile and their scales, this lane's part: zero past the end, 16 bytes of a row to where `wgmma` wants them.
#[inline(always)]
unsafe fn rows<const D: usize, const WGS: usize>(args: &Args, item: &Item, buffer: u32) {
    let first = item.m_block * tile_m(WGS);
    let index = u64::from(item.head) * u64::from(args.seqlen_q) + u64::from(first);
    let rows = args.seqlen_q - first;
    let scales = unsafe { args.q_scale.add(index as usize) };
    let mut row = tid_x() % 32;
    while row < tile_m(WGS) {
        let at = hopper::q_scale_offset(D, WGS) as u32 + 4 * row;
        unsafe { cp_async_4_zfill(buffer + at, scales.add(row as usize), if row < rows { 4 } else { 0 }) };
        row += 32;
    }
    let source = unsafe { args.q.add((index * D as u64) as usize) };
    let chunks = (D / 16) as u32;
    let mut chunk = tid_x() % 32;
    // A bound that the compiler does not see: unrolled, the loop would need more registers than a producer has.
    let end = opaque(tile_m(WGS) * chunks);
    while chunk < end {
        let (row, part) = (chunk / chunks, chunk % chunks);
        let (group, row_of_group) = (row / WARPGROUP_ROWS as u32, row % WARPGROUP_ROWS as u32);
        let panel = group * q_bytes(D) as u32 + part / 2 * (WARPGROUP_ROWS * ROW_BYTES) as u32;
        let at = panel + swizzle(row_of_group as usize, 16 * (part % 2) as usize) as u32;
        let bytes = if row < rows { 16 } else { 0 };
        unsafe { cp_async_16_zfill(buffer + at, source.add(16 * chunk as usize), bytes) };
        chunk += 32;
    }
}

/// Requests the scales and means of the head's channels, this lane's part.
#[inline(always)]
unsafe fn channels<const D: usize, const WGS: usize>(args: &Args, item: &Item, buffer: u32) {
    let lane = tid_x() % 32;
    if lane < (D / 4) as u32 {
        let at = u64::from(item.head_kv) * D as u64 + u64::from(4 * lane);
        let shared = buffer + hopper::v_scale_offset(D, WGS) as u32 + 16 * lane;
        unsafe {
            cp_async_16(shared, args.v_scale.add(at as usize).cast());
            cp_async_16(shared + 4 * D as u32, args.v_mean.add(at as usize).cast());
        }
    }
}
