//! `wgmma` and `setmaxnreg`, and which registers `wgmma` uses.

use super::context::{Context, Modifiers, Use, Width, operands};
use crate::isa::{Inst, Op, Warpgroup, Watched, Wgmma, WgmmaA};
use crate::parse::{Failure, Instruction, Kernel, Operand};
use crate::registers::Slot;
use std::collections::HashMap;

const TARGETS: [&str; 1] = ["sm_90a"];
/// Registers of a multiprocessor.
const REGISTERS: u32 = 65_536;

pub(super) fn wgmma<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Warpgroup, Failure> {
    cx.require_target(&TARGETS)?;
    let [name, "sync", "aligned", rest @ ..] = instruction.modifiers.as_slice() else {
        return cx.unsupported("`wgmma` without `.sync.aligned`");
    };
    match (*name, rest) {
        ("fence", []) => {
            let [] = operands(instruction)?;
            Ok(Warpgroup::Fence)
        }
        ("commit_group", []) => {
            let [] = operands(instruction)?;
            Ok(Warpgroup::Commit)
        }
        ("wait_group", []) => match *operands(instruction)? {
            [Operand::Int(newest @ 0..8)] => Ok(Warpgroup::Wait { newest: newest as u32 }),
            _ => cx.syntax("`wait_group` takes a constant from 0 to 7"),
        },
        ("mma_async", [shape, "s32", a @ ("s8" | "u8"), b @ ("s8" | "u8")]) => {
            let Some(columns) = columns(shape) else { return cx.unsupported("`wgmma` of this shape") };
            multiply(cx, instruction, columns, [*a == "s8", *b == "s8"])
        }
        _ => cx.unsupported("`wgmma` of this form"),
    }
}

/// N of `m64nNk32`, where bytes have it.
fn columns(shape: &str) -> Option<usize> {
    let columns = shape.strip_prefix("m64n")?.strip_suffix("k32")?.parse().ok()?;
    let known = matches!(columns, 8 | 16 | 24 | 32) || columns % 16 == 0 && (48..=256).contains(&columns);
    known.then_some(columns)
}

fn multiply<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    columns: usize,
    [a_signed, b_signed]: [bool; 2],
) -> Result<Warpgroup, Failure> {
    let [Operand::List(d), a, b, scale_d] = operands(instruction)? else {
        return cx.syntax("the accumulators of `wgmma` are a list");
    };
    if d.len() != columns / 2 {
        return cx.syntax(format!("`wgmma` has {} accumulators where it needs {}", d.len(), columns / 2));
    }
    let d = d.iter().map(|register| cx.target(register, Width::Word)).collect::<Result<_, _>>()?;
    let a = match a {
        Operand::List(parts) => match parts.as_slice() {
            [a, b, c, d] => {
                let mut word = |part| cx.source(part, Width::Word);
                WgmmaA::Registers([word(a)?, word(b)?, word(c)?, word(d)?])
            }
            _ => return cx.syntax("the first operand of `wgmma` has four registers"),
        },
        descriptor => WgmmaA::Descriptor(cx.source(descriptor, Width::Wide)?),
    };
    let b = cx.source(b, Width::Wide)?;
    let scale_d = cx.predicate(scale_d)?;
    Ok(Warpgroup::Multiply(Box::new(Wgmma { a_signed, b_signed, d, a, b, scale_d })))
}

pub(super) fn registers<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Warpgroup, Failure> {
    cx.require_target(&TARGETS)?;
    let mut modifiers = Modifiers::of(instruction);
    let direction = modifiers.take_one(&[("inc", true), ("dec", false)]);
    let known = modifiers.take("sync") && modifiers.take("aligned") && modifiers.take("u32");
    modifiers.finish()?;
    let (Some(increase), true) = (direction, known) else {
        return cx.unsupported("`setmaxnreg` of this form");
    };
    if !cx.may_trade_registers {
        return cx.unsupported("`setmaxnreg` does nothing in a kernel without `.maxntid`");
    }
    match *operands(instruction)? {
        [Operand::Int(count @ 24..=256)] if count % 8 == 0 => {
            Ok(Warpgroup::SetMaxRegisters { increase, count: count as u32 })
        }
        _ => cx.syntax("`setmaxnreg` takes a multiple of 8 from 24 to 256"),
    }
}

/// Whether the kernel says how many threads it is for.
pub(super) fn may_trade_registers(kernel: &Kernel<'_>) -> bool {
    kernel.max_threads.is_some() || kernel.required_block.is_some()
}

/// The registers that a thread starts with, where the directives tell: the most that lets the CTAs fit.
pub(super) fn register_pool(kernel: &Kernel<'_>) -> Option<u32> {
    let threads = kernel.required_block.map(|block| block.iter().product()).or(kernel.max_threads)?;
    let fair = REGISTERS.checked_div(threads.saturating_mul(kernel.min_ctas.unwrap_or(1)))?;
    Some(kernel.max_registers.unwrap_or(fair).min(256) / 8 * 8)
}

/// Notes at each instruction what it does to the fragments of any `wgmma`; returns how many registers these are.
pub(super) fn watch(code: &mut [Inst], uses: &[Vec<(Slot, Use)>]) -> u32 {
    let mut numbers: HashMap<Slot, u32> = HashMap::new();
    for inst in code.iter() {
        let Op::Warpgroup(Warpgroup::Multiply(wgmma)) = &inst.op else { continue };
        let a: &[Slot] = match &wgmma.a {
            WgmmaA::Registers(slots) => slots,
            WgmmaA::Descriptor(_) => &[],
        };
        for slot in wgmma.d.iter().chain(a) {
            let next = numbers.len() as u32;
            numbers.entry(*slot).or_insert(next);
        }
    }
    for (inst, uses) in code.iter_mut().zip(uses) {
        let watched = |(slot, purpose): &(Slot, Use)| {
            let register = *numbers.get(slot)?;
            Some(Watched { register, write: *purpose == Use::Write })
        };
        inst.watched = uses.iter().filter_map(watched).collect();
    }
    numbers.len() as u32
}
