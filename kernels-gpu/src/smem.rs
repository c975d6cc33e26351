//! Dynamic shared memory.

use core::arch::{asm, global_asm};

global_asm!(".extern .shared .align 1024 .b8 dynamic_shared[];");

/// Shared address of the first byte of the CTA's dynamic shared memory.
#[inline(always)]
pub fn base() -> u32 {
    let address;
    // SAFETY: takes the address of the symbol declared above.
    unsafe { asm!("mov.u32 {}, dynamic_shared;", out(reg32) address, options(pure, nomem, nostack)) }
    address
}
