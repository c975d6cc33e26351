//! A few new tokens of each sequence against its paged cache (docs/kernel-abi.md, "Decode").
//!
//! The memory's speed is the limit, so a CTA is one warp that takes whole blocks of 128 keys, with the next block on its way, and waits for no other
//! warp. (At head dim 256 it is two, as one has no registers for all of the output: both make the scores, and each half of the output.) The warps' shares are equal, whatever the lengths are (`schedule`). All rows of a head of K and V, the query heads of its group
//! times the new tokens, are a tile of 16. For a block:
//!
//! ```text
//! ring.next      K and the scales land, those of the next block are requested
//! scores::block  S = Q K^T               int8 tensor cores, then float32
//! scores         softcap, ALiBi, mask    where there are any
//! softmax        A, e, l, G, P           exponentials, times V's scales, to bytes in registers
//! ring.next      V lands, that of the next block is requested
//! output         O += w G/255 (P V)      int8 tensor cores, float32 sums; V in 4 bits becomes bytes in registers
//! ```
//!
//! Where the warp's part of a tile ends it leaves a normalised row of O and its log-sum-exp in the workspace, which `attention/merge` makes
//! the output of.

#[cfg(kernels = "decode")]
mod entry;
#[cfg(kernels = "decode")]
mod output;
#[cfg(kernels = "decode")]
mod ring;
#[cfg(kernels = "decode")]
mod rows;
#[cfg(any(kernels = "decode", kernels = "merge"))]
pub(crate) mod scan;
pub(crate) mod schedule;
#[cfg(kernels = "decode")]
mod scores;
#[cfg(kernels = "decode")]
mod softmax;
#[cfg(kernels = "decode")]
mod walk;

#[cfg(kernels = "decode")]
pub(crate) use attend::{Kernel, decode};

#[cfg(kernels = "decode")]
mod attend;
