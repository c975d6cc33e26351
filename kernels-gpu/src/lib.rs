//! INT8 FlashAttention kernels.
//!
//! On the device (`nvptx64-nvidia-cuda`) this crate is the kernels; on the host it is what they share with the host:
//! [`layout`] (where each byte of a packed tile lies) and [`config`] (which kernels there are and how they are launched).
#![no_std]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

pub mod config;
pub mod layout;

#[cfg(target_arch = "nvptx64")]
#[macro_use]
mod device {
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        loop {}
    }
}

#[cfg(target_arch = "nvptx64")]
pub mod ptx;

#[cfg(target_arch = "nvptx64")]
pub mod smem;

#[cfg(all(
    target_arch = "nvptx64",
    any(kernels = "attention_d32", kernels = "attention_d64", kernels = "attention_d96", kernels = "attention_d128", kernels = "attention_d256")
))]
mod attention;
