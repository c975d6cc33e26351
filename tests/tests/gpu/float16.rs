//! The float16 kernels, the yardstick, against float64.

use crate::device::OnGpu;
use crate::rows::{lse_at, values_at};
use anyhow::{Context, Result};
use int_flash_attention::AttentionProblem;
use int_flash_attention_kernels::config;
use int_flash_attention_tests::baseline;
use int_flash_attention_tests::case::{AWKWARD, Case, Placement, WINDOWS};
use int_flash_attention_tests::properties::{self, Kernels};

pub fn matches(gpu: &OnGpu) -> Result<()> {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for head_dim in config::BASELINE.iter().map(|variant| variant.head_dim) {
            let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, head_dim).with_window(WINDOWS[seed % 4]);
            let mut case = Case::plain(problem, seed as u64);
            case.placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
            self::case(gpu, &case)?;
        }
    }
    Ok(())
}

/// Some query positions of a float16 case against float64.
pub fn case(gpu: &OnGpu, case: &Case) -> Result<()> {
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let (o, lse) = gpu.attention_f16(problem, [&q, &k, &v], &case.output()?)?;
    let rows: Vec<usize> = (0..problem.seqlen_q).step_by(problem.seqlen_q.div_ceil(20)).collect();
    let want = baseline::expected(problem, &q, &k, &v, &rows);
    properties::within("o", &values_at(&o, &rows), &want.o, &want.bound, problem.head_dim)
        .and_then(|()| properties::within("lse", &lse_at(problem, &lse, &rows), &want.lse, &want.lse_bound, 1))
        .with_context(|| format!("{case:?}"))
}
