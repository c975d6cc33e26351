//! What the warps of a team tell each other through shared memory: row maxima and P.

use super::Kernel;
use super::place::Place;
use crate::attention::KEY_STEPS;
use crate::attention::output::Probabilities;
use crate::attention::softmax::Team;
use crate::config::sm80::{MAXIMA_BYTES, team_bytes};
use crate::ptx::barrier::{bar_sync_some, warp_sync};
use crate::ptx::math::max_f16x2;
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_u32, st_shared_v2_u32, st_shared_v4_u32};
use core::marker::PhantomData;

/// Bytes of a fragment of P in all of a warp's lanes.
const FRAGMENT: usize = 32 * 16;

/// This warp's view of its team's shared memory. `K::TEAM` is a power of two, `MT` at most 2.
///
/// A barrier of the CTA lies between [`Self::share`] and [`Self::collect`], and another before the next block's `share`.
pub(crate) struct SharingTeam<K, const MT: usize> {
    /// The first member's maxima of this lane's rows.
    maxima: u32,
    /// This lane's part of the first member's first fragment.
    fragments: u32,
    team: u32,
    member: u32,
    /// Whether this lane writes what the lanes of its quad have in common.
    writes: bool,
    kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> Team<MT> for SharingTeam<K, MT> {
    const WARPS: usize = K::TEAM;

    /// Equal in the four lanes of a quad, before and after.
    #[inline(always)]
    unsafe fn largest(&self, own: [u32; MT]) -> [u32; MT] {
        let mut largest = own;
        if K::TEAM > 1 {
            unsafe {
                st_shared_v2_u32(self.writes, self.maxima_of(0), [own[0], own[MT - 1]]);
                bar_sync_some(1 + self.team, 32 * K::TEAM as u32);
            }
        }
        unroll!(1..K::TEAM, |other| {
            let theirs = unsafe { ld_shared_v2_u32(self.maxima_of(other)) };
            unroll!(0..MT, |mt| {
                largest[mt] = max_f16x2(largest[mt], theirs[mt]);
            });
        });
        largest
    }

    #[inline(always)]
    unsafe fn settle(&self) {
        unsafe {
            if K::TEAM > 1 {
                bar_sync_some(1 + self.team, 32 * K::TEAM as u32);
            } else {
                warp_sync();
            }
        }
    }

    /// Equal in the four lanes of a quad, before and after.
    #[inline(always)]
    unsafe fn combine(&self, own: [[f32; 2]; MT], join: impl Fn(f32, f32) -> f32) -> [[f32; 2]; MT] {
        let mut joined = own;
        if K::TEAM > 1 {
            // The two words of a row group are those of its two rows.
            const { assert!(MT == 1 || K::TEAM == 1) }
            const { assert!(K::TEAM <= 4) }
            let both = |a: [f32; 2], b: [f32; 2]| [join(a[0], b[0]), join(a[1], b[1])];
            unsafe {
                self.settle();
                st_shared_v2_u32(self.writes, self.maxima_of(0), own[0].map(f32::to_bits));
                bar_sync_some(1 + self.team, 32 * K::TEAM as u32);
                let of = |other| ld_shared_v2_u32(self.maxima_of(other)).map(f32::from_bits);
                joined[0] = both(own[0], of(1));
                // Neighbours first, in all members: an order of its own would round a sum otherwise.
                if K::TEAM > 2 {
                    joined[0] = both(joined[0], both(of(2), of(3)));
                }
            }
        }
        joined
    }
}

impl<K: Kernel<MT>, const MT: usize> SharingTeam<K, MT> {
    #[inline(always)]
    pub(crate) fn new(offset: usize, place: &Place) -> Self {
        let team = place.thread / (32 * K::TEAM as u32);
        let base = place.shared + offset as u32 + team * team_bytes(MT, K::TEAM) as u32;
        let fragments = base + (K::TEAM * MAXIMA_BYTES) as u32 + place.thread % 32 * 16;
        Self {
            maxima: base + place.lane.group * 8,
            fragments,
            team,
            member: place.member,
            writes: place.lane.quad == 0,
            kernel: PhantomData,
        }
    }

    /// Gives a step of this warp's P to the team.
    #[inline(always)]
    pub(crate) unsafe fn share(&self, p: &Probabilities<MT>, step: usize) {
        if K::TEAM > 1 {
            unroll!(0..MT, |mt| { unsafe { st_shared_v4_u32(true, self.fragment(mt, step), p[mt][step]) } });
        }
    }

    /// Fills in the steps of the other members.
    #[inline(always)]
    pub(crate) unsafe fn collect(&self, p: &mut Probabilities<MT>) {
        unroll!(K::KEY_STEPS..KEY_STEPS, |step| {
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
        let member = self.member ^ (step / K::KEY_STEPS) as u32;
        self.fragments
            + member * (K::KEY_STEPS * MT * FRAGMENT) as u32
            + ((step % K::KEY_STEPS * MT + mt) * FRAGMENT) as u32
    }
}
