//! INT8 and scales back to floats: `code * scale`, the rotation undone, K's offset added back (docs/kernel-abi.md).
//!
//! A CTA takes one block of 128 tokens. A token of Q or K is held by a few lanes as when it was quantized (`crate::rotation`); of V, `walk`
//! says which elements a lane handles.

#[cfg(all(target_arch = "nvptx64", kernels = "dequantize"))]
mod entry;
pub mod launch;
#[cfg(all(target_arch = "nvptx64", kernels = "dequantize"))]
mod walk;
