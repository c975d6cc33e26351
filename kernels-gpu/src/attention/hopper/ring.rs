//! Rings of slots in shared memory, each slot with two barriers: full, which those who fill it complete, and empty, which those
//! who read it complete.

use crate::config::hopper::{self, Q_BUFFERS};
use crate::layout::{KV_BLOCK, block_bytes};
use crate::ptx::mbarrier;
use crate::ptx::special::warp_sync;

/// A ring of slots.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    /// Shared addresses of the first slot, of the first full barrier and of the first empty barrier.
    data: u32,
    full: u32,
    empty: u32,
    bytes: u32,
    slots: u32,
}

/// A place in a ring: the slot, and how often the ring has come round, modulo 2.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    slot: u32,
    parity: u32,
}

impl Turn {
    #[inline(always)]
    pub(crate) fn first() -> Self {
        Self { slot: 0, parity: 0 }
    }
}

impl Ring {
    #[inline(always)]
    fn new(data: u32, bytes: u32, barriers: u32, slots: usize) -> Self {
        let slots = slots as u32;
        Self { data, full: barriers, empty: barriers + 8 * slots, bytes, slots }
    }

    /// The barriers: `filling` arrivals complete a slot, and `reading` arrivals free it.
    #[inline(always)]
    unsafe fn init(&self, filling: u32, reading: u32) {
        let mut slot = 0;
        while slot < self.slots {
            unsafe {
                mbarrier::init(self.full + 8 * slot, filling);
                mbarrier::init(self.empty + 8 * slot, reading);
            }
            slot += 1;
        }
    }

    /// Shared address of the slot.
    #[inline(always)]
    pub(crate) fn address(&self, turn: Turn) -> u32 {
        self.data + turn.slot * self.bytes
    }

    /// The slot's full barrier.
    #[inline(always)]
    pub(crate) fn full(&self, turn: Turn) -> u32 {
        self.full + 8 * turn.slot
    }

    /// Waits until the slot has been filled.
    #[inline(always)]
    pub(crate) unsafe fn wait_full(&self, turn: Turn) {
        unsafe { mbarrier::wait(self.full(turn), turn.parity) }
    }

    /// Whether the slot has been filled.
    #[inline(always)]
    pub(crate) unsafe fn test_full(&self, turn: Turn) -> bool {
        unsafe { mbarrier::test(self.full(turn), turn.parity) }
    }

    /// Waits until the slot has been filled, where a test a while ago did not say so. The test hides what asking takes.
    #[inline(always)]
    pub(crate) unsafe fn wait_full_unless(&self, tested: bool, turn: Turn) {
        if !tested {
            unsafe { self.wait_full(turn) }
        }
    }

    /// Waits until the slot is free. In the first round it is: the phase before a barrier's first counts as ended.
    #[inline(always)]
    pub(crate) unsafe fn wait_empty(&self, turn: Turn) {
        unsafe { mbarrier::wait(self.empty + 8 * turn.slot, turn.parity ^ 1) }
    }

    /// This warp is done with the slot; `speaks` in one of its lanes.
    #[inline(always)]
    pub(crate) unsafe fn release(&self, turn: Turn, speaks: bool) {
        unsafe {
            warp_sync();
            mbarrier::arrive_if(speaks, self.empty + 8 * turn.slot);
        }
    }

    /// The next slot.
    #[inline(always)]
    pub(crate) fn next(&self, turn: Turn) -> Turn {
        if turn.slot + 1 == self.slots {
            Turn { slot: 0, parity: turn.parity ^ 1 }
        } else {
            Turn { slot: turn.slot + 1, parity: turn.parity }
        }
    }
}

/// The rings of a CTA: tiles of Q, blocks of K with their keys' factors, blocks of V.
#[derive(Clone, Copy)]
pub(crate) struct Rings<const D: usize, const WGS: usize, const SLOTS: usize> {
    base: u32,
}

impl<const D: usize, const WGS: usize, const SLOTS: usize> Rings<D, WGS, SLOTS> {
    #[inline(always)]
    pub(crate) fn new(base: u32) -> Self {
        Self { base }
    }

    /// The barriers, by one thread.
    #[inline(always)]
    pub(crate) unsafe fn init(&self) {
        let warps = 4 * WGS as u32;
        unsafe {
            self.q().init(32, warps);
            // The copying thread, and a warp for the factors.
            self.k().init(1 + 32, warps);
            self.v().init(1, warps);
        }
    }

    const BARRIERS: u32 = hopper::barrier_offset(D, WGS, SLOTS) as u32;

    #[inline(always)]
    pub(crate) fn q(&self) -> Ring {
        Ring::new(self.base, hopper::q_buffer_bytes(D, WGS) as u32, self.base + Self::BARRIERS, Q_BUFFERS)
    }

    #[inline(always)]
    pub(crate) fn k(&self) -> Ring {
        let barriers = self.base + Self::BARRIERS + (16 * Q_BUFFERS) as u32;
        Ring::new(self.base + hopper::k_offset(D, WGS) as u32, block_bytes(D) as u32, barriers, SLOTS)
    }

    #[inline(always)]
    pub(crate) fn v(&self) -> Ring {
        let barriers = self.base + Self::BARRIERS + (16 * (Q_BUFFERS + SLOTS)) as u32;
        Ring::new(self.base + hopper::v_offset(D, WGS, SLOTS) as u32, block_bytes(D) as u32, barriers, SLOTS)
    }

    /// Shared address of the key factors that belong to a K block.
    #[inline(always)]
    pub(crate) fn factors(&self, k: Turn) -> u32 {
        self.base + hopper::factor_offset(D, WGS, SLOTS) as u32 + k.slot * (4 * KV_BLOCK) as u32
    }
}
