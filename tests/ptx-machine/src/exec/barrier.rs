//! `bar.sync`, `bar.arrive`, and what warps learn of each other there.

use super::cta::{Cta, State, Warp};
use super::mbarrier;
use super::schedule::Flow;
use crate::isa::Barrier;
use crate::memory::Knowledge;
use crate::registers::Slot;
use crate::report::Fault;

/// A barrier that some warps have reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Meeting {
    /// Warps to come, in all; zero while nobody is here.
    expected: u32,
    arrived: u32,
    /// Warps that wait, as bits.
    waiting: u32,
    /// What somebody here knows.
    known: Knowledge,
    line: u32,
}

/// Executes a barrier or a fence.
pub(super) fn execute(op: &Barrier, warp: &Warp, cta: &mut Cta<'_>, mask: u32, line: u32) -> Flow {
    match op {
        Barrier::Meet { wait, barrier, threads } => meet(warp, cta, mask, line, (*wait, *barrier, *threads)),
        Barrier::Fence => Flow::Next,
        Barrier::MbarrierInitFence => {
            mbarrier::fence(cta, warp.id);
            Flow::Next
        }
        Barrier::ProxyFence => {
            mbarrier::fence(cta, warp.id);
            let now = cta.shared.tick();
            cta.parties[warp.id].fence(now);
            Flow::Next
        }
    }
}

/// Arrives at a barrier, and perhaps waits there for the others.
fn meet(
    warp: &Warp,
    cta: &mut Cta<'_>,
    mask: u32,
    line: u32,
    (wait, barrier, threads): (bool, Slot, Option<Slot>),
) -> Flow {
    let lane = mask.trailing_zeros() as usize;
    cta.require_lanes(warp, line, warp.present, mask);
    let number = warp.registers.narrow(barrier)[lane];
    let all = cta.env.warps();
    let threads = threads.map_or(all * 32, |slot| warp.registers.narrow(slot)[lane]);
    let expected = threads / 32;
    let Some(meeting) = cta.meetings.get_mut(number as usize) else {
        cta.fatal(warp.id, lane, line, Fault::BarrierCount { barrier: number, threads });
        return Flow::Next;
    };
    if threads % 32 != 0
        || expected == 0
        || expected > all
        || !matches!(meeting.expected, 0) && meeting.expected != expected
    {
        cta.fatal(warp.id, lane, line, Fault::BarrierCount { barrier: number, threads });
        return Flow::Next;
    }
    meeting.expected = expected;
    meeting.arrived += 1;
    meeting.line = line;
    let party = &mut cta.parties[warp.id];
    party.release(u32::MAX, &mut meeting.known);
    // What this warp does from here on is not ordered by its arrival.
    party.meet(cta.shared.tick());
    if wait {
        meeting.waiting |= 1 << warp.id;
        cta.states[warp.id] = State::Waiting;
    }
    if meeting.arrived < expected {
        return if wait { Flow::Yield } else { Flow::Next };
    }
    let meeting = std::mem::take(meeting);
    let time = cta.shared.tick();
    for (id, party) in cta.parties.iter_mut().enumerate() {
        if meeting.waiting >> id & 1 == 1 {
            party.known.learn(&meeting.known);
            party.time = time;
            cta.states[id] = State::Ready;
        }
    }
    if meeting.waiting.count_ones() == all {
        cta.shared.all_met();
    }
    // Others may have to run first, so the warp gives up its turn even now.
    if wait { Flow::Yield } else { Flow::Next }
}

/// Reports barriers at which warps still wait when none can run.
pub(super) fn report_stuck(cta: &mut Cta<'_>, warps: &[Warp]) {
    for barrier in 0..cta.meetings.len() {
        let Meeting { expected, arrived, waiting, line, .. } = cta.meetings[barrier];
        if waiting == 0 {
            continue;
        }
        let id = waiting.trailing_zeros() as usize;
        let present = warps.get(id).map_or(1, |warp| warp.present & !warp.exited);
        let fault = Fault::BarrierNotReached { barrier: barrier as u32, arrived, expected };
        cta.fault(id, present.trailing_zeros() as usize, line, fault);
    }
}
