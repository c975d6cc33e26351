//! Floating-point arithmetic.

use super::context::{Context, Modifiers, Width, operands};
use crate::isa::{Float, FloatOp, FloatTy};
use crate::parse::{Failure, Instruction};
use crate::registers::Slot;
use crate::ty::Ty;

/// Whether an instruction works on floating-point values: it is the type that says so.
pub(super) fn is_float(instruction: &Instruction<'_>) -> bool {
    instruction.modifiers.iter().filter_map(|word| Ty::parse(word)).any(Ty::is_float)
}

/// The arithmetic type behind a PTX type.
pub(super) fn float_ty(cx: &Context<'_>, ty: Ty) -> Result<FloatTy, Failure> {
    Ok(match ty {
        Ty::F16 => FloatTy::F16,
        Ty::F16x2 => FloatTy::F16x2,
        Ty::Bf16 => FloatTy::Bf16,
        Ty::Bf16x2 => FloatTy::Bf16x2,
        Ty::F32 => FloatTy::F32,
        Ty::F64 => FloatTy::F64,
        _ => return cx.unsupported(format!("floating-point arithmetic on type {ty:?}")),
    })
}

pub(super) fn decode<'a>(cx: &mut Context<'a>, instruction: &Instruction<'a>) -> Result<Float, Failure> {
    let mut modifiers = Modifiers::of(instruction);
    let nan = matches!(instruction.name, "min" | "max") && modifiers.take("NaN");
    let op = match instruction.name {
        "add" => FloatOp::Add,
        "sub" => FloatOp::Sub,
        "mul" => FloatOp::Mul,
        "div" => FloatOp::Div,
        "min" => FloatOp::Min { nan },
        "max" => FloatOp::Max { nan },
        "copysign" => FloatOp::CopySign,
        "fma" | "mad" if modifiers.take("relu") => FloatOp::FmaRelu,
        "fma" | "mad" => FloatOp::Fma,
        "neg" => FloatOp::Neg,
        "abs" => FloatOp::Abs,
        "sqrt" => FloatOp::Sqrt,
        "rsqrt" => FloatOp::Rsqrt,
        "rcp" => FloatOp::Rcp,
        "ex2" => FloatOp::Ex2,
        "lg2" => FloatOp::Lg2,
        "sin" => FloatOp::Sin,
        "cos" => FloatOp::Cos,
        "tanh" => FloatOp::Tanh,
        name => return cx.unsupported(format!("instruction `{name}` on a floating-point type")),
    };
    let full = modifiers.ty()?;
    let (ty, width) = (float_ty(cx, full)?, Width::of(full));
    let (ftz, sat) = (modifiers.take("ftz"), modifiers.take("sat"));
    let transcendental =
        matches!(op, FloatOp::Rsqrt | FloatOp::Ex2 | FloatOp::Lg2 | FloatOp::Sin | FloatOp::Cos | FloatOp::Tanh);
    let approximate = modifiers.take("approx") || (op == FloatOp::Div && modifiers.take("full"));
    let rounds_to_nearest = modifiers.take("rn");
    modifiers.finish()?;
    let arithmetic = matches!(op, FloatOp::Add | FloatOp::Sub | FloatOp::Mul | FloatOp::Fma | FloatOp::FmaRelu);
    let root = matches!(op, FloatOp::Div | FloatOp::Sqrt | FloatOp::Rcp);
    let short = matches!(ty, FloatTy::F16 | FloatTy::F16x2 | FloatTy::Bf16 | FloatTy::Bf16x2);
    let only_ex2_and_tanh = transcendental && !matches!(op, FloatOp::Ex2 | FloatOp::Tanh);
    if approximate && !(transcendental || root)
        || transcendental && !approximate
        || root && !approximate && !rounds_to_nearest
        || rounds_to_nearest && !(arithmetic || root)
        || short && (root || only_ex2_and_tanh || op == FloatOp::CopySign)
        || ty == FloatTy::F64 && (ftz || transcendental)
    {
        return cx.unsupported("this combination of operation, rounding and type");
    }
    let (d, abc) = match op {
        FloatOp::Fma | FloatOp::FmaRelu => {
            let [d, a, b, c] = operands(instruction)?;
            (d, vec![a, b, c])
        }
        FloatOp::Add
        | FloatOp::Sub
        | FloatOp::Mul
        | FloatOp::Div
        | FloatOp::Min { .. }
        | FloatOp::Max { .. }
        | FloatOp::CopySign => {
            let [d, a, b] = operands(instruction)?;
            (d, vec![a, b])
        }
        _ => {
            let [d, a] = operands(instruction)?;
            (d, vec![a])
        }
    };
    let d = cx.target(d, width)?;
    let first = cx.source(abc[0], width)?;
    let mut slots: [Slot; 3] = [first; 3];
    for (slot, operand) in slots.iter_mut().zip(abc).skip(1) {
        *slot = cx.source(operand, width)?;
    }
    Ok(Float { op, ty, ftz, sat, d, abc: slots })
}
