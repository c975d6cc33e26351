//! `append_*`: the new tokens of any number of sequences to the slots of a paged cache (docs/kernel-abi.md, "Paged cache"), and their queries
//! to the operand that attention kernels read, in one launch.
//!
//! ```text
//! which CTA does what                                    work.rs
//! which 128 tokens of the launch are a whole page        pages.rs
//! a token of K, of Q, or of V with a scale of its own    rows.rs
//! a whole page of V                                      quantize/values.rs
//! ```
//!
//! Less than a page's tokens have a module of their own where launches may overlap: a step of a decoder waits for such a launch.
//!
//! Warps work by themselves, a few lanes a token, from registers to where the token belongs: a token of K is 32 bytes of each panel,
//! which is what a memory sector has. Only V, whose tokens are single bytes, is worth transposing where a page is written as a whole.

pub mod work;

#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod entry;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod pages;
#[cfg(all(target_arch = "nvptx64", kernels = "quantize"))]
mod rows;
