//! A fence for the optimizer.

use core::arch::asm;

/// `value`, of which the compiler forgets where it comes from (`mov.b32`, PTX ISA 9.7.9.1).
///
/// What is computed from it in a loop or a branch stays there, instead of in registers across the whole of it.
#[inline(always)]
#[must_use]
pub fn opaque(value: u32) -> u32 {
    let d;
    // SAFETY: copies a register.
    unsafe { asm!("mov.b32 {}, {};", out(reg32) d, in(reg32) value, options(nomem, nostack)) }
    d
}

/// Where a loop begins: ptxas does not unroll it (`.pragma "nounroll"`, PTX ISA 11.5).
#[inline(always)]
pub fn rolled() {
    // SAFETY: no instruction.
    unsafe { asm!(".pragma \"nounroll\";", options(nomem, nostack)) }
}
