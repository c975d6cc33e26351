//! Runs the warps of a CTA in turn, each until it waits or ends.

use super::cta::{Cta, Environment, Frame, State, Warp};
use super::{
    async_copy, barrier, bulk, compare, convert, data, float, integer, matrix, mbarrier, memory, warp, warpgroup,
};
use crate::isa::{Control, Guard, Inst, Op};
use crate::report::{Fault, Finding, Stats};

/// How a warp goes on after an instruction that may have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// With the next instruction.
    Next,
    /// With the next instruction, when its turn comes again.
    Yield,
    /// With the same instruction, when its turn comes again.
    Again,
}

/// What a thread of the host needs to run CTAs, one after the other.
pub(crate) struct Worker<'e> {
    cta: Cta<'e>,
    warps: Vec<Warp>,
    stats: Stats,
}

impl<'e> Worker<'e> {
    pub(crate) fn new(env: &'e Environment<'e>) -> Self {
        let warps = (0..env.warps() as usize).map(|id| Warp::new(id, env)).collect();
        Self { cta: Cta::new(env), warps, stats: Stats::default() }
    }

    /// Runs one CTA to its end.
    pub(crate) fn run(&mut self, index: u64) -> (Stats, Vec<Finding>) {
        self.cta.begin(index);
        for warp in &mut self.warps {
            warp.begin(&self.cta);
        }
        self.stats = Stats { ctas: 1, ..Stats::default() };
        let mut progress = true;
        while progress && !self.cta.dead {
            progress = false;
            for warp in &mut self.warps {
                if self.cta.states[warp.id] == State::Ready && !self.cta.dead {
                    progress = true;
                    run_warp(warp, &mut self.cta, &mut self.stats);
                }
            }
        }
        if !self.cta.dead {
            warpgroup::report_stuck(&mut self.cta, &self.warps);
            barrier::report_stuck(&mut self.cta, &self.warps);
            mbarrier::report_stuck(&mut self.cta, &self.warps);
            warpgroup::report_end(&mut self.cta);
            mbarrier::report_end(&mut self.cta);
        }
        (self.stats, std::mem::take(&mut self.cta.findings))
    }
}

/// The lanes of `mask` whose guard holds.
#[inline(always)]
fn guarded(guard: Option<Guard>, warp: &Warp, mask: u32) -> u32 {
    match guard {
        None => mask,
        Some(Guard { predicate, negated }) => {
            let value = warp.registers.predicate(predicate);
            mask & if negated { !value } else { value }
        }
    }
}

/// Runs a warp until it waits at a barrier, ends, or the CTA dies.
fn run_warp(warp: &mut Warp, cta: &mut Cta<'_>, stats: &mut Stats) {
    let code: &[Inst] = &cta.env.program.code;
    let limit = cta.env.limit;
    'paths: while let Some(&Frame { pc, until, mask }) = warp.frames.last() {
        let mask = mask & !warp.exited;
        let mut pc = pc;
        if mask == 0 {
            warp.frames.pop();
            continue;
        }
        while pc != until {
            let inst = &code[pc as usize];
            let active = guarded(inst.guard, warp, mask);
            stats.warp_instructions += 1;
            stats.lane_instructions += u64::from(active.count_ones());
            pc += 1;
            if active == 0 {
                continue;
            }
            let touches = !inst.watched.is_empty() && !matches!(inst.op, Op::Warpgroup(_));
            if touches && let Some(fault) = warp.flights.touch(&inst.watched) {
                cta.fault(warp.id, active.trailing_zeros() as usize, inst.line, fault);
            }
            match &inst.op {
                Op::Data(op) => data::execute(op, &mut warp.registers, active),
                Op::Integer(op) => integer::execute(op, &mut warp.registers, active),
                Op::Float(op) => float::execute(op, &mut warp.registers, active),
                Op::Compare(op) => compare::execute(op, &mut warp.registers, active),
                Op::Convert(op) => convert::execute(op, &mut warp.registers, active),
                Op::Memory(op) => memory::execute(op, warp, cta, active, inst.line),
                Op::Matrix(op) => matrix::execute(op, warp, cta, active, inst.line),
                Op::Warp(op) => warp::execute(op, warp, cta, active, inst.line),
                Op::Async(op) => async_copy::execute(op, warp, cta, active, inst.line),
                Op::Barrier(_) | Op::Mbarrier(_) | Op::Warpgroup(_) | Op::Bulk(_) => {
                    let flow = match &inst.op {
                        Op::Barrier(op) => barrier::execute(op, warp, cta, active, inst.line),
                        Op::Mbarrier(op) => mbarrier::execute(op, warp, cta, active, inst.line),
                        Op::Warpgroup(op) => warpgroup::execute(op, inst, warp, cta, active),
                        Op::Bulk(op) => bulk::execute(op, warp, cta, active, inst.line),
                        _ => Flow::Next,
                    };
                    if flow != Flow::Next || cta.dead {
                        let again = u32::from(flow == Flow::Again);
                        warp.frames.last_mut().expect("a warp that runs has a path").pc = pc - again;
                        return;
                    }
                }
                Op::Control(Control::Nothing) => {}
                Op::Control(Control::Branch { .. }) if stats.warp_instructions > limit => {
                    let fault = Fault::Runaway { instructions: limit };
                    return cta.fatal(warp.id, active.trailing_zeros() as usize, inst.line, fault);
                }
                Op::Control(Control::Branch { target, .. }) if active == mask => pc = *target,
                Op::Control(Control::Branch { target, reconverge }) => {
                    diverge(warp, pc, *target, *reconverge, [active, mask & !active]);
                    continue 'paths;
                }
                Op::Control(Control::Exit) => {
                    warp.exited |= active;
                    if active == mask {
                        warp.frames.pop();
                    } else {
                        warp.frames.last_mut().expect("a warp that runs has a path").pc = pc;
                    }
                    continue 'paths;
                }
                Op::Control(Control::Trap) => {
                    return cta.fatal(warp.id, active.trailing_zeros() as usize, inst.line, Fault::Trap);
                }
                Op::Control(Control::Panic { function }) => {
                    let fault = Fault::Panic { function: function.clone() };
                    return cta.fatal(warp.id, active.trailing_zeros() as usize, inst.line, fault);
                }
            }
        }
        warp.frames.pop();
    }
    cta.states[warp.id] = State::Done;
}

/// Splits the current path in two that meet again at `reconverge`, or where the current path ends.
fn diverge(warp: &mut Warp, next: u32, target: u32, reconverge: Option<u32>, [taken, left]: [u32; 2]) {
    let current = warp.frames.last_mut().expect("a warp that runs has a path");
    let until = reconverge.unwrap_or(current.until);
    if until == current.until {
        warp.frames.pop();
    } else {
        current.pc = until;
    }
    for (pc, mask) in [(next, left), (target, taken)] {
        if pc != until {
            warp.frames.push(Frame { pc, until, mask });
        }
    }
}
