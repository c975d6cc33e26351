//! One function an instruction: the only place with inline PTX.
//!
//! Section numbers are those of the PTX ISA 8.8. Every function is `unsafe`: the caller runs it in a converged warp where the
//! instruction says `.aligned` or `.sync`, with addresses that are valid and aligned for it.

pub mod barrier;
pub mod bulk;
pub mod cp_async;
pub mod global;
pub mod grid_dependency;
pub mod ldmatrix;
pub mod math;
pub mod mbarrier;
pub mod mma;
pub mod opaque;
pub mod order;
pub mod select;
pub mod shared;
pub mod shuffle;
pub mod special;
pub mod warpgroup;
pub mod wgmma;
