//! Warp exchange with a mask that is known at run time (PTX ISA 9.7.9.6, `shfl.sync`).

use core::arch::asm;

/// `value + (the value of lane `lane ^ mask`)`, or `value` where `mask` is 0 (`shfl.sync.bfly.b32`, then `add.rn.f32`
/// under a predicate): one step of a sum over a group of lanes.
///
/// # Safety
/// All 32 lanes of a converged warp call it; `mask` is below 32.
#[inline(always)]
pub unsafe fn shfl_sync_bfly_add_f32(value: f32, mask: u32) -> f32 {
    let d;
    unsafe {
        asm!(
            "{{ .reg .pred p; .reg .f32 t; setp.ne.u32 p, {2}, 0; mov.f32 {0}, {1};",
            "shfl.sync.bfly.b32 t, {1}, {2}, 31, -1; @p add.rn.f32 {0}, {1}, t; }}",
            out(reg32) d, in(reg32) value, in(reg32) mask, options(nomem, nostack)
        );
    }
    d
}

/// The value of lane `lane ^ mask` (`shfl.sync.bfly.b32`).
///
/// Not `pure`: a compiler may move a pure instruction into a branch that only some of the lanes take.
///
/// # Safety
/// All 32 lanes of a converged warp call it; `mask` is below 32.
#[inline(always)]
pub unsafe fn shfl_sync_bfly_b32(value: u32, mask: u32) -> u32 {
    let d;
    unsafe {
        asm!("shfl.sync.bfly.b32 {}, {}, {}, 31, -1;", out(reg32) d, in(reg32) value, in(reg32) mask, options(nomem, nostack))
    }
    d
}
