//! Runs decoded kernels: one module for each class of instruction, one for the CTA they run in.

mod async_copy;
mod barrier;
mod bulk;
mod compare;
mod convert;
mod cta;
mod data;
mod float;
mod half;
mod integer;
mod matrix;
mod mbarrier;
mod memory;
mod schedule;
mod warp;
mod warpgroup;
mod wgmma;

pub(crate) use cta::Environment;
pub(crate) use schedule::Worker;
