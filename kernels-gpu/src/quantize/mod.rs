//! Quantization to INT8 (arXiv 2409.16997, section 3.2), as docs/kernel-abi.md fixes it bit by bit.
//!
//! ```text
//! quantize    which CTA does what                                                      work.rs
//!             a tile of rows to registers                                              tile.rs
//!             what is taken out of K, from the head's first tokens                     offset.rs
//!             Q and K by token, rotated: row-major and packed                          tokens.rs
//!             V by token or by block, rotated four dims at a time: packed, transposed  values.rs
//! wide        the same of heads of which a CTA has no room for a tile                      wide.rs
//! append      new tokens to the pages of a cache, whole pages of V by block              append/
//! gather      pages of a cache to the operands of attention                            gather.rs
//! convert     pages of a cache with V in 8 bits to pages with 4, and back               pages.rs
//! page_scales what attention on a cache needs of whole blocks                         page_scales.rs
//! v_amax      the paper's one scale a head of V needs all of it first                  values.rs
//! ```
//!
//! | line of the contract | where |
//! | --- | --- |
//! | `scale(amax)`, a token's, Q's 10 bits, V's steps, `v_unit` | `scale` |
//! | rotation of Q and K | `crate::rotation` |
//! | `k_offset` | `offset::prepare` |
//! | Q token, K token, `q_bias`, `k_block_scale` | `tokens::quantize` |
//! | rotation of V, V block | `values::quantize` |
//! | `clamp(rne(x * (1/scale)))` | `pack` |
//!
//! All of it should be bound by memory, 2 bytes read and 1 written for each float16, and is nearly bound by issue slots: an element of Q or K
//! takes about 20 instructions, of which the rotation is 9, and one of V about 14 (docs/kernel-log/quantizer.md). So what a warp can have for
//! itself no other waits for: its tokens' codes and its loads, which are a step of the warp ahead. Halves wait in shared memory, floats
//! in registers. Nothing is kept between CTAs: K's offset is made again by each that needs it, from the head's first tokens,
//! which L2 has.
//!
//! The compiler does not know that a shuffle must stay one instruction for the whole warp. Around shuffles there is
//! therefore no condition that differs between lanes: values are chosen by `selp_b32`, stores are predicated.
//!
//! # Safety
//! The entries trust their parameters: contiguous arrays are 16-byte aligned and sized as docs/kernel-abi.md says, strides
//! stay inside their tensors, and blocks, grids and shared memory are those of [`launch`].

pub mod append;
pub mod launch;
#[cfg(any(test, all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "short"))))]
pub(crate) mod scale;
pub mod work;

#[cfg(all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "short")))]
pub(crate) mod arithmetic;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod entry;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod gather;
#[cfg(all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "short")))]
pub(crate) mod middle;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod offset;
#[cfg(all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "short")))]
pub(crate) mod pack;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod page_scales;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod pages;
#[cfg(all(target_arch = "nvptx64", any(kernels = "quantize", kernels = "short")))]
pub(crate) mod reduce;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod tile;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod tokens;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod values;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod wide;
