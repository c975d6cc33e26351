//! Instructions of `sm_90` and `sm_90a`.

use super::{Address, Guard};
use crate::registers::Slot;

/// What an instruction does to a register that some `wgmma` uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    /// The number of the register among those that are watched.
    pub(crate) register: u32,
    pub(crate) write: bool,
}

/// `mbarrier`. Addresses are in shared memory.
#[derive(Debug)]
pub(crate) enum Mbarrier {
    Init {
        address: Address,
        count: Slot,
    },
    Invalidate {
        address: Address,
    },
    /// Expects the bytes, if any, and then arrives; `count` times if there is a count.
    Arrive {
        state: Option<Slot>,
        address: Address,
        bytes: Option<Slot>,
        count: Option<Slot>,
    },
    /// `test_wait` looks whether the phase is complete; `try_wait` does so the first time, and then suspends the warp
    /// until it is.
    Wait {
        suspend: bool,
        p: Slot,
        address: Address,
        parity: Slot,
    },
}

/// `cp.async.bulk` from global memory to the CTA's own shared memory.
#[derive(Debug)]
pub(crate) struct BulkCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: Slot,
    pub(crate) mbarrier: Address,
}

/// `wgmma` and `setmaxnreg`, which the four warps of a warpgroup execute alike.
#[derive(Debug)]
pub(crate) enum Warpgroup {
    Fence,
    Commit,
    Wait { newest: u32 },
    Multiply(Box<Wgmma>),
    SetMaxRegisters { increase: bool, count: u32 },
}

/// `wgmma.mma_async` of shape `m64nNk32` on bytes.
#[derive(Debug)]
pub(crate) struct Wgmma {
    pub(crate) a_signed: bool,
    pub(crate) b_signed: bool,
    /// Two accumulators for each four columns.
    pub(crate) d: Vec<Slot>,
    pub(crate) a: WgmmaA,
    /// A matrix descriptor.
    pub(crate) b: Slot,
    /// Where it does not hold, the accumulators count as zero.
    pub(crate) scale_d: Guard,
}

/// Where the first operand lies.
#[derive(Debug)]
pub(crate) enum WgmmaA {
    Registers([Slot; 4]),
    Descriptor(Slot),
}
