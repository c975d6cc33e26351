//! `gather_pages`: pages to the operands that attention reads (docs/kernel-abi.md, "Paged cache"). A CTA has a block of a head, a thread a key's scales.

use super::launch::GATHER_THREADS;
use super::pages::bytes_of_nibbles;
use super::reduce::over_warp;
use crate::division::div_rem;
use crate::layout::page::{PAGE_TOKENS, page_head, page_v_offset};
use crate::layout::{KV_BLOCK, MIN_SCALE, ROW_BYTES, V_OFFSETS, block_bytes, slot_key};
use crate::params::GatherParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_nc_f32, ld_global_nc_u32, ld_global_nc_v4_u32, st_global_f32, st_global_v4_u32};
use crate::ptx::math::max_f32;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v2_u32, st_shared_v2_u32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::{ctaid_x, tid_x};
use crate::smem;

/// Bytes of a vector.
const VECTOR: usize = 16;

/// # Safety
/// As docs/kernel-abi.md says of `gather_pages`.
#[cfg(gather_pages)]
#[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
#[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
pub unsafe extern "ptx-kernel" fn gather_pages(params: GatherParams) {
    let p = &params;
    let d = p.head_dim as usize;
    let blocks = p.seqlen_kv.div_ceil(KV_BLOCK as u32);
    // SAFETY: there are heads and blocks.
    let ((head, block), thread) = (unsafe { div_rem(ctaid_x(), blocks) }, tid_x());
    unsafe {
        let (sequence, head_kv) = div_rem(head, p.heads_kv);
        let page = ld_global_nc_u32(
            p.block_table.ptr().wrapping_add(sequence as usize * p.table_stride as usize + block as usize).cast(),
        );
        let len = ld_global_nc_u32(p.seqlens_kv.ptr().wrapping_add(sequence as usize).cast()).min(p.seqlen_kv);
        let count = len.saturating_sub(block * KV_BLOCK as u32).min(KV_BLOCK as u32);
        // What is no page has no keys.
        let count = selp_b32(page < p.pages, count, 0);
        let page = if count > 0 { page as usize } else { 0 };
        let at = page_head(page, head_kv as usize, p.heads_kv as usize, d, p.v8_pages as usize);
        let from = p.pool.ptr().wrapping_add(at.offset);
        let to = head as usize * blocks as usize + block as usize;
        let k_out = p.k_out.ptr().cast_mut().wrapping_add(to * block_bytes(d));
        let v_out = p.v_out.ptr().cast_mut().wrapping_add(to * block_bytes(d));
        let mut byte = VECTOR * thread as usize;
        while byte < block_bytes(d) {
            let mut k = ld_global_nc_v4_u32(from.wrapping_add(byte));
            // In 4 bits it is fewer bytes than these, and is made below; the page has scales behind it.
            let mut v = ld_global_nc_v4_u32(from.wrapping_add(page_v_offset(d) + byte * usize::from(!at.v4)));
            if count < KV_BLOCK as u32 {
                let key = (byte % (KV_BLOCK * ROW_BYTES) / ROW_BYTES) as u32;
                let row = (byte / ROW_BYTES) as u32;
                let (panel, row) = div_rem(row, p.head_dim);
                let half = (byte / VECTOR) as u32 & 1 ^ (row >> 2 & 1);
                unroll!(0..4, |word| {
                    k[word] = selp_b32(key < count, k[word], 0);
                    let mut mask = 0;
                    unroll!(0..4, |i| {
                        let key = panel * ROW_BYTES as u32 + half * VECTOR as u32 + slot_key(4 * word + i) as u32;
                        mask |= selp_b32(key < count, 0xff << (8 * i), 0);
                    });
                    // A byte of zero and what all bytes have more.
                    v[word] = (v[word] ^ V_OFFSETS) & mask ^ V_OFFSETS;
                });
            }
            st_global_v4_u32(true, k_out.wrapping_add(byte), k);
            st_global_v4_u32(!at.v4, v_out.wrapping_add(byte), v);
            byte += VECTOR * GATHER_THREADS;
        }
        if at.v4 {
            bytes_of_nibbles(from.wrapping_add(page_v_offset(d)), v_out, p.head_dim, thread, count);
        }
        scales(p, from.wrapping_add(at.scales), to, thread, count);
        // What there is for a head.
        if block == 0 {
            let mut dim = thread as usize;
            while dim < d {
                let offset = if p.cache_k_offset.is_null() {
                    0.0
                } else {
                    ld_global_nc_f32(p.cache_k_offset.ptr().wrapping_add(head_kv as usize * d + dim))
                };
                st_global_f32(true, p.k_offset.ptr().cast_mut().wrapping_add(head as usize * d + dim), [offset]);
                dim += GATHER_THREADS;
            }
            st_global_f32(thread == 0, p.v_unit.ptr().cast_mut().wrapping_add(head as usize), [1.0]);
        }
    }
}

/// The scales of the block's keys, and the block's own.
#[inline(always)]
unsafe fn scales(p: &GatherParams, from: *const u8, to: usize, key: u32, count: u32) {
    unsafe {
        let k = from.cast::<f32>();
        let v = k.wrapping_add(PAGE_TOKENS);
        let inside = key < count;
        let [k_own, v_own] = [k, v].map(|scales| {
            let scale = ld_global_nc_f32(scales.wrapping_add(key as usize));
            f32::from_bits(selp_b32(inside, scale.to_bits(), 0))
        });
        let at = to * KV_BLOCK + key as usize;
        st_global_f32(true, p.k_scale.ptr().cast_mut().wrapping_add(at), [k_own]);
        st_global_f32(true, p.v_scale.ptr().cast_mut().wrapping_add(at), [v_own]);
        // Of those that are numbers.
        let largest = over_warp(max_f32(k_own, 0.0), max_f32);
        let first = ld_global_nc_f32(v);
        let other = vote_any(inside & !(v_own == first));
        let of_warp = |warp: u32| smem::base() + 8 * warp;
        st_shared_v2_u32(key % 32 == 0, of_warp(key / 32), [largest.to_bits(), u32::from(other)]);
        bar_sync();
        let (mut largest, mut mixed) = (0.0, 0);
        unroll!(0..GATHER_THREADS / 32, |warp| {
            let [bits, other] = ld_shared_v2_u32(of_warp(warp as u32));
            largest = max_f32(largest, f32::from_bits(bits));
            mixed |= other;
        });
        let shared = selp_b32(count > 0, first.to_bits(), MIN_SCALE.to_bits());
        let shared = f32::from_bits(selp_b32(mixed == 0, shared, f32::NAN.to_bits()));
        st_global_f32(key == 0, p.k_block_scale.ptr().cast_mut().wrapping_add(to), [largest]);
        st_global_f32(key == 0, p.v_block_scale.ptr().cast_mut().wrapping_add(to), [shared]);
    }
}
