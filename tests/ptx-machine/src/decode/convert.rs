//! `cvt`.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Convert, Rounding};
use crate::parse::{Failure, Instruction};
use crate::ty::Ty;

const ROUNDINGS: [(&str, Rounding); 8] = [
    ("rni", Rounding::Rni),
    ("rzi", Rounding::Rzi),
    ("rmi", Rounding::Rmi),
    ("rpi", Rounding::Rpi),
    ("rn", Rounding::Rn),
    ("rz", Rounding::Rz),
    ("rm", Rounding::Rm),
    ("rp", Rounding::Rp),
];

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Convert, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    if modifiers.take("pack") {
        return pack(cx, instruction, modifiers);
    }
    let rounding = modifiers.take_one(&ROUNDINGS).unwrap_or(Rounding::None);
    let (to, from) = (modifiers.ty()?, modifiers.ty()?);
    let (sat, relu, ftz) = (modifiers.take("sat"), modifiers.take("relu"), modifiers.take("ftz"));
    let satfinite = modifiers.take("satfinite");
    modifiers.finish()?;
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
        let [d, a, b] = operands(instruction)?;
        if from != Ty::F32 || sat || ftz || !matches!(rounding, Rounding::Rn | Rounding::Rz) {
            return cx.unsupported("this conversion to a pair");
        }
        let ab = [cx.source(a, Width::Word)?, cx.source(b, Width::Word)?];
        return Ok(Convert::Pair { to, rounding, relu, satfinite, d: cx.target(d, Width::Word)?, ab });
    }
    if satfinite {
        return cx.unsupported("`satfinite` on a conversion that is not to a pair");
    }
    let [d, a] = operands(instruction)?;
    check(cx, to, from, rounding, [sat, relu])?;
    let (d, width) = cx.any_target(d)?;
    let bits = |width| match width {
        Width::Predicate => 1,
        Width::Short => 16,
        Width::Word => 32,
        Width::Wide => 64,
    };
    let source_width = cx.width_of(a).unwrap_or(Width::of(from));
    let exact = |ty: Ty, width| if ty.is_float() { ty.bits() == bits(width) } else { ty.bits() <= bits(width) };
    if !exact(to, width) || !exact(from, source_width) {
        return cx.syntax("a register has the wrong size for its type");
    }
    let (d_wide, a_wide) = (width == Width::Wide, source_width == Width::Wide);
    let a = cx.source(a, source_width)?;
    Ok(Convert::Value { to, from, rounding, sat, relu, ftz, d, d_wide, a, a_wide })
}

/// Which roundings and clamps go with which types.
fn check(cx: &Context<'_>, to: Ty, from: Ty, rounding: Rounding, [sat, relu]: [bool; 2]) -> Result<(), Failure> {
    use Rounding::{None, Rm, Rmi, Rn, Rni, Rp, Rpi, Rz, Rzi};
    let packed = |ty| matches!(ty, Ty::F16x2 | Ty::Bf16x2 | Ty::Pred);
    let to_integer = matches!(rounding, Rni | Rzi | Rmi | Rpi);
    let to_float = matches!(rounding, Rn | Rz | Rm | Rp);
    let short = |ty| matches!(ty, Ty::F16 | Ty::Bf16);
    let known = !packed(to)
        && !packed(from)
        && match (from.is_float(), to.is_float()) {
            (false, false) => rounding == None && !relu,
            (true, false) => to_integer && !relu,
            (false, true) => to_float && !sat && !relu && (rounding == Rn || from.bits() < 64),
            (true, true) if from.bits() < to.bits() => rounding == None && !relu && !sat,
            (true, true) if from.bits() > to.bits() => to_float && (!relu || short(to)) && !sat,
            (true, true) => from == to && (to_integer || rounding == None) && !relu,
        };
    if known { Ok(()) } else { cx.unsupported("this combination of types, rounding and clamp") }
}

/// `cvt.pack.sat.{to}.s32{.b32}`.
fn pack<'a>(
    cx: &mut Context<'a>,
    instruction: &Instruction<'a>,
    mut modifiers: Modifiers<'a>,
) -> Result<Convert, Failure> {
    let (to, from) = (modifiers.ty()?, modifiers.ty()?);
    let known = modifiers.take("sat") && from == Ty::S32;
    let (a, b, c) = match (to.bits(), instruction.operands.as_slice()) {
        (16, [_, a, b]) => (a, b, None),
        (8, [_, a, b, c]) if modifiers.take("b32") => (a, b, Some(c)),
        _ => return cx.unsupported("`cvt.pack` of this form"),
    };
    modifiers.finish()?;
    if !known || !matches!(to, Ty::S8 | Ty::U8 | Ty::S16 | Ty::U16) {
        return cx.unsupported("`cvt.pack` between these types");
    }
    let ab = [cx.source(a, Width::Word)?, cx.source(b, Width::Word)?];
    let c = c.map(|c| cx.source(c, Width::Word)).transpose()?;
    Ok(Convert::Pack { to, d: cx.target(&instruction.operands[0], Width::Word)?, ab, c })
}
