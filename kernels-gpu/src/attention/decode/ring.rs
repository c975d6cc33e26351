//! K and V of the next block on their way to shared memory while one is in use. A warp copies what it reads: no other waits for it.

use super::Kernel;
use super::walk::Block;
use crate::config::decode::{PANEL_SCALE_BYTES, SLOTS, WARP_KEYS, panel_bytes, warp_bytes, warp_scales_offset};
use crate::division::div_rem_or_one;
use crate::layout::page::{PageHead, page_head, page_head_offset, page_k_scale_offset, page_v_offset};
use crate::layout::v4::{V4_PANEL_BYTES, V4_PANEL_STEP_BYTES, v4_steps_offset};
use crate::layout::{KV_BLOCK, ROW_BYTES, V_GROUP, V_PANELS};
use crate::params::DecodeParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::special::{tid_x, tid_x_again};
use crate::smem;
use core::marker::PhantomData;

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// K, with which the scales of K and V come.
    Keys,
    Values,
}

/// Bytes that a warp copies with one instruction.
const STRIDE: usize = 16 * 32;

/// The warp's slots, which take K and V of its keys in turn, and beside them the scales of two blocks. What is requested is a group of copies each.
///
/// ```text
/// K        [head_dim/32 panels][32 keys][32 dims]        of each panel of the page's block the warp's rows
/// V        [head_dim dims][32 keys]                      a panel of the page's block
/// V, 4 bits  [head_dim/32 groups][512]  [head_dim/32 groups][64]     nibbles, steps (`layout::v4`)
/// scales   [32] of K, [32] of V
/// ```
pub(crate) struct Ring<K> {
    /// The slot that is read next and the one that is filled next, in bytes.
    read: u32,
    write: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel> Ring<K> {
    const SLOT: u32 = panel_bytes(K::HEAD_DIM) as u32;

    #[inline(always)]
    pub(crate) fn new() -> Self {
        // The first block is requested where one before it would be used: reading comes to slot 0 after two halves.
        Self { read: Self::SLOT, write: 0, kernel: PhantomData }
    }

    /// Shared address of what warp `warp` has.
    #[inline(always)]
    pub(crate) fn of_warp(warp: u32) -> u32 {
        smem::base() + warp * warp_bytes(K::HEAD_DIM) as u32
    }

    /// Requests the warp's part of half of a block: nothing of one that is not there or has no page.
    #[inline(always)]
    unsafe fn request(&mut self, params: &DecodeParams, block: &Block, half: Half) {
        let (warp, lane) = (tid_x_again() / 32, tid_x_again() % 32);
        unsafe {
            if block.exists && block.has_page(params) {
                // SAFETY: the host's plan has tiles.
                let (head, _) = div_rem_or_one(block.tile, params.split.row_tiles);
                let heads = params.split.heads_kv as usize;
                let at = if K::V4 {
                    page_head(block.page as usize, head as usize, heads, K::HEAD_DIM, params.v8_pages as usize)
                } else {
                    let offset = page_head_offset(block.page as usize, head as usize, heads, K::HEAD_DIM);
                    PageHead { offset, v4: false, scales: page_k_scale_offset(K::HEAD_DIM) }
                };
                let page = params.pages.ptr().wrapping_add(at.offset);
                let to = Self::of_warp(warp) + self.write + 16 * lane;
                let of_lane = page.wrapping_add(16 * lane as usize);
                if half == Half::Keys {
                    let rows = of_lane.wrapping_add(WARP_KEYS * ROW_BYTES * warp as usize);
                    unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                        unroll!(0..WARP_KEYS * ROW_BYTES / STRIDE, |i| {
                            let slot = to + (step * WARP_KEYS * ROW_BYTES + i * STRIDE) as u32;
                            cp_async_16(slot, rows.wrapping_add(step * KV_BLOCK * ROW_BYTES + i * STRIDE));
                        });
                    });
                    // Eight lanes have those of K, eight more those of V.
                    let (of_v, bytes) = (lane as usize / 8, size_of::<f32>() * WARP_KEYS);
                    if of_v < 2 {
                        let offset = at.scales + of_v * size_of::<f32>() * KV_BLOCK + bytes * warp as usize;
                        let from = page.wrapping_add(offset + 16 * (lane as usize % 8));
                        cp_async_16(self.scales(block) + 16 * lane, from);
                    }
                } else if at.v4 {
                    let block = page.wrapping_add(page_v_offset(K::HEAD_DIM));
                    let nibbles = block.wrapping_add(V4_PANEL_BYTES * warp as usize + 16 * lane as usize);
                    const { assert!(V4_PANEL_BYTES == STRIDE) };
                    unroll!(0..K::HEAD_DIM / V_GROUP, |group| {
                        let from = nibbles.wrapping_add(group * V_PANELS * V4_PANEL_BYTES);
                        cp_async_16(to + (group * V4_PANEL_BYTES) as u32, from);
                    });
                    // Four lanes a group.
                    let group = lane as usize / (V4_PANEL_STEP_BYTES / 16);
                    if group < K::HEAD_DIM / V_GROUP {
                        let panel =
                            v4_steps_offset(K::HEAD_DIM) + (group * V_PANELS + warp as usize) * V4_PANEL_STEP_BYTES;
                        let from = block.wrapping_add(panel + 16 * (lane as usize % (V4_PANEL_STEP_BYTES / 16)));
                        cp_async_16(to + (K::HEAD_DIM / V_GROUP * V4_PANEL_BYTES) as u32, from);
                    }
                } else {
                    let panel = of_lane.wrapping_add(page_v_offset(K::HEAD_DIM) + Self::SLOT as usize * warp as usize);
                    unroll!(0..panel_bytes(K::HEAD_DIM) / STRIDE, |i| {
                        cp_async_16(to + (i * STRIDE) as u32, panel.wrapping_add(i * STRIDE));
                    });
                }
            }
            commit_group();
        }
        self.write = Self::advance(self.write);
    }

    /// Requests the same half of the next block, into the slot of the half before, which all lanes have done with. Then waits for the warp's half that was
    /// requested first of those not used yet, and gives its shared address.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn next(&mut self, params: &DecodeParams, next: &Block, half: Half) -> u32 {
        unsafe {
            warp_sync();
            self.request(params, next, half);
            wait_group::<{ SLOTS - 1 }>();
            warp_sync();
        }
        let slot = Self::of_warp(tid_x() / 32) + self.read;
        self.read = Self::advance(self.read);
        slot
    }

    /// Where each warp's slot is, from what it has on, whose half was used last: nothing is on its way there.
    #[inline(always)]
    pub(crate) fn used(&self) -> u32 {
        if self.read == 0 { (SLOTS as u32 - 1) * Self::SLOT } else { self.read - Self::SLOT }
    }

    /// Where each warp's scales of a block are, from what it has on.
    #[inline(always)]
    pub(crate) fn scales_of(block: &Block) -> u32 {
        warp_scales_offset(K::HEAD_DIM) as u32 + block.parity * PANEL_SCALE_BYTES as u32
    }

    /// The shared address of the warp's scales of a block.
    #[inline(always)]
    pub(crate) fn scales(&self, block: &Block) -> u32 {
        Self::of_warp(tid_x() / 32) + Self::scales_of(block)
    }

    /// Waits for copies that nobody reads.
    #[inline(always)]
    pub(crate) unsafe fn drain(&self) {
        unsafe { wait_group::<0>() }
    }

    #[inline(always)]
    fn advance(slot: u32) -> u32 {
        let next = slot + Self::SLOT;
        if next == SLOTS as u32 * Self::SLOT { 0 } else { next }
    }
}
