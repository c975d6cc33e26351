//! The ring of K and V blocks in shared memory, filled by `cp.async` while earlier blocks are in use.

use super::Kernel;
use super::place::Place;
use super::shared_vars::SharedVars;
use crate::attention::sequence::{Cursor, at};
use crate::attention::window::Blocks;
use crate::config::sm80::ring_bytes;
use crate::layout::{V_PANELS, block_bytes};
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// Blocks arrive in the order K0, V0, K1, V1, ..., each piece by piece; `SLOTS - 1` pieces are under way while one is in use.
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

/// A piece of a block: dims of all its keys.
#[derive(Clone, Copy)]
pub(crate) enum Of {
    /// Neighbouring panels of K.
    K(usize),
    /// Neighbouring rows of each panel of V, which in a slot are a block of so many dims.
    V(usize),
}

impl<K: Kernel<MT>, const MT: usize> Pipeline<K, MT> {
    /// Bytes of a slot, which are those of a piece of K, and of a piece of V.
    const SLOT: u32 = ring_bytes(K::HEAD_DIM, 1) as u32;
    const V_PIECE: u32 = (block_bytes(K::HEAD_DIM_V) / K::PIECES) as u32;
    const STRIDE: u32 = 16 * 32 * K::WARPS as u32;
    /// Pieces of a block of K and one of V.
    const ITEMS: usize = 2 * K::PIECES;

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
                let (block, last) = (blocks.first + (item / Self::ITEMS) as u32, blocks.end - 1);
                let block = if block < last { block } else { last };
                unsafe {
                    let number = Cursor::new(params, &place.sequence, block, true).number(params, || place.sequence);
                    pipeline.request(Self::source(params, number, Self::of(item)), Self::of(item));
                }
            });
        }
        pipeline
    }

    /// What arrives as number `item` of a block, or of those behind it.
    #[inline(always)]
    const fn of(item: usize) -> Of {
        let item = item % Self::ITEMS;
        if item < K::PIECES { Of::K(item) } else { Of::V(item - K::PIECES) }
    }

    /// Where this thread's part of a block lies in global memory.
    #[inline(always)]
    fn source(params: &AttentionParams, number: u32, of: Of) -> *const u8 {
        let blocks = &params.blocks;
        let (first, each) = match of {
            Of::K(_) => (params.k, blocks.k_bytes),
            Of::V(_) => (params.v, blocks.v_bytes),
        };
        // Opaque: where its parts of K and V begin would be in registers across the loop.
        at(first, number, each).wrapping_add(16 * opaque(tid_x()) as usize)
    }

    /// Where byte `offset` of a piece lies in its block. A thread's 16 bytes from a multiple of [`STRIDE`](Self::STRIDE) on are as far from there.
    const fn in_block(of: Of, offset: u32) -> u32 {
        match of {
            Of::K(piece) => piece as u32 * Self::SLOT + offset,
            Of::V(piece) => {
                let of_panel = Self::V_PIECE / V_PANELS as u32;
                assert!(K::PIECES == 1 || of_panel.is_multiple_of(Self::STRIDE));
                offset + (offset / of_panel * (K::PIECES as u32 - 1) + piece as u32) * of_panel
            }
        }
    }

    /// Requests a piece of a block, given that one's [`source`](Self::source), as one group of copies. Past the last block that is copied again, to a
    /// slot nobody reads: a condition on every copy would cost more than the bytes.
    #[inline(always)]
    unsafe fn request(&mut self, source: *const u8, of: Of) {
        unsafe {
            let bytes = if let Of::K(_) = of { Self::SLOT } else { Self::V_PIECE };
            let own = self.shared - self.base;
            unroll!(0..Self::SLOT.div_ceil(Self::STRIDE) as usize, |i| {
                let offset = i as u32 * Self::STRIDE;
                if offset + Self::STRIDE <= bytes || offset + own < bytes {
                    let to = self.shared + self.write + offset;
                    cp_async_16(to, source.wrapping_add(Self::in_block(of, offset) as usize));
                }
            });
            commit_group();
            self.write = Self::advance(self.write);
        }
    }

    /// The shared address of a piece of block `block`, which is the next one, landed and visible to the CTA; the slot of the piece before it is refilled.
    #[inline(always)]
    pub(crate) unsafe fn next(&mut self, params: &AttentionParams, vars: &SharedVars, block: u32, of: Of) -> u32 {
        let item = match of {
            Of::K(piece) => piece,
            Of::V(piece) => K::PIECES + piece,
        };
        let ahead = item + K::SLOTS - 1;
        unsafe {
            // In front of the barrier, behind which all warps stand together and would wait for it.
            let source = Self::source(params, vars.number(block + (ahead / Self::ITEMS) as u32), Self::of(ahead));
            match K::SLOTS {
                2 => wait_group::<0>(),
                3 => wait_group::<1>(),
                4 => wait_group::<2>(),
                _ => wait_group::<3>(),
            }
            bar_sync();
            self.request(source, Self::of(ahead));
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
        let next = slot + Self::SLOT;
        if next == K::SLOTS as u32 * Self::SLOT { 0 } else { next }
    }
}
