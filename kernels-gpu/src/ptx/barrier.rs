//! Barriers of a CTA and of a warp (PTX ISA 9.7.13.1 `bar`, 9.7.13.2 `bar.warp.sync`).

use core::arch::asm;

/// `bar.sync 0`: all threads of the CTA arrive, and see each other's earlier memory accesses.
///
/// # Safety
/// Every thread of the CTA reaches it.
#[inline(always)]
pub unsafe fn bar_sync() {
    unsafe { asm!("bar.sync 0;", options(nostack)) }
}

/// `bar.sync id, threads`: a barrier of some of the CTA's warps.
///
/// # Safety
/// `threads` threads, in whole warps, reach it with the same `id` (1 to 15; [`bar_sync`] is 0).
#[inline(always)]
pub unsafe fn bar_sync_some(id: u32, threads: u32) {
    unsafe { asm!("bar.sync {}, {};", in(reg32) id, in(reg32) threads, options(nostack)) }
}

/// `bar.arrive id, threads`: as [`bar_sync_some`], without waiting for the others.
///
/// # Safety
/// As [`bar_sync_some`].
#[inline(always)]
pub unsafe fn bar_arrive_some(id: u32, threads: u32) {
    unsafe { asm!("bar.arrive {}, {};", in(reg32) id, in(reg32) threads, options(nostack)) }
}

/// `bar.warp.sync`: the warp's lanes see each other's earlier memory accesses.
///
/// # Safety
/// All 32 lanes of the warp reach it.
#[inline(always)]
pub unsafe fn warp_sync() {
    unsafe { asm!("bar.warp.sync -1;", options(nostack)) }
}
