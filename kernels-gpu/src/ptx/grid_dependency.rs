//! Launches that overlap (PTX ISA 9.7.13.14, `griddepcontrol`; sm_90).

use core::arch::asm;

/// The launch behind this one in the stream may start its CTAs, as soon as all CTAs of this one have said so or ended
/// (`griddepcontrol.launch_dependents`).
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub unsafe fn launch_dependents() {
    unsafe { asm!("griddepcontrol.launch_dependents;", options(nostack)) }
}

/// Waits until the launches before have ended and what they wrote is seen (`griddepcontrol.wait`).
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub unsafe fn wait() {
    unsafe { asm!("griddepcontrol.wait;", options(nostack)) }
}
