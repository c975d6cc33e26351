//! `shfl`, `vote`, `activemask`, `elect`, barriers and fences.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Barrier, Op, Shuffle, Vote, Warp};
use crate::parse::{Failure, Instruction, Operand};

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Warp, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    if instruction.name == "elect" {
        let [Operand::Pair(d, p), members] = operands(instruction)? else {
            return cx.syntax("`elect.sync` has a register and a predicate as its result");
        };
        cx.require_target(&["sm_90", "sm_90a"])?;
        let sync = modifiers.take("sync");
        modifiers.finish()?;
        let d = if *d == "_" { None } else { Some(cx.write(d, Width::Word)?) };
        let (p, members) = (cx.write(p, Width::Predicate)?, cx.source(members, Width::Word)?);
        return if sync { Ok(Warp::Elect { d, p, members }) } else { cx.syntax("`elect` needs `.sync`") };
    }
    if instruction.name == "activemask" {
        let [d] = operands(instruction)?;
        modifiers.take("b32");
        modifiers.finish()?;
        return Ok(Warp::ActiveMask { d: cx.target(d, Width::Word)? });
    }
    if !modifiers.take("sync") {
        return cx.unsupported("a warp instruction without `.sync`");
    }
    let decoded = if instruction.name == "shfl" {
        shuffle(cx, instruction, &mut modifiers)?
    } else {
        let mode = modifiers.take_one(&[
            ("all", Vote::All),
            ("any", Vote::Any),
            ("uni", Vote::Uniform),
            ("ballot", Vote::Ballot),
        ]);
        let Some(mode) = mode else { return cx.unsupported("`vote` in this mode") };
        let ballot = matches!(mode, Vote::Ballot);
        if !modifiers.take(if ballot { "b32" } else { "pred" }) {
            return cx.syntax("the type does not fit the mode");
        }
        let [d, p, members] = operands(instruction)?;
        let d = cx.target(d, if ballot { Width::Word } else { Width::Predicate })?;
        Warp::Vote { mode, d, p: cx.predicate(p)?, members: cx.source(members, Width::Word)? }
    };
    modifiers.finish()?;
    Ok(decoded)
}

fn shuffle<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    modifiers: &mut Modifiers<'a>,
) -> Result<Warp, Failure> {
    let mode = modifiers.take_one(&[
        ("up", Shuffle::Up),
        ("down", Shuffle::Down),
        ("bfly", Shuffle::Butterfly),
        ("idx", Shuffle::Index),
    ]);
    let Some(mode) = mode else { return cx.unsupported("`shfl` in this mode") };
    if !modifiers.take("b32") {
        return cx.unsupported("`shfl` on this type");
    }
    let [d, a, b, c, members] = operands(instruction)?;
    let (d, p) = match d {
        Operand::Pair(d, p) => {
            let d = if *d == "_" { None } else { Some(cx.write(d, Width::Word)?) };
            (d, Some(cx.write(p, Width::Predicate)?))
        }
        other => (Some(cx.target(other, Width::Word)?), None),
    };
    let mut word = |operand| cx.source(operand, Width::Word);
    Ok(Warp::Shuffle { mode, d, p, a: word(a)?, b: word(b)?, c: word(c)?, members: word(members)? })
}

/// `bar`, `barrier`, `membar` and `fence`.
pub(super) fn barrier<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Op, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    if matches!(instruction.name, "membar" | "fence") {
        match instruction.modifiers.as_slice() {
            ["proxy", "async"] | ["proxy", "async", "shared::cta"] => {
                cx.require_target(&["sm_90", "sm_90a"])?;
                return Ok(Op::Barrier(Barrier::ProxyFence));
            }
            ["mbarrier_init", "release", "cluster"] => {
                cx.require_target(&["sm_90", "sm_90a"])?;
                return Ok(Op::Barrier(Barrier::MbarrierInitFence));
            }
            _ => {}
        }
        modifiers.drop_if(|word| matches!(word, "cta" | "gl" | "gpu" | "sys" | "sc" | "acq_rel"));
        modifiers.finish()?;
        return Ok(Op::Barrier(Barrier::Fence));
    }
    if modifiers.take("warp") {
        let sync = modifiers.take("sync");
        modifiers.finish()?;
        let [members] = operands(instruction)?;
        if !sync {
            return cx.syntax("`bar.warp` needs `.sync`");
        }
        return Ok(Op::Warp(Warp::Sync { members: cx.source(members, Width::Word)? }));
    }
    modifiers.drop_if(|word| matches!(word, "cta" | "aligned" | "all"));
    let Some(wait) = modifiers.take_one(&[("sync", true), ("arrive", false)]) else {
        return cx.unsupported("a barrier other than `sync` and `arrive`");
    };
    modifiers.finish()?;
    let (barrier, threads) = match instruction.operands.as_slice() {
        [barrier] if wait => (barrier, None),
        [barrier, threads] => (barrier, Some(threads)),
        _ => return cx.syntax("the barrier has the wrong number of operands"),
    };
    let threads = threads.map(|threads| cx.source(threads, Width::Word)).transpose()?;
    Ok(Op::Barrier(Barrier::Meet { wait, barrier: cx.source(barrier, Width::Word)?, threads }))
}

/// `griddepcontrol`: a launch begins here when the one before it has ended, with all that it wrote.
pub(super) fn grid_dependency<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Op, Failure> {
    cx.require_target(&["sm_90", "sm_90a"])?;
    let mut modifiers = Modifiers::of(instruction);
    let known = modifiers.take("wait") || modifiers.take("launch_dependents");
    modifiers.finish()?;
    let [] = operands(instruction)?;
    if known { Ok(Op::Barrier(Barrier::Fence)) } else { cx.syntax("`griddepcontrol` needs an action") }
}
