//! `setp`, `set`, `slct`.

use super::context::{Context, Modifiers, Width, operands};
use super::float::float_ty;
use super::integer::int_ty;
use crate::isa::{Compare, Logic, Relation, Test, TestTy};
use crate::parse::{Failure, Instruction, Operand};
use crate::ty::Ty;

fn relation(word: &str, ty: Ty) -> Option<Relation> {
    let of = |less, equal, greater, unordered| Some(Relation { less, equal, greater, unordered });
    match word {
        "eq" => of(false, true, false, false),
        // On floats, `ne` is ordered too: it is false for NaN.
        "ne" => of(true, false, true, false),
        "lt" | "lo" => of(true, false, false, false),
        "le" | "ls" => of(true, true, false, false),
        "gt" | "hi" => of(false, false, true, false),
        "ge" | "hs" => of(false, true, true, false),
        _ if !ty.is_float() => None,
        "equ" => of(false, true, false, true),
        "neu" => of(true, false, true, true),
        "ltu" => of(true, false, false, true),
        "leu" => of(true, true, false, true),
        "gtu" => of(false, false, true, true),
        "geu" => of(false, true, true, true),
        "num" => of(true, true, true, false),
        "nan" => of(false, false, false, true),
        _ => None,
    }
}

fn test<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    modifiers: &mut Modifiers<'a>,
    ty: Ty,
    [a, b]: [&Operand<'a>; 2],
) -> Result<Test, Failure> {
    let known = instruction.modifiers.iter().find_map(|word| Some((*word, relation(word, ty)?)));
    let Some((word, relation)) = known else {
        return cx.unsupported("a comparison without a known relation");
    };
    modifiers.take(word);
    if matches!(word, "lo" | "ls" | "hi" | "hs") && !matches!(ty, Ty::U16 | Ty::U32 | Ty::U64) {
        return cx.unsupported("an unsigned relation on a type that is not");
    }
    let (ftz, width) = (modifiers.take("ftz"), Width::of(ty));
    let ty = if ty.is_float() { TestTy::Float(float_ty(cx, ty)?) } else { TestTy::Int(int_ty(cx, ty)?) };
    Ok(Test { relation, ty, ftz, a: cx.source(a, width)?, b: cx.source(b, width)? })
}

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Compare, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    let decoded = match instruction.name {
        "setp" => set_predicate(cx, instruction, &mut modifiers)?,
        "set" => {
            let (to, from) = (modifiers.ty()?, modifiers.ty()?);
            let [d, a, b] = operands(instruction)?;
            let test = test(cx, instruction, &mut modifiers, from, [a, b])?;
            let yes = match to {
                Ty::U32 | Ty::S32 => u32::MAX,
                Ty::F32 => 1_f32.to_bits(),
                _ => return cx.unsupported("`set` to this type"),
            };
            if matches!(from, Ty::F16x2 | Ty::Bf16x2) {
                return cx.unsupported("`set` of packed values");
            }
            Compare::Set { test, d: cx.target(d, Width::Word)?, yes }
        }
        _ => {
            let (to, from) = (modifiers.ty()?, modifiers.ty()?);
            let float = from == Ty::F32;
            if !float && from != Ty::S32 {
                return cx.unsupported("`slct` on this type");
            }
            let width = Width::of(to);
            let [d, a, b, c] = operands(instruction)?;
            let ab = [cx.source(a, width)?, cx.source(b, width)?];
            let (d, c) = (cx.target(d, width)?, cx.source(c, Width::Word)?);
            Compare::Select { wide: width == Width::Wide, float, d, ab, c }
        }
    };
    modifiers.finish()?;
    Ok(decoded)
}

fn set_predicate<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    modifiers: &mut Modifiers<'a>,
) -> Result<Compare, Failure> {
    let ty = modifiers.ty()?;
    let logic = modifiers.take_one(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
    let (targets, a, b, third) = match instruction.operands.as_slice() {
        [targets, a, b] if logic.is_none() => (targets, a, b, None),
        [targets, a, b, c] if logic.is_some() => (targets, a, b, Some(c)),
        _ => return cx.syntax("`setp` takes three operands, or four with a combination"),
    };
    if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        return cx.unsupported("`setp` of packed values");
    }
    let test = test(cx, instruction, modifiers, ty, [a, b])?;
    let combine = match (logic, third) {
        (Some(logic), Some(operand)) => Some((logic, cx.predicate(operand)?)),
        _ => None,
    };
    let (p, q) = match targets {
        Operand::Pair(p, q) => (cx.write(p, Width::Predicate)?, Some(cx.write(q, Width::Predicate)?)),
        other => (cx.target(other, Width::Predicate)?, None),
    };
    Ok(Compare::SetPredicate { test, p, q, combine })
}
