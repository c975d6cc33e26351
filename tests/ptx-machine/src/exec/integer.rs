//! Integer arithmetic, logic, shifts and bit fields.

use crate::isa::{Count, IntBinary, IntTy, IntUnary, Integer};
use crate::registers::{Lane, Registers, Slot};

/// What the operations need of a Rust integer; division by zero gives what devices give, all ones.
trait Int: Lane {
    fn unary(op: IntUnary, registers: &mut Registers, mask: u32, d: Slot, a: Slot);
    fn binary(op: IntBinary, registers: &mut Registers, mask: u32, d: Slot, ab: [Slot; 2]);
    fn shift(left: bool, registers: &mut Registers, mask: u32, d: Slot, ab: [Slot; 2]);
    fn count(op: Count, registers: &mut Registers, mask: u32, d: Slot, a: Slot);
    fn mad(high: bool, registers: &mut Registers, mask: u32, d: Slot, abc: [Slot; 3]);
}

macro_rules! int {
    ($($ty:ty, $wide:ty, $signed:literal;)*) => {$(
        impl Int for $ty {
            fn unary(op: IntUnary, registers: &mut Registers, mask: u32, d: Slot, a: Slot) {
                match op {
                    IntUnary::Neg => registers.map(mask, d, a, |a: $ty| a.wrapping_neg()),
                    IntUnary::Abs => registers.map(mask, d, a, |a: $ty| if a.negative() { a.wrapping_neg() } else { a }),
                    IntUnary::Not => registers.map(mask, d, a, |a: $ty| !a),
                    IntUnary::Reverse => registers.map(mask, d, a, |a: $ty| a.reverse_bits()),
                }
            }

            fn binary(op: IntBinary, r: &mut Registers, mask: u32, d: Slot, ab: [Slot; 2]) {
                let ones = !(0 as $ty);
                match op {
                    IntBinary::Add => r.zip(mask, d, ab, |a: $ty, b: $ty| a.wrapping_add(b)),
                    IntBinary::Sub => r.zip(mask, d, ab, |a: $ty, b: $ty| a.wrapping_sub(b)),
                    IntBinary::MulLo => r.zip(mask, d, ab, |a: $ty, b: $ty| a.wrapping_mul(b)),
                    IntBinary::MulHi => r.zip(mask, d, ab, mul_high::<$ty>),
                    IntBinary::Div => r.zip(mask, d, ab, |a: $ty, b: $ty| if b == 0 { ones } else { a.wrapping_div(b) }),
                    IntBinary::Rem => r.zip(mask, d, ab, |a: $ty, b: $ty| if b == 0 { a } else { a.wrapping_rem(b) }),
                    IntBinary::Min => r.zip(mask, d, ab, |a: $ty, b: $ty| a.min(b)),
                    IntBinary::Max => r.zip(mask, d, ab, |a: $ty, b: $ty| a.max(b)),
                    IntBinary::And => r.zip(mask, d, ab, |a: $ty, b: $ty| a & b),
                    IntBinary::Or => r.zip(mask, d, ab, |a: $ty, b: $ty| a | b),
                    IntBinary::Xor => r.zip(mask, d, ab, |a: $ty, b: $ty| a ^ b),
                }
            }

            fn shift(left: bool, registers: &mut Registers, mask: u32, d: Slot, ab: [Slot; 2]) {
                if left {
                    registers.zip(mask, d, ab, |a: $ty, b: u32| if b < <$ty>::BITS { a << b } else { 0 });
                } else {
                    // Past the end, an arithmetic shift leaves the sign and a logical one nothing.
                    registers.zip(mask, d, ab, |a: $ty, b: u32| {
                        let most = a >> b.min(<$ty>::BITS - 1);
                        if b < <$ty>::BITS || a.negative() { most } else { 0 }
                    });
                }
            }

            fn count(op: Count, registers: &mut Registers, mask: u32, d: Slot, a: Slot) {
                match op {
                    Count::Ones => registers.map(mask, d, a, |a: $ty| a.count_ones()),
                    Count::LeadingZeros => registers.map(mask, d, a, |a: $ty| a.leading_zeros()),
                    Count::Find { shift_amount } => registers.map(mask, d, a, |a: $ty| {
                        let from_top = if a.negative() { !a } else { a }.leading_zeros();
                        match <$ty>::BITS - 1 {
                            top if from_top > top => u32::MAX,
                            _ if shift_amount => from_top,
                            top => top - from_top,
                        }
                    }),
                }
            }

            fn mad(high: bool, registers: &mut Registers, mask: u32, d: Slot, abc: [Slot; 3]) {
                if high {
                    registers.zip3(mask, d, abc, |a: $ty, b: $ty, c: $ty| mul_high(a, b).wrapping_add(c));
                } else {
                    registers.zip3(mask, d, abc, |a: $ty, b: $ty, c: $ty| a.wrapping_mul(b).wrapping_add(c));
                }
            }
        }

        impl High for $ty {
            #[inline(always)]
            fn high(a: Self, b: Self) -> Self {
                ((a as $wide).wrapping_mul(b as $wide) >> <$ty>::BITS) as $ty
            }

            #[inline(always)]
            fn negative(self) -> bool {
                $signed && self >> (<$ty>::BITS - 1) & 1 == 1
            }
        }
    )*};
}

int! {
    u16, u32, false;
    i16, i32, true;
    u32, u64, false;
    i32, i64, true;
    u64, u128, false;
    i64, i128, true;
}

/// The upper half of a product, and the sign.
trait High: Sized {
    fn high(a: Self, b: Self) -> Self;
    fn negative(self) -> bool;
}

#[inline(always)]
fn mul_high<T: High>(a: T, b: T) -> T {
    T::high(a, b)
}

macro_rules! with_ty {
    ($ty:expr, $f:ident $args:tt) => {
        match $ty {
            IntTy::U16 => <u16 as Int>::$f $args,
            IntTy::S16 => <i16 as Int>::$f $args,
            IntTy::U32 => <u32 as Int>::$f $args,
            IntTy::S32 => <i32 as Int>::$f $args,
            IntTy::U64 => <u64 as Int>::$f $args,
            IntTy::S64 => <i64 as Int>::$f $args,
        }
    };
}

pub(super) fn execute(op: &Integer, registers: &mut Registers, mask: u32) {
    match *op {
        Integer::Unary { op, ty, d, a } => with_ty!(ty, unary(op, registers, mask, d, a)),
        Integer::Binary { op, ty, d, ab } => with_ty!(ty, binary(op, registers, mask, d, ab)),
        Integer::Pair { op, signed, d, ab } => registers.zip(mask, d, ab, |a: u32, b: u32| {
            pair_of(a, b, |a, b| match (op, signed) {
                (IntBinary::Min, true) => (a as i16).min(b as i16) as u16,
                (IntBinary::Min, false) => a.min(b),
                (IntBinary::Max, true) => (a as i16).max(b as i16) as u16,
                (IntBinary::Max, false) => a.max(b),
                _ => a.wrapping_add(b),
            })
        }),
        Integer::Shift { left, ty, d, ab } => with_ty!(ty, shift(left, registers, mask, d, ab)),
        Integer::Count { op, ty, d, a } => with_ty!(ty, count(op, registers, mask, d, a)),
        Integer::Mad { high, ty, d, abc } => with_ty!(ty, mad(high, registers, mask, d, abc)),
        Integer::MulWide { ty, d, ab } => mul_wide(ty, registers, mask, d, ab),
        Integer::MadWide { ty, d, abc } => mad_wide(ty, registers, mask, d, abc),
        Integer::Extract { ty, d, abc } => match ty {
            IntTy::U32 => registers.zip3(mask, d, abc, |a: u32, b, c| extract_unsigned(a.into(), b, c) as u32),
            IntTy::S32 => registers.zip3(mask, d, abc, |a: i32, b, c| extract_signed(a.into(), b, c) as i32),
            IntTy::U64 => registers.zip3(mask, d, abc, extract_unsigned),
            IntTy::S64 => registers.zip3(mask, d, abc, extract_signed),
            IntTy::U16 | IntTy::S16 => unreachable!("the decoder refuses `bfe` on 16 bits"),
        },
        Integer::Insert { wide, d, ab, position, length } => insert(registers, mask, wide, d, ab, [position, length]),
        Integer::Funnel { left, clamp, d, abc } => registers.zip3(mask, d, abc, |low: u32, high: u32, by: u32| {
            let by = if clamp { by.min(32) } else { by & 31 };
            let both = u64::from(high) << 32 | u64::from(low);
            if left { (both << by >> 32) as u32 } else { (both >> by) as u32 }
        }),
        Integer::Lop3 { table, d, abc } => registers.zip3(mask, d, abc, |a, b, c| lop3(table, [a, b, c])),
        Integer::Prmt { d, abc } => registers.zip3(mask, d, abc, prmt),
        Integer::FindNthSet { d, abc } => registers.zip3(mask, d, abc, find_nth_set),
        Integer::Dp4a { a_signed, b_signed, d, abc } => registers.zip3(mask, d, abc, |a: u32, b: u32, c: u32| {
            (0..4).fold(c, |sum, i| sum.wrapping_add(byte(a, i, a_signed).wrapping_mul(byte(b, i, b_signed))))
        }),
    }
}

fn mul_wide(ty: IntTy, registers: &mut Registers, mask: u32, d: Slot, ab: [Slot; 2]) {
    match ty {
        IntTy::U16 => registers.zip(mask, d, ab, |a: u16, b: u16| u32::from(a) * u32::from(b)),
        IntTy::S16 => registers.zip(mask, d, ab, |a: i16, b: i16| i32::from(a) * i32::from(b)),
        IntTy::U32 => registers.zip(mask, d, ab, |a: u32, b: u32| u64::from(a) * u64::from(b)),
        IntTy::S32 => registers.zip(mask, d, ab, |a: i32, b: i32| i64::from(a) * i64::from(b)),
        IntTy::U64 | IntTy::S64 => unreachable!("the decoder refuses wide products of 64 bits"),
    }
}

fn mad_wide(ty: IntTy, registers: &mut Registers, mask: u32, d: Slot, abc: [Slot; 3]) {
    match ty {
        IntTy::U16 => {
            registers.zip3(mask, d, abc, |a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c))
        }
        IntTy::S16 => {
            registers.zip3(mask, d, abc, |a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c))
        }
        IntTy::U32 => {
            registers.zip3(mask, d, abc, |a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c))
        }
        IntTy::S32 => {
            registers.zip3(mask, d, abc, |a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))
        }
        IntTy::U64 | IntTy::S64 => unreachable!("the decoder refuses wide products of 64 bits"),
    }
}

fn extract_unsigned(a: u64, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let field = a.checked_shr(position).unwrap_or(0);
    if length < 64 { field & ((1 << length) - 1) } else { field }
}

/// Bits past the end of the value repeat its sign, as does the field's own top bit.
fn extract_signed(a: i64, position: u32, length: u32) -> i64 {
    let (position, length) = (position & 0xff, (length & 0xff).min(64));
    let field = a >> position.min(63);
    if length == 0 { 0 } else { field << (64 - length) >> (64 - length) }
}

fn insert(registers: &mut Registers, mask: u32, wide: bool, d: Slot, [a, b]: [Slot; 2], [position, length]: [Slot; 2]) {
    let field = |a: u64, b: u64, position: u32, length: u32, bits: u32| {
        let position = (position & 0xff).min(bits);
        let length = (length & 0xff).min(bits - position);
        let ones = ((1_u128 << length) - 1) << position;
        (u128::from(a) << position & ones | u128::from(b) & !ones) as u64
    };
    let (position, length) = (*registers.narrow(position), *registers.narrow(length));
    if wide {
        let (a, b) = (*registers.wide(a), *registers.wide(b));
        u64::write(registers, d, mask, &std::array::from_fn(|i| field(a[i], b[i], position[i], length[i], 64)));
    } else {
        let (a, b) = (*registers.narrow(a), *registers.narrow(b));
        let one = |i: usize| field(a[i].into(), b[i].into(), position[i], length[i], 32) as u32;
        u32::write(registers, d, mask, &std::array::from_fn(one));
    }
}

/// Any function of three bits, given as its table.
#[inline(always)]
fn lop3(table: u8, [a, b, c]: [u32; 3]) -> u32 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |out, row| {
        let pick = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
        out | pick(a, 2) & pick(b, 1) & pick(c, 0)
    })
}

/// `f` of the halves of two words; no half hears of the other.
#[inline(always)]
fn pair_of(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16 | u32::from(f(a as u16, b as u16))
}

/// The `|offset|`-th bit that is set from `base` on, upwards or downwards; for an offset of zero, `base` if it is set.
fn find_nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let step = if offset < 0 { -1 } else { 1 };
    let mut left = if offset == 0 { 1 } else { offset.unsigned_abs() };
    let mut place = i64::from(base);
    while (0..32).contains(&place) {
        left -= mask >> place & 1;
        if left == 0 {
            return place as u32;
        }
        if offset == 0 {
            break;
        }
        place += step;
    }
    u32::MAX
}

/// Picks four of eight bytes; the top bit of a selector asks for the byte's sign instead.
#[inline(always)]
fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |out, i| {
        let select = selector >> (4 * i);
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        out | u32::from(byte) << (8 * i)
    })
}

#[inline(always)]
fn byte(word: u32, place: u32, signed: bool) -> u32 {
    let byte = (word >> (8 * place)) as u8;
    if signed { byte as i8 as i32 as u32 } else { byte.into() }
}
