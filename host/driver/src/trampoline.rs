//! The driver's functions under their own names, for `cust`.
//!
//! Each name is a few instructions: jump to the address in the name's slot of [`TABLE`], or, where the slot is still
//! empty, to [`find`], which fills it. Arguments stay in their registers and on the stack all the way, so no signature is
//! needed. The names are hidden: a shared library built from this crate neither exports nor interposes them.

use crate::api::function;
use crate::symbols::with_symbols;
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

macro_rules! count_and_name {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        /// The index of each name.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Index {
            $($name),*
        }
    };
}
with_symbols!(count_and_name);

/// Addresses of the driver's functions, or null.
static TABLE: [AtomicPtr<c_void>; NAMES.len()] = [const { AtomicPtr::new(null_mut()) }; NAMES.len()];

#[cfg(target_arch = "x86_64")]
macro_rules! trampolines {
    ($($name:ident)*) => {$(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn $name() {
            std::arch::naked_asm!(
                concat!(".hidden ", stringify!($name)),
                // r11 is nobody's: neither an argument nor preserved (System V ABI, "Register usage").
                "mov r11, qword ptr [rip + {table}@GOTPCREL]",
                "mov r11, qword ptr [r11 + 8 * {index}]",
                "test r11, r11",
                "je 2f",
                "jmp r11",
                "2:",
                "mov r11d, {index}",
                "jmp qword ptr [rip + {find}@GOTPCREL]",
                table = sym TABLE,
                index = const Index::$name as usize,
                find = sym find,
            )
        }
    )*};
}

/// Finds function number r11 with all arguments put aside, and jumps there.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn find() {
    std::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "sub rsp, 176",
        "mov [rsp], rdi",
        "mov [rsp + 8], rsi",
        "mov [rsp + 16], rdx",
        "mov [rsp + 24], rcx",
        "mov [rsp + 32], r8",
        "mov [rsp + 40], r9",
        "movups [rsp + 48], xmm0",
        "movups [rsp + 64], xmm1",
        "movups [rsp + 80], xmm2",
        "movups [rsp + 96], xmm3",
        "movups [rsp + 112], xmm4",
        "movups [rsp + 128], xmm5",
        "movups [rsp + 144], xmm6",
        "movups [rsp + 160], xmm7",
        "mov edi, r11d",
        "call qword ptr [rip + {resolve}@GOTPCREL]",
        "mov r11, rax",
        "mov rdi, [rsp]",
        "mov rsi, [rsp + 8]",
        "mov rdx, [rsp + 16]",
        "mov rcx, [rsp + 24]",
        "mov r8, [rsp + 32]",
        "mov r9, [rsp + 40]",
        "movups xmm0, [rsp + 48]",
        "movups xmm1, [rsp + 64]",
        "movups xmm2, [rsp + 80]",
        "movups xmm3, [rsp + 96]",
        "movups xmm4, [rsp + 112]",
        "movups xmm5, [rsp + 128]",
        "movups xmm6, [rsp + 144]",
        "movups xmm7, [rsp + 160]",
        "leave",
        "jmp r11",
        resolve = sym resolve,
    )
}

#[cfg(target_arch = "aarch64")]
macro_rules! trampolines {
    ($($name:ident)*) => {$(
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        extern "C" fn $name() {
            std::arch::naked_asm!(
                concat!(".hidden ", stringify!($name)),
                // x16 and x17 are for such jumps (AAPCS64, "intra-procedure-call scratch registers").
                "adrp x16, :got:{table}",
                "ldr x16, [x16, :got_lo12:{table}]",
                "ldr x16, [x16, {offset}]",
                "cbz x16, 2f",
                "br x16",
                "2:",
                "mov w17, {index}",
                "adrp x16, :got:{find}",
                "ldr x16, [x16, :got_lo12:{find}]",
                "br x16",
                table = sym TABLE,
                index = const Index::$name as usize,
                offset = const 8 * Index::$name as usize,
                find = sym find,
            )
        }
    )*};
}

/// Finds function number x17 with all arguments put aside, and jumps there.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn find() {
    std::arch::naked_asm!(
        "stp x29, x30, [sp, -224]!",
        "mov x29, sp",
        "stp x0, x1, [sp, 16]",
        "stp x2, x3, [sp, 32]",
        "stp x4, x5, [sp, 48]",
        "stp x6, x7, [sp, 64]",
        "str x8, [sp, 80]",
        "stp q0, q1, [sp, 96]",
        "stp q2, q3, [sp, 128]",
        "stp q4, q5, [sp, 160]",
        "stp q6, q7, [sp, 192]",
        "mov w0, w17",
        "bl {resolve}",
        "mov x16, x0",
        "ldp x0, x1, [sp, 16]",
        "ldp x2, x3, [sp, 32]",
        "ldp x4, x5, [sp, 48]",
        "ldp x6, x7, [sp, 64]",
        "ldr x8, [sp, 80]",
        "ldp q0, q1, [sp, 96]",
        "ldp q2, q3, [sp, 128]",
        "ldp q4, q5, [sp, 160]",
        "ldp q6, q7, [sp, 192]",
        "ldp x29, x30, [sp], 224",
        "br x16",
        resolve = sym resolve,
    )
}

with_symbols!(trampolines);

/// The address of function number `index`; of one that reports an error where there is none. (A panic would abort.)
extern "C" fn resolve(index: u32) -> *mut c_void {
    let name = NAMES[index as usize];
    let address = match function(name) {
        Ok(address) => address.as_ptr(),
        Err(_) if matches!(name, "cuGetErrorString" | "cuGetErrorName") => describe_without_driver as *mut c_void,
        Err(_) => refuse as *mut c_void,
    };
    TABLE[index as usize].store(address, Ordering::Release);
    address
}

/// `CUDA_ERROR_NOT_INITIALIZED`, whatever was asked: there is no driver, or it lacks the function.
extern "C" fn refuse() -> u32 {
    3
}

/// `cuGetErrorString` without a driver; cust panics where an error has no text.
unsafe extern "C" fn describe_without_driver(_code: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: the driver's own function takes the same pointer to one pointer.
    unsafe { *text = c"the NVIDIA driver (libcuda.so.1) was not found, or lacks the function".as_ptr() };
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        #[link_name = "cuMemAlloc_v2"]
        fn mem_alloc(pointer: *mut u64, bytes: usize) -> u32;
        #[link_name = "cuGetErrorString"]
        fn get_error_string(code: u32, text: *mut *const c_char) -> u32;
    }

    #[test]
    fn without_a_driver_calls_are_refused() {
        if function("cuInit").is_ok() {
            return;
        }
        let mut pointer = 7;
        // SAFETY: the functions' real signatures; nothing is there to be called.
        unsafe {
            for _ in 0..2 {
                assert_eq!(mem_alloc(&mut pointer, 1), 3);
            }
            let mut text = std::ptr::null();
            assert_eq!(get_error_string(3, &mut text), 0);
            assert!(std::ffi::CStr::from_ptr(text).to_string_lossy().contains("libcuda.so.1"));
        }
        assert_eq!(pointer, 7);
    }
}
