//! K and V of the next block on their way to shared memory while one is in use.

use super::Kernel;
use super::walk::Block;
use crate::config::decode::{SCALE_BYTES, SLOTS, scales_offset};
use crate::division::div_rem_or_one;
use crate::layout::block_bytes;
use crate::layout::page::{PageHead, page_head, page_head_offset, page_k_scale_offset, page_v_offset};
use crate::layout::v4::v4_block_bytes;
use crate::params::DecodeParams;
use crate::ptx::barrier::{bar_sync, warp_sync};
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::special::tid_x;
use crate::smem;
use core::marker::PhantomData;

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// K, with which the scales of K and V come.
    Keys,
    Values,
}

/// Slots that take K and V in turn, and beside them the scales of two blocks. What is requested is a group of copies each.
pub(crate) struct Ring<K> {
    /// The slot that is read next and the one that is filled next, in bytes.
    read: u32,
    write: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel> Ring<K> {
    /// Bytes that the CTA copies with one instruction a warp.
    const STRIDE: usize = 16 * 32 * K::TEAM;
    const SLOT: u32 = block_bytes(K::HEAD_DIM) as u32;

    #[inline(always)]
    pub(crate) fn new() -> Self {
        // The first block is requested where one before it would be used: reading comes to slot 0 after two halves.
        Self { read: Self::SLOT, write: 0, kernel: PhantomData }
    }

    /// Requests half of a block: nothing of one that is not there or has no page.
    #[inline(always)]
    unsafe fn request(&mut self, params: &DecodeParams, block: &Block, half: Half) {
        let lane = 16 * tid_x();
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
                let page = params.pages.ptr().wrapping_add(at.offset + lane as usize);
                let (codes, scales) = match half {
                    Half::Keys => (page, page.wrapping_add(at.scales)),
                    Half::Values => (page.wrapping_add(page_v_offset(K::HEAD_DIM)), page),
                };
                let slot = smem::base() + self.write + lane;
                if at.v4 && half == Half::Values {
                    const { assert!(!K::V4 || v4_block_bytes(K::HEAD_DIM).is_multiple_of(Self::STRIDE)) };
                    unroll!(0..v4_block_bytes(K::HEAD_DIM) / Self::STRIDE, |i| {
                        cp_async_16(slot + (i * Self::STRIDE) as u32, codes.wrapping_add(i * Self::STRIDE));
                    });
                } else {
                    unroll!(0..block_bytes(K::HEAD_DIM) / Self::STRIDE, |i| {
                        cp_async_16(slot + (i * Self::STRIDE) as u32, codes.wrapping_add(i * Self::STRIDE));
                    });
                }
                if half == Half::Keys {
                    let slot = self.scales(block) + lane;
                    unroll!(0..SCALE_BYTES / Self::STRIDE, |i| {
                        cp_async_16(slot + (i * Self::STRIDE) as u32, scales.wrapping_add(i * Self::STRIDE));
                    });
                }
            }
            commit_group();
        }
        self.write = Self::advance(self.write);
    }

    /// Requests the same half of the next block, into the slot of the half before, which all lanes have done with. Then waits for the half that was
    /// requested first of those not used yet, and gives its shared address.
    ///
    /// # Safety
    /// By the whole CTA.
    #[inline(always)]
    pub(crate) unsafe fn next(&mut self, params: &DecodeParams, next: &Block, half: Half) -> u32 {
        unsafe {
            Self::sync();
            self.request(params, next, half);
            wait_group::<{ SLOTS - 1 }>();
            Self::sync();
        }
        let slot = smem::base() + self.read;
        self.read = Self::advance(self.read);
        slot
    }

    /// What the CTA's lanes have read and what has landed for them is so for all.
    #[inline(always)]
    unsafe fn sync() {
        unsafe { if K::TEAM == 1 { warp_sync() } else { bar_sync() } }
    }

    /// The shared address of a block's scales.
    #[inline(always)]
    pub(crate) fn scales(&self, block: &Block) -> u32 {
        smem::base() + scales_offset(K::HEAD_DIM) as u32 + block.parity * SCALE_BYTES as u32
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
