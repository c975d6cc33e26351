//! Integer arithmetic, logic, shifts and bit fields.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Count, IntBinary, IntTy, IntUnary, Integer};
use crate::parse::{Failure, Instruction, Operand};
use crate::registers::Slot;
use crate::ty::Ty;

/// The arithmetic type behind a PTX type; untyped bits count as unsigned.
pub(super) fn int_ty(cx: &Context<'_>, ty: Ty) -> Result<IntTy, Failure> {
    Ok(match ty {
        Ty::B16 | Ty::U16 => IntTy::U16,
        Ty::S16 => IntTy::S16,
        Ty::B32 | Ty::U32 => IntTy::U32,
        Ty::S32 => IntTy::S32,
        Ty::B64 | Ty::U64 => IntTy::U64,
        Ty::S64 => IntTy::S64,
        _ => return cx.unsupported(format!("integer arithmetic on type {ty:?}")),
    })
}

fn sources<'a, const N: usize>(
    cx: &mut Context<'a>,
    operands: [&Operand<'a>; N],
    widths: [Width; N],
) -> Result<[Slot; N], Failure> {
    let mut out = [Slot(0); N];
    for i in 0..N {
        out[i] = cx.source(operands[i], widths[i])?;
    }
    Ok(out)
}

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Integer, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    let name = instruction.name;
    if matches!(name, "prmt" | "lop3" | "shf" | "dp4a" | "fns") {
        return special(cx, instruction, modifiers);
    }
    let unary = match name {
        "neg" => Some(IntUnary::Neg),
        "abs" => Some(IntUnary::Abs),
        "not" => Some(IntUnary::Not),
        "brev" => Some(IntUnary::Reverse),
        _ => None,
    };
    let binary = match name {
        "add" => Some(IntBinary::Add),
        "sub" => Some(IntBinary::Sub),
        "div" => Some(IntBinary::Div),
        "rem" => Some(IntBinary::Rem),
        "min" => Some(IntBinary::Min),
        "max" => Some(IntBinary::Max),
        "and" => Some(IntBinary::And),
        "or" => Some(IntBinary::Or),
        "xor" => Some(IntBinary::Xor),
        _ => None,
    };
    let known = ["mul", "mad", "shl", "shr", "popc", "clz", "bfind", "bfe", "bfi"];
    if unary.is_none() && binary.is_none() && !known.contains(&name) {
        return cx.unsupported(format!("instruction `{name}`"));
    }
    let shift_amount = name == "bfind" && modifiers.take("shiftamt");
    let full = modifiers.ty()?;
    if let (Ty::U16x2 | Ty::S16x2, Some(op @ (IntBinary::Add | IntBinary::Min | IntBinary::Max))) = (full, binary) {
        cx.require_target(&["sm_90", "sm_90a"])?;
        modifiers.finish()?;
        let [d, a, b] = operands(instruction)?;
        let (d, ab) = (cx.target(d, Width::Word)?, sources(cx, [a, b], [Width::Word; 2])?);
        return Ok(Integer::Pair { op, signed: full.is_signed(), d, ab });
    }
    let (ty, width) = (int_ty(cx, full)?, Width::of(full));
    let decoded = if let Some(op) = unary {
        let [d, a] = operands(instruction)?;
        Integer::Unary { op, ty, d: cx.target(d, width)?, a: cx.source(a, width)? }
    } else if let Some(op) = binary {
        let [d, a, b] = operands(instruction)?;
        Integer::Binary { op, ty, d: cx.target(d, width)?, ab: sources(cx, [a, b], [width; 2])? }
    } else {
        match name {
            "mul" => multiply(cx, instruction, &mut modifiers, full)?,
            "mad" => multiply_add(cx, instruction, &mut modifiers, full)?,
            "shl" | "shr" => {
                let [d, a, b] = operands(instruction)?;
                let (d, ab) = (cx.target(d, width)?, sources(cx, [a, b], [width, Width::Word])?);
                Integer::Shift { left: name == "shl", ty, d, ab }
            }
            "popc" | "clz" => {
                let [d, a] = operands(instruction)?;
                let op = if name == "popc" { Count::Ones } else { Count::LeadingZeros };
                Integer::Count { op, ty, d: cx.target(d, Width::Word)?, a: cx.source(a, width)? }
            }
            "bfind" if width == Width::Short => return cx.unsupported("`bfind` on 16 bits"),
            "bfind" => {
                let [d, a] = operands(instruction)?;
                let op = Count::Find { shift_amount };
                Integer::Count { op, ty, d: cx.target(d, Width::Word)?, a: cx.source(a, width)? }
            }
            "bfe" | "bfi" if width == Width::Short => return cx.unsupported("a bit field of 16 bits"),
            "bfe" => {
                let [d, a, b, c] = operands(instruction)?;
                let abc = sources(cx, [a, b, c], [width, Width::Word, Width::Word])?;
                Integer::Extract { ty, d: cx.target(d, width)?, abc }
            }
            _ => {
                let [d, a, b, position, length] = operands(instruction)?;
                let ab = sources(cx, [a, b], [width; 2])?;
                let [position, length] = sources(cx, [position, length], [Width::Word; 2])?;
                Integer::Insert { wide: width == Width::Wide, d: cx.target(d, width)?, ab, position, length }
            }
        }
    };
    modifiers.finish()?;
    Ok(decoded)
}

/// The width of a `.wide` product.
fn product(cx: &Context<'_>, width: Width) -> Result<Width, Failure> {
    match width {
        Width::Short => Ok(Width::Word),
        Width::Word => Ok(Width::Wide),
        _ => cx.unsupported("a wide product of this type"),
    }
}

fn multiply<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    modifiers: &mut Modifiers<'a>,
    full: Ty,
) -> Result<Integer, Failure> {
    let (ty, width) = (int_ty(cx, full)?, Width::of(full));
    let [d, a, b] = operands(instruction)?;
    let ab = sources(cx, [a, b], [width; 2])?;
    if modifiers.take("wide") {
        let wider = product(cx, width)?;
        return Ok(Integer::MulWide { ty, d: cx.target(d, wider)?, ab });
    }
    match modifiers.take_one(&[("lo", IntBinary::MulLo), ("hi", IntBinary::MulHi)]) {
        Some(op) => Ok(Integer::Binary { op, ty, d: cx.target(d, width)?, ab }),
        None => cx.syntax("`mul` needs `.lo`, `.hi` or `.wide`"),
    }
}

fn multiply_add<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    modifiers: &mut Modifiers<'a>,
    full: Ty,
) -> Result<Integer, Failure> {
    let (ty, width) = (int_ty(cx, full)?, Width::of(full));
    let [d, a, b, c] = operands(instruction)?;
    if modifiers.take("wide") {
        let wider = product(cx, width)?;
        let abc = sources(cx, [a, b, c], [width, width, wider])?;
        return Ok(Integer::MadWide { ty, d: cx.target(d, wider)?, abc });
    }
    match modifiers.take_one(&[("lo", false), ("hi", true)]) {
        Some(high) => {
            let abc = sources(cx, [a, b, c], [width; 3])?;
            Ok(Integer::Mad { high, ty, d: cx.target(d, width)?, abc })
        }
        None => cx.syntax("`mad` needs `.lo`, `.hi` or `.wide`"),
    }
}

fn special<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Integer, Failure> {
    let words = [Width::Word; 3];
    if instruction.name == "lop3" {
        if modifiers.ty()? != Ty::B32 {
            return cx.unsupported("`lop3` on this type");
        }
        modifiers.finish()?;
        let [d, a, b, c, table] = operands(instruction)?;
        let Operand::Int(table @ 0..=255) = *table else {
            return cx.syntax("the table of `lop3` is a constant byte");
        };
        let abc = sources(cx, [a, b, c], words)?;
        return Ok(Integer::Lop3 { table: table as u8, d: cx.target(d, Width::Word)?, abc });
    }
    let [d, a, b, c] = operands(instruction)?;
    let (d, abc) = (cx.target(d, Width::Word)?, sources(cx, [a, b, c], words)?);
    let decoded = match instruction.name {
        "prmt" => {
            let _b32 = modifiers.ty()?;
            Integer::Prmt { d, abc }
        }
        "fns" => {
            if modifiers.ty()? != Ty::B32 {
                return cx.unsupported("`fns` on this type");
            }
            Integer::FindNthSet { d, abc }
        }
        "shf" => {
            let left = match modifiers.take_one(&[("l", true), ("r", false)]) {
                Some(left) => left,
                None => return cx.syntax("`shf` needs `.l` or `.r`"),
            };
            let clamp = modifiers.take("clamp");
            if !clamp && !modifiers.take("wrap") {
                return cx.syntax("`shf` needs `.clamp` or `.wrap`");
            }
            let _b32 = modifiers.ty()?;
            Integer::Funnel { left, clamp, d, abc }
        }
        _ => {
            let (a, b) = (modifiers.ty()?, modifiers.ty()?);
            if a.bits() != 32 || b.bits() != 32 {
                return cx.unsupported("`dp4a` on these types");
            }
            Integer::Dp4a { a_signed: a.is_signed(), b_signed: b.is_signed(), d, abc }
        }
    };
    modifiers.finish()?;
    Ok(decoded)
}
