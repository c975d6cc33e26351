//! What the warps of a team tell each other through shared memory: row maxima and P.

use super::output::Probabilities;
use super::{KEY_STEPS, Place};
use crate::config::{MAXIMA_BYTES, exchange_bytes};
use crate::ptx::math::max_f16x2;
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_u32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::special::bar_sync_some;

/// Bytes of a fragment of P in all of a warp's lanes.
const FRAGMENT: usize = 32 * 16;

/// This warp's view of its team's shared memory. `TEAM` is a power of two, `MT` at most 2.
///
/// A barrier of the CTA lies between [`Self::share`] and [`Self::collect`], and another before the next block's `share`.
pub(crate) struct Exchange<const MT: usize, const TEAM: usize> {
    /// The first member's maxima of this lane's rows.
    maxima: u32,
    /// This lane's part of the first member's first fragment.
    fragments: u32,
    team: u32,
    member: u32,
    /// Whether this lane speaks for its quad.
    speaks: bool,
}

impl<const MT: usize, const TEAM: usize> Exchange<MT, TEAM> {
    /// Steps of P of one member.
    const STEPS: usize = KEY_STEPS / TEAM;

    #[inline(always)]
    pub(crate) fn new(offset: usize, place: &Place) -> Self {
        let team = place.thread / (32 * TEAM as u32);
        let base = place.shared + offset as u32 + team * exchange_bytes(MT, TEAM) as u32;
        let fragments = base + (TEAM * MAXIMA_BYTES) as u32 + place.thread % 32 * 16;
        Self { maxima: base + place.group * 8, fragments, team, member: place.member, speaks: place.quad == 0 }
    }

    /// The largest of the members' maxima (pairs of float16, equal in the four lanes of a quad).
    #[inline(always)]
    pub(crate) unsafe fn largest(&self, own: [u32; MT]) -> [u32; MT] {
        let mut largest = own;
        if TEAM > 1 {
            unsafe {
                st_shared_v2_u32(self.speaks, self.maxima_of(0), [own[0], own[MT - 1]]);
                bar_sync_some(1 + self.team, 32 * TEAM as u32);
            }
        }
        unroll!(1..TEAM, |other| {
            let theirs = unsafe { ld_shared_v2_u32(self.maxima_of(other)) };
            unroll!(0..MT, |mt| {
                largest[mt] = max_f16x2(largest[mt], theirs[mt]);
            });
        });
        largest
    }

    /// Gives a step of this warp's P to the team.
    #[inline(always)]
    pub(crate) unsafe fn share(&self, p: &Probabilities<MT>, step: usize) {
        if TEAM > 1 {
            unroll!(0..MT, |mt| { unsafe { st_shared_v4_u32(true, self.fragment(mt, step), p[mt][step]) } });
        }
    }

    /// Fills in the steps of the other members.
    #[inline(always)]
    pub(crate) unsafe fn collect(&self, p: &mut Probabilities<MT>) {
        unroll!(Self::STEPS..KEY_STEPS, |step| {
            unroll!(0..MT, |mt| {
                p[mt][step] = unsafe { ld_shared_v4_u32(self.fragment(mt, step)) };
            });
        });
    }

    /// Where the maxima of the member `other` away lie.
    #[inline(always)]
    fn maxima_of(&self, other: usize) -> u32 {
        self.maxima + (self.member ^ other as u32) * MAXIMA_BYTES as u32
    }

    /// Where a fragment lies; steps are counted from this warp's own, as in [`Probabilities`].
    #[inline(always)]
    fn fragment(&self, mt: usize, step: usize) -> u32 {
        let member = self.member ^ (step / Self::STEPS) as u32;
        self.fragments
            + member * (Self::STEPS * MT * FRAGMENT) as u32
            + ((step % Self::STEPS * MT + mt) * FRAGMENT) as u32
    }
}
