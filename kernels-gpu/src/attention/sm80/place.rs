//! Where a lane is.

use super::Kernel;
use crate::attention::lane::Lane;
use crate::attention::sequence::Sequence;
use crate::attention::softmax::Notes;
use crate::config::sm80::{MAXIMA_BYTES, notes_offset, scratch_offset, sums_offset, team_bytes, team_offset};
use crate::config::{NOTE_BYTES, SCRATCH_BYTES};
use crate::ptx::opaque::opaque;
use crate::smem;

/// Where a lane is: in its warp's fragments, in its team, and which head it works on.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub lane: Lane,
    /// `tid.x`.
    pub thread: u32,
    /// The first byte of shared memory.
    pub shared: u32,
    /// Which of the team's warps this is.
    pub member: u32,
    pub sequence: Sequence,
}

/// The place of thread `thread` of the CTA with these rows of a sequence.
#[inline(always)]
pub(crate) fn place<K: Kernel<MT>, const MT: usize>(row: u32, sequence: Sequence, thread: u32) -> Place {
    let thread = if K::TEAM > 1 { opaque(thread) } else { thread };
    let (lane, member) = lane::<K, MT>(row, thread);
    Place { lane, thread, shared: smem::base(), member, sequence }
}

/// The lane of a thread of the CTA whose tile begins at `row`, and which of its team's warps it is in.
#[inline(always)]
pub(crate) fn lane<K: Kernel<MT>, const MT: usize>(row: u32, thread: u32) -> (Lane, u32) {
    let (team, team_rows) = (K::TEAM as u32, (16 * MT) as u32);
    let warp = thread / 32;
    (Lane::new(thread, row + warp / team * team_rows), warp % team)
}

/// Where the warp of a thread keeps its notes, from the row of the thread's quad on.
#[inline(always)]
pub(crate) fn notes<K: Kernel<MT>, const MT: usize>(thread: u32) -> Notes {
    let base = smem::base();
    let offset = notes_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32;
    let (warp, bytes) = (thread / 32, (16 * MT * NOTE_BYTES) as u32);
    let (team, member) = (warp / K::TEAM as u32, warp % K::TEAM as u32);
    let first = base + offset + thread % 32 / 4 * NOTE_BYTES as u32;
    let scratch = if K::TEAM == 1 {
        scratch_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32 + warp * SCRATCH_BYTES as u32
    } else {
        let of_team = team_offset(K::HEAD_DIM, K::SLOTS) as u32 + team * team_bytes(MT, K::TEAM) as u32;
        of_team + (K::TEAM * MAXIMA_BYTES) as u32 + member * (SCRATCH_BYTES / K::TEAM) as u32
    };
    Notes {
        own: first + warp * bytes,
        first: first + team * K::TEAM as u32 * bytes,
        bytes,
        scratch: base + scratch + 4 * (thread % 32),
        sums: base + sums_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32 + (16 * MT) as u32 * thread,
    }
}
