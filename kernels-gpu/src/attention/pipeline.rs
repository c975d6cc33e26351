//! The ring of K and V blocks in shared memory, filled by `cp.async` while earlier blocks are in use.

use super::{Args, Blocks, Place};
use crate::layout::block_bytes;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::opaque::opaque;
use crate::ptx::special::bar_sync;

/// Blocks arrive in the order K0, V0, K1, V1, ...; `SLOTS - 1` of them are under way while one is in use.
pub(crate) struct Pipeline<const D: usize, const WARPS: usize, const SLOTS: usize> {
    k: *const u8,
    v: *const u8,
    /// This thread's part of slot 0.
    shared: u32,
    /// Slot 0.
    base: u32,
    /// Slot that is read next, in bytes.
    read: u32,
}

impl<const D: usize, const WARPS: usize, const SLOTS: usize> Pipeline<D, WARPS, SLOTS> {
    const BLOCK: u32 = block_bytes(D) as u32;
    const STRIDE: u32 = 16 * 32 * WARPS as u32;

    /// Requests the first blocks.
    #[inline(always)]
    pub(crate) unsafe fn new(args: &Args, place: &Place, blocks: &Blocks) -> Self {
        let pipeline =
            Self { k: args.k, v: args.v, shared: place.shared + 16 * place.thread, base: place.shared, read: 0 };
        unroll!(0..SLOTS - 1, |ahead| {
            unsafe { pipeline.request(blocks, ahead, ahead as u32 * Self::BLOCK) };
        });
        pipeline
    }

    /// Requests what arrives `ahead` places behind the K of the block, as one group of copies. Past the last block it copies
    /// that again, to a slot nobody reads: a condition on every copy would cost more than the bytes.
    #[inline(always)]
    unsafe fn request(&self, blocks: &Blocks, ahead: usize, slot: u32) {
        unsafe {
            let tensor = if ahead.is_multiple_of(2) { self.k } else { self.v };
            let block = blocks.index((ahead / 2) as u32);
            let source = tensor.add(block * Self::BLOCK as usize).add(opaque(self.shared - self.base) as usize);
            unroll!(0..Self::BLOCK.div_ceil(Self::STRIDE) as usize, |i| {
                let offset = i as u32 * Self::STRIDE;
                if offset + Self::STRIDE <= Self::BLOCK || offset + (self.shared - self.base) < Self::BLOCK {
                    cp_async_16(self.shared + slot + offset, source.add(offset as usize));
                }
            });
            commit_group();
        }
    }

    /// The K of the block: its shared address, see [`Self::next`].
    #[inline(always)]
    pub(crate) unsafe fn next_k(&mut self, blocks: &Blocks) -> u32 {
        unsafe { self.next(blocks, SLOTS - 1) }
    }

    /// The V of the block: its shared address, see [`Self::next`].
    #[inline(always)]
    pub(crate) unsafe fn next_v(&mut self, blocks: &Blocks) -> u32 {
        unsafe { self.next(blocks, SLOTS) }
    }

    /// The shared address of the next in the ring, landed and visible to the CTA; the slot of the one before it is refilled.
    #[inline(always)]
    unsafe fn next(&mut self, blocks: &Blocks, request: usize) -> u32 {
        let read = self.read;
        unsafe {
            match SLOTS {
                2 => wait_group::<0>(),
                3 => wait_group::<1>(),
                4 => wait_group::<2>(),
                _ => wait_group::<3>(),
            }
            bar_sync();
            let last = (SLOTS as u32 - 1) * Self::BLOCK;
            self.request(blocks, request, if read == 0 { last } else { read - Self::BLOCK });
            self.read = if read == last { 0 } else { read + Self::BLOCK };
        }
        self.base + read
    }

    /// Waits for the copies that nobody reads.
    #[inline(always)]
    pub(crate) unsafe fn drain(&self) {
        unsafe { wait_group::<0>() }
    }
}
