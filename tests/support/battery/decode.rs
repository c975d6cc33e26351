//! Decode and merge.

use super::Check;
use crate::decode::{DecodeCase, DecodeKernels, MergeCase, agree, cases_of, hostile_case};
use crate::sim::Simulator;
use anyhow::{Context, Result};
use int_flash_attention::reference::{Bounds, Int8};
use int_flash_attention::{DType, Shape};
use int_flash_attention_kernels::config::decode::{DECODE, MERGE_BOUNDS};
use ptx_machine::Module;
use std::sync::Arc;

/// A run of a decode or a merge.
pub struct DecodeCheck {
    job: Job,
    dtype: DType,
    want: Int8,
    bounds: Bounds,
}

enum Job {
    Decode(Box<DecodeCase>),
    Merge(MergeCase),
}

impl DecodeCheck {
    pub(super) fn run(&self, name: &str, module: &Arc<Module>) -> Result<()> {
        let simulator = Simulator::new().with_module(name, module.clone());
        let got = match &self.job {
            Job::Decode(case) => simulator.decode(case, self.dtype).with_context(|| format!("{:?}", case.problem))?,
            Job::Merge(case) => simulator.merge(case, self.dtype).with_context(|| format!("{} states", case.states))?,
        };
        agree(&got, &self.want, &self.bounds, self.dtype)
    }
}

fn decode(case: DecodeCase, dtype: DType) -> Result<Check> {
    let (want, bounds) = case.want(dtype)?;
    Ok(Check::Decode(DecodeCheck { job: Job::Decode(Box::new(case)), dtype, want, bounds }))
}

fn merge(case: MergeCase, dtype: DType) -> Result<Check> {
    let (want, bounds) = case.want(dtype)?;
    Ok(Check::Decode(DecodeCheck { job: Job::Merge(case), dtype, want, bounds }))
}

/// The checks of a kernel of these.
pub(super) fn of(kernel: &str) -> Option<Result<Vec<Check>>> {
    let head_dim = DECODE.iter().find(|variant| variant.name == kernel).map(|variant| variant.head_dim);
    if let Some(head_dim) = head_dim {
        let hostile = [1, 5].map(|workers| (hostile_case(head_dim, workers), DType::F32));
        return Some(cases_of(head_dim).into_iter().chain(hostile).map(|(case, dtype)| decode(case, dtype)).collect());
    }
    if kernel == MERGE_BOUNDS[1].entry {
        return Some([32, 64].into_iter().flat_map(cases_of).map(|(case, dtype)| decode(case, dtype)).collect());
    }
    let states = [1, 2, 5, 70].into_iter().flat_map(|states| [32, 96, 128].map(|head_dim| (states, head_dim)));
    let case = |(i, (states, head_dim)): (usize, (usize, usize))| {
        let mut case = MergeCase::new(Shape::new(2, 2, 3, head_dim)?, states, i as u64);
        case.sinks = (i % 2 == 0).then(|| vec![0.5, f32::NEG_INFINITY]);
        merge(case, [DType::F16, DType::BF16, DType::F32][i / 3 % 3])
    };
    (kernel == MERGE_BOUNDS[0].entry).then(|| states.enumerate().map(case).collect())
}
