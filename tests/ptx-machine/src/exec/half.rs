//! Arithmetic on `f16` and `bf16`, alone and in pairs.

use super::float::{clamp, larger, operate, smaller};
use crate::isa::{Float, FloatOp, FloatTy, Rounding};
use crate::numeric::{BF16, F16, Format, add_odd, exp2, f16_to_f32, f32_to_f16};
use crate::registers::{LANES, Lane, Registers};
use std::sync::LazyLock;

pub(super) fn execute(op: &Float, registers: &mut Registers, mask: u32) {
    let pairs = matches!(op.ty, FloatTy::F16x2 | FloatTy::Bf16x2);
    if matches!(op.op, FloatOp::Neg | FloatOp::Abs) {
        let sign = if pairs { 0x8000_8000 } else { 0x8000 };
        let flip = matches!(op.op, FloatOp::Neg);
        return registers.map(mask, op.d, op.abc[0], |a: u32| if flip { a ^ sign } else { a & !sign });
    }
    let plain = matches!(op.ty, FloatTy::F16 | FloatTy::F16x2) && !op.ftz && !op.sat;
    match op.op {
        FloatOp::Add if plain => f16s(op, registers, mask, pairs, |a, b, _| a + b),
        FloatOp::Sub if plain => f16s(op, registers, mask, pairs, |a, b, _| a - b),
        FloatOp::Mul if plain => f16s(op, registers, mask, pairs, |a, b, _| a * b),
        // The product fits an `f32`; the sum must not be rounded before the one rounding there is.
        FloatOp::Fma if plain => f16s(op, registers, mask, pairs, |a, b, c| add_odd(a * b, c)),
        FloatOp::Min { nan } if plain => f16s(op, registers, mask, pairs, |a, b, _| smaller(a, b, nan)),
        FloatOp::Max { nan } if plain => f16s(op, registers, mask, pairs, |a, b, _| larger(a, b, nan)),
        FloatOp::Ex2 if plain => exponentials(op, registers, mask, pairs),
        _ => any(op, registers, mask, pairs),
    }
}

/// `f16` by way of `f32`, which holds sums and products of two of them closely enough to round once more.
#[inline(always)]
fn f16s(op: &Float, registers: &mut Registers, mask: u32, pairs: bool, f: impl Fn(f32, f32, f32) -> f32) {
    let one = |a: u32, b: u32, c: u32| f32_to_f16(f(f16_to_f32(a), f16_to_f32(b), f16_to_f32(c)));
    if pairs {
        registers.zip3(mask, op.d, op.abc, |a: u32, b: u32, c: u32| {
            one(a >> 16, b >> 16, c >> 16) << 16 | one(a & 0xffff, b & 0xffff, c & 0xffff)
        });
    } else {
        registers.zip3(mask, op.d, op.abc, |a: u32, b: u32, c: u32| one(a, b, c));
    }
}

/// `2^x` of every `f16`, in the order of their bits.
static EXPONENTIALS: LazyLock<Vec<u16>> = LazyLock::new(|| {
    let one = |bits| F16.encode(exp2(F16.decode(bits)), Rounding::Rn) as u16;
    (0..=0xffff).map(one).collect()
});

fn exponentials(op: &Float, registers: &mut Registers, mask: u32, pairs: bool) {
    let table = EXPONENTIALS.as_slice();
    let one = |bits: u32| u32::from(table[(bits & 0xffff) as usize]);
    registers.map(mask, op.d, op.abc[0], |a: u32| if pairs { one(a >> 16) << 16 | one(a) } else { one(a) });
}

/// The format behind a 16-bit type.
pub(super) fn format(ty: FloatTy) -> Format {
    if matches!(ty, FloatTy::F16 | FloatTy::F16x2) { F16 } else { BF16 }
}

/// Any operation on either format, by way of doubles, which hold even a fused sum closely enough to round once more.
fn any(op: &Float, registers: &mut Registers, mask: u32, pairs: bool) {
    let format = format(op.ty);
    let subnormal = |bits: u32| bits & 0x7fff < format.smallest_normal();
    let one = |word: [u32; 3]| {
        let [a, b, c] = word.map(|bits| format.decode(if op.ftz && subnormal(bits) { bits & 0x8000 } else { bits }));
        let result = operate(op.op, a, b, c, |a, b, c| a * b + c);
        let bits = format.encode(if op.sat { f64::from(clamp(result as f32)) } else { result }, Rounding::Rn);
        if op.ftz && subnormal(bits) { bits & 0x8000 } else { bits }
    };
    let words = op.abc.map(|slot| *registers.narrow(slot));
    let out: [u32; LANES] = std::array::from_fn(|i| {
        let low = one(words.map(|word| word[i] & 0xffff));
        if pairs { one(words.map(|word| word[i] >> 16)) << 16 | low } else { low }
    });
    u32::write(registers, op.d, mask, &out);
}
