//! `cvt`.

use super::float::flush;
use crate::isa::{Convert, Rounding};
use crate::numeric::{BF16, F16, F32, f32_to_f16, round_even};
use crate::registers::{LANES, Lane, Registers, Slot};
use crate::ty::Ty;

pub(super) fn execute(op: &Convert, registers: &mut Registers, mask: u32) {
    match *op {
        Convert::Value { to, from, d, d_wide, .. } => {
            let bits = match (from.is_float(), to.is_float()) {
                (false, false) => int_to_int(op, registers),
                (true, false) => float_to_int(op, registers),
                (false, true) => int_to_float(op, registers),
                (true, true) => float_to_float(op, registers),
            };
            if d_wide {
                u64::write(registers, d, mask, &bits.map(|value| value as u64));
            } else {
                u32::write(registers, d, mask, &bits.map(|value| value as u32));
            }
        }
        Convert::Pair { to, rounding, relu, satfinite, d, ab: [high, low] } => {
            let (high, low) = (f32::read(registers, high), f32::read(registers, low));
            let out = if to == Ty::F16x2 && rounding == Rounding::Rn && !relu && !satfinite {
                std::array::from_fn(|i| f32_to_f16(high[i]) << 16 | f32_to_f16(low[i]))
            } else {
                let half = |x: f32| {
                    let bits = encode(to, clamp_below(x.into(), relu), rounding) as u32;
                    if satfinite { finite(to, bits) } else { bits }
                };
                std::array::from_fn(|i| half(high[i]) << 16 | half(low[i]))
            };
            u32::write(registers, d, mask, &out);
        }
        Convert::Pack { to, d, ab: [high, low], c } => {
            let (least, most) = range(to);
            let clamp = |x: i32| i128::from(x).clamp(least, most) as u32 & ((1 << to.bits()) - 1);
            let (high, low) = (i32::read(registers, high), i32::read(registers, low));
            let above = c.map_or([0; LANES], |c| *registers.narrow(c));
            let out = std::array::from_fn(|i| {
                let pair = clamp(high[i]) << to.bits() | clamp(low[i]);
                if c.is_some() { above[i] << 16 | pair } else { pair }
            });
            u32::write(registers, d, mask, &out);
        }
    }
}

/// The 16 bits of a value with an infinity replaced by the largest finite value of its sign; NaN stays.
fn finite(to: Ty, bits: u32) -> u32 {
    let infinity = if to == Ty::F16x2 { 0x7c00 } else { 0x7f80 };
    if bits & 0x7fff == infinity { bits - 1 } else { bits }
}

/// The integers a type holds.
fn range(ty: Ty) -> (i128, i128) {
    if ty.is_signed() { (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1) } else { (0, (1 << ty.bits()) - 1) }
}

/// The low bits of a value, extended as its type says.
fn extend(value: u64, ty: Ty) -> i64 {
    let unused = 64 - ty.bits();
    if ty.is_signed() { (value << unused) as i64 >> unused } else { (value << unused >> unused) as i64 }
}

fn integers(registers: &Registers, ty: Ty, slot: Slot, wide: bool) -> [i64; LANES] {
    if wide {
        registers.wide(slot).map(|value| extend(value, ty))
    } else {
        registers.narrow(slot).map(|value| extend(value.into(), ty))
    }
}

/// The value as an integer of any sign.
fn whole(value: i64, ty: Ty) -> i128 {
    if ty.is_signed() { value.into() } else { i128::from(value as u64) }
}

fn int_to_int(op: &Convert, registers: &Registers) -> [i64; LANES] {
    let Convert::Value { to, from, sat, a, a_wide, .. } = *op else { unreachable!("only values are converted here") };
    let values = integers(registers, from, a, a_wide);
    if sat {
        let (least, most) = range(to);
        return values.map(|value| whole(value, from).clamp(least, most) as i64);
    }
    values.map(|value| extend(value as u64, to))
}

fn floats(op: &Convert, registers: &Registers) -> [f64; LANES] {
    let Convert::Value { from, ftz, a, .. } = *op else { unreachable!("only values are converted here") };
    match from {
        Ty::F64 => f64::read(registers, a),
        Ty::F32 if ftz => f32::read(registers, a).map(|x| flush(x).into()),
        Ty::F32 => f32::read(registers, a).map(f64::from),
        Ty::F16 => registers.narrow(a).map(|bits| F16.decode(bits & 0xffff)),
        _ => registers.narrow(a).map(|bits| BF16.decode(bits & 0xffff)),
    }
}

#[inline(always)]
fn to_whole(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Rni => round_even(x),
        Rounding::Rzi => x.trunc(),
        Rounding::Rmi => x.floor(),
        Rounding::Rpi => x.ceil(),
        _ => x,
    }
}

/// Out of range, the nearest integer there is. NaN gives zero, except where 64 bits are involved.
fn float_to_int(op: &Convert, registers: &Registers) -> [i64; LANES] {
    let Convert::Value { to, from, rounding, .. } = *op else { unreachable!("only values are converted here") };
    let values = floats(op, registers).map(|x| to_whole(x, rounding));
    let nan = if from == Ty::F64 || to.bits() == 64 { extend(1 << (to.bits() - 1), to) } else { 0 };
    match to {
        Ty::U64 | Ty::B64 => values.map(|x| if x.is_nan() { nan } else { x as u64 as i64 }),
        Ty::S64 => values.map(|x| if x.is_nan() { nan } else { x as i64 }),
        _ => {
            let (least, most) = range(to);
            values.map(|x| if x.is_nan() { nan } else { x.clamp(least as f64, most as f64) as i64 })
        }
    }
}

fn int_to_float(op: &Convert, registers: &Registers) -> [i64; LANES] {
    let Convert::Value { to, from, rounding, a, a_wide, .. } = *op else {
        unreachable!("only values are converted here")
    };
    let values = integers(registers, from, a, a_wide);
    let unsigned_wide = from.bits() == 64 && !from.is_signed();
    match to {
        Ty::F32 if rounding == Rounding::Rn && unsigned_wide => values.map(|v| bits32(v as u64 as f32)),
        Ty::F32 if rounding == Rounding::Rn => values.map(|v| bits32(v as f32)),
        Ty::F64 if unsigned_wide => values.map(|v| (v as u64 as f64).to_bits() as i64),
        Ty::F64 => values.map(|v| (v as f64).to_bits() as i64),
        _ => values.map(|v| encode(to, if unsigned_wide { v as u64 as f64 } else { v as f64 }, rounding)),
    }
}

fn bits32(x: f32) -> i64 {
    x.to_bits().into()
}

#[inline(always)]
fn clamp_below(x: f64, relu: bool) -> f64 {
    if relu && x < 0.0 { 0.0 } else { x }
}

fn encode(to: Ty, x: f64, rounding: Rounding) -> i64 {
    match to {
        Ty::F16 | Ty::F16x2 => F16.encode(x, rounding).into(),
        Ty::Bf16 | Ty::Bf16x2 => BF16.encode(x, rounding).into(),
        Ty::F32 => F32.encode(x, rounding).into(),
        _ => x.to_bits() as i64,
    }
}

fn float_to_float(op: &Convert, registers: &Registers) -> [i64; LANES] {
    let Convert::Value { to, rounding, sat, relu, ftz, .. } = *op else {
        unreachable!("only values are converted here")
    };
    floats(op, registers).map(|x| {
        let x = clamp_below(to_whole(x, rounding), relu);
        let x = if !sat {
            x
        } else if x > 0.0 {
            x.min(1.0)
        } else {
            0.0
        };
        match to {
            Ty::F32 if ftz => bits32(flush(f32::from_bits(encode(to, x, rounding) as u32))),
            _ => encode(to, x, rounding),
        }
    })
}
