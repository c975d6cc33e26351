//! Matrix loads from shared memory (PTX ISA 9.7.14.5.15, `ldmatrix`).
//!
//! Lane `l` gives the shared address of row `l % 8` of matrix `l / 8` (8 rows of 16 bytes). Register `i` of lane `l` receives
//! bytes `4*(l%4)..` of row `l/4` of matrix `i`; with `.trans`, halves `(2*(l%4), l/4)` and `(2*(l%4)+1, l/4)`.

use core::arch::asm;

macro_rules! ldmatrix {
    ($(#[$doc:meta])* $name:ident, $ptx:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// All 32 lanes of a converged warp call it, each with the 16-byte aligned address of 16 readable bytes; sm_75 or newer.
        #[inline(always)]
        pub unsafe fn $name(address: u32) -> [u32; 4] {
            let mut d = [0; 4];
            unsafe {
                asm!(
                    concat!($ptx, " {{{}, {}, {}, {}}}, [{}];"),
                    out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg32) address,
                    options(pure, readonly, nostack)
                );
            }
            d
        }
    };
}

ldmatrix!(
    /// Four 8x8 matrices of 16-bit elements (or 8 rows of 16 bytes).
    ldmatrix_x4,
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
);
ldmatrix!(
    /// Four 8x8 matrices of 16-bit elements, each transposed.
    ldmatrix_x4_trans,
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
);
