//! K's offset, of the ranges of the head's first tokens (docs/kernel-abi.md, "Quantization").

/// The offset of a channel whose elements are from `low` to `high`; either is NaN where no element is a number.
#[inline(always)]
pub(crate) fn middle(low: f32, high: f32) -> f32 {
    let middle = (low + high) * 0.5;
    if low > 0.0 && high < f32::INFINITY {
        middle.min(2.0 * low)
    } else if high < 0.0 && low > f32::NEG_INFINITY {
        middle.max(2.0 * high)
    } else {
        0.0
    }
}
