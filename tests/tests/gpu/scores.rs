//! What changes scores, on the GPU; the family has sinks, and the kernels for all GPUs the rest.

use crate::device::OnGpu;
use anyhow::{Context, Result};
use int_flash_attention::{AttentionProblem, DType, Family, Scheme, reference};
use int_flash_attention_kernels::config::{self, Kind};
use int_flash_attention_tests::agreement::Agreement;
use int_flash_attention_tests::case::{Case, any_scored_case};
use int_flash_attention_tests::scores::some_score_mod;
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases, properties};
use std::cell::RefCell;

/// Each general kernel with each change of the scores, every kind of values, then generated cases.
pub fn reference(gpu: &OnGpu) -> Result<()> {
    let check = |case: &Case| -> Result<()> {
        let [q, k, v] = case.tensors()?;
        properties::attention(gpu, case, &reference::quantize(&case.problem, &q, &k, &v)?)
    };
    let general =
        config::ATTENTION.iter().filter(|variant| gpu.family == Family::Sm80 && variant.kind == Kind::General);
    for (seed, variant) in general.enumerate() {
        for which in 0..10 {
            let case = Case::of_variant(variant, seed + which);
            let problem =
                AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, seqlen_q: 150, seqlen_kv: 700, ..case.problem };
            let problem = problem.with_score_mod(some_score_mod(&problem, which));
            check(&Case { problem, ..case }).with_context(|| format!("{} {:?}", variant.name, problem.score_mod))?;
        }
    }
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for (scheme, head_dim) in
            [(Scheme::Default, 64), (Scheme::Paper, 64), (Scheme::Default, 256), (Scheme::Paper, 128)]
        {
            let problem = AttentionProblem::new(1, 2, 1, 150, 300, head_dim).with_causal(true).with_scheme(scheme);
            let problem = problem.with_score_mod(some_score_mod(&problem, seed));
            let case = Case { values: [values; 3], dtype: DType::F32, ..Case::plain(problem, seed as u64) };
            check(&case).with_context(|| format!("{values:?} {scheme} {head_dim}"))?;
        }
    }
    check_cases(cases(200), &any_scored_case(400), check).map_err(anyhow::Error::msg)
}

/// Generated cases through the GPU and through the PTX machine.
pub fn machine(gpu: &OnGpu) -> Result<()> {
    let (machine, agreement) = (Simulator::of(gpu.family, 2), RefCell::new(Agreement::default()));
    let compare = |case: &Case| agreement.borrow_mut().int8(gpu, &machine, case);
    check_cases(cases(100), &any_scored_case(200), compare).map_err(anyhow::Error::msg)?;
    print!("{}", agreement.borrow());
    Ok(())
}
