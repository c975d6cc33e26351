//! Bulk copies (PTX ISA 9.7.9.25.4, `cp.async.bulk`; sm_90) and the fence between the two ways to shared memory.

use core::arch::asm;

/// Copies `bytes` from global to shared memory; they count as landed on `barrier`.
///
/// # Safety
/// Both addresses and `bytes` are multiples of 16 and valid; nobody touches the destination before the barrier's phase ends,
/// and the barrier was told to expect the bytes.
#[inline(always)]
pub unsafe fn copy(shared: u32, global: *const u8, bytes: u32, barrier: u32) {
    unsafe {
        asm!("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{}], [{}], {}, [{}];",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, in(reg32) barrier, options(nostack));
    }
}

/// Shows this thread's stores to shared memory to products and bulk copies (`fence.proxy.async`).
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub unsafe fn fence_proxy() {
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}
