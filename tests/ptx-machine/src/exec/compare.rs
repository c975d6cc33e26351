//! `setp`, `set`, `slct`.

use super::data::combine;
use super::float::{flush, wide_values};
use crate::isa::{Compare, FloatTy, IntTy, Relation, Test, TestTy};
use crate::registers::{LANES, Lane, Registers};

pub(super) fn execute(op: &Compare, registers: &mut Registers, mask: u32) {
    match op {
        Compare::SetPredicate { test, p, q, combine: with } => {
            let holds = evaluate(test, registers);
            let (yes, no) = match with {
                None => (holds, !holds),
                Some((logic, guard)) => {
                    let other = registers.predicate(guard.predicate) ^ if guard.negated { u32::MAX } else { 0 };
                    (combine(*logic, holds, other), combine(*logic, !holds, other))
                }
            };
            registers.set_predicate(*p, mask, yes);
            if let Some(q) = q {
                registers.set_predicate(*q, mask, no);
            }
        }
        Compare::Set { test, d, yes } => {
            let holds = evaluate(test, registers);
            let out = std::array::from_fn(|i| if holds >> i & 1 == 1 { *yes } else { 0 });
            u32::write(registers, *d, mask, &out);
        }
        Compare::Select { wide, float, d, ab: [a, b], c } => {
            let c = *registers.narrow(*c);
            let first = |i: usize| if *float { f32::from_bits(c[i]) >= 0.0 } else { c[i] as i32 >= 0 };
            if *wide {
                let (a, b) = (*registers.wide(*a), *registers.wide(*b));
                u64::write(registers, *d, mask, &std::array::from_fn(|i| if first(i) { a[i] } else { b[i] }));
            } else {
                let (a, b) = (*registers.narrow(*a), *registers.narrow(*b));
                u32::write(registers, *d, mask, &std::array::from_fn(|i| if first(i) { a[i] } else { b[i] }));
            }
        }
    }
}

/// The lanes in which the test holds, active or not.
fn evaluate(test: &Test, registers: &Registers) -> u32 {
    match test.ty {
        TestTy::Int(IntTy::U16) => read_and_relate::<u16>(test, registers),
        TestTy::Int(IntTy::S16) => read_and_relate::<i16>(test, registers),
        TestTy::Int(IntTy::U32) => read_and_relate::<u32>(test, registers),
        TestTy::Int(IntTy::S32) => read_and_relate::<i32>(test, registers),
        TestTy::Int(IntTy::U64) => read_and_relate::<u64>(test, registers),
        TestTy::Int(IntTy::S64) => read_and_relate::<i64>(test, registers),
        TestTy::Float(FloatTy::F32) if test.ftz => {
            let (a, b) = (f32::read(registers, test.a), f32::read(registers, test.b));
            relate(test.relation, &a.map(flush), &b.map(flush))
        }
        TestTy::Float(FloatTy::F32) => read_and_relate::<f32>(test, registers),
        TestTy::Float(ty) => {
            let (a, b) = (wide_values(registers, ty, test.a), wide_values(registers, ty, test.b));
            relate(test.relation, &a, &b)
        }
    }
}

fn read_and_relate<T: Lane + PartialOrd>(test: &Test, registers: &Registers) -> u32 {
    relate(test.relation, &T::read(registers, test.a), &T::read(registers, test.b))
}

#[inline(always)]
fn relate<T: Copy + PartialOrd>(relation: Relation, a: &[T; LANES], b: &[T; LANES]) -> u32 {
    let gather = |holds: &dyn Fn(usize) -> bool| (0..LANES).fold(0, |out, i| out | u32::from(holds(i)) << i);
    let Relation { less, equal, greater, unordered } = relation;
    match (less, equal, greater, unordered) {
        (true, false, false, false) => gather(&|i| a[i] < b[i]),
        (false, true, false, false) => gather(&|i| a[i] == b[i]),
        (false, false, true, false) => gather(&|i| a[i] > b[i]),
        (true, true, false, false) => gather(&|i| a[i] <= b[i]),
        (false, true, true, false) => gather(&|i| a[i] >= b[i]),
        _ => gather(&|i| match a[i].partial_cmp(&b[i]) {
            None => unordered,
            Some(std::cmp::Ordering::Less) => less,
            Some(std::cmp::Ordering::Equal) => equal,
            Some(std::cmp::Ordering::Greater) => greater,
        }),
    }
}
