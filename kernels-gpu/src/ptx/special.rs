//! Special registers, barriers and warp exchange (PTX ISA 10, 9.7.13.1, 9.7.9.6, 9.7.13.5).

use core::arch::asm;

macro_rules! special_register {
    ($($name:ident = $ptx:literal, $cuda_std:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[cfg(feature = "cuda-std")]
        #[inline(always)]
        #[must_use]
        pub fn $name() -> u32 {
            cuda_std::thread::$cuda_std()
        }

        #[doc = $doc]
        #[cfg(not(feature = "cuda-std"))]
        #[inline(always)]
        #[must_use]
        pub fn $name() -> u32 {
            let value;
            // SAFETY: reads a special register that every target has.
            unsafe { asm!(concat!("mov.u32 {}, ", $ptx, ";"), out(reg32) value, options(pure, nomem, nostack)) }
            value
        }
    )*};
}

special_register! {
    tid_x = "%tid.x", thread_idx_x, "Thread index in the CTA.";
    ctaid_x = "%ctaid.x", block_idx_x, "CTA index, x.";
    ctaid_y = "%ctaid.y", block_idx_y, "CTA index, y.";
    ctaid_z = "%ctaid.z", block_idx_z, "CTA index, z.";
    nctaid_x = "%nctaid.x", grid_dim_x, "CTAs in the grid, x.";
    nctaid_y = "%nctaid.y", grid_dim_y, "CTAs in the grid, y.";
}

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

/// The value of lane `lane ^ MASK` (`shfl.sync.bfly`).
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub unsafe fn shfl_bfly<const MASK: u32>(value: u32) -> u32 {
    let d;
    unsafe {
        asm!("shfl.sync.bfly.b32 {}, {}, {}, 31, -1;", out(reg32) d, in(reg32) value, const MASK, options(nomem, nostack));
    }
    d
}

/// The first lane's value, which the compiler then knows to be the same in all lanes (`shfl.sync.idx`).
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub unsafe fn first_lane(value: u32) -> u32 {
    let d;
    unsafe {
        asm!("shfl.sync.idx.b32 {}, {}, 0, 31, -1;", out(reg32) d, in(reg32) value, options(nomem, nostack));
    }
    d
}

/// Whether `predicate` holds in any lane (`vote.sync.any`).
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub unsafe fn vote_any(predicate: bool) -> bool {
    let d: u32;
    unsafe {
        asm!(
            "{{ .reg .pred p, q; setp.ne.u32 p, {1}, 0; vote.sync.any.pred q, p, -1; selp.u32 {0}, 1, 0, q; }}",
            out(reg32) d, in(reg32) u32::from(predicate), options(nomem, nostack)
        );
    }
    d != 0
}
