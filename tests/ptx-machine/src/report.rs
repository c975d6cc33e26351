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
    /// An access to shared memory that an asynchronous copy fills, of which the warp does not know that it is over;
    /// or the end of a CTA, which must not come before that of its copies.
    #[error("At {address:#x} in shared memory there is an asynchronous copy that has not been waited for.")]
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
    /// An mbarrier operation on memory that is none.
    #[error("There is no mbarrier at {address:#x} in shared memory.")]
    NotAnMbarrier {
        /// The address given.
        address: u64,
    },
    /// An mbarrier that is alive is initialised, accessed as memory, or invalidated while it has work to do.
    #[error("The mbarrier at {address:#x} in shared memory is in use.")]
    MbarrierInUse {
        /// The first byte in question.
        address: u64,
    },
    /// An mbarrier is initialised for no arrivals, or for too many.
    #[error("The mbarrier at {address:#x} cannot expect {count} arrivals.")]
    MbarrierCount {
        /// The mbarrier.
        address: u64,
        /// The arrivals given.
        count: u32,
    },
    /// There are more arrivals at an mbarrier than its phase expects.
    #[error("The mbarrier at {address:#x} receives more than the {expected} arrivals that it expects in a phase.")]
    MbarrierArrivals {
        /// The mbarrier.
        address: u64,
        /// The arrivals expected.
        expected: u32,
    },
    /// Bulk copies bring more bytes than an mbarrier was told to expect, or the CTA ends before they come.
    #[error("The mbarrier at {address:#x} lacks {bytes} bytes of those that it expects.")]
    MbarrierBytes {
        /// The mbarrier.
        address: u64,
        /// Bytes expected less bytes copied.
        bytes: i64,
    },
    /// The CTA cannot go on: a warp waits for a phase that never completes.
    #[error(
        "Phase parity {parity} of the mbarrier at {address:#x} lacks {arrivals} arrivals and {bytes} bytes, and the CTA cannot go on."
    )]
    MbarrierNotCompleted {
        /// The mbarrier.
        address: u64,
        /// The parity of the phase.
        parity: u32,
        /// Arrivals that have not come.
        arrivals: u32,
        /// Bytes that have not come.
        bytes: i64,
    },
    /// A bulk copy uses an mbarrier with no fence after its initialisation.
    #[error("No fence has made the initialisation of the mbarrier at {address:#x} known to bulk copies.")]
    MbarrierNotFenced {
        /// The mbarrier.
        address: u64,
    },
    /// The machine tells no more mbarriers apart.
    #[error("The CTA uses bulk copies with more than 31 mbarriers, which the PTX machine cannot tell apart.")]
    TooManyMbarriers,
    /// The size of a bulk copy is not a multiple of 16.
    #[error("A bulk copy of {bytes} bytes is not a multiple of 16.")]
    BulkCopySize {
        /// The size given.
        bytes: u32,
    },
    /// An asynchronous instruction meets ordinary writes that come before it, but with no proxy fence between.
    #[error(
        "No fence.proxy.async stands between the store to {address:#x} in shared memory by warp {other_warp} (PTX line {other_line}) and this asynchronous access."
    )]
    MissingProxyFence {
        /// The first byte in question.
        address: u64,
        /// The warp that wrote it.
        other_warp: u32,
        /// The line of that write.
        other_line: u32,
    },
    /// A write to shared memory that a `wgmma` may still be reading.
    #[error(
        "The write to {address:#x} in shared memory meets a wgmma that may still read it, as no warp has waited for that."
    )]
    WgmmaReading {
        /// The first byte in question.
        address: u64,
    },
    /// An instruction reads or writes an accumulator of a `wgmma` that is not over, or writes registers that it reads.
    #[error("The register is {} of a wgmma that has not been waited for.", if *.accumulator { "an accumulator" } else { "an operand" })]
    RegisterInFlight {
        /// Whether it is an accumulator.
        accumulator: bool,
    },
    /// A `wgmma` uses registers that were written with no `wgmma.fence` after that, or accumulators of another shape.
    #[error("No wgmma.fence stands between the last write of a register and the wgmma that uses it.")]
    MissingWgmmaFence,
    /// A matrix descriptor with reserved bits, a base offset, or a start that does not fit its swizzle.
    #[error("The matrix descriptor {descriptor:#018x} is not one that can be used.")]
    Descriptor {
        /// The descriptor.
        descriptor: u64,
    },
    /// The instruction is for warpgroups, and the last one of the CTA is not whole.
    #[error("The instruction needs a warpgroup, and the CTA ends before its four warps.")]
    NotAWarpgroup,
    /// The warps of a warpgroup execute different instructions, or with different descriptors, where all must agree.
    #[error("Another warp of the warpgroup executes PTX line {other_line}, or with other operands.")]
    WarpgroupDiverged {
        /// What the other warp executes.
        other_line: u32,
    },
    /// A warp of a warpgroup does not execute what the others do.
    #[error("Warp {warp} does not execute what others of its warpgroup do.")]
    WarpgroupIncomplete {
        /// The warp.
        warp: u32,
    },
    /// `setmaxnreg.inc` to fewer registers, or `setmaxnreg.dec` to more.
    #[error("The warp has {held} registers for each thread, so that {count} is in the wrong direction.")]
    RegisterCount {
        /// Registers before.
        held: u32,
        /// Registers demanded.
        count: u32,
    },
    /// The CTA cannot go on: a warp waits for registers that no other gives back.
    #[error("The warp has {held} registers for each thread and waits for more, and the CTA cannot go on.")]
    NoRegisters {
        /// Registers that it has.
        held: u32,
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
