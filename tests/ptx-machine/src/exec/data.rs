//! `mov`, `selp` and logic on predicates.

use crate::isa::{Data, Logic};
use crate::registers::{LANES, Lane, Registers, Slot};

pub(super) fn execute(op: &Data, registers: &mut Registers, mask: u32) {
    match op {
        Data::Move32 { d, a } => registers.map(mask, *d, *a, |a: u32| a),
        Data::Move64 { d, a } => registers.map(mask, *d, *a, |a: u64| a),
        Data::MovePredicate { d, a } => {
            let value = registers.predicate(*a);
            registers.set_predicate(*d, mask, value);
        }
        Data::Pack { d, wide, bits, parts } => pack(registers, mask, *d, *wide, *bits, parts),
        Data::Unpack { a, wide, bits, parts } => unpack(registers, mask, *a, *wide, *bits, parts),
        Data::Select32 { d, a, b, p } => select::<u32>(registers, mask, *d, [*a, *b], *p),
        Data::Select64 { d, a, b, p } => select::<u64>(registers, mask, *d, [*a, *b], *p),
        Data::PredicateLogic { op, d, a, b } => {
            let value = combine(*op, registers.predicate(*a), registers.predicate(*b));
            registers.set_predicate(*d, mask, value);
        }
    }
}

/// Logic on predicates, all lanes at once; `Not` looks at the first alone.
pub(super) fn combine(op: Logic, a: u32, b: u32) -> u32 {
    match op {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
        Logic::Not => !a,
    }
}

fn select<T: Lane>(registers: &mut Registers, mask: u32, d: Slot, [a, b]: [Slot; 2], p: Slot) {
    let p = registers.predicate(p);
    let (a, b) = (T::read(registers, a), T::read(registers, b));
    let mut out = [T::default(); LANES];
    for i in 0..LANES {
        out[i] = if p >> i & 1 == 1 { a[i] } else { b[i] };
    }
    T::write(registers, d, mask, &out);
}

fn pack(registers: &mut Registers, mask: u32, d: Slot, wide: bool, bits: u32, parts: &[Slot]) {
    let mut out = [0_u64; LANES];
    for (place, part) in parts.iter().enumerate() {
        let values = registers.narrow(*part);
        for i in 0..LANES {
            let value = u64::from(values[i]) & ((1 << bits) - 1);
            out[i] |= value << (place as u32 * bits);
        }
    }
    if wide {
        u64::write(registers, d, mask, &out);
    } else {
        u32::write(registers, d, mask, &out.map(|value| value as u32));
    }
}

fn unpack(registers: &mut Registers, mask: u32, a: Slot, wide: bool, bits: u32, parts: &[Option<Slot>]) {
    let value = if wide { *registers.wide(a) } else { registers.narrow(a).map(u64::from) };
    for (place, part) in parts.iter().enumerate() {
        if let Some(d) = part {
            let shift = place as u32 * bits;
            u32::write(registers, *d, mask, &value.map(|v| (v >> shift & ((1 << bits) - 1)) as u32));
        }
    }
}
