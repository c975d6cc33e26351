//! Loads and stores whose width or state space the program fixes (PTX ISA 9.7.9).

use core::arch::asm;

/// `ld.shared.v4.f32`
///
/// # Safety
/// `address` is a 16-byte aligned shared address of 16 initialised bytes.
#[inline(always)]
pub unsafe fn ld_shared_v4_f32(address: u32) -> [f32; 4] {
    let mut d = [0.0; 4];
    unsafe {
        asm!("ld.shared.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg32) address,
            options(pure, readonly, nostack));
    }
    d
}
