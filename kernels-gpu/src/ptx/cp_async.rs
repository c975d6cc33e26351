//! Asynchronous copies from global to shared memory (PTX ISA 9.7.9.25, `cp.async`).

use core::arch::asm;

/// Copies 16 bytes past L1 (`cp.async.cg`).
///
/// # Safety
/// Both addresses are valid for 16 bytes and 16-byte aligned; nobody reads the destination before [`wait_group`] and a barrier.
#[inline(always)]
pub unsafe fn cp_async_16(shared: u32, global: *const u8) {
    unsafe { asm!("cp.async.cg.shared.global [{}], [{}], 16;", in(reg32) shared, in(reg64) global, options(nostack)) }
}

/// Copies the first `bytes` (0 to 16) of 16 bytes and fills the rest with zeros.
///
/// # Safety
/// As [`cp_async_16`], with `bytes` readable bytes at `global`.
#[inline(always)]
pub unsafe fn cp_async_16_zfill(shared: u32, global: *const u8, bytes: u32) {
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16, {};", in(reg32) shared, in(reg64) global, in(reg32) bytes, options(nostack));
    }
}

/// Copies the first `bytes` (0 or 4) of 4 bytes and fills the rest with zeros (`cp.async.ca`).
///
/// # Safety
/// As [`cp_async_16_zfill`], with 4 bytes.
#[inline(always)]
pub unsafe fn cp_async_4_zfill(shared: u32, global: *const f32, bytes: u32) {
    unsafe {
        asm!("cp.async.ca.shared.global [{}], [{}], 4, {};", in(reg32) shared, in(reg64) global, in(reg32) bytes, options(nostack));
    }
}

/// Closes the group of copies issued since the last commit.
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub unsafe fn commit_group() {
    unsafe { asm!("cp.async.commit_group;", options(nostack)) }
}

/// Waits until at most `PENDING` of this thread's latest groups are still under way.
///
/// # Safety
/// Makes the thread's own copies visible to itself only; others need a barrier.
#[inline(always)]
pub unsafe fn wait_group<const PENDING: usize>() {
    unsafe { asm!("cp.async.wait_group {};", const PENDING, options(nostack)) }
}
