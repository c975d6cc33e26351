//! Instructions that touch memory or other threads.

use super::Guard;
use crate::memory::Space;
use crate::registers::Slot;
use crate::ty::Ty;

/// An address: a register of 32 or 64 bits and an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Slot,
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

/// `ld`, `st`, `atom`, `red`, `prefetch` and `cvta`.
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
    /// A hint for the cache. A GPU takes any address; one outside of all global memory is a mistake nevertheless.
    Prefetch {
        address: Address,
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

/// `shfl`, `vote`, `activemask`, `bar.warp.sync`, `elect.sync`.
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
    /// The lowest member is elected.
    Elect {
        d: Option<Slot>,
        p: Slot,
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
    /// Memory is sequentially consistent here, and launches follow each other, so that fences and `griddepcontrol` have
    /// nothing to do.
    Fence,
    /// `fence.proxy.async`: what the thread knows of becomes known to the asynchronous instructions after it.
    ProxyFence,
    /// `fence.mbarrier_init`: the same, of the mbarriers that the thread has initialised.
    MbarrierInitFence,
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
