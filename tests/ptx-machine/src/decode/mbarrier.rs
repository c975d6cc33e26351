//! `mbarrier` and `cp.async.bulk`.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Address, BulkCopy, Mbarrier};
use crate::memory::Space;
use crate::parse::{Failure, Instruction, Operand};

const TARGETS: [&str; 2] = ["sm_90", "sm_90a"];

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Mbarrier, Failure> {
    cx.require_target(&TARGETS)?;
    let mut modifiers = Modifiers::of(instruction);
    if !modifiers.take("b64") || !(modifiers.take("shared::cta") || modifiers.take("shared")) {
        return cx.unsupported("`mbarrier` other than `.shared::cta.b64`");
    }
    let [init, invalidate, arrive, test_wait, try_wait] =
        ["init", "inval", "arrive", "test_wait", "try_wait"].map(|name| modifiers.take(name));
    if init {
        modifiers.finish()?;
        let [address, count] = operands(instruction)?;
        return Ok(Mbarrier::Init { address: shared(cx, address)?, count: cx.source(count, Width::Word)? });
    }
    if invalidate {
        modifiers.finish()?;
        let [address] = operands(instruction)?;
        return Ok(Mbarrier::Invalidate { address: shared(cx, address)? });
    }
    // What is not said is `.release` or `.acquire` at the scope of the CTA.
    if modifiers.take(if arrive { "release" } else { "acquire" }) && !modifiers.take("cta") {
        return cx.unsupported("`mbarrier` at a scope other than `.cta`");
    }
    if arrive {
        return self::arrive(cx, instruction, modifiers);
    }
    if !(test_wait || try_wait) || !modifiers.take("parity") {
        return cx.unsupported("`mbarrier` of this form");
    }
    modifiers.finish()?;
    let [p, address, parity] = operands(instruction)?;
    let p = cx.target(p, Width::Predicate)?;
    Ok(Mbarrier::Wait { suspend: try_wait, p, address: shared(cx, address)?, parity: cx.source(parity, Width::Word)? })
}

fn arrive<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Mbarrier, Failure> {
    let expects = modifiers.take("expect_tx");
    modifiers.finish()?;
    let (state, address, last) = match instruction.operands.as_slice() {
        [state, address] if !expects => (state, address, None),
        [state, address, last] => (state, address, Some(cx.source(last, Width::Word)?)),
        _ => return cx.syntax("`mbarrier.arrive` has the wrong number of operands"),
    };
    let state = match state {
        Operand::Name("_", None) => None,
        state => Some(cx.target(state, Width::Wide)?),
    };
    let (bytes, count) = if expects { (last, None) } else { (None, last) };
    Ok(Mbarrier::Arrive { state, address: shared(cx, address)?, bytes, count })
}

/// An address in shared memory.
fn shared<'a>(cx: &mut Context<'a>, operand: &Operand<'a>) -> Result<Address, Failure> {
    match cx.address(operand)? {
        (address, None | Some(Space::Shared)) => Ok(address),
        _ => cx.syntax("the variable lies in another state space"),
    }
}

pub(super) fn bulk<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<BulkCopy, Failure> {
    cx.require_target(&TARGETS)?;
    if instruction.modifiers != ["async", "bulk", "shared::cluster", "global", "mbarrier::complete_tx::bytes"] {
        return cx.unsupported("`cp.async.bulk` of this form");
    }
    let [to, from, bytes, mbarrier] = operands(instruction)?;
    let (from, variable) = cx.address(from)?;
    if variable.is_some_and(|space| space != Space::Global) {
        return cx.syntax("the variable lies in another state space");
    }
    let (to, mbarrier) = (shared(cx, to)?, shared(cx, mbarrier)?);
    Ok(BulkCopy { to, from, bytes: cx.source(bytes, Width::Word)?, mbarrier })
}
