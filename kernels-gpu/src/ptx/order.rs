//! What orders CTAs of one launch (PTX ISA 9.7.13.7 `red`; 8, memory consistency).

use core::arch::asm;

/// Replaces a number in global memory by the larger of it and `value` (`red.relaxed.gpu.max`).
///
/// # Safety
/// `address` is 4-byte aligned global memory that is only accessed so during the launch.
#[inline(always)]
pub unsafe fn red_relaxed_gpu_max_u32(address: *mut u32, value: u32) {
    unsafe {
        asm!("red.relaxed.gpu.global.max.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
    }
}
