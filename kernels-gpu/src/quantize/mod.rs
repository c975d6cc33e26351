//! Quantization to INT8 (arXiv 2409.16997, section 3.2), as docs/kernel-abi.md fixes it bit by bit.
//!
//! ```text
//! kv_stats         sum, minimum and maximum of K and V per head and channel, by chunks of 512 tokens      stats.rs
//! kv_stats_finish  chunks to mean, and to V's scale (per channel, or the paper's one a head)              stats.rs
//! quantize         Q and K by token (the paper's token-level scales), row-major and packed                tokens.rs
//!                  V with the scales of kv_stats_finish, packed and transposed                            values.rs
//! dequantize       int8 and scales back to floats                                                         ../dequantize.rs
//! ```
//!
//! | line of the contract | where |
//! | --- | --- |
//! | statistics: eight accumulators, their tree, chunks in order | `stats::chunk`, `stats::combine`, `stats::finish` |
//! | `mean`, `amax`, `k_scale_max` | `stats::finish` |
//! | `scale(amax)`, Q's 10 bits | `scale` |
//! | Q token, K token, `q_bias` | `tokens::quantize` |
//! | V channel | `values::quantize` |
//! | `clamp(rne(x * (1/scale)))` | `pack::quantize4` |
//!
//! All kernels are bound by memory: each float is read once by the statistics and once by the quantizer, each byte written
//! once. A CTA of `quantize` is one block of 128 tokens of Q, K or V, and every thread of it has eight 16-byte loads
//! under way before it uses the first. The blocks run in the reverse order of `kv_stats`, so that what the statistics
//! read last is taken from L2. Which lane takes which elements is in `place.rs`, for both directions.
//!
//! The compiler does not know that a shuffle must stay one instruction for the whole warp. Around shuffles there is
//! therefore no condition that differs between lanes: values are chosen by `selp_b32`, stores are predicated.
//!
//! # Safety
//! The entries trust their arguments: contiguous arrays are 16-byte aligned and sized as docs/kernel-abi.md says, strides
//! stay inside their tensors, and blocks, grids and shared memory are those of [`launch`].

pub mod launch;
pub mod work;
#[cfg(any(test, all(target_arch = "nvptx64", kernels = "quantize")))]
mod scale;

#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod entry;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
pub(crate) mod pack;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
pub(crate) mod place;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod stats;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod tile;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod tokens;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod values;
