//! `mbarrier`: arrivals, expected bytes, and phases that complete.
//!
//! A bulk copy counts as done the moment it is issued, as far as phases go. Its bytes arrive, and may be relied on,
//! only when somebody has seen the phase complete.

use super::cta::{Cta, State, Warp};
use super::memory::addresses;
use super::schedule::Flow;
use crate::isa::{Address, Mbarrier};
use crate::memory::{FIRST_MBARRIER, Knowledge, PARTIES, Party, Refusal, Space};
use crate::registers::{LANES, Lane, Slot, lanes};
use crate::report::{Fault, RaceKind};

/// Counts of arrivals and of bytes stay below this.
const LIMIT: i64 = 1 << 20;

/// An mbarrier in shared memory.
pub(super) struct Object {
    address: u64,
    expected: u32,
    /// Arrivals still to come in this phase.
    pending: u32,
    /// Bytes expected and not yet copied; negative while copies are ahead of the expectation.
    bytes: i64,
    /// Phases completed.
    phase: u32,
    /// Line, warp and time of the initialisation.
    birth: (u32, u32, u32),
    /// Whether a fence has made the initialisation known to bulk copies.
    fenced: bool,
    /// What those who arrived in this phase knew, and those of the last complete phase.
    arriving: Knowledge,
    completed: Knowledge,
    /// In whose name bulk copies write; once there has been one.
    party: Option<u32>,
    copies: Vec<Copy>,
    /// Where the number of bytes last changed.
    place: (usize, usize, u32),
    /// Warps that have looked in vain for the end of the last complete phase, and of this one, as bits.
    refused: [u32; 2],
    /// Warps that wait, as bits.
    waiting: u32,
}

/// A bulk copy that nobody knows to be complete.
struct Copy {
    phase: u32,
    to: u64,
    data: Vec<u8>,
    /// Warp, lane and line.
    place: (usize, usize, u32),
}

impl Object {
    /// Whether a warp must see the last phase as complete: there was none, or it knows of everything that completed it.
    fn is_known_complete(&self, party: &Party) -> bool {
        let arrived = self.completed.seen.iter().zip(0..);
        self.phase == 0
            || self.copies.iter().all(|copy| copy.phase >= self.phase)
                && arrived.into_iter().all(|(time, other)| party.is_after(other, *time))
    }

    /// Completes the phase if it is due; false if it has received more bytes than it expects.
    fn settle(&mut self, states: &mut [State]) -> bool {
        if self.pending > 0 {
            return self.bytes.abs() < LIMIT;
        }
        if self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.refused = [self.refused[1], 0];
            let landed = self.completed.seen;
            self.completed = std::mem::take(&mut self.arriving);
            if let Some(party) = self.party {
                self.completed.seen[party as usize] = landed[party as usize];
            }
            for warp in lanes(std::mem::take(&mut self.waiting)) {
                states[warp] = State::Ready;
            }
        }
        (0..LIMIT).contains(&self.bytes)
    }
}

/// Executes one instruction on all lanes. Who looks for the end of a phase looks too early the first time, unless it
/// knows better, so that kernels have to look again.
pub(super) fn execute(op: &Mbarrier, warp: &mut Warp, cta: &mut Cta<'_>, mask: u32, line: u32) -> Flow {
    match *op {
        Mbarrier::Init { address, count } => {
            let (at, counts) = (addresses(&warp.registers, address), *warp.registers.narrow(count));
            for lane in lanes(mask) {
                init(warp, cta, lane, line, at[lane], counts[lane]);
            }
        }
        Mbarrier::Invalidate { address } => {
            let at = addresses(&warp.registers, address);
            for lane in lanes(mask) {
                invalidate(warp, cta, lane, line, at[lane]);
            }
        }
        Mbarrier::Arrive { state, address, bytes, count } => {
            let at = addresses(&warp.registers, address);
            let read = |slot: Option<Slot>, otherwise| slot.map_or([otherwise; LANES], |s| *warp.registers.narrow(s));
            let (bytes, counts) = (read(bytes, 0), read(count, 1));
            let mut states = [0; LANES];
            for lane in lanes(mask) {
                let how = (mask, bytes[lane], counts[lane]);
                states[lane] = arrive(warp, cta, lane, line, at[lane], how);
            }
            if let Some(d) = state {
                u64::write(&mut warp.registers, d, mask, &states);
            }
            // What this warp does from here on is not covered by its arrival.
            cta.parties[warp.id].time = cta.shared.tick();
        }
        Mbarrier::Wait { suspend, p, address, parity } => {
            return wait(warp, cta, mask, line, (suspend, p, address, parity));
        }
    }
    Flow::Next
}

/// The mbarrier at an address, if the warp may know of it.
pub(super) fn find(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, address: u64) -> Option<usize> {
    let Some(index) = cta.mbarriers.iter().position(|object| object.address == address) else {
        cta.fatal(warp.id, lane, line, Fault::NotAnMbarrier { address });
        return None;
    };
    let (other_line, other_warp, time) = cta.mbarriers[index].birth;
    if !cta.parties[warp.id].is_after(other_warp, time) {
        let kind = RaceKind::ReadAfterWrite;
        cta.fault(warp.id, lane, line, Fault::Race { kind, address, other_warp, other_line: Some(other_line) });
    }
    Some(index)
}

fn init(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, address: u64, count: u32) {
    if count == 0 || i64::from(count) >= LIMIT {
        return cta.fatal(warp.id, lane, line, Fault::MbarrierCount { address, count });
    }
    match cta.shared.claim(address, &cta.parties[warp.id], line) {
        Ok(None) => {}
        Ok(Some(fault)) => return cta.fatal(warp.id, lane, line, fault),
        Err(refusal) => {
            let (space, bytes) = (Space::Shared, 8);
            let fault = match refusal {
                Refusal::Misaligned => Fault::Misaligned { space, address, bytes },
                _ => Fault::OutOfBounds { space, address, bytes },
            };
            return cta.fatal(warp.id, lane, line, fault);
        }
    }
    cta.mbarriers.push(Object {
        address,
        expected: count,
        pending: count,
        bytes: 0,
        phase: 0,
        birth: (line, warp.id as u32, cta.parties[warp.id].time),
        fenced: false,
        arriving: Knowledge::default(),
        completed: Knowledge::default(),
        party: None,
        copies: Vec::new(),
        place: (warp.id, lane, line),
        refused: [0; 2],
        waiting: 0,
    });
}

fn invalidate(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, address: u64) {
    let Some(index) = find(warp, cta, lane, line, address) else { return };
    let object = &cta.mbarriers[index];
    if object.waiting != 0 || object.bytes != 0 || !object.copies.is_empty() {
        return cta.fatal(warp.id, lane, line, Fault::MbarrierInUse { address });
    }
    cta.shared.disclaim(address);
    cta.mbarriers.remove(index);
}

/// Expects bytes, and arrives together with other lanes; returns the phase as the opaque state.
fn arrive(
    warp: &Warp,
    cta: &mut Cta<'_>,
    lane: usize,
    line: u32,
    address: u64,
    (lanes, bytes, count): (u32, u32, u32),
) -> u64 {
    let Some(index) = find(warp, cta, lane, line, address) else { return 0 };
    let object = &mut cta.mbarriers[index];
    let phase = object.phase;
    if count == 0 || count > object.pending {
        let fault = Fault::MbarrierArrivals { address, expected: object.expected };
        cta.fatal(warp.id, lane, line, fault);
        return 0;
    }
    if bytes > 0 {
        object.place = (warp.id, lane, line);
    }
    object.bytes += i64::from(bytes);
    object.pending -= count;
    cta.parties[warp.id].release(lanes, &mut object.arriving);
    settle(warp, cta, lane, line, index);
    phase.into()
}

fn settle(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, index: usize) {
    let object = &mut cta.mbarriers[index];
    if !object.settle(&mut cta.states) {
        let fault = Fault::MbarrierBytes { address: object.address, bytes: object.bytes };
        cta.fatal(warp.id, lane, line, fault);
    }
}

fn wait(
    warp: &mut Warp,
    cta: &mut Cta<'_>,
    mask: u32,
    line: u32,
    (suspend, p, address, parity): (bool, Slot, Address, Slot),
) -> Flow {
    let (at, parities) = (addresses(&warp.registers, address), *warp.registers.narrow(parity));
    let (mut complete, mut refusals) = (0, Vec::new());
    for lane in lanes(mask) {
        let Some(index) = find(warp, cta, lane, line, at[lane]) else { return Flow::Next };
        let object = &mut cta.mbarriers[index];
        let complete_now = object.phase & 1 != parities[lane] & 1;
        let refused = object.refused[usize::from(!complete_now)] >> warp.id & 1 == 1;
        if !complete_now && refused && suspend {
            object.waiting |= 1 << warp.id;
            cta.states[warp.id] = State::Waiting;
            warp.wait_place = (lane, line);
            return Flow::Again;
        }
        if !complete_now || !refused && !object.is_known_complete(&cta.parties[warp.id]) {
            refusals.push((index, usize::from(!complete_now)));
            continue;
        }
        complete |= 1 << lane;
        land(cta, index);
        let (party, object) = (&mut cta.parties[warp.id], &cta.mbarriers[index]);
        party.known.learn(&object.completed);
    }
    for (index, phase) in refusals {
        cta.mbarriers[index].refused[phase] |= 1 << warp.id;
    }
    warp.registers.set_predicate(p, mask, complete);
    // A warp that looks in vain lets the others run.
    if complete == mask { Flow::Next } else { Flow::Yield }
}

/// Delivers the copies of the phases that have completed.
fn land(cta: &mut Cta<'_>, index: usize) {
    let object = &mut cta.mbarriers[index];
    let due = |copy: &Copy| copy.phase < object.phase;
    let Some(party) = object.party.filter(|_| object.copies.iter().any(due)) else { return };
    let time = cta.shared.tick();
    object.completed.seen[party as usize] = time;
    object.copies.retain(|copy| {
        let due = copy.phase < object.phase;
        if due {
            cta.shared.land_bulk(copy.to, &copy.data, party, time);
        }
        !due
    });
}

/// Counts a bulk copy, and keeps its bytes, if it has any to deliver.
pub(super) fn copy(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, index: usize, to: u64, data: Vec<u8>) {
    let object = &mut cta.mbarriers[index];
    let place = (warp.id, lane, line);
    if object.party.is_none() {
        cta.copying_mbarriers += 1;
        object.party = Some(FIRST_MBARRIER + cta.copying_mbarriers - 1);
    }
    object.bytes -= data.len() as i64;
    object.place = place;
    object.copies.push(Copy { phase: object.phase, to, data, place });
    settle(warp, cta, lane, line, index);
}

/// Whether an mbarrier may take part in bulk copies, and one more can.
pub(super) fn check_copy(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, index: usize) -> bool {
    let Object { address, fenced, party, .. } = cta.mbarriers[index];
    if !fenced {
        cta.fault(warp.id, lane, line, Fault::MbarrierNotFenced { address });
    }
    // The last number is that of bytes that are an mbarrier.
    let room = party.is_some() || FIRST_MBARRIER + cta.copying_mbarriers < PARTIES as u32 - 1;
    if !room {
        cta.fatal(warp.id, lane, line, Fault::TooManyMbarriers);
    }
    room
}

/// A fence makes the initialisations that a warp knows of known to bulk copies.
pub(super) fn fence(cta: &mut Cta<'_>, warp: usize) {
    let party: &Party = &cta.parties[warp];
    for object in &mut cta.mbarriers {
        object.fenced |= party.is_after(object.birth.1, object.birth.2);
    }
}

/// Reports mbarriers that warps still wait for when none can run.
pub(super) fn report_stuck(cta: &mut Cta<'_>, warps: &[Warp]) {
    for index in 0..cta.mbarriers.len() {
        let Object { address, pending, bytes, waiting, phase, .. } = cta.mbarriers[index];
        let fault = Fault::MbarrierNotCompleted { address, parity: phase & 1, arrivals: pending, bytes };
        for id in lanes(waiting) {
            let (lane, line) = warps[id].wait_place;
            cta.fault(id, lane, line, fault.clone());
        }
    }
}

/// Reports, at the end of a CTA that has none other, mbarriers whose bytes do not add up, and copies not waited for.
pub(super) fn report_end(cta: &mut Cta<'_>) {
    if !cta.findings.is_empty() {
        return;
    }
    for index in 0..cta.mbarriers.len() {
        let Object { address, bytes, place, ref copies, .. } = cta.mbarriers[index];
        let left = copies.first().map(|copy| (copy.place, Fault::AsyncPending { address: copy.to }));
        let fault = if bytes == 0 { left } else { Some((place, Fault::MbarrierBytes { address, bytes })) };
        if let Some(((id, lane, line), fault)) = fault {
            cta.fault(id, lane, line, fault);
        }
    }
}
