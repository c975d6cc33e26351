//! What orders CTAs of one launch (PTX ISA 9.7.9.8 `ld.relaxed`, 9.7.13.4 `fence`, 9.7.13.5 `atom`; 8, memory consistency).

use core::arch::asm;

/// `fence.acq_rel.gpu`: what the thread has seen or written before comes before what it writes or sees after, for every
/// thread of the device that a relaxed access of both connects.
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub unsafe fn fence_acq_rel_gpu() {
    unsafe { asm!("fence.acq_rel.gpu;", options(nostack)) }
}

/// Adds to a counter in global memory and returns what it was (`atom.relaxed.gpu.add`).
///
/// # Safety
/// `address` is 4-byte aligned global memory that is only accessed so and by [`ld_relaxed_gpu_u32`] during the launch.
#[inline(always)]
pub unsafe fn atom_relaxed_gpu_add_u32(address: *mut u32, value: u32) -> u32 {
    let d;
    unsafe {
        asm!("atom.relaxed.gpu.global.add.u32 {}, [{}], {};", out(reg32) d, in(reg64) address, in(reg32) value, options(nostack));
    }
    d
}

/// The present value of a counter in global memory (`ld.relaxed.gpu`).
///
/// # Safety
/// As [`atom_relaxed_gpu_add_u32`].
#[inline(always)]
pub unsafe fn ld_relaxed_gpu_u32(address: *const u32) -> u32 {
    let d;
    unsafe { asm!("ld.relaxed.gpu.global.u32 {}, [{}];", out(reg32) d, in(reg64) address, options(nostack)) }
    d
}
