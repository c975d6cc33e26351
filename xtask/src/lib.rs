//! The part of `cargo xtask` that reads and writes tensor files, a library so that the fuzzer reaches it.

pub mod tensors;
