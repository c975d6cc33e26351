//! Matrix multiply-accumulate on the tensor cores (PTX ISA 9.7.14.5, `mma`).
//!
//! # Fragments of `m16n8k32` for 8-bit A and B
//!
//! Lane `l` of the warp is `g = l / 4` (group) and `t = l % 4` (thread in quad); a register holds four bytes, lowest k first.
//!
//! ```text
//! A (16 x 32, row)                  B (32 x 8, col)           C, D (16 x 8, s32)
//!        k 4t..4t+3   16+4t..+3            n = g                      n = 2t   2t+1
//! row g     a0           a2        k 4t..    b0             row g       c0      c1
//! row g+8   a1           a3        k 16+4t.. b1             row g+8     c2      c3
//! ```
//!
//! # Fragments of `m16n8k16` for 16-bit A and B
//!
//! The same picture with two halves a register: `a0` is row g, k `2t..2t+1`; `a2` is k `8+2t..`; `b0` k `2t..`, `b1` k `8+2t..`.

use core::arch::asm;

macro_rules! mma_s32 {
    ($(#[$doc:meta])* $name:ident, $ptx:literal) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// All 32 lanes of a converged warp call it (`.sync.aligned`); sm_80 or newer.
        #[inline(always)]
        pub unsafe fn $name(a: [u32; 4], b: [u32; 2], c: [i32; 4]) -> [i32; 4] {
            let mut d = [0; 4];
            unsafe {
                asm!(
                    concat!($ptx, " {{{}, {}, {}, {}}}, {{{}, {}, {}, {}}}, {{{}, {}}}, {{{}, {}, {}, {}}};"),
                    out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3],
                    in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
                    in(reg32) b[0], in(reg32) b[1],
                    in(reg32) c[0], in(reg32) c[1], in(reg32) c[2], in(reg32) c[3],
                    options(pure, nomem, nostack)
                );
            }
            d
        }
    };
}

mma_s32!(
    /// `D = A * B + C`, signed by signed bytes, wrapping int32 sums: the scores.
    mma_m16n8k32_s32_s8_s8,
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
);
mma_s32!(
    /// `D = A * B + C`, unsigned bytes, wrapping int32 sums: P times V.
    mma_m16n8k32_s32_u8_u8,
    "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32"
);

/// `D = A * B + C` of float16 with float32 sums.
///
/// # Safety
/// All 32 lanes of a converged warp call it (`.sync.aligned`); sm_80 or newer.
#[inline(always)]
pub unsafe fn mma_m16n8k16_f32_f16(a: [u32; 4], b: [u32; 2], c: [f32; 4]) -> [f32; 4] {
    let mut d = [0.0; 4];
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{}, {}, {}, {}}}, {{{}, {}, {}, {}}}, {{{}, {}}}, {{{}, {}, {}, {}}};",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3],
            in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
            in(reg32) b[0], in(reg32) b[1],
            in(reg32) c[0], in(reg32) c[1], in(reg32) c[2], in(reg32) c[3],
            options(pure, nomem, nostack)
        );
    }
    d
}
