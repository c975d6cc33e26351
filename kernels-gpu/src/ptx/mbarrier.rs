//! Barriers in shared memory that count arrivals and bytes (PTX ISA 9.7.13.15, `mbarrier`; sm_90).
//!
//! A barrier has phases. A phase ends when the expected arrivals have come and the bytes announced have landed; its parity says
//! whether it is an even or an odd one, and the first is even.

use core::arch::asm;

/// Makes the 8 bytes at `barrier` a barrier of `count` arrivals a phase.
///
/// # Safety
/// `barrier` is an 8-byte aligned shared address that nobody uses as a barrier yet; [`fence_init`] and a barrier of the CTA
/// stand before its first use.
#[inline(always)]
pub unsafe fn init(barrier: u32, count: u32) {
    unsafe { asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) count, options(nostack)) }
}

/// Shows barriers initialised by this thread to asynchronous copies.
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub unsafe fn fence_init() {
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) }
}

/// Arrives: what this thread did before is seen by who waits for the phase.
///
/// # Safety
/// `barrier` is the shared address of a barrier that expects this arrival.
#[inline(always)]
pub unsafe fn arrive(barrier: u32) {
    unsafe { asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) barrier, options(nostack)) }
}

/// [`arrive`] of the threads that say so: no branch, over which a compiler might take threads apart that a warp's next instruction
/// needs together.
///
/// # Safety
/// As [`arrive`].
#[inline(always)]
pub unsafe fn arrive_if(says: bool, barrier: u32) {
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {}, 0; @p mbarrier.arrive.shared::cta.b64 _, [{}]; }}",
            in(reg32) u32::from(says), in(reg32) barrier, options(nostack));
    }
}

/// Arrives and announces `bytes` that copies will bring before the phase ends.
///
/// # Safety
/// As [`arrive`].
#[inline(always)]
pub unsafe fn arrive_expect(barrier: u32, bytes: u32) {
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};", in(reg32) barrier, in(reg32) bytes, options(nostack));
    }
}

/// Whether the phase of parity `parity` has ended; may wait for that a while.
///
/// # Safety
/// As [`arrive`].
#[inline(always)]
#[must_use]
pub unsafe fn test(barrier: u32, parity: u32) -> bool {
    let done: u32;
    unsafe {
        asm!("{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{1}], {2}; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) done, in(reg32) barrier, in(reg32) parity, options(nostack));
    }
    done != 0
}

/// Waits for the end of the phase of parity `parity`.
///
/// # Safety
/// As [`arrive`]; the phase will end.
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    while !unsafe { test(barrier, parity) } {}
}
