//! `page_scales`: what attention on a paged cache needs of whole blocks, which pages do not have (docs/kernel-abi.md, "Attention on a paged
//! cache"). A warp has a block of a head at a time, a lane four keys of it.

use super::launch::PAGE_SCALES_THREADS;
use super::reduce::over_warp;
use crate::layout::KV_BLOCK;
use crate::layout::page::{page_head_offset, page_k_scale_offset, page_v_scale_offset};
use crate::params::GatherParams;
use crate::ptx::global::{ld_global_nc_f32, ld_global_nc_u32, ld_global_nc_v4_f32, st_global_f32};
use crate::ptx::math::max_f32;
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::{first_lane, vote_any};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, tid_x};

/// Keys of a lane.
const KEYS: usize = KV_BLOCK / 32;

/// # Safety
/// As docs/kernel-abi.md says of `page_scales`.
#[cfg(gather_pages)]
#[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
#[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
pub unsafe extern "ptx-kernel" fn page_scales(params: GatherParams) {
    let p = &params;
    let (sequence, head_kv, lane) = (ctaid_z(), ctaid_y(), tid_x() % 32);
    let head = sequence as usize * p.heads_kv as usize + head_kv as usize;
    let blocks = p.seqlen_kv.div_ceil(KV_BLOCK as u32) as usize;
    let warps = (PAGE_SCALES_THREADS / 32) as u32;
    unsafe {
        let len = ld_global_nc_u32(p.seqlens_kv.ptr().wrapping_add(sequence as usize).cast()).min(p.seqlen_kv);
        let table = p.block_table.ptr().wrapping_add(sequence as usize * p.table_stride as usize);
        // The same in the whole warp, and the compiler is to know.
        let mut block = first_lane(ctaid_x() * warps + tid_x() / 32);
        while block * (KV_BLOCK as u32) < len {
            let page = first_lane(ld_global_nc_u32(table.wrapping_add(block as usize).cast()));
            let is_page = page < p.pages;
            let count = selp_b32(is_page, len - block * KV_BLOCK as u32, 0);
            let [k, v] = of_block(p, selp_b32(is_page, page, 0), head_kv, lane, count).map(f32::to_bits);
            // No page: no keys, which is for the kernels to see where they look at values' own scales.
            let [k, v] =
                [(k, -1.0), (v, f32::NAN)].map(|(x, none)| f32::from_bits(selp_b32(is_page, x, none.to_bits())));
            let at = head * blocks + block as usize;
            st_global_f32(lane == 0, p.k_block_scale.ptr().cast_mut().wrapping_add(at), [k]);
            st_global_f32(lane == 0, p.v_block_scale.ptr().cast_mut().wrapping_add(at), [v]);
            block += nctaid_x() * warps;
        }
        let first = ctaid_x() == 0 && tid_x() == 0;
        st_global_f32(first, p.v_unit.ptr().cast_mut().wrapping_add(head), [1.0]);
    }
}

/// The largest scale of the first `count` keys of a page that is a number, and the scale that their values share, or NaN.
#[inline(always)]
unsafe fn of_block(p: &GatherParams, page: u32, head_kv: u32, lane: u32, count: u32) -> [f32; 2] {
    let d = p.head_dim as usize;
    let from = p.pool.ptr().wrapping_add(page_head_offset(page as usize, head_kv as usize, p.heads_kv as usize, d));
    let [k, v] = [page_k_scale_offset(d), page_v_scale_offset(d)].map(|at| from.wrapping_add(at).cast::<f32>());
    let own = KEYS * lane as usize;
    unsafe {
        let [k, of_v] = [k, v].map(|scales| ld_global_nc_v4_f32(scales.wrapping_add(own)));
        let first = ld_global_nc_f32(v);
        let (mut largest, mut other) = (0.0, false);
        unroll!(0..KEYS, |i| {
            let inside = ((own + i) as u32) < count;
            largest = max_f32(largest, f32::from_bits(selp_b32(inside, k[i].to_bits(), 0)));
            other |= inside & !(of_v[i] == first);
        });
        let shared = selp_b32(vote_any(other), f32::NAN.to_bits(), first.to_bits());
        [over_warp(largest, max_f32), f32::from_bits(shared)]
    }
}
