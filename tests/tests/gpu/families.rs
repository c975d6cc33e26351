//! The families of attention kernels against each other, on the same operands and the same GPU.

use crate::device::OnGpu;
use anyhow::{Context, Result};
use int_flash_attention::{AttentionOutput, AttentionProblem, DType, Family, SeqLens, TensorLayout};
use int_flash_attention_kernels::config;
use int_flash_attention_tests::agreement::Agreement;
use int_flash_attention_tests::case::{Case, WINDOWS, any_case};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::{cases, check_cases};
use std::cell::RefCell;

/// Every family that this GPU runs against that of sm_80, on each kernel's case and on generated ones; and what the library
/// chooses by itself.
pub fn agree(gpu: &OnGpu) -> Result<()> {
    let on = |family| OnGpu { gpu: gpu.gpu.clone(), family, shared_bytes: None, ahead: 0, lengths: SeqLens::Equal };
    for family in gpu.gpu.families().into_iter().filter(|&family| family != Family::Sm80) {
        let agreement = RefCell::new(Agreement::default());
        let compare = |case: &Case| {
            let [q, k, v] = case.tensors()?;
            let operands = gpu.quantize(&case.problem, &q, &k, &v)?;
            agreement.borrow_mut().families([&on(family), &on(Family::Sm80)], case, &operands)
        };
        for (seed, variant) in config::ATTENTION.iter().filter(|variant| variant.family == family).enumerate() {
            for window in 0..WINDOWS.len() {
                compare(&Case::of_variant(variant, window + 5 * seed)).context(variant.name)?;
            }
            let case = Case::of_variant(variant, seed);
            for seqlen_kv in [variant.from_keys, 4096].into_iter().filter(|&keys| keys > 0) {
                anyhow::ensure!(chosen(gpu, &case.problem, seqlen_kv)? == (family, variant.name), "{seqlen_kv} keys");
            }
            if variant.from_keys > 1 {
                let (chosen, _) = chosen(gpu, &case.problem, variant.from_keys - 1)?;
                anyhow::ensure!(chosen == Family::Sm80, "{chosen:?} for {} keys", variant.from_keys - 1);
            }
        }
        check_cases(cases(150), &any_case(500), compare).map_err(anyhow::Error::msg)?;
        print!("{}", agreement.borrow());
    }
    // A head dim that no other family has.
    let problem = AttentionProblem::new(1, 1, 1, 10, 10, 256);
    let output = AttentionOutput { layout: TensorLayout::bhnd(problem.q_shape()), dtype: DType::F16, lse: false };
    anyhow::ensure!(gpu.gpu.plan_attention(&problem, &output)?.family() == Family::Sm80);
    Ok(())
}

/// The family and the kernel that the library takes for this problem with so many keys.
fn chosen(gpu: &OnGpu, problem: &AttentionProblem, seqlen_kv: usize) -> Result<(Family, &'static str)> {
    let problem = AttentionProblem { seqlen_kv, ..*problem };
    let output = AttentionOutput { layout: TensorLayout::bhnd(problem.q_shape()), dtype: DType::F16, lse: false };
    let plan = gpu.gpu.plan_attention(&problem, &output)?;
    Ok((plan.family(), plan.kernel()))
}
