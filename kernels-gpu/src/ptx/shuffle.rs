//! Exchange between the lanes of a warp (PTX ISA 9.7.9.6 `shfl.sync`, 9.7.13.5 `vote.sync`).
//!
//! None is `pure`: a compiler may move a pure instruction into a branch that only some of the lanes take.

use core::arch::asm;

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

/// The value of lane `lane ^ mask` (`shfl.sync.bfly.b32`).
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

/// The value of lane `lane - by`, or the lane's own where there is none (`shfl.sync.up`).
///
/// # Safety
/// All 32 lanes of a converged warp call it; `by` is below 32.
#[inline(always)]
pub unsafe fn shfl_up(value: u32, by: u32) -> u32 {
    let d;
    unsafe {
        asm!("shfl.sync.up.b32 {}, {}, {}, 0, -1;", out(reg32) d, in(reg32) value, in(reg32) by, options(nomem, nostack))
    }
    d
}

/// The value of lane `lane` (`shfl.sync.idx`).
///
/// # Safety
/// All 32 lanes of a converged warp call it; `lane` is below 32.
#[inline(always)]
pub unsafe fn shfl_idx(value: u32, lane: u32) -> u32 {
    let d;
    unsafe {
        asm!("shfl.sync.idx.b32 {}, {}, {}, 31, -1;", out(reg32) d, in(reg32) value, in(reg32) lane, options(nomem, nostack))
    }
    d
}

/// The lanes in which `predicate` holds, a bit each (`vote.sync.ballot`).
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub unsafe fn ballot(predicate: bool) -> u32 {
    let d;
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; vote.sync.ballot.b32 {0}, p, -1; }}",
            out(reg32) d, in(reg32) u32::from(predicate), options(nomem, nostack));
    }
    d
}
