//! Loads and stores of shared memory (PTX ISA 9.7.9.8 `ld`, 9.7.9.11 `st`).
//!
//! But for one they are not `pure`: other threads write what the loads read, and only the order around `bar.sync` says when.

use core::arch::asm;

/// `ld.shared.v4.u32`
///
/// # Safety
/// `address` is a 16-byte aligned shared address of 16 initialised bytes that no thread writes before the next barrier.
#[inline(always)]
pub unsafe fn ld_shared_v4_u32(address: u32) -> [u32; 4] {
    let mut d = [0; 4];
    unsafe {
        asm!("ld.shared.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg32) address,
            options(readonly, nostack));
    }
    d
}

/// `ld.shared.v4.f32`, `pure`: of what no thread writes between the barriers around all its uses, so that the compiler may move it.
///
/// # Safety
/// `address` is a 16-byte aligned shared address of 16 initialised bytes.
#[inline(always)]
pub unsafe fn ld_shared_v4_f32(address: u32) -> [f32; 4] {
    let mut d = [0.0; 4];
    unsafe {
        asm!("ld.shared.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) d[0], out(reg32) d[1], out(reg32) d[2], out(reg32) d[3], in(reg32) address,
            options(pure, readonly, nostack));
    }
    d
}

/// `ld.shared.v2.u32`
///
/// # Safety
/// As [`ld_shared_v4_u32`], with 8 bytes.
#[inline(always)]
pub unsafe fn ld_shared_v2_u32(address: u32) -> [u32; 2] {
    let mut d = [0; 2];
    unsafe {
        asm!("ld.shared.v2.u32 {{{}, {}}}, [{}];", out(reg32) d[0], out(reg32) d[1], in(reg32) address, options(readonly, nostack));
    }
    d
}

/// `ld.shared.u32`
///
/// # Safety
/// As [`ld_shared_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn ld_shared_u32(address: u32) -> u32 {
    let d;
    unsafe { asm!("ld.shared.u32 {}, [{}];", out(reg32) d, in(reg32) address, options(readonly, nostack)) }
    d
}

/// `ld.shared.f32`
///
/// # Safety
/// As [`ld_shared_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn ld_shared_f32(address: u32) -> f32 {
    let d;
    unsafe { asm!("ld.shared.f32 {}, [{}];", out(reg32) d, in(reg32) address, options(readonly, nostack)) }
    d
}

/// `st.shared.v4.u32` where `predicate`.
///
/// # Safety
/// Where `predicate`, `address` is a 16-byte aligned shared address of 16 bytes that no other thread touches before the
/// next barrier.
#[inline(always)]
pub unsafe fn st_shared_v4_u32(predicate: bool, address: u32, value: [u32; 4]) {
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {}, 0; @p st.shared.v4.u32 [{}], {{{}, {}, {}, {}}}; }}",
            in(reg32) u32::from(predicate), in(reg32) address, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], options(nostack));
    }
}

/// `st.shared.v2.u32` where `predicate`.
///
/// # Safety
/// Where `predicate`, as [`st_shared_v4_u32`] with 8 bytes.
#[inline(always)]
pub unsafe fn st_shared_v2_u32(predicate: bool, address: u32, value: [u32; 2]) {
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {}, 0; @p st.shared.v2.u32 [{}], {{{}, {}}}; }}",
            in(reg32) u32::from(predicate), in(reg32) address, in(reg32) value[0], in(reg32) value[1], options(nostack));
    }
}

/// `st.shared.u32` where `predicate`.
///
/// # Safety
/// Where `predicate`, as [`st_shared_v4_u32`] with 4 bytes.
#[inline(always)]
pub unsafe fn st_shared_u32(predicate: bool, address: u32, value: u32) {
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {}, 0; @p st.shared.u32 [{}], {}; }}",
            in(reg32) u32::from(predicate), in(reg32) address, in(reg32) value, options(nostack));
    }
}

/// `st.shared.f32`
///
/// # Safety
/// As [`st_shared_v4_u32`], with 4 bytes.
#[inline(always)]
pub unsafe fn st_shared_f32(address: u32, value: f32) {
    unsafe { asm!("st.shared.f32 [{}], {};", in(reg32) address, in(reg32) value, options(nostack)) }
}
