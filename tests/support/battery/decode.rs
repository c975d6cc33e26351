//! Decode and merge.

use super::{Check, Lazy};
use crate::decode::{DecodeCase, DecodeKernels, MergeCase, agree, cases_of, hostile_case, many_sequences, tails};
use crate::sim::{Places, Simulator};
use anyhow::{Context, Result};
use int_flash_attention::reference::{Bounds, Int8};
use int_flash_attention::{DType, Shape, Split};
use int_flash_attention_kernels::config::decode::{DECODE, MERGE_BOUNDS, OVERLAPPING_MERGE};
use ptx_machine::Module;
use std::sync::Arc;

/// A run of a decode or a merge.
pub struct DecodeCheck {
    job: Job,
    places: Places,
    dtype: DType,
    wanted: Lazy<(Int8, Bounds)>,
}

enum Job {
    Decode(Box<DecodeCase>),
    Merge(MergeCase),
}

impl DecodeCheck {
    pub(super) fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let simulator = Simulator::new().with_places(self.places).with_modules(name, modules);
        let got = match &self.job {
            Job::Decode(case) => {
                let case = DecodeCase { overlaps: case.overlaps || name == OVERLAPPING_MERGE, ..(**case).clone() };
                simulator.decode(&case, self.dtype).with_context(|| format!("{:?}", case.problem))?
            }
            Job::Merge(case) => simulator.merge(case, self.dtype).with_context(|| format!("{} states", case.states))?,
        };
        let (want, bounds) = self.wanted.get(|| match &self.job {
            Job::Decode(case) => case.want(self.dtype),
            Job::Merge(case) => case.want(self.dtype),
        })?;
        agree(&got, want, bounds, self.dtype)
    }
}

fn check(job: Job, places: Places, dtype: DType) -> Check {
    Check::Decode(Box::new(DecodeCheck { job, places, dtype, wanted: Lazy::new() }))
}

fn decode(case: DecodeCase, dtype: DType) -> Check {
    check(Job::Decode(Box::new(case)), Places::Usual, dtype)
}

/// Outputs of every type, aligned for stores of 16 bytes and not, and with strides of more than 32 bits.
const STORES: [(DType, Places); 9] = [
    (DType::F16, Places::Usual),
    (DType::BF16, Places::Usual),
    (DType::F32, Places::Usual),
    (DType::F16, Places::Aligned(1)),
    (DType::BF16, Places::Aligned(1)),
    (DType::F32, Places::Aligned(1)),
    (DType::F16, Places::Far(0)),
    (DType::BF16, Places::Far(1)),
    (DType::F32, Places::Far(2)),
];

/// The checks of a kernel of these.
pub(super) fn of(kernel: &str) -> Option<Result<Vec<Check>>> {
    if let Some(variant) = DECODE.iter().find(|variant| variant.name == kernel) {
        let head_dim = variant.head_dim;
        let hostile = [1, 5].map(|workers| (hostile_case(head_dim, workers), DType::F32));
        let far = DecodeCase { far: true, ..cases_of(head_dim).swap_remove(1).0 };
        let all =
            cases_of(head_dim).into_iter().chain(hostile).chain([(far, DType::F16), (tails(head_dim), DType::F32)]);
        return Some(Ok(all.map(|(case, dtype)| decode(case.of(variant), dtype)).collect()));
    }
    if kernel == MERGE_BOUNDS[1].entry {
        let cases = cases_of(32).into_iter().chain(cases_of(96)).map(|(case, _)| case);
        let cases = cases.chain([many_sequences(Split::Even, 31), many_sequences(Split::Fixed(128), 4)]);
        let job = |case| Job::Decode(Box::new(case));
        let stores = STORES.into_iter().cycle();
        return Some(Ok(cases.zip(stores).map(|(case, (dtype, at))| check(job(case), at, dtype)).collect()));
    }
    let states = [1, 2, 5, 70].into_iter().flat_map(|states| [32, 96, 128].map(|head_dim| (states, head_dim)));
    let case = |(i, (states, head_dim)): (usize, (usize, usize))| {
        let mut case = MergeCase::new(Shape::new(2, 2, 3, head_dim)?, states, i as u64);
        case.sinks = (i % 2 == 0).then(|| vec![0.5, f32::NEG_INFINITY]);
        let (dtype, places) = STORES[i % STORES.len()];
        Ok(check(Job::Merge(case), places, dtype))
    };
    (kernel == MERGE_BOUNDS[0].entry).then(|| states.enumerate().map(case).collect())
}
