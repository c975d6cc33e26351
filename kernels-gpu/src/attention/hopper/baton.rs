//! Who computes exponentials next.
//!
//! Each sub-core of an SM has one special function unit and one warp of every consumer warpgroup. Left alone, those warps fall
//! into step, for they wait for the same blocks: then the unit is what all of them wait for, and it idles while they all do
//! something else. So they hand a baton round: a warp starts its exponentials when the one before it is some way into its own.

use crate::ptx::special::{bar_arrive_some, bar_sync_some, first_lane, tid_x};

/// Threads that meet at a handover: the warp that has the baton, and the one that waits for it.
const PAIR: u32 = 64;

/// A warp's place in the round of its sub-core. All warps take the baton equally often.
#[derive(Clone, Copy)]
pub(crate) struct Baton<const WGS: usize> {
    /// The warp's warpgroup.
    group: u32,
    /// Barriers at which this warp and the next one wait for the baton. Barrier 0 is the CTA's.
    own: u32,
    next: u32,
}

impl<const WGS: usize> Baton<WGS> {
    /// The round of the calling warp, before the first handover.
    ///
    /// # Safety
    /// All consumers call it, in whole warps.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        const { assert!(1 + 4 * WGS <= 16, "a CTA has 16 barriers") }
        let warp = unsafe { first_lane(tid_x() / 32) };
        let (group, sub_core) = (warp / 4, warp % 4);
        let heir = if Self::last(group) { 0 } else { group + 1 };
        let baton = Self { group, own: 1 + warp, next: 1 + 4 * heir + sub_core };
        if Self::last(group) {
            unsafe { baton.pass() };
        }
        baton
    }

    /// Waits for the baton.
    ///
    /// # Safety
    /// In whole warps; [`Self::pass`] follows.
    #[inline(always)]
    pub(crate) unsafe fn take(&self) {
        unsafe { bar_sync_some(self.own, PAIR) }
    }

    /// Gives the baton to the next warp.
    ///
    /// # Safety
    /// In whole warps that have it.
    #[inline(always)]
    pub(crate) unsafe fn pass(&self) {
        unsafe { bar_arrive_some(self.next, PAIR) }
    }

    /// Takes the baton out of the round, so that no barrier is left half met.
    ///
    /// # Safety
    /// In whole warps, after the last handover.
    #[inline(always)]
    pub(crate) unsafe fn finish(self) {
        if self.group == 0 {
            unsafe { self.take() };
        }
    }

    #[inline(always)]
    fn last(group: u32) -> bool {
        group + 1 == WGS as u32
    }
}
