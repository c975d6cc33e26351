//! `convert_pages`: pages with V in 8 bits to pages with 4, and back (docs/kernel-abi.md, "Pages with V in 4 bits"). A CTA has a head of a pair of
//! pages.

use super::launch::CONVERT_THREADS;
use crate::division::div_rem;
use crate::layout::page::{PAGE_TOKENS, page_head, page_v_offset};
use crate::layout::v4::{V4_PANEL_BYTES, V4_PANEL_STEP_BYTES, v4_steps_offset};
use crate::layout::{ROW_BYTES, V_GROUP, V_OFFSETS, V_PANELS, block_bytes, slot_key, swizzle};
use crate::nibbles::{Bytes, pack, unpack};
use crate::params::{ConvertParams, PAIRS};
use crate::ptx::global::{ld_global_nc_u32, ld_global_nc_v4_u32, st_global_u32, st_global_v4_u32};
use crate::ptx::select::selp_b32;
use crate::ptx::special::{ctaid_x, tid_x};

/// Bytes of a vector.
const VECTOR: usize = 16;

/// # Safety
/// As docs/kernel-abi.md says of `convert_pages`.
#[cfg(convert_pages)]
#[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
#[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
pub unsafe extern "ptx-kernel" fn convert_pages(params: ConvertParams) {
    let p = &params;
    let (d, thread) = (p.head_dim as usize, tid_x());
    unsafe {
        // SAFETY: there are heads.
        let (pair, head) = div_rem(ctaid_x(), p.heads_kv);
        let mut pages = [0; 2];
        unroll!(0..PAIRS, |i| {
            // No table: it would be a variable in memory.
            unroll!(0..2, |j| {
                pages[j] = selp_b32(pair == i as u32, p.pairs[i][j], pages[j]);
            });
        });
        let [from, to] =
            pages.map(|page| page_head(page as usize, head as usize, p.heads_kv as usize, d, p.v8_pages as usize));
        let read = p.pool.ptr().wrapping_add(from.offset);
        let write = p.pool.ptr().cast_mut().wrapping_add(to.offset);
        copy(read, write, block_bytes(d), thread);
        let scales = 2 * size_of::<f32>() * PAGE_TOKENS;
        copy(read.wrapping_add(from.scales), write.wrapping_add(to.scales), scales, thread);
        let (read, write) = (read.wrapping_add(page_v_offset(d)), write.wrapping_add(page_v_offset(d)));
        if to.v4 {
            nibbles_of_bytes(read, write, p.head_dim, thread);
        } else {
            bytes_of_nibbles(read, write, p.head_dim, thread, PAGE_TOKENS as u32);
        }
    }
}

/// Copies so many bytes, whole vectors.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize, thread: u32) {
    let mut byte = VECTOR * thread as usize;
    while byte < bytes {
        unsafe { st_global_v4_u32(true, to.wrapping_add(byte), ld_global_nc_v4_u32(from.wrapping_add(byte))) };
        byte += VECTOR * CONVERT_THREADS;
    }
}

/// The first of a lane's bytes in the first of four rows of a packed block of V, which it has for the n8 tiles of group and panel number `at`; the next tile's are
/// eight rows on.
#[inline(always)]
fn first_byte(at: u32, lane: u32, half: usize, d: u32) -> usize {
    let (group, panel) = (at / V_PANELS as u32, at % V_PANELS as u32);
    let row = V_GROUP as u32 * group + lane / 4;
    (panel * d * ROW_BYTES as u32) as usize + swizzle(row as usize, 16 * half + 4 * (lane % 4) as usize)
}

/// Where the nibbles of a lane begin, and the steps of its keys.
#[inline(always)]
fn nibbles_and_steps(at: u32, lane: u32, d: u32) -> [usize; 2] {
    let steps = v4_steps_offset(d as usize) as u32 + at * V4_PANEL_STEP_BYTES as u32 + VECTOR as u32 * (lane % 4);
    [at * V4_PANEL_BYTES as u32 + VECTOR as u32 * lane, steps].map(|byte| byte as usize)
}

/// V of a head of a page in 4 bits as a packed block, with padding behind the first `count` keys. 128 threads.
///
/// # Safety
/// There are as many bytes.
#[inline(always)]
pub(super) unsafe fn bytes_of_nibbles(from: *const u8, to: *mut u8, d: u32, thread: u32, count: u32) {
    let (lane, mut at) = (thread % 32, thread / 32);
    while at < d / V_GROUP as u32 * V_PANELS as u32 {
        let [nibbles, steps] = nibbles_and_steps(at, lane, d).map(|byte| from.wrapping_add(byte));
        let bytes = unsafe { unpack(ld_global_nc_v4_u32(nibbles), ld_global_nc_v4_u32(steps)) };
        unroll!(0..2, |half| {
            let mut mask = 0;
            unroll!(0..4, |i| {
                let key = slot_key(16 * half + 4 * (lane as usize % 4) + i) as u32;
                let key = at % V_PANELS as u32 * ROW_BYTES as u32 + key;
                mask |= selp_b32(key < count, 0xff << (8 * i), 0);
            });
            unroll!(0..4, |tile| {
                // A byte of zero and what all bytes have more.
                let word = (bytes[tile][half] ^ V_OFFSETS) & mask ^ V_OFFSETS;
                let to = to.wrapping_add(first_byte(at, lane, half, d) + 8 * tile * ROW_BYTES);
                unsafe { st_global_u32(true, to, [word]) };
            });
        });
        at += CONVERT_THREADS as u32 / 32;
    }
}

/// A packed block of V in 4 bits. 128 threads.
#[inline(always)]
unsafe fn nibbles_of_bytes(from: *const u8, to: *mut u8, d: u32, thread: u32) {
    let (lane, mut at) = (thread % 32, thread / 32);
    // The same for a whole warp.
    while at < d / V_GROUP as u32 * V_PANELS as u32 {
        let mut bytes: Bytes = [[0; 2]; 4];
        unroll!(0..2, |half| {
            unroll!(0..4, |tile| {
                let from = from.wrapping_add(first_byte(at, lane, half, d) + 8 * tile * ROW_BYTES);
                bytes[tile][half] = unsafe { ld_global_nc_u32(from) };
            });
        });
        unsafe {
            let (nibbles, steps) = pack(&bytes);
            let [to_nibbles, to_steps] = nibbles_and_steps(at, lane, d).map(|byte| to.wrapping_add(byte));
            st_global_v4_u32(true, to_nibbles, nibbles);
            // The lanes that have the same keys have the same steps.
            st_global_v4_u32(lane < 4, to_steps, steps);
        }
        at += CONVERT_THREADS as u32 / 32;
    }
}
