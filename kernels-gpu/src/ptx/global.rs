//! Loads and stores of global memory (PTX ISA 9.7.9.8 `ld`, 9.7.9.9 `ld.global.nc`, 9.7.9.11 `st`).
//!
//! The loads are `.nc` where the kernel writes none of what it reads through them. They are not `pure`, so that a batch of
//! loads stays a batch in front of its first use.

use core::arch::asm;

/// `ld.global.nc.v4.u32`
///
/// # Safety
/// `address` is 16-byte aligned global memory of 16 readable bytes that no thread of the grid writes.
#[inline(always)]
pub unsafe fn ld_global_nc_v4_u32(address: *const u8) -> [u32; 4] {
    let mut d = [0; 4];
    unsafe {
        asm!("ld.global.nc.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg64) address,
            options(readonly, nostack));
    }
    d
}

/// `ld.global.nc.v4.f32`
///
/// # Safety
/// As [`ld_global_nc_v4_u32`].
#[inline(always)]
pub unsafe fn ld_global_nc_v4_f32(address: *const f32) -> [f32; 4] {
    let mut d = [0.0; 4];
    unsafe {
        asm!("ld.global.nc.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg64) address,
            options(readonly, nostack));
    }
    d
}

/// `ld.global.nc.v2.u32`
///
/// # Safety
/// As [`ld_global_nc_v4_u32`], with 8 bytes.
#[inline(always)]
pub unsafe fn ld_global_nc_v2_u32(address: *const u8) -> [u32; 2] {
    let mut d = [0; 2];
    unsafe {
        asm!("ld.global.nc.v2.u32 {{{}, {}}}, [{}];", out(reg32) d[0], out(reg32) d[1], in(reg64) address, options(readonly, nostack));
    }
    d
}

/// `ld.global.nc.u32`
///
/// # Safety
/// As [`ld_global_nc_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn ld_global_nc_u32(address: *const u8) -> u32 {
    let d;
    unsafe { asm!("ld.global.nc.u32 {}, [{}];", out(reg32) d, in(reg64) address, options(readonly, nostack)) }
    d
}

/// `ld.global.nc.f32`
///
/// # Safety
/// As [`ld_global_nc_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn ld_global_nc_f32(address: *const f32) -> f32 {
    let d;
    unsafe { asm!("ld.global.nc.f32 {}, [{}];", out(reg32) d, in(reg64) address, options(readonly, nostack)) }
    d
}

/// `ld.global.nc.u16`, zero-extended.
///
/// # Safety
/// As [`ld_global_nc_v4_u32`], with 2 bytes.
#[inline(always)]
pub unsafe fn ld_global_nc_u16(address: *const u8) -> u32 {
    let d;
    unsafe { asm!("ld.global.nc.u16 {}, [{}];", out(reg32) d, in(reg64) address, options(readonly, nostack)) }
    d
}

macro_rules! load_if {
    ($($(#[$doc:meta])* $name:ident, $ptx:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// Into 32 bits, the upper ones 0: half of a register would be zero before the load, and whatever was in its other half would be kept.
        /// Predicated rather than branched around, so that independent loads stay in one basic block; 0 where `predicate` is not.
        ///
        /// # Safety
        /// Where `predicate`, as [`ld_global_nc_v4_u32`] with the value's size.
        #[inline(always)]
        pub unsafe fn $name(predicate: bool, address: *const u8) -> u32 {
            let d;
            unsafe {
                asm!(
                    concat!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; mov.u32 {0}, 0; @p ", $ptx, " {0}, [{2}]; }}"),
                    out(reg32) d, in(reg32) u32::from(predicate), in(reg64) address, options(readonly, nostack)
                );
            }
            d
        }
    )*};
}

load_if! {
    /// `ld.global.nc.u8`
    ld_global_nc_u8_if, "ld.global.nc.u8";
    /// `ld.global.nc.u16`
    ld_global_nc_u16_if, "ld.global.nc.u16";
    /// `ld.global.nc.u32`
    ld_global_nc_u32_if, "ld.global.nc.u32";
}

/// `ld.global.v4.f32`, of what this launch may write later.
///
/// # Safety
/// `address` is 16-byte aligned global memory of 16 readable bytes; who writes them does so behind a barrier.
#[inline(always)]
pub unsafe fn ld_global_v4_f32(address: *const f32) -> [f32; 4] {
    let mut d = [0.0; 4];
    unsafe {
        asm!("ld.global.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg64) address,
            options(readonly, nostack));
    }
    d
}

/// `ld.global.f32`
///
/// # Safety
/// As [`ld_global_v4_f32`], with 4 bytes.
#[inline(always)]
pub unsafe fn ld_global_f32(address: *const f32) -> f32 {
    let d;
    unsafe { asm!("ld.global.f32 {}, [{}];", out(reg32) d, in(reg64) address, options(readonly, nostack)) }
    d
}

macro_rules! store {
    ($($(#[$doc:meta])* $name:ident, $ptx:literal, $pointee:ty, $value:ty, $operands:literal, $($class:ident $at:literal),*;)*) => {$(
        $(#[$doc])*
        ///
        /// Predicated rather than branched around, so that independent stores stay in one basic block.
        ///
        /// # Safety
        /// Where `predicate`, `address` is global memory of the value's size, aligned to it, that this thread alone accesses.
        #[inline(always)]
        pub unsafe fn $name(predicate: bool, address: *mut $pointee, value: $value) {
            unsafe {
                asm!(
                    concat!("{{ .reg .pred p; setp.ne.u32 p, {0}, 0; @p ", $ptx, " [{1}], ", $operands, "; }}"),
                    in(reg32) u32::from(predicate), in(reg64) address, $(in($class) value[$at],)* options(nostack)
                );
            }
        }
    )*};
}

store! {
    /// `st.global.v4.u32`
    st_global_v4_u32, "st.global.v4.u32", u8, [u32; 4], "{{{2}, {3}, {4}, {5}}}", reg32 0, reg32 1, reg32 2, reg32 3;
    /// `st.global.v2.u32`
    st_global_v2_u32, "st.global.v2.u32", u8, [u32; 2], "{{{2}, {3}}}", reg32 0, reg32 1;
    /// `st.global.cs.v2.u32`, of bytes that this launch does not read again.
    st_global_cs_v2_u32, "st.global.cs.v2.u32", u8, [u32; 2], "{{{2}, {3}}}", reg32 0, reg32 1;
    /// `st.global.u32`
    st_global_u32, "st.global.u32", u8, [u32; 1], "{2}", reg32 0;
    /// `st.global.u16`
    st_global_u16, "st.global.u16", u8, [u16; 1], "{2}", reg16 0;
    /// `st.global.u8`, of a word's lowest byte.
    st_global_u8, "st.global.u8", u8, [u32; 1], "{2}", reg32 0;
    /// `st.global.f32`
    st_global_f32, "st.global.f32", f32, [f32; 1], "{2}", reg32 0;
}

/// `prefetch.global.L2`: a hint, of which nothing is seen.
///
/// # Safety
/// `address` is global memory.
#[inline(always)]
pub unsafe fn prefetch_global_l2(address: *const u8) {
    unsafe { asm!("prefetch.global.L2 [{}];", in(reg64) address, options(nostack)) }
}
