//! Division without the panic of a checked one, which has no place on the device.

/// Quotient and remainder.
///
/// # Safety
/// `b` is not zero.
#[inline(always)]
pub(crate) unsafe fn div_rem(a: u32, b: u32) -> (u32, u32) {
    // SAFETY: the caller's promise.
    unsafe { core::hint::assert_unchecked(b != 0) };
    (a / b, a % b)
}

/// [`div_rem`], without the division where `b` is one, as it mostly is.
///
/// # Safety
/// `b` is not zero.
#[inline(always)]
pub(crate) unsafe fn div_rem_or_one(a: u32, b: u32) -> (u32, u32) {
    // SAFETY: the caller's promise.
    if b == 1 { (a, 0) } else { unsafe { div_rem(a, b) } }
}
