//! The forward pass of INT-FlashAttention (arXiv 2409.16997, algorithm 1).
//!
//! Here is what the families of kernels share; each has a wing with its loop, its copies and its matrix products.
//!
//! ```text
//! sequence    where rows and blocks lie               softmax/    scores to P; one file for each scheme
//! window      which keys a query sees                 output      P and O in registers
//! lane        which elements of a fragment a lane has epilogue    the division, sinks, the output, the log-sum-exp
//! score_mod   softcap, ALiBi, a bias, a mask
//! sm80/       mma.sync, cp.async: every GPU           sm90a/      wgmma, bulk copies: Hopper
//! decode/     few queries on a paged cache, keys split over warps: every GPU
//! merge/      results of parts of the keys to one
//! ```

pub(crate) mod window;

#[cfg(any(test, kernels = "decode", kernels = "merge"))]
mod decode;
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short", kernels = "merge"))]
mod epilogue;
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short", kernels = "baseline", kernels = "decode"))]
pub(crate) mod lane;
#[cfg(kernels = "merge")]
mod merge;
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short"))]
mod output;
#[cfg(any(kernels = "sm80", kernels = "short"))]
mod score_mod;
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short", kernels = "baseline", kernels = "merge"))]
pub(crate) mod sequence;
#[cfg(kernels = "short")]
mod short;
#[cfg(any(kernels = "sm80", kernels = "short"))]
mod sm80;
#[cfg(kernels = "sm90a")]
mod sm90a;
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short"))]
mod softmax;

/// n8 tiles in a block of keys.
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short", kernels = "decode"))]
const KEY_TILES: usize = crate::layout::KV_BLOCK / 8;
/// k steps of P.V in a block of keys.
#[cfg(any(kernels = "sm80", kernels = "sm90a", kernels = "short", kernels = "decode"))]
const KEY_STEPS: usize = crate::layout::KV_BLOCK / 32;
