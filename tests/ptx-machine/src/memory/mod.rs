//! The state spaces: where addresses point, and what may be done there.
//!
//! A generic address below [`FIRST_ALLOCATION`] lies in one of the per-CTA or per-thread windows; above, its high
//! bits number a global allocation, so that neighbours are terabytes apart and a stray pointer never lands in one.

mod global;
mod local;
mod pages;
mod party;
mod shared;

use std::fmt;

pub use global::{DevPtr, Memory};
pub(crate) use local::LocalMemory;
pub(crate) use party::{FIRST_MBARRIER, Knowledge, PARTIES, Party};
pub(crate) use shared::SharedMemory;

/// Number of address bits inside one allocation.
pub(crate) const ALLOCATION_BITS: u32 = 43;
/// The lowest generic address of global memory.
pub(crate) const FIRST_ALLOCATION: u64 = 1 << ALLOCATION_BITS;
/// Where shared memory begins in the generic address space.
pub(crate) const SHARED_WINDOW: u64 = 0x1_0000_0000;
/// Where local memory begins in the generic address space.
pub(crate) const LOCAL_WINDOW: u64 = 0x2_0000_0000;
/// Where kernel parameters begin in the generic address space.
pub(crate) const PARAM_WINDOW: u64 = 0x3_0000_0000;
/// The size of each window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;

/// A PTX state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Any of the others, told apart by address.
    Generic,
    /// Memory of the device.
    Global,
    /// Memory of the device that kernels only read.
    Const,
    /// Memory of a CTA.
    Shared,
    /// Memory of a thread.
    Local,
    /// Arguments of the launch.
    Param,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generic => "generic",
            Self::Global => "global",
            Self::Const => "constant",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "parameter",
        })
    }
}

/// Up to sixteen bytes on their way to or from memory, first byte lowest.
pub(crate) type Packet = [u32; 4];

/// What a memory says to an access that it refuses; the caller adds the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    OutOfBounds,
    Misaligned,
    Uninitialised,
}

/// The low `bytes` bytes set, for sizes that fit a word.
pub(crate) fn low_mask(bytes: u32) -> u32 {
    if bytes >= 4 { u32::MAX } else { (1 << (8 * bytes)) - 1 }
}
