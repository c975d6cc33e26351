//! The registers of a warpgroup (PTX ISA 9.7.19.5, `setmaxnreg`; sm_90a).

use core::arch::asm;

/// Gives registers up, down to `REGISTERS` a thread.
///
/// # Safety
/// All warps of the warpgroup call it; the kernel has `.maxntid`.
#[inline(always)]
pub unsafe fn shrink<const REGISTERS: u32>() {
    unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {};", const REGISTERS, options(nostack)) }
}

/// Takes registers, up to `REGISTERS` a thread, as soon as others have given them up.
///
/// # Safety
/// As [`shrink`].
#[inline(always)]
pub unsafe fn grow<const REGISTERS: u32>() {
    unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {};", const REGISTERS, options(nostack)) }
}
