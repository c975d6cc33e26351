//! INT8 FlashAttention kernels.
//!
//! On the device (`nvptx64-nvidia-cuda`) this crate is the kernels; on the host it is what they share with the host:
//! [`layout`] (where each byte of a packed tile lies) and [`config`] (which kernels there are and how they are launched).
#![no_std]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch))]
#![cfg_attr(all(target_arch = "nvptx64", not(feature = "cuda-std")), feature(abi_ptx))]
#![cfg_attr(all(target_arch = "nvptx64", feature = "cuda-std"), feature(stmt_expr_attributes))]

#[cfg(target_arch = "nvptx64")]
#[macro_use]
mod unroll;

pub mod config;
pub mod layout;
pub mod quantize;

#[cfg(target_arch = "nvptx64")]
#[allow(dead_code, reason = "every module uses its own part of the instructions")]
mod ptx;
#[cfg(target_arch = "nvptx64")]
mod smem;

#[cfg(all(target_arch = "nvptx64", not(kernels = "quantize")))]
mod mask;

#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod dequantize;
#[cfg(all(target_arch = "nvptx64", not(kernels = "baseline_f16")))]
#[allow(dead_code, reason = "attention only writes elements")]
mod element;

#[cfg(all(
    target_arch = "nvptx64",
    any(
        kernels = "attention_d32",
        kernels = "attention_d64",
        kernels = "attention_d96",
        kernels = "attention_d128",
        kernels = "attention_d256",
        kernels = "hopper_d64",
        kernels = "hopper_d128"
    )
))]
mod attention;

#[cfg(all(target_arch = "nvptx64", kernels = "baseline_f16"))]
mod baseline;

/// The kernels have no panicking path (their PTX calls nothing); the language asks for a handler all the same.
/// With the feature `cuda-std` it is cuda_std's.
#[cfg(all(target_arch = "nvptx64", not(feature = "cuda-std")))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
