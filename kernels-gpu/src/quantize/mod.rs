//! Quantization to INT8 (arXiv 2409.16997, section 3.2), as docs/kernel-abi.md fixes it bit by bit.
//!
//! ```text
//! quantize    which CTA does what, and in which order                                                    work.rs
//!             a tile of rows to shared memory                                                            tile.rs
//!             sum, minimum and maximum of K and V per head and channel, by chunks of 512 tokens;
//!             chunks to mean, and to V's scale (per channel, or the paper's one a head)                  stats.rs
//!             Q and K by token (the paper's token-level scales), row-major and packed                    tokens.rs
//!             V with the scales of the statistics, packed and transposed                                 values.rs
//! ```
//!
//! | line of the contract | where |
//! | --- | --- |
//! | statistics: eight accumulators, their tree, chunks in order | `stats::slice`, `stats::combine`, `stats::total` |
//! | `mean`, `amax` | `stats::finish` |
//! | `k_scale_max`, one V scale a head | `entry::Quantize::stats` |
//! | `scale(amax)`, Q's 10 bits | `scale` |
//! | Q token, K token, `q_bias` | `tokens::quantize` |
//! | V channel | `values::quantize` |
//! | `clamp(rne(x * (1/scale)))` | `pack::quantize4` |
//!
//! All of it is bound by memory: 2 bytes read and 1 written for each float16. K and V are needed twice, so the statistics of
//! an operand run only so far ahead of its tiles that the second reading finds the data in L2. A CTA is short and has all of
//! its 32 KiB under way at once; several share an SM, in different phases.
//!
//! The compiler does not know that a shuffle must stay one instruction for the whole warp. Around shuffles there is
//! therefore no condition that differs between lanes: values are chosen by `selp_b32`, stores are predicated.
//!
//! # Safety
//! The entries trust their arguments: contiguous arrays are 16-byte aligned and sized as docs/kernel-abi.md says, strides
//! stay inside their tensors, and blocks, grids and shared memory are those of [`launch`].

pub mod launch;
#[cfg(any(test, all(target_arch = "nvptx64", kernels = "quantize")))]
mod scale;
pub mod work;

#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod entry;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod pack;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod stats;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod tile;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod tokens;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod values;
