//! Decoded instructions: what [`crate::decode`] makes of the text and [`crate::exec`] runs.
//!
//! Every operand is a [`Slot`] of the register file; destinations are `d`, sources `a`, `b` and `c`, as in the PTX
//! manual. One enum for each class of instruction, matched in the module of [`crate::exec`] with the same name.

use crate::memory::Space;
use crate::registers::Slot;
use crate::ty::Ty;

/// An instruction, its guard and its line.
#[derive(Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<Guard>,
    pub(crate) line: u32,
}

/// `@p` or `@!p`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub(crate) predicate: Slot,
    pub(crate) negated: bool,
}

/// The classes of instructions.
#[derive(Debug)]
pub(crate) enum Op {
    Control(Control),
    Data(Data),
    Integer(Integer),
    Float(Float),
    Compare(Compare),
    Convert(Convert),
    Memory(Access),
    Matrix(Matrix),
    Warp(Warp),
    Barrier(Barrier),
    Async(Async),
}

/// Flow of control. Targets are indices of instructions.
#[derive(Debug)]
pub(crate) enum Control {
    /// `reconverge` is where both sides of a divergent branch meet; none if they only meet by exiting.
    Branch {
        target: u32,
        reconverge: Option<u32>,
    },
    Exit,
    Trap,
    Panic {
        function: String,
    },
    /// Arguments for a function that does not return go nowhere.
    Nothing,
}

/// `mov`, `selp` and logic on predicates.
#[derive(Debug)]
pub(crate) enum Data {
    Move32 {
        d: Slot,
        a: Slot,
    },
    Move64 {
        d: Slot,
        a: Slot,
    },
    MovePredicate {
        d: Slot,
        a: Slot,
    },
    /// Parts are `bits` wide, the lowest first.
    Pack {
        d: Slot,
        wide: bool,
        bits: u32,
        parts: Vec<Slot>,
    },
    Unpack {
        a: Slot,
        wide: bool,
        bits: u32,
        parts: Vec<Option<Slot>>,
    },
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    PredicateLogic {
        op: Logic,
        d: Slot,
        a: Slot,
        b: Slot,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
    Not,
}

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
    /// A shift; the amount is 32 bits whatever the type.
    Shift {
        left: bool,
        ty: IntTy,
        d: Slot,
        ab: [Slot; 2],
    },
    /// `popc` and `clz` give 32 bits whatever the type.
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
    Pair { to: Ty, rounding: Rounding, relu: bool, d: Slot, ab: [Slot; 2] },
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

/// An address: a register of 32 or 64 bits and an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Slot,
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

/// `ld`, `st`, `atom`, `red` and `cvta`.
#[derive(Debug)]
pub(crate) enum Access {
    Load {
        space: Space,
        element: Element,
        count: usize,
        d: [Option<Slot>; 4],
        address: Address,
    },
    Store {
        space: Space,
        element: Element,
        count: usize,
        a: [Slot; 4],
        address: Address,
    },
    /// `red` has no destination; `c` is the new value of a compare-and-swap.
    Atomic {
        space: Space,
        op: AtomicOp,
        ty: Ty,
        d: Option<Slot>,
        address: Address,
        b: Slot,
        c: Slot,
    },
    /// Between a state space and the generic addresses; `add` is the window, negative on the way back.
    ConvertAddress {
        d: Slot,
        a: Slot,
        add: i64,
    },
}

/// How an element of a vector sits in its register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element {
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    /// Whether the register has 64 bits.
    pub(crate) wide: bool,
    /// Whether the register has 16 bits.
    pub(crate) short: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AtomicOp {
    Add,
    Inc,
    Dec,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

/// `ldmatrix`, `mma`.
#[derive(Debug)]
pub(crate) enum Matrix {
    Load { trans: bool, d: Vec<Slot>, address: Address },
    MmaInt { a_ty: MmaElement, b_ty: MmaElement, regs: Box<MmaRegs> },
    MmaFloat { bf16: bool, regs: Box<MmaRegs> },
}

/// The element type of an integer operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MmaElement {
    pub(crate) bits: u32,
    pub(crate) signed: bool,
}

#[derive(Debug)]
pub(crate) struct MmaRegs {
    pub(crate) d: [Slot; 4],
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: [Slot; 4],
}

/// `shfl`, `vote`, `activemask`, `bar.warp.sync`.
#[derive(Debug)]
pub(crate) enum Warp {
    Shuffle {
        mode: Shuffle,
        d: Option<Slot>,
        p: Option<Slot>,
        a: Slot,
        b: Slot,
        c: Slot,
        members: Slot,
    },
    /// `ballot` writes a register, the others a predicate.
    Vote {
        mode: Vote,
        d: Slot,
        p: Guard,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    Sync {
        members: Slot,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `bar.sync`, `bar.arrive` and fences.
#[derive(Debug)]
pub(crate) enum Barrier {
    /// Without a thread count, all threads of the CTA.
    Meet { wait: bool, barrier: Slot, threads: Option<Slot> },
    /// Memory is sequentially consistent here, so that fences have nothing to do.
    Fence,
}

/// `cp.async` and its groups.
#[derive(Debug)]
pub(crate) enum Async {
    /// Bytes past `source_bytes`, or all of them where `ignore` holds, become zero.
    Copy {
        bytes: u32,
        to: Address,
        from: Address,
        source_bytes: Option<Slot>,
        ignore: Option<Slot>,
    },
    Commit,
    WaitGroup {
        newest: u32,
    },
    WaitAll,
}
