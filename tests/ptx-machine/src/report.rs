//! What the checker found, and where.

use crate::memory::Space;
use std::fmt;

/// One thing a kernel must not do, with the place where it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What happened.
    pub fault: Fault,
    /// The kernel.
    pub kernel: String,
    /// Line in the PTX text, counted from one.
    pub line: u32,
    /// That line.
    pub text: String,
    /// The CTA, as `%ctaid`.
    pub cta: [u32; 3],
    /// The thread, as `%tid`.
    pub thread: [u32; 3],
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, kernel, line, text, cta, thread } = self;
        write!(f, "{fault} Kernel `{kernel}`, PTX line {line} `{text}`, CTA {cta:?}, thread {thread:?}.")
    }
}

/// The order in which a race happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaceKind {
    /// A read of what another warp wrote.
    ReadAfterWrite,
    /// A write over what another warp wrote.
    WriteAfterWrite,
    /// A write over what another warp read.
    WriteAfterRead,
}

/// What the checker can find.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The access is not inside one allocation, or not inside the window of its state space.
    #[error("An access of {bytes} bytes at {address:#x} is outside every {space} allocation.")]
    OutOfBounds {
        /// The state space accessed.
        space: Space,
        /// First byte; an offset for shared and local memory.
        address: u64,
        /// Length of the access.
        bytes: u32,
    },
    /// The address is not a multiple of the access size.
    #[error("An access of {bytes} bytes at {address:#x} in {space} memory is misaligned.")]
    Misaligned {
        /// The state space accessed.
        space: Space,
        /// First byte; an offset for shared and local memory.
        address: u64,
        /// Length of the access.
        bytes: u32,
    },
    /// A read of bytes that neither the host nor the kernel wrote.
    #[error("A read of {bytes} bytes at {address:#x} in {space} memory sees bytes that nothing has written.")]
    Uninitialised {
        /// The state space accessed.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Length of the access.
        bytes: u32,
    },
    /// Two warps touch the same byte of shared memory, at least one writes, and no barrier orders them.
    #[error("A shared-memory race at {address:#x}: {kind:?} with warp {other_warp}{}, and no barrier between.", written_on(*.other_line))]
    Race {
        /// What came after what.
        kind: RaceKind,
        /// The first byte in question.
        address: u64,
        /// The warp that accessed it before.
        other_warp: u32,
        /// The line of that access, where it was a write.
        other_line: Option<u32>,
    },
    /// Lanes of one warp store different values to one place with one instruction.
    #[error("Two lanes store different values to {address:#x} in shared memory with one instruction.")]
    StoreConflict {
        /// First byte of the access whose value was lost.
        address: u64,
    },
    /// An access to shared memory that a `cp.async` is still filling.
    #[error("The access at {address:#x} in shared memory meets a cp.async that nothing has waited for.")]
    AsyncPending {
        /// The first such byte.
        address: u64,
    },
    /// The CTA cannot go on: some warps wait at a barrier that the others never reach.
    #[error("Barrier {barrier} is reached by {arrived} of {expected} warps, and the CTA cannot go on.")]
    BarrierNotReached {
        /// The barrier's number.
        barrier: u32,
        /// Warps that arrived.
        arrived: u32,
        /// Warps it waits for.
        expected: u32,
    },
    /// Warps disagree on how many threads a barrier is for, or the number is not whole warps.
    #[error("Barrier {barrier} is given {threads} threads, which is not what it can wait for.")]
    BarrierCount {
        /// The barrier's number.
        barrier: u32,
        /// The thread count given.
        threads: u32,
    },
    /// A warp-wide instruction runs without lanes that it needs.
    #[error("The instruction needs lanes {required:#010x}, and lanes {active:#010x} execute it.")]
    InactiveLanes {
        /// Lanes the instruction names or implies.
        required: u32,
        /// Lanes that execute it.
        active: u32,
    },
    /// A value that must be the same in every lane is not.
    #[error("An operand must be the same in every lane, and is not.")]
    NotUniform,
    /// A `shfl` reads the register of a lane that does not execute it.
    #[error("The shuffle reads lane {source_lane}, which does not execute it.")]
    ShuffleFromInactive {
        /// The lane read.
        source_lane: u32,
    },
    /// The kernel executed `trap`.
    #[error("The kernel trapped.")]
    Trap,
    /// The kernel called a function that does not return, which is how Rust panics arrive.
    #[error("The kernel panicked in `{function}`.")]
    Panic {
        /// The function, mangled.
        function: String,
    },
    /// The CTA ran for longer than the launch allows.
    #[error("The CTA executed {instructions} warp instructions without finishing.")]
    Runaway {
        /// Instructions executed.
        instructions: u64,
    },
}

fn written_on(line: Option<u32>) -> String {
    line.map_or(String::new(), |line| format!(" (PTX line {line})"))
}

/// Every finding of a launch, one for each kind of fault and line, in order of CTA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The findings; never empty.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The launch has {} findings.", self.findings.len())?;
        self.findings.iter().try_for_each(|finding| write!(f, "\n{finding}"))
    }
}

impl std::error::Error for Report {}

/// Work done by a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CTAs that ran.
    pub ctas: u64,
    /// Instructions executed, counting one for each warp.
    pub warp_instructions: u64,
    /// Instructions executed, counting one for each active lane.
    pub lane_instructions: u64,
}

impl std::ops::Add for Stats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ctas: self.ctas + other.ctas,
            warp_instructions: self.warp_instructions + other.warp_instructions,
            lane_instructions: self.lane_instructions + other.lane_instructions,
        }
    }
}
