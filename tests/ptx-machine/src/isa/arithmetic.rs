//! Instructions that only touch registers: integers, floating point, comparisons, conversions.

use super::{Guard, Logic};
use crate::registers::Slot;
use crate::ty::Ty;

/// Arithmetic and bits.
#[derive(Debug)]
pub(crate) enum Integer {
    Unary {
        op: IntUnary,
        ty: IntTy,
        d: Slot,
        a: Slot,
    },
    Binary {
        op: IntBinary,
        ty: IntTy,
        d: Slot,
        ab: [Slot; 2],
    },
    /// `add`, `min` and `max` on two halves of 16 bits.
    Pair {
        op: IntBinary,
        signed: bool,
        d: Slot,
        ab: [Slot; 2],
    },
    /// A shift; the amount is 32 bits whatever the type.
    Shift {
        left: bool,
        ty: IntTy,
        d: Slot,
        ab: [Slot; 2],
    },
    /// `popc`, `clz` and `bfind` give 32 bits whatever the type.
    Count {
        op: Count,
        ty: IntTy,
        d: Slot,
        a: Slot,
    },
    Mad {
        high: bool,
        ty: IntTy,
        d: Slot,
        abc: [Slot; 3],
    },
    MulWide {
        ty: IntTy,
        d: Slot,
        ab: [Slot; 2],
    },
    MadWide {
        ty: IntTy,
        d: Slot,
        abc: [Slot; 3],
    },
    /// `bfe`; position and length are 32 bits.
    Extract {
        ty: IntTy,
        d: Slot,
        abc: [Slot; 3],
    },
    /// `bfi`: `a` into `b`.
    Insert {
        wide: bool,
        d: Slot,
        ab: [Slot; 2],
        position: Slot,
        length: Slot,
    },
    /// `shf`.
    Funnel {
        left: bool,
        clamp: bool,
        d: Slot,
        abc: [Slot; 3],
    },
    Lop3 {
        table: u8,
        d: Slot,
        abc: [Slot; 3],
    },
    Prmt {
        d: Slot,
        abc: [Slot; 3],
    },
    /// `fns`: mask, base and offset.
    FindNthSet {
        d: Slot,
        abc: [Slot; 3],
    },
    Dp4a {
        a_signed: bool,
        b_signed: bool,
        d: Slot,
        abc: [Slot; 3],
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum IntUnary {
    Neg,
    Abs,
    Not,
    Reverse,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum IntBinary {
    Add,
    Sub,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Ones,
    LeadingZeros,
    /// The place of the highest bit that is not the sign's, or how far it is from the top; all ones where there is none.
    Find {
        shift_amount: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntTy {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

/// Floating-point arithmetic.
#[derive(Debug)]
pub(crate) struct Float {
    pub(crate) op: FloatOp,
    pub(crate) ty: FloatTy,
    /// Flush subnormal inputs and results to zero.
    pub(crate) ftz: bool,
    /// Clamp the result to [0, 1].
    pub(crate) sat: bool,
    pub(crate) d: Slot,
    /// Operations with fewer operands repeat the first.
    pub(crate) abc: [Slot; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    /// `nan`: one NaN operand is enough for a NaN result.
    Min {
        nan: bool,
    },
    Max {
        nan: bool,
    },
    CopySign,
    Fma,
    FmaRelu,
    Neg,
    Abs,
    Sqrt,
    Rsqrt,
    Rcp,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatTy {
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

/// `setp`, `set` and `slct`.
#[derive(Debug)]
pub(crate) enum Compare {
    /// `q` receives the combination with the negated result.
    SetPredicate { test: Test, p: Slot, q: Option<Slot>, combine: Option<(Logic, Guard)> },
    /// All ones or `1.0` where the test holds.
    Set { test: Test, d: Slot, yes: u32 },
    /// `slct`: `a` where `c >= 0`.
    Select { wide: bool, float: bool, d: Slot, ab: [Slot; 2], c: Slot },
}

/// A comparison of two registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    pub(crate) relation: Relation,
    pub(crate) ty: TestTy,
    pub(crate) ftz: bool,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum TestTy {
    Int(IntTy),
    Float(FloatTy),
}

/// What a comparison asks; `unordered` forms hold when an operand is NaN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relation {
    pub(crate) less: bool,
    pub(crate) equal: bool,
    pub(crate) greater: bool,
    pub(crate) unordered: bool,
}

/// `cvt`.
#[derive(Debug)]
pub(crate) enum Convert {
    /// One value to another type.
    Value {
        to: Ty,
        from: Ty,
        rounding: Rounding,
        sat: bool,
        relu: bool,
        ftz: bool,
        d: Slot,
        d_wide: bool,
        a: Slot,
        a_wide: bool,
    },
    /// Two `f32` to a pair; `a` becomes the upper half.
    Pair { to: Ty, rounding: Rounding, relu: bool, satfinite: bool, d: Slot, ab: [Slot; 2] },
    /// `cvt.pack.sat`: two `s32`, clamped; `c`, if any, supplies the bits above.
    Pack { to: Ty, d: Slot, ab: [Slot; 2], c: Option<Slot> },
}

/// How a conversion rounds; the first four round to integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Rni,
    Rzi,
    Rmi,
    Rpi,
    Rn,
    Rz,
    Rm,
    Rp,
    None,
}
