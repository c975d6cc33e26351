//! What the four warps of a warpgroup do together: `wgmma` and its groups, and `setmaxnreg`.
//!
//! Each warp multiplies its own 16 rows when it executes a `wgmma`. A wait lasts until all four have come as far, and
//! registers count as in flight until then.

use super::cta::{Cta, State, Warp};
use super::schedule::Flow;
use super::wgmma;
use crate::isa::{Inst, Warpgroup, Watched, Wgmma};
use crate::registers::lanes;
use crate::report::Fault;
use std::collections::VecDeque;

/// Warps of a warpgroup.
pub(super) const WARPS: usize = 4;

/// What a warp has in flight.
#[derive(Default)]
pub(super) struct Flights {
    registers: Vec<Usage>,
    /// Fences executed.
    fences: u32,
    /// Products issued.
    pub(super) issued: u32,
    /// Products issued before each commit.
    commits: Vec<u32>,
    /// Groups known to be complete.
    complete: u32,
    /// Whether the instruction has been tried before, in vain.
    retrying: bool,
}

/// What is known of a register that some `wgmma` uses; groups count from one.
#[derive(Clone, Default)]
struct Usage {
    /// The last group that accumulates in it, the columns of its shape, and the fences before it.
    accumulator: u32,
    columns: usize,
    used: u32,
    /// The last group that reads rows of A from it.
    input: u32,
    /// Fences before the last other instruction that wrote it.
    written: u32,
}

/// What the warps of a warpgroup have in common.
#[derive(Default)]
pub(super) struct Together {
    /// What at least one warp has executed and not all have, in order.
    steps: VecDeque<Step>,
    /// How many steps all have executed, and how many each.
    first: usize,
    done: [usize; WARPS],
    /// Groups that each warp has committed.
    committed: [u32; WARPS],
    /// Warps that wait for the others, as bits.
    waiting: u32,
}

#[derive(Clone, PartialEq)]
struct Step {
    line: u32,
    /// Descriptors and the predicate.
    operands: [u64; 3],
}

impl Flights {
    /// Starts over, with as many watched registers as the kernel has.
    pub(super) fn begin(&mut self, registers: u32) {
        *self = Self { registers: vec![Usage::default(); registers as usize], ..Self::default() };
    }

    /// Notes an ordinary instruction's use of registers; what is wrong with it, if anything.
    pub(super) fn touch(&mut self, watched: &[Watched]) -> Option<Fault> {
        let mut fault = None;
        for Watched { register, write } in watched {
            let usage = &mut self.registers[*register as usize];
            if usage.accumulator > self.complete || *write && usage.input > self.complete {
                fault = Some(Fault::RegisterInFlight { accumulator: usage.accumulator > self.complete });
            }
            if *write {
                usage.written = self.fences;
            }
        }
        fault
    }

    /// Notes the registers of a `wgmma`, of which it writes the accumulators alone.
    fn multiply(&mut self, watched: &[Watched], columns: usize) -> Option<Fault> {
        let (group, mut fault) = (self.commits.len() as u32 + 1, None);
        for Watched { register, write } in watched {
            let usage = &mut self.registers[*register as usize];
            let in_flight = if *write { usage.input } else { usage.accumulator } > self.complete;
            let reshaped = usage.columns != columns && usage.used == self.fences && usage.accumulator > 0;
            if in_flight {
                fault = Some(Fault::RegisterInFlight { accumulator: !write });
            } else if usage.written == self.fences || *write && reshaped {
                fault = Some(Fault::MissingWgmmaFence);
            }
            if *write {
                (usage.accumulator, usage.columns, usage.used) = (group, columns, self.fences);
            } else {
                usage.input = group;
            }
        }
        fault
    }
}

/// Executes one instruction.
pub(super) fn execute(op: &Warpgroup, inst: &Inst, warp: &mut Warp, cta: &mut Cta<'_>, mask: u32) -> Flow {
    let line = inst.line;
    let lane = mask.trailing_zeros() as usize;
    let fault = if mask != u32::MAX {
        Some(Fault::InactiveLanes { required: u32::MAX, active: mask })
    } else if (warp.id / WARPS + 1) * WARPS > cta.states.len() {
        Some(Fault::NotAWarpgroup)
    } else {
        None
    };
    if let Some(fault) = fault {
        cta.fatal(warp.id, lane, line, fault);
        return Flow::Next;
    }
    if let Warpgroup::Multiply(wgmma) = op {
        multiply(wgmma, inst, warp, cta);
        return Flow::Next;
    }
    if !warp.flights.retrying {
        step(warp, cta, line, [0; 3]);
    }
    let ready = match *op {
        Warpgroup::Fence => {
            warp.flights.fences += 1;
            true
        }
        Warpgroup::Commit => {
            warp.flights.commits.push(warp.flights.issued);
            let together = &mut cta.warpgroups[warp.id / WARPS];
            together.committed[warp.id % WARPS] += 1;
            for other in lanes(std::mem::take(&mut together.waiting)) {
                cta.states[other] = State::Ready;
            }
            true
        }
        Warpgroup::Wait { newest } => wait(warp, cta, newest),
        Warpgroup::SetMaxRegisters { increase, count } => set_registers(warp, cta, line, increase, count),
        Warpgroup::Multiply(_) => true,
    };
    warp.flights.retrying = !ready;
    if ready {
        return Flow::Next;
    }
    cta.states[warp.id] = State::Waiting;
    warp.wait_place = (0, line);
    Flow::Again
}

/// Compares an instruction with what the other warps of the warpgroup have executed; true for the first of them.
fn step(warp: &Warp, cta: &mut Cta<'_>, line: u32, operands: [u64; 3]) -> bool {
    let together = &mut cta.warpgroups[warp.id / WARPS];
    let at = together.done[warp.id % WARPS] - together.first;
    together.done[warp.id % WARPS] += 1;
    let step = Step { line, operands };
    let Some(other) = together.steps.get(at) else {
        together.steps.push_back(step);
        return true;
    };
    let different = (*other != step).then_some(other.line);
    if together.done.iter().all(|done| *done > together.first) {
        together.steps.pop_front();
        together.first += 1;
    }
    if let Some(other_line) = different {
        cta.fatal(warp.id, 0, line, Fault::WarpgroupDiverged { other_line });
    }
    false
}

fn multiply(op: &Wgmma, inst: &Inst, warp: &mut Warp, cta: &mut Cta<'_>) {
    if let Some(fault) = warp.flights.multiply(&inst.watched, 2 * op.d.len()) {
        cta.fault(warp.id, 0, inst.line, fault);
    }
    let Some(tiles) = wgmma::Tiles::of(op, warp) else {
        return cta.fatal(warp.id, 0, inst.line, Fault::NotUniform);
    };
    if let Some(descriptor) = tiles.unusable() {
        return cta.fatal(warp.id, 0, inst.line, Fault::Descriptor { descriptor });
    }
    if step(warp, cta, inst.line, tiles.operands()) {
        tiles.note_reads(&mut cta.shared, warp.id / WARPS, warp.flights.issued);
    }
    warp.flights.issued += 1;
    wgmma::multiply(op, &tiles, warp, cta, inst.line);
}

/// Whether all but the newest groups are complete, which takes all four warps.
fn wait(warp: &mut Warp, cta: &mut Cta<'_>, newest: u32) -> bool {
    let due = (warp.flights.commits.len() as u32).saturating_sub(newest);
    let together = &mut cta.warpgroups[warp.id / WARPS];
    if together.committed.iter().any(|committed| *committed < due) {
        together.waiting |= 1 << warp.id;
        return false;
    }
    if due > warp.flights.complete {
        warp.flights.complete = due;
        cta.shared.note_wait(warp.flights.commits[due as usize - 1], &cta.parties[warp.id]);
    }
    true
}

/// Whether the warp has the registers that it wants.
fn set_registers(warp: &Warp, cta: &mut Cta<'_>, line: u32, increase: bool, count: u32) -> bool {
    let held = cta.registers[warp.id];
    if if increase { count < held } else { count > held } {
        cta.fatal(warp.id, 0, line, Fault::RegisterCount { held, count });
        return true;
    }
    let others = cta.registers.iter().sum::<u32>() - held;
    let pool = cta.env.program.register_pool.unwrap_or(0) * cta.env.warps();
    if others + count > pool {
        cta.short_of_registers |= 1 << warp.id;
        return false;
    }
    cta.registers[warp.id] = count;
    for other in lanes(std::mem::take(&mut cta.short_of_registers)) {
        cta.states[other] = State::Ready;
    }
    true
}

/// Reports warps that wait for registers when none can run.
pub(super) fn report_stuck(cta: &mut Cta<'_>, warps: &[Warp]) {
    for id in lanes(cta.short_of_registers) {
        let (lane, line) = warps[id].wait_place;
        cta.fault(id, lane, line, Fault::NoRegisters { held: cta.registers[id] });
    }
}

/// Reports, at the end of a CTA that has nothing else to report, what only some warps of a warpgroup have executed.
pub(super) fn report_end(cta: &mut Cta<'_>) {
    if !cta.findings.is_empty() {
        return;
    }
    for group in 0..cta.warpgroups.len() {
        let together = &cta.warpgroups[group];
        let Some(Step { line, .. }) = together.steps.front() else { continue };
        let (line, first) = (*line, together.first);
        let missing = (0..WARPS).rfind(|rank| together.done[*rank] == first);
        if let Some(warp) = missing.map(|rank| group * WARPS + rank) {
            cta.fault(warp, 0, line, Fault::WarpgroupIncomplete { warp: warp as u32 });
        }
    }
}
