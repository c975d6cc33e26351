//! INT8 FlashAttention kernels.
//!
//! On the device (`nvptx64-nvidia-cuda`) this crate is the kernels; on the host it is what they share with the host:
//! [`layout`] (where each byte of a packed tile lies), [`config`] (which kernels there are and how they are launched) and
//! [`params`] (what they are handed).
#![no_std]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch))]
#![cfg_attr(all(target_arch = "nvptx64", not(feature = "cuda-std")), feature(abi_ptx))]
#![cfg_attr(all(target_arch = "nvptx64", feature = "cuda-std"), feature(stmt_expr_attributes))]

#[cfg(any(test, target_arch = "nvptx64"))]
#[macro_use]
mod unroll;

pub mod config;
pub mod dequantize;
pub mod layout;
pub mod params;
pub mod quantize;
pub mod seqlens;

// A module of kernels is a part of this crate, which `--cfg kernels="PART"` selects; the entry points of the part that belong to
// the module, `--cfg NAME` (config::Module).
#[cfg(any(
    test,
    all(
        target_arch = "nvptx64",
        any(
            kernels = "sm80",
            kernels = "sm90a",
            kernels = "short",
            kernels = "baseline",
            kernels = "decode",
            kernels = "merge"
        )
    )
))]
mod attention;
#[cfg(all(target_arch = "nvptx64", kernels = "baseline"))]
mod baseline;
mod division;
#[cfg(target_arch = "nvptx64")]
mod element;
#[cfg(all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "decode")))]
mod nibbles;
#[cfg(target_arch = "nvptx64")]
mod ptx;
#[cfg(all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "dequantize", kernels = "short")))]
mod rotation;
#[cfg(target_arch = "nvptx64")]
mod smem;

/// The kernels have no panicking path (their PTX calls nothing); the language asks for a handler all the same.
/// With the feature `cuda-std` it is cuda_std's.
#[cfg(all(target_arch = "nvptx64", not(feature = "cuda-std")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
