//! The order in which warps compute exponentials.
//!
//! Each sub-core of an SM has one special function unit and one warp of every consumer warpgroup. Left alone, those warps fall
//! into step, for they wait for the same blocks: then the unit is what all of them wait for, and it idles while they all do
//! something else. So the warps of a sub-core take turns: one starts its exponentials when the one before it is some way into
//! its own. (FlashAttention-3's warp scheduler barriers, here for each sub-core.)

use super::Kernel;
use crate::ptx::barrier::{bar_arrive_some, bar_sync_some};
use crate::ptx::shuffle::first_lane;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// Threads that meet at a barrier: the warp whose turn ends, and the one whose turn comes.
const PAIR: u32 = 64;

/// The barriers of a warp. All warps take equally many turns.
pub(crate) struct SchedulerBarrier<K> {
    /// The warp's warpgroup.
    group: u32,
    /// Barriers at which this warp and the next one wait for their turn. Barrier 0 is the CTA's.
    own: u32,
    next: u32,
    kernel: PhantomData<K>,
}

impl<K> Clone for SchedulerBarrier<K> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for SchedulerBarrier<K> {}

impl<K: Kernel> SchedulerBarrier<K> {
    /// Of the calling warp, before the first turn, which is the first warpgroup's.
    ///
    /// # Safety
    /// All consumers call it, in whole warps.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        const { assert!(1 + 4 * K::WGS <= 16, "a CTA has 16 barriers") }
        let warp = unsafe { first_lane(tid_x() / 32) };
        let (group, sub_core) = (warp / 4, warp % 4);
        let next = if Self::last(group) { 0 } else { group + 1 };
        let barrier = Self { group, own: 1 + warp, next: 1 + 4 * next + sub_core, kernel: PhantomData };
        if Self::last(group) {
            unsafe { barrier.end_turn() };
        }
        barrier
    }

    /// Waits for the warp's turn.
    ///
    /// # Safety
    /// In whole warps; [`Self::end_turn`] follows.
    #[inline(always)]
    pub(crate) unsafe fn await_turn(&self) {
        unsafe { bar_sync_some(self.own, PAIR) }
    }

    /// Lets the next warp begin.
    ///
    /// # Safety
    /// In whole warps whose turn it is.
    #[inline(always)]
    pub(crate) unsafe fn end_turn(&self) {
        unsafe { bar_arrive_some(self.next, PAIR) }
    }

    /// Waits for the turn that nobody takes, so that no barrier is left half met.
    ///
    /// # Safety
    /// In whole warps, after the last turn.
    #[inline(always)]
    pub(crate) unsafe fn finish(self) {
        if self.group == 0 {
            unsafe { self.await_turn() };
        }
    }

    #[inline(always)]
    fn last(group: u32) -> bool {
        group + 1 == K::WGS as u32
    }
}
