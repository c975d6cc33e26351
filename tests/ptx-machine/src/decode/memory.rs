//! `ld`, `st`, `atom`, `red`, `cvta` and `cp.async`.

use super::context::{Binding, Context, Modifiers, Width, operands};
use crate::isa::{Access, Async, AtomicOp, Control, Element, Op};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, Space};
use crate::parse::{Failure, Instruction, Operand};
use crate::registers::Slot;
use crate::ty::Ty;

const SPACES: [(&str, Space); 8] = [
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Const),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("generic", Space::Generic),
];

/// Hints for caches, which change no value.
fn is_cache_hint(word: &str) -> bool {
    matches!(word, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "weak")
        || word.starts_with("L1::")
        || (word.starts_with("L2::") && word != "L2::cache_hint")
}

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Op, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    match instruction.name {
        "cvta" => return Ok(Op::Memory(convert_address(cx, instruction, modifiers)?)),
        "atom" | "red" => return Ok(Op::Memory(atomic(cx, instruction, modifiers)?)),
        _ => {}
    }
    let space = modifiers.take_one(&SPACES).unwrap_or(Space::Generic);
    // every access acquires and releases (`Memory`)
    modifiers.drop_if(|word| is_cache_hint(word) || matches!(word, "volatile" | "relaxed" | "acquire" | "release"));
    modifiers.drop_if(|word| matches!(word, "cta" | "gpu" | "sys"));
    let count = modifiers.take_one(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    let ty = modifiers.ty()?;
    modifiers.finish()?;
    if count as u32 * ty.bytes() > 16 || ty == Ty::Pred {
        return cx.unsupported("an access of this size");
    }
    let load = instruction.name != "st";
    let [first, second] = operands(instruction)?;
    let (value, place) = if load { (first, second) } else { (second, first) };
    if let Operand::Address(name, _) = place
        && matches!(cx.lookup(name), Some(Binding::CallParam))
    {
        return if load { cx.unsupported("the result of a call") } else { Ok(Op::Control(Control::Nothing)) };
    }
    let (address, variable) = cx.address(place)?;
    if variable.is_some_and(|actual| actual != space && space != Space::Generic) {
        return cx.syntax("the variable lies in another state space");
    }
    let space = variable.unwrap_or(space);
    if !load && matches!(space, Space::Param | Space::Const) {
        return cx.syntax("this state space cannot be written");
    }
    let parts: Vec<&Operand<'a>> = match value {
        Operand::List(parts) => parts.iter().collect(),
        single => vec![single],
    };
    if parts.len() != count {
        return cx.syntax("the vector has another length than the instruction says");
    }
    let mut slots = [None; 4];
    let mut common = None;
    for (slot, part) in slots.iter_mut().zip(&parts) {
        if load && matches!(part, Operand::Name("_", None)) {
            continue;
        }
        let width = cx.width_of(part).unwrap_or(Width::of(ty));
        let bits = if width == Width::Wide {
            64
        } else if width == Width::Word {
            32
        } else {
            16
        };
        if width == Width::Predicate || bits < ty.bits() {
            return cx.syntax("a register is too small for its type");
        }
        if *common.get_or_insert(width) != width {
            return cx.unsupported("a vector of registers of different sizes");
        }
        *slot = Some(if load { cx.target(part, width)? } else { cx.source(part, width)? });
    }
    let (wide, short) = (common == Some(Width::Wide), common == Some(Width::Short));
    let element = Element { bytes: ty.bytes(), signed: ty.is_signed(), wide, short };
    Ok(Op::Memory(if load {
        Access::Load { space, element, count, d: slots, address }
    } else {
        let a = slots.map(|slot| slot.unwrap_or(Slot(0)));
        Access::Store { space, element, count, a, address }
    }))
}

/// `prefetch`
pub(super) fn prefetch<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Op, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    let space = modifiers.take_one(&SPACES).unwrap_or(Space::Generic);
    if space != Space::Global || !(modifiers.take("L1") || modifiers.take("L2")) {
        return cx.unsupported("a prefetch of other memory than global");
    }
    modifiers.finish()?;
    let [place] = operands(instruction)?;
    Ok(Op::Memory(Access::Prefetch { address: cx.address(place)?.0 }))
}

fn convert_address<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Access, Failure> {
    let back = modifiers.take("to");
    let window = match modifiers.take_one(&SPACES) {
        Some(Space::Global | Space::Const) => 0,
        Some(Space::Shared) => SHARED_WINDOW,
        Some(Space::Local) => LOCAL_WINDOW,
        Some(Space::Param) => PARAM_WINDOW,
        Some(Space::Generic) | None => return cx.unsupported("`cvta` for this state space"),
    };
    let ty = modifiers.ty()?;
    modifiers.finish()?;
    let [d, a] = operands(instruction)?;
    let width = Width::of(ty);
    if width != Width::Wide {
        return cx.unsupported("`cvta` of 32-bit addresses");
    }
    let add = if back { -(window as i64) } else { window as i64 };
    Ok(Access::ConvertAddress { d: cx.target(d, width)?, a: cx.source(a, width)?, add })
}

fn atomic<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Access, Failure> {
    let space = modifiers.take_one(&SPACES).unwrap_or(Space::Generic);
    modifiers.drop_if(|word| matches!(word, "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "gpu" | "sys"));
    let op = modifiers.take_one(&[
        ("add", AtomicOp::Add),
        ("inc", AtomicOp::Inc),
        ("dec", AtomicOp::Dec),
        ("min", AtomicOp::Min),
        ("max", AtomicOp::Max),
        ("and", AtomicOp::And),
        ("or", AtomicOp::Or),
        ("xor", AtomicOp::Xor),
        ("exch", AtomicOp::Exchange),
        ("cas", AtomicOp::CompareAndSwap),
    ]);
    let Some(op) = op else { return cx.unsupported("this atomic operation") };
    let ty = modifiers.ty()?;
    modifiers.finish()?;
    let float = ty.is_float();
    if float && (ty != Ty::F32 || !matches!(op, AtomicOp::Add | AtomicOp::Exchange)) || ty.bits() < 32 {
        return cx.unsupported("an atomic operation on this type");
    }
    let width = Width::of(ty);
    let (d, rest) = match (instruction.name, instruction.operands.as_slice()) {
        ("atom", [Operand::Name("_", None), rest @ ..]) => (None, rest),
        ("atom", [d, rest @ ..]) => (Some(cx.target(d, width)?), rest),
        (_, rest) => (None, rest),
    };
    let (place, b, c) = match (op, rest) {
        (AtomicOp::CompareAndSwap, [place, b, c]) => (place, b, c),
        (AtomicOp::CompareAndSwap, _) => return cx.syntax("a compare-and-swap takes two values"),
        (_, [place, b]) => (place, b, b),
        _ => return cx.syntax("the operation takes one value"),
    };
    let (b, c) = (cx.source(b, width)?, cx.source(c, width)?);
    let (address, _) = cx.address(place)?;
    Ok(Access::Atomic { space, op, ty, d, address, b, c })
}

/// `cp.async`, its groups and waits.
pub(super) fn asynchronous<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Async, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    if !modifiers.take("async") {
        return cx.unsupported("`cp` other than `cp.async`");
    }
    if modifiers.take("commit_group") {
        modifiers.finish()?;
        let [] = operands(instruction)?;
        return Ok(Async::Commit);
    }
    if modifiers.take("wait_all") {
        modifiers.finish()?;
        let [] = operands(instruction)?;
        return Ok(Async::WaitAll);
    }
    if modifiers.take("wait_group") {
        modifiers.finish()?;
        let [Operand::Int(newest)] = *operands(instruction)? else {
            return cx.syntax("`wait_group` takes a constant");
        };
        return Ok(Async::WaitGroup { newest: newest as u32 });
    }
    let all = modifiers.take("ca");
    let large = modifiers.take("cg");
    let shared = modifiers.take("shared") || modifiers.take("shared::cta");
    let global = modifiers.take("global");
    modifiers.drop_if(|word| word.starts_with("L2::") && word != "L2::cache_hint");
    modifiers.finish()?;
    let (to, from, size, extra) = match instruction.operands.as_slice() {
        [to, from, Operand::Int(size)] => (to, from, *size, None),
        [to, from, Operand::Int(size), extra] => (to, from, *size, Some(extra)),
        _ => return cx.syntax("`cp.async` takes two addresses, a size, and perhaps one more"),
    };
    let size_fits = matches!((size, all, large), (4 | 8 | 16, true, false) | (16, false, true));
    if !shared || !global || !size_fits {
        return cx.unsupported("`cp.async` of this form");
    }
    let (to, from) = (cx.address(to)?.0, cx.address(from)?.0);
    let (mut source_bytes, mut ignore) = (None, None);
    match extra {
        Some(operand) if cx.width_of(operand) == Some(Width::Predicate) => {
            ignore = Some(cx.source(operand, Width::Predicate)?);
        }
        Some(operand) => source_bytes = Some(cx.source(operand, Width::Word)?),
        None => {}
    }
    Ok(Async::Copy { bytes: size as u32, to, from, source_bytes, ignore })
}
