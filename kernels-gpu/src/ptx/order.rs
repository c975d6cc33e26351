//! What orders CTAs of one launch (PTX ISA 9.7.9.8 `ld.acquire`, 9.7.13.5 `atom`; 8, memory consistency).

use core::arch::asm;

/// Adds to a counter in global memory and returns what it was (`atom.acq_rel.gpu.add`): what the CTA has written before its
/// last barrier is seen by who finds the sum, and what those have written whose sum this thread finds is seen after it.
///
/// # Safety
/// `address` is 4-byte aligned global memory that is only accessed so and by [`ld_acquire_gpu_u32`] during the launch.
#[inline(always)]
pub unsafe fn atom_acq_rel_gpu_add_u32(address: *mut u32, value: u32) -> u32 {
    let d;
    unsafe {
        asm!("atom.acq_rel.gpu.global.add.u32 {}, [{}], {};", out(reg32) d, in(reg64) address, in(reg32) value, options(nostack));
    }
    d
}

/// The present value of a counter in global memory (`ld.acquire.gpu`); what those have written whose sum it is, is seen after.
///
/// # Safety
/// As [`atom_acq_rel_gpu_add_u32`].
#[inline(always)]
pub unsafe fn ld_acquire_gpu_u32(address: *const u32) -> u32 {
    let d;
    unsafe { asm!("ld.acquire.gpu.global.u32 {}, [{}];", out(reg32) d, in(reg64) address, options(nostack)) }
    d
}

/// Replaces a number in global memory by the larger of it and `value` (`red.relaxed.gpu.max`).
///
/// # Safety
/// `address` is 4-byte aligned global memory that is only accessed so until a counter says that it is done.
#[inline(always)]
pub unsafe fn red_relaxed_gpu_max_u32(address: *mut u32, value: u32) {
    unsafe {
        asm!("red.relaxed.gpu.global.max.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
    }
}
