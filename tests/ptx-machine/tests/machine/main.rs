//! The machine against plain Rust, instruction by instruction, and against kernels that do what they must not.

mod async_copy;
mod control;
mod convert;
mod crimes;
mod crimes_hopper;
mod float;
mod harness;
mod integer;
mod matrix;
mod mbarrier;
mod memory;
mod numeric;
mod pipeline;
mod refusals;
mod shipped;
mod warp;
mod wgmma;
