//! `bra`, `ret`, `exit`, `trap`, `call`; `mov`, `selp` and predicate logic.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Control, Data, Logic, Op};
use crate::parse::{Failure, Instruction, Operand};
use crate::ty::Ty;

pub(super) fn decode<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    labels: &dyn Fn(&str) -> Option<u32>,
) -> Result<Op, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    modifiers.take("uni");
    modifiers.finish()?;
    let control = match instruction.name {
        "bra" => {
            let [Operand::Name(label, None)] = operands(instruction)? else {
                return cx.unsupported("a branch target that is not a label");
            };
            match labels(label) {
                Some(target) => Control::Branch { target, reconverge: None },
                None => return cx.syntax(format!("label `{label}` is not in scope")),
            }
        }
        "ret" | "exit" => Control::Exit,
        "trap" | "brkpt" => Control::Trap,
        _ => {
            let callee = instruction.operands.iter().find_map(|operand| match operand {
                Operand::Name(name, None) => Some(*name),
                _ => None,
            });
            match callee.and_then(|name| cx.functions.get_key_value(name)) {
                Some((name, false)) => Control::Panic { function: (*name).to_owned() },
                _ => return cx.unsupported("a call of a function that returns"),
            }
        }
    };
    Ok(Op::Control(control))
}

pub(super) fn data<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Op, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    let ty = modifiers.ty()?;
    modifiers.finish()?;
    let width = Width::of(ty);
    let data = if instruction.name == "selp" {
        let [d, a, b, p] = operands(instruction)?;
        let (d, a, b) = (cx.target(d, width)?, cx.source(a, width)?, cx.source(b, width)?);
        let p = cx.source(p, Width::Predicate)?;
        match width {
            Width::Wide => Data::Select64 { d, a, b, p },
            Width::Predicate => return cx.unsupported("`selp` of predicates"),
            Width::Short | Width::Word => Data::Select32 { d, a, b, p },
        }
    } else {
        match operands(instruction)? {
            [Operand::List(parts), a] => unpack(cx, ty, parts, a)?,
            [d, Operand::List(parts)] => pack(cx, ty, d, parts)?,
            [d, a] => {
                let (d, a) = (cx.target(d, width)?, cx.source(a, width)?);
                match width {
                    Width::Predicate => Data::MovePredicate { d, a },
                    Width::Wide => Data::Move64 { d, a },
                    Width::Short | Width::Word => Data::Move32 { d, a },
                }
            }
        }
    };
    Ok(Op::Data(data))
}

/// The size of each part of a vector `mov`, and the width of its register.
fn part(cx: &Context<'_>, ty: Ty, count: usize) -> Result<(u32, Width), Failure> {
    match (ty.bits(), count) {
        (16, 2) | (32, 4) => Ok((8, Width::Short)),
        (32, 2) | (64, 4) => Ok((16, Width::Short)),
        (64, 2) => Ok((32, Width::Word)),
        _ => cx.unsupported("a vector `mov` of this shape"),
    }
}

fn pack<'a>(cx: &mut Context<'a>, ty: Ty, d: &Operand<'a>, parts: &[Operand<'a>]) -> Result<Data, Failure> {
    let (bits, width) = part(cx, ty, parts.len())?;
    let d = cx.target(d, Width::of(ty))?;
    let parts = parts.iter().map(|part| cx.source(part, width)).collect::<Result<_, _>>()?;
    Ok(Data::Pack { d, wide: ty.bits() == 64, bits, parts })
}

fn unpack<'a>(cx: &mut Context<'a>, ty: Ty, parts: &[Operand<'a>], a: &Operand<'a>) -> Result<Data, Failure> {
    let (bits, width) = part(cx, ty, parts.len())?;
    let a = cx.source(a, Width::of(ty))?;
    let mut targets = Vec::new();
    for part in parts {
        let ignored = matches!(part, Operand::Name("_", None));
        targets.push(if ignored { None } else { Some(cx.target(part, width)?) });
    }
    Ok(Data::Unpack { a, wide: ty.bits() == 64, bits, parts: targets })
}

/// `and.pred` and its siblings.
pub(super) fn predicate_logic<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Op, Failure> {
    let op = match instruction.name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => Logic::Not,
    };
    let (d, a, b) = match op {
        Logic::Not => {
            let [d, a] = operands(instruction)?;
            (d, a, a)
        }
        _ => {
            let [d, a, b] = operands(instruction)?;
            (d, a, b)
        }
    };
    let d = cx.target(d, Width::Predicate)?;
    let (a, b) = (cx.source(a, Width::Predicate)?, cx.source(b, Width::Predicate)?);
    Ok(Op::Data(Data::PredicateLogic { op, d, a, b }))
}
