//! Decoded instructions: what [`crate::decode`] makes of the text and [`crate::exec`] runs.
//!
//! Every operand is a [`Slot`] of the register file; destinations are `d`, sources `a`, `b` and `c`, as in the PTX
//! manual. One enum for each class of instruction, matched in the module of [`crate::exec`] with the same name.

mod arithmetic;
mod hopper;
mod system;

use crate::registers::Slot;

pub(crate) use arithmetic::*;
pub(crate) use hopper::*;
pub(crate) use system::*;

/// An instruction, its guard and its line.
#[derive(Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<Guard>,
    pub(crate) line: u32,
    /// What it does to registers that some `wgmma` uses.
    pub(crate) watched: Box<[Watched]>,
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
    Bulk(BulkCopy),
    Mbarrier(Mbarrier),
    Warpgroup(Warpgroup),
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
