//! The ring of K and V blocks in shared memory, filled by `cp.async` while earlier blocks are in use.

use super::{Kernel, Place};
use crate::attention::window::Blocks;
use crate::layout::block_bytes;
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use core::marker::PhantomData;

/// Blocks arrive in the order K0, V0, K1, V1, ...; `SLOTS - 1` of them are under way while one is in use.
pub(crate) struct Pipeline<K, const MT: usize> {
    /// Where this thread's part of the next K and V block lies in global memory.
    k: *const u8,
    v: *const u8,
    /// This thread's part of slot 0.
    shared: u32,
    /// Slot 0.
    base: u32,
    /// Slot that is read next, and slot that is filled next, in bytes.
    read: u32,
    write: u32,
    /// Blocks still to advance by, of V, and of K when its next block is requested: they take turns.
    left: u32,
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
        let (sequence, first, thread) = (&place.sequence, blocks.first, 16 * place.thread as usize);
        let left = (blocks.end - first).saturating_sub(1);
        let mut pipeline = unsafe {
            Self {
                k: sequence.k(params, K::HEAD_DIM, first).add(thread),
                v: sequence.v(params, K::HEAD_DIM_V, first).add(thread),
                shared: place.shared + 16 * place.thread,
                base: place.shared,
                read: 0,
                write: 0,
                left,
                kernel: PhantomData,
            }
        };
        if first < blocks.end {
            unroll!(0..K::SLOTS - 1, |ahead| {
                unsafe { pipeline.request(ahead % 2 == 0) };
            });
        }
        pipeline
    }

    /// Requests the next block as one group of copies. Past the last block it copies that again, to a slot nobody reads: a
    /// condition on every copy would cost more than the bytes.
    #[inline(always)]
    unsafe fn request(&mut self, is_k: bool) {
        unsafe {
            let (source, bytes) = if is_k { (&mut self.k, Self::BLOCK) } else { (&mut self.v, Self::V_BLOCK) };
            unroll!(0..Self::BLOCK.div_ceil(Self::STRIDE) as usize, |i| {
                let offset = i as u32 * Self::STRIDE;
                if offset + Self::STRIDE <= bytes || offset + (self.shared - self.base) < bytes {
                    cp_async_16(self.shared + self.write + offset, source.add(offset as usize));
                }
            });
            commit_group();
            let more = u32::from(self.left > 0);
            *source = source.add((more * bytes) as usize);
            self.left -= if is_k { 0 } else { more };
            self.write = Self::advance(self.write);
        }
    }

    /// The next K block: its shared address, see [`Self::next`].
    #[inline(always)]
    pub(crate) unsafe fn next_k(&mut self) -> u32 {
        unsafe { self.next(K::SLOTS % 2 == 1) }
    }

    /// The next V block: its shared address, see [`Self::next`].
    #[inline(always)]
    pub(crate) unsafe fn next_v(&mut self) -> u32 {
        unsafe { self.next(K::SLOTS.is_multiple_of(2)) }
    }

    /// The shared address of the next block, landed and visible to the CTA; the slot of the block before it is refilled.
    #[inline(always)]
    unsafe fn next(&mut self, request_k: bool) -> u32 {
        unsafe {
            match K::SLOTS {
                2 => wait_group::<0>(),
                3 => wait_group::<1>(),
                4 => wait_group::<2>(),
                _ => wait_group::<3>(),
            }
            bar_sync();
            self.request(request_k);
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
