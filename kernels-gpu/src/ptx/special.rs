//! Special registers (PTX ISA 10).

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
}

/// [`tid_x`], read anew: the compiler keeps no copy of it, nor of what was computed from another.
#[inline(always)]
#[must_use]
pub fn tid_x_again() -> u32 {
    let value;
    // SAFETY: reads a special register that every target has.
    unsafe { asm!("mov.u32 {}, %tid.x;", out(reg32) value, options(nomem, nostack)) }
    value
}

/// [`ctaid_y`], read anew.
#[inline(always)]
#[must_use]
pub fn ctaid_y_again() -> u32 {
    let value;
    // SAFETY: reads a special register that every target has.
    unsafe { asm!("mov.u32 {}, %ctaid.y;", out(reg32) value, options(nomem, nostack)) }
    value
}

/// CTAs in the grid, y, read anew.
#[inline(always)]
#[must_use]
pub fn nctaid_y() -> u32 {
    let value;
    // SAFETY: reads a special register that every target has.
    unsafe { asm!("mov.u32 {}, %nctaid.y;", out(reg32) value, options(nomem, nostack)) }
    value
}

/// Threads of the CTA, read anew.
#[inline(always)]
#[must_use]
pub fn ntid_x() -> u32 {
    let value;
    // SAFETY: reads a special register that every target has.
    unsafe { asm!("mov.u32 {}, %ntid.x;", out(reg32) value, options(nomem, nostack)) }
    value
}
