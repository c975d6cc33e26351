//! The ring of K and V blocks in shared memory, filled by `cp.async` while earlier blocks are in use.

use super::Kernel;
use super::place::Place;
use super::shared_vars::SharedVars;
use crate::attention::sequence::{Cursor, at};
use crate::attention::window::Blocks;
use crate::layout::block_bytes;
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// Blocks arrive in the order K0, V0, K1, V1, ...; `SLOTS - 1` of them are under way while one is in use.
pub(crate) struct Pipeline<K, const MT: usize> {
    /// This thread's part of slot 0.
    shared: u32,
    /// Slot 0.
    base: u32,
    /// Slot that is read next, and slot that is filled next, in bytes.
    read: u32,
    write: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> Pipeline<K, MT> {
    /// Bytes of a slot, which are those of a K block, and of a V block.
    const BLOCK: u32 = block_bytes(K::HEAD_DIM) as u32;
    const V_BLOCK: u32 = block_bytes(K::HEAD_DIM_V) as u32;
    const STRIDE: u32 = 16 * 32 * K::WARPS as u32;

    /// Requests the first blocks.
    #[inline(always)]
    pub(crate) unsafe fn new(params: &AttentionParams, place: &Place, blocks: &Blocks) -> Self {
        let mut pipeline = Self {
            shared: place.shared + 16 * place.thread,
            base: place.shared,
            read: 0,
            write: 0,
            kernel: PhantomData,
        };
        if blocks.first < blocks.end {
            unroll!(0..K::SLOTS - 1, |item| {
                let (block, last) = (blocks.first + item as u32 / 2, blocks.end - 1);
                let block = if block < last { block } else { last };
                unsafe {
                    let number = Cursor::new(params, &place.sequence, block, true).number(params, || place.sequence);
                    pipeline.request(Self::source(params, number, item % 2 == 0), item % 2 == 0);
                }
            });
        }
        pipeline
    }

    /// Where this thread's part of a block lies in global memory.
    #[inline(always)]
    fn source(params: &AttentionParams, number: u32, is_k: bool) -> *const u8 {
        let blocks = &params.blocks;
        let (first, each) = if is_k { (params.k, blocks.k_bytes) } else { (params.v, blocks.v_bytes) };
        // Opaque: where its parts of K and V begin would be in registers across the loop.
        at(first, number, each).wrapping_add(16 * opaque(tid_x()) as usize)
    }

    /// Requests a block, given its [`source`](Self::source), as one group of copies. Past the last block that is copied again, to a slot
    /// nobody reads: a condition on every copy would cost more than the bytes.
    #[inline(always)]
    unsafe fn request(&mut self, source: *const u8, is_k: bool) {
        unsafe {
            let (bytes, own) = (if is_k { Self::BLOCK } else { Self::V_BLOCK }, self.shared - self.base);
            unroll!(0..Self::BLOCK.div_ceil(Self::STRIDE) as usize, |i| {
                let offset = i as u32 * Self::STRIDE;
                if offset + Self::STRIDE <= bytes || offset + own < bytes {
                    cp_async_16(self.shared + self.write + offset, source.wrapping_add(offset as usize));
                }
            });
            commit_group();
            self.write = Self::advance(self.write);
        }
    }

    /// K of block `block`, which is the next one: its shared address, see [`Self::next`].
    #[inline(always)]
    pub(crate) unsafe fn next_k(&mut self, params: &AttentionParams, vars: &SharedVars, block: u32) -> u32 {
        unsafe { self.next(params, vars, block, 0) }
    }

    /// V of block `block`, which is the next one: its shared address, see [`Self::next`].
    #[inline(always)]
    pub(crate) unsafe fn next_v(&mut self, params: &AttentionParams, vars: &SharedVars, block: u32) -> u32 {
        unsafe { self.next(params, vars, block, 1) }
    }

    /// The shared address of the next block, `item` 0 of K or 1 of V, landed and visible to the CTA; the slot of the block before it is refilled.
    #[inline(always)]
    unsafe fn next(&mut self, params: &AttentionParams, vars: &SharedVars, block: u32, item: usize) -> u32 {
        let ahead = item + K::SLOTS - 1;
        unsafe {
            // In front of the barrier, behind which all warps stand together and would wait for it.
            let source = Self::source(params, vars.number(block + ahead as u32 / 2), ahead.is_multiple_of(2));
            match K::SLOTS {
                2 => wait_group::<0>(),
                3 => wait_group::<1>(),
                4 => wait_group::<2>(),
                _ => wait_group::<3>(),
            }
            bar_sync();
            self.request(source, ahead.is_multiple_of(2));
        }
        let slot = self.base + self.read;
        self.read = Self::advance(self.read);
        slot
    }

    /// Waits for the copies that nobody reads.
    #[inline(always)]
    pub(crate) unsafe fn drain(&self) {
        unsafe { wait_group::<0>() }
    }

    #[inline(always)]
    fn advance(slot: u32) -> u32 {
        let next = slot + Self::BLOCK;
        if next == K::SLOTS as u32 * Self::BLOCK { 0 } else { next }
    }
}
