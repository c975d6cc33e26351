//! Rings of slots in shared memory, each slot with two barriers: full, which those who fill it complete, and empty, which those
//! who read it complete.

use super::Kernel;
use crate::attention::softmax::Softmax;
use crate::config::sm90a::{self, Q_BUFFERS};
use crate::layout::{KV_BLOCK, block_bytes};
use crate::ptx::barrier::warp_sync;
use crate::ptx::mbarrier;
use core::marker::PhantomData;

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

/// Where a warp is in a ring: the slot, and how often the ring has come round, modulo 2, which is the parity of the phase that
/// it waits for on the slot's barriers.
#[derive(Clone, Copy)]
pub(crate) struct RingState {
    slot: u32,
    parity: u32,
}

impl RingState {
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
    pub(crate) fn address(&self, state: RingState) -> u32 {
        self.data + state.slot * self.bytes
    }

    /// The slot's full barrier.
    #[inline(always)]
    pub(crate) fn full(&self, state: RingState) -> u32 {
        self.full + 8 * state.slot
    }

    /// Waits until the slot has been filled.
    #[inline(always)]
    pub(crate) unsafe fn wait_full(&self, state: RingState) {
        unsafe { mbarrier::wait(self.full(state), state.parity) }
    }

    /// Whether the slot has been filled.
    #[inline(always)]
    pub(crate) unsafe fn test_full(&self, state: RingState) -> bool {
        unsafe { mbarrier::test(self.full(state), state.parity) }
    }

    /// Waits until the slot has been filled, if [`test_full`](Self::test_full) has not found it so already: a test issued early
    /// enough costs nothing, where the first test of a wait has the latency of shared memory.
    #[inline(always)]
    pub(crate) unsafe fn wait_full_unless(&self, tested: bool, state: RingState) {
        if !tested {
            unsafe { self.wait_full(state) }
        }
    }

    /// Waits until the slot is free. In the first round it is: the phase before a barrier's first counts as ended.
    #[inline(always)]
    pub(crate) unsafe fn wait_empty(&self, state: RingState) {
        unsafe { mbarrier::wait(self.empty + 8 * state.slot, state.parity ^ 1) }
    }

    /// This warp is done with the slot; the one lane that is `elected` says so.
    #[inline(always)]
    pub(crate) unsafe fn release(&self, state: RingState, elected: bool) {
        unsafe {
            warp_sync();
            mbarrier::arrive_if(elected, self.empty + 8 * state.slot);
        }
    }

    /// The next slot.
    #[inline(always)]
    pub(crate) fn next(&self, state: RingState) -> RingState {
        if state.slot + 1 == self.slots {
            RingState { slot: 0, parity: state.parity ^ 1 }
        } else {
            RingState { slot: state.slot + 1, parity: state.parity }
        }
    }
}

/// The rings of a CTA: tiles of Q, blocks of K with their keys' factors, blocks of V.
pub(crate) struct Rings<K> {
    base: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel> Rings<K> {
    #[inline(always)]
    pub(crate) fn new(base: u32) -> Self {
        Self { base, kernel: PhantomData }
    }

    /// The barriers, by one thread.
    #[inline(always)]
    pub(crate) unsafe fn init(&self) {
        let warps = 4 * K::WGS as u32;
        unsafe {
            self.q().init(32, warps);
            // The copying thread, a warp for the factors, and a thread for the block's scales.
            self.k().init(1 + 32 + u32::from(K::Softmax::SPECIAL), warps);
            self.v().init(1, warps);
        }
    }

    const BARRIERS: u32 = sm90a::barrier_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32;

    #[inline(always)]
    pub(crate) fn q(&self) -> Ring {
        Ring::new(self.base, sm90a::q_buffer_bytes(K::HEAD_DIM, K::WGS) as u32, self.base + Self::BARRIERS, Q_BUFFERS)
    }

    #[inline(always)]
    pub(crate) fn k(&self) -> Ring {
        let barriers = self.base + Self::BARRIERS + (16 * Q_BUFFERS) as u32;
        Ring::new(
            self.base + sm90a::k_offset(K::HEAD_DIM, K::WGS) as u32,
            block_bytes(K::HEAD_DIM) as u32,
            barriers,
            K::SLOTS,
        )
    }

    #[inline(always)]
    pub(crate) fn v(&self) -> Ring {
        let barriers = self.base + Self::BARRIERS + (16 * (Q_BUFFERS + K::SLOTS)) as u32;
        Ring::new(
            self.base + sm90a::v_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32,
            block_bytes(K::HEAD_DIM) as u32,
            barriers,
            K::SLOTS,
        )
    }

    /// Shared address of the key factors that belong to a K block.
    #[inline(always)]
    pub(crate) fn factors(&self, k: RingState) -> u32 {
        self.base + sm90a::factor_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32 + k.slot * (4 * KV_BLOCK) as u32
    }

    /// Shared address of the scales of a block: its place is taken by another one only when the ring of K has come round twice.
    #[inline(always)]
    pub(crate) fn block_scales(&self, k: RingState) -> u32 {
        let first = self.base + sm90a::block_scales_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32;
        first + (2 * k.slot + k.parity) * sm90a::BLOCK_SCALES_BYTES as u32
    }

    /// Shared address of what a warp keeps of its warpgroup's rows: their reach, their least and their largest scale.
    #[inline(always)]
    pub(crate) fn reach(&self, warp: u32) -> u32 {
        self.base + sm90a::reach_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32 + sm90a::REACH_BYTES as u32 * warp
    }

    /// Shared address of the warps' words for special blocks.
    #[inline(always)]
    pub(crate) fn scratch(&self) -> u32 {
        self.base + sm90a::scratch_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32
    }

    /// Shared address of the consumers' sums, 16 bytes a thread.
    #[inline(always)]
    pub(crate) fn sums(&self) -> u32 {
        self.base + sm90a::sums_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32
    }

    /// Shared address of the notes of the CTA's rows.
    #[inline(always)]
    pub(crate) fn notes(&self) -> u32 {
        self.base + sm90a::notes_offset(K::HEAD_DIM, K::WGS, K::SLOTS) as u32
    }
}
