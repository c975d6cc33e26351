//! x
use super::{Bounds, Exact};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::AttentionProblem;
use crate::tensor::HostTensor;
/// x
pub fn exact_bounds(
    _p: &AttentionProblem,
    _q: &HostTensor,
    _k: &HostTensor,
    _v: &HostTensor,
    _d: DType,
) -> Result<(Exact, Bounds)> {
    todo!()
}
/// x
pub fn exact_bounds_rows(
    _p: &AttentionProblem,
    _q: &HostTensor,
    _k: &HostTensor,
    _v: &HostTensor,
    _d: DType,
    _r: &[usize],
) -> Result<(Exact, Bounds)> {
    todo!()
}
