//! Loads and stores of global memory (PTX ISA 9.7.9.8 `ld`, 9.7.9.9 `ld.global.nc`, 9.7.9.11 `st`).
//!
//! The loads are `.nc`: the kernel writes none of what it reads through them. They are not `pure`, so that a batch of loads
//! stays a batch in front of its first use.

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
    let d: u16;
    unsafe { asm!("ld.global.nc.u16 {}, [{}];", out(reg16) d, in(reg64) address, options(readonly, nostack)) }
    u32::from(d)
}

/// `st.global.v4.u32`
///
/// # Safety
/// `address` is 16-byte aligned global memory of 16 bytes that this thread alone accesses.
#[inline(always)]
pub unsafe fn st_global_v4_u32(address: *mut u8, value: [u32; 4]) {
    unsafe {
        asm!("st.global.v4.u32 [{}], {{{}, {}, {}, {}}};", in(reg64) address,
            in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    }
}

/// `st.global.v2.u32`
///
/// # Safety
/// As [`st_global_v4_u32`], with 8 bytes.
#[inline(always)]
pub unsafe fn st_global_v2_u32(address: *mut u8, value: [u32; 2]) {
    unsafe { asm!("st.global.v2.u32 [{}], {{{}, {}}};", in(reg64) address, in(reg32) value[0], in(reg32) value[1], options(nostack)) }
}

/// `st.global.u32`
///
/// # Safety
/// As [`st_global_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn st_global_u32(address: *mut u8, value: u32) {
    unsafe { asm!("st.global.u32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) }
}

/// `st.global.u16` of the low half of `value`.
///
/// # Safety
/// As [`st_global_v4_u32`], with 2 bytes.
#[inline(always)]
pub unsafe fn st_global_u16(address: *mut u8, value: u32) {
    unsafe { asm!("st.global.u16 [{}], {};", in(reg64) address, in(reg16) value as u16, options(nostack)) }
}

/// `st.global.f32`
///
/// # Safety
/// As [`st_global_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn st_global_f32(address: *mut f32, value: f32) {
    unsafe { asm!("st.global.f32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack)) }
}
