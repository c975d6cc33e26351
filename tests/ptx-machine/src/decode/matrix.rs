//! `ldmatrix` and `mma`.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Matrix, MmaElement, MmaRegs};
use crate::parse::{Failure, Instruction, Operand};
use crate::registers::Slot;

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Matrix, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    if !modifiers.take("sync") || !modifiers.take("aligned") {
        return cx.syntax("the instruction needs `.sync.aligned`");
    }
    if instruction.name == "ldmatrix" { load(cx, instruction, modifiers) } else { mma(cx, instruction, modifiers) }
}

fn slots<'a>(cx: &mut Context<'a>, operand: &Operand<'a>, count: usize, target: bool) -> Result<Vec<Slot>, Failure> {
    let parts = match operand {
        Operand::List(parts) => parts.clone(),
        single => vec![single.clone()],
    };
    if parts.len() != count {
        return cx.syntax(format!("a fragment has {} registers where it needs {count}", parts.len()));
    }
    let slot = |part| if target { cx.target(part, Width::Word) } else { cx.source(part, Width::Word) };
    parts.iter().map(slot).collect()
}

fn load<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Matrix, Failure> {
    let count = modifiers.take_one(&[("x1", 1), ("x2", 2), ("x4", 4)]);
    let trans = modifiers.take("trans");
    let known =
        modifiers.take("m8n8") && (modifiers.take("shared") || modifiers.take("shared::cta")) && modifiers.take("b16");
    modifiers.finish()?;
    let (Some(count), true) = (count, known) else {
        return cx.unsupported("`ldmatrix` of this form");
    };
    let [d, address] = operands(instruction)?;
    let d = slots(cx, d, count, true)?;
    Ok(Matrix::Load { trans, d, address: cx.address(address)?.0 })
}

fn mma<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Matrix, Failure> {
    if !modifiers.take("row") || !modifiers.take("col") {
        return cx.unsupported("`mma` of other layouts than row by column");
    }
    let int = |word: &str| match word {
        "s8" => Some(MmaElement { bits: 8, signed: true }),
        "u8" => Some(MmaElement { bits: 8, signed: false }),
        "s4" => Some(MmaElement { bits: 4, signed: true }),
        "u4" => Some(MmaElement { bits: 4, signed: false }),
        _ => None,
    };
    let depths = [("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32), ("m16n8k64", 64)];
    let Some(k) = modifiers.take_one(&depths) else {
        return cx.unsupported("`mma` of this shape");
    };
    let words: Vec<&str> = instruction.modifiers.iter().copied().rev().take(4).collect();
    let kind = match words.as_slice() {
        ["s32", b, a, "s32"] => int(a).zip(int(b)).filter(|(a, b)| a.bits == b.bits).map(|(a, b)| Kind::Int(a, b)),
        ["f32", "f16", "f16", "f32"] => Some(Kind::Float { bf16: false }),
        ["f32", "bf16", "bf16", "f32"] => Some(Kind::Float { bf16: true }),
        _ => None,
    };
    let Some(kind) = kind else { return cx.unsupported("`mma` on these types") };
    for word in words {
        modifiers.take(word);
    }
    modifiers.finish()?;
    let bits = if let Kind::Int(a, _) = kind { a.bits as usize } else { 16 };
    // Rows of A are 128 or 256 bits, so that each lane holds one or two registers of each of its two rows.
    let halves = match k * bits {
        128 => 1,
        256 => 2,
        _ => return cx.unsupported("`mma` of this shape on these types"),
    };
    let [d, a, b, c] = operands(instruction)?;
    let four = |slots: Vec<Slot>| [slots[0], slots[1], slots[2], slots[3]];
    let regs = MmaRegs {
        d: four(slots(cx, d, 4, true)?),
        a: slots(cx, a, 2 * halves, false)?,
        b: slots(cx, b, halves, false)?,
        c: four(slots(cx, c, 4, false)?),
    };
    let regs = Box::new(regs);
    Ok(match kind {
        Kind::Int(a_ty, b_ty) => Matrix::MmaInt { a_ty, b_ty, regs },
        Kind::Float { bf16 } => Matrix::MmaFloat { bf16, regs },
    })
}

/// The element types of A and B.
enum Kind {
    Int(MmaElement, MmaElement),
    Float { bf16: bool },
}
