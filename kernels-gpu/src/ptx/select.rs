//! Selection without a branch (PTX ISA 9.7.6.4, `selp`).

use core::arch::asm;

/// `a` where `predicate`, else `b` (`selp.b32`).
///
/// Rust's `if` may become a branch, and the compiler may then draw neighbouring instructions into both of its sides; it
/// does not know that a shuffle among them must stay one instruction for all lanes.
#[inline(always)]
#[must_use]
pub fn selp_b32(predicate: bool, a: u32, b: u32) -> u32 {
    let d;
    // SAFETY: register arithmetic of the one thread.
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; selp.b32 {0}, {2}, {3}, p; }}",
            out(reg32) d, in(reg32) u32::from(predicate), in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
    }
    d
}
