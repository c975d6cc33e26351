//! Runs PTX kernels on the CPU, and reports what they must not do.
//!
//! A [`Module`] is loaded from the PTX text that ships; [`Module::launch`] runs one of its kernels on a [`Memory`].
//! Warps execute in lock step and meet again after a divergent branch; CTAs start in the order of their numbers and run in
//! parallel on all cores. What is
//! not known about an instruction, a type or a modifier is an error that names the line. Crates that parse PTX exist
//! (`ptx-parser`, `ptx-90-parser`, `ptx-ir`); none was found that executes it.
//!
//! While a kernel runs, the machine looks for stray and misaligned accesses, reads of memory that nothing has
//! written, shared-memory races, `cp.async` data used before its wait, barriers that some warps miss, and warp-wide
//! instructions that lack lanes. A launch that does any of it fails with a [`Report`].
//!
//! In modules for `sm_90` and `sm_90a` it also looks for
//! - mbarriers that are used before or without their initialisation, receive too many arrivals, or whose phase a warp
//!   waits for in vain;
//! - bulk copies that are misaligned, stray or unexpected by their mbarrier, used by a warp that has not waited for
//!   them, or written over memory in use;
//! - `wgmma` that reads ordinary stores with no proxy fence between, or whose tiles, accumulators or rows of A are
//!   touched before a `wgmma.wait_group` covers it, or which uses registers written after the last `wgmma.fence`;
//! - warps of a warpgroup that do not execute the same `wgmma` and `setmaxnreg`, and trades of registers that do not
//!   come out.
//!
//! ```
//! use ptx_machine::{Launch, Memory, Module};
//!
//! let module = Module::load(
//!     ".version 7.0
//!      .target sm_80
//!      .address_size 64
//!      .visible .entry double(.param .u64 .ptr .align 4 values)
//!      {
//!          .reg .b32 %r<2>;
//!          .reg .b64 %rd<3>;
//!          ld.param.b64 %rd0, [values];
//!          mov.u32 %r0, %tid.x;
//!          mul.wide.u32 %rd1, %r0, 4;
//!          add.s64 %rd2, %rd0, %rd1;
//!          ld.global.b32 %r1, [%rd2];
//!          shl.b32 %r1, %r1, 1;
//!          st.global.b32 [%rd2], %r1;
//!          ret;
//!      }",
//! )?;
//! let mut memory = Memory::new();
//! let values = memory.alloc_from(&[1_u32, 2, 3, 4]);
//! let launch = Launch { kernel: "double", grid: [1, 1, 1], block: [4, 1, 1], shared_bytes: 0 };
//! let stats = module.launch(&launch, &[values.into()], &memory)?;
//! assert_eq!(memory.read::<u32>(values, 4)?, [2, 4, 6, 8]);
//! assert_eq!(stats.warp_instructions, 8);
//! # Ok::<(), ptx_machine::Error>(())
//! ```
//!
//! # What the checker does not see
//!
//! Threads of one warp are ordered by the lock step: that a lane reads what another lane of its warp has written, with no
//! `bar.warp.sync` between, goes unnoticed. Between warps it counts: a lane that arrives at an mbarrier speaks for the
//! other lanes' accesses only up to where they last met. Races in global
//! memory are not looked for, nor how strongly its accesses are ordered (every one acquires and releases), nor proxy fences
//! between stores to it and bulk copies from it. What a launch reads before `griddepcontrol.wait` is not looked at. Local memory is checked
//! for bounds and first writes, registers for nothing but what `wgmma` uses; there, reads between a wait and the next
//! `wgmma.fence` are not looked for. A write over what asynchronous instructions have read, and the other way round,
//! needs no proxy fence here.
//!
//! # What Hopper's instructions do here
//!
//! | instruction | forms |
//! | --- | --- |
//! | `mbarrier` | `.init`, `.inval`, `.arrive`, `.arrive.expect_tx`, `.test_wait.parity`, `.try_wait.parity`, all on `.shared::cta.b64` |
//! | `cp.async.bulk` | from global to shared memory, with an mbarrier and without a tensor map |
//! | `wgmma.mma_async` | `m64nNk32` of `.s8` and `.u8`, A from registers or shared memory, every swizzle |
//! | `setmaxnreg`, `elect`, `fence.proxy.async`, `fence.mbarrier_init` | all that PTX has of them for one CTA |
//!
//! A CTA is alone in its cluster, and its shared memory begins at address 1024, as on the device. A phase completes as soon as its arrivals have come and its copies are issued, but
//! the bytes arrive only when a warp sees that, and the first look at a phase comes too early unless the warp knows
//! better. `mbarrier.try_wait` then suspends the warp; a launch in which nothing can go on reports who waits for what.
//! Each warp multiplies its 16 rows when it executes the `wgmma`; its `wait_group` lasts until all four warps have come
//! as far, and makes the reads of all four complete. What a warp may rely on is kept in vector clocks, of warps and of
//! mbarriers that bulk copies complete on, of which there may be 31.
//!
//! # Finding an instruction
//!
//! Its class is an enum in `isa`, made by the file of the same name in `decode` and run by the one in `exec`.

mod cfg;
mod decode;
mod error;
mod exec;
mod isa;
mod memory;
mod module;
/// Public for the tests in `tests/`: unit tests would have the whole machine compiled once more.
#[doc(hidden)]
pub mod numeric;
mod parse;
mod registers;
mod report;
mod ty;

pub use error::Error;
pub use memory::{DevPtr, Memory, Space};
pub use module::{Arg, Launch, Module};
pub use report::{Fault, Finding, RaceKind, Report, Stats};
