//! INT8 and scales back to floats: `q * scale`, `k * scale + mean`, `v * scale + mean` (docs/kernel-abi.md).
//!
//! A CTA takes one block of 128 tokens; `walk` says which elements of it a lane handles.

#[cfg(all(target_arch = "nvptx64", kernels = "dequantize"))]
mod entry;
pub mod launch;
#[cfg(all(target_arch = "nvptx64", kernels = "dequantize"))]
mod walk;
