//! Attention on operands, in each family: generated cases, and those that a kernel gets wrong first.

use crate::device::OnGpu;
use crate::float16;
use crate::rows::{lse_at, values_at};
use anyhow::{Context, Result, ensure};
use int_flash_attention::{AttentionOutput, AttentionProblem, DType, Family, Scheme, Scored, Window, reference};
use int_flash_attention_kernels::config::{self, shared_memory::CLASSES};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_tests::case::{AWKWARD, Case, PADDED_DIMS, Placement, VALUE_DIMS, WINDOWS, any_case, variant};
use int_flash_attention_tests::properties::{self, Kernels};
use int_flash_attention_tests::unseen::{self, any_unseen};
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases};

pub fn generated_cases(gpu: &OnGpu) -> Result<()> {
    check_cases(cases(200), &any_case(400), |case| properties::all(gpu, case)).map_err(anyhow::Error::msg)
}

pub fn awkward_lengths(gpu: &OnGpu) -> Result<()> {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for head_dim in HEAD_DIMS {
            for (window, scheme) in
                WINDOWS.into_iter().flat_map(|window| [Scheme::Default, Scheme::Paper].map(|scheme| (window, scheme)))
            {
                let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, head_dim)
                    .with_window(window)
                    .with_scheme(scheme);
                if variant(&problem).is_some() {
                    properties::all(gpu, &Case::plain(problem, seed as u64)).with_context(|| format!("{problem:?}"))?;
                }
            }
        }
    }
    Ok(())
}

pub fn hostile_values(gpu: &OnGpu) -> Result<()> {
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for (scheme, head_dim) in [
            (Scheme::Default, 64),
            (Scheme::Paper, 64),
            (Scheme::Default, 256),
            (Scheme::Default, 512),
            (Scheme::Paper, 128),
        ] {
            for dtype in [DType::F16, DType::BF16, DType::F32] {
                let problem = AttentionProblem::new(1, 2, 1, 150, 300, head_dim).with_causal(true).with_scheme(scheme);
                let case = Case { values: [values; 3], dtype, out_dtype: dtype, ..Case::plain(problem, seed as u64) };
                properties::all(gpu, &case).with_context(|| format!("{values:?} {dtype} {scheme} {head_dim}"))?;
            }
        }
    }
    Ok(())
}

/// Behind the window: loud, infinite and NaN keys and values, in and behind the block of the last key that a row sees.
pub fn unseen_keys(on: &OnGpu) -> Result<()> {
    check_cases(cases(120), &any_unseen(&HEAD_DIMS, 900), |unseen| {
        unseen::changes_nothing(unseen, |problem, [q, k, v]| {
            let operands = on.quantize(problem, q, k, v)?;
            Ok(on.attention(&problem.into(), &operands, &q.layout(), q.dtype(), false)?.0)
        })
    })
    .map_err(anyhow::Error::msg)
}

/// Rows that are not aligned to 16 bytes, because of a stride or because of where the tensor starts, in every kernel of the family
/// and every kernel around it; and the float16 kernels, whose output's rows are aligned to 4 bytes.
pub fn unaligned_rows(on: &OnGpu) -> Result<()> {
    let kinds = [(0, [1, 0, 0]), (0, [0, 3, 0]), (0, [0, 0, 5]), (1, [0, 0, 0]), (8, [0, 0, 0]), (2, [3, 1, 7])];
    let family = on.family;
    for (i, variant) in config::ATTENTION.iter().filter(|variant| variant.family == family).enumerate() {
        for (kind, (ahead, [token, head, batch])) in kinds.into_iter().enumerate() {
            let case = Case::of_variant(variant, i + kind);
            let problem = AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, seqlen_kv: 530, ..case.problem };
            let case = Case { problem, placement: [Placement::Padded { token, head, batch }; 4], ..case };
            properties::all(&OnGpu { ahead, ..on.clone() }, &case).with_context(|| format!("{ahead} {case:?}"))?;
        }
    }
    for (seed, variant) in config::BASELINE.iter().enumerate() {
        for [token, head, batch] in [[2, 0, 0], [0, 6, 0], [0, 0, 10]] {
            let window = WINDOWS[(seed + token) % WINDOWS.len()];
            let problem = AttentionProblem::new(2, 4, 2, 67, 201, variant.head_dim).with_window(window);
            let mut case = Case::plain(problem, seed as u64);
            case.placement[3] = Placement::Padded { token, head, batch };
            float16::case(on, &case)?;
        }
    }
    Ok(())
}

/// The kernels that GPUs with less shared memory take, on this one: each under each kind of window, then generated cases.
pub fn less_shared_memory(on: &OnGpu) -> Result<()> {
    for kib in CLASSES {
        let on = OnGpu { shared_bytes: Some(kib << 10), ..on.clone() };
        let rows = || config::ATTENTION.iter().filter(|variant| variant.is_for(kib << 10));
        for (seed, variant) in rows().filter(|variant| variant.family == Family::Sm80).enumerate() {
            let case = Case::of_variant(variant, seed);
            let output = AttentionOutput { layout: case.output()?, dtype: case.out_dtype, lse: false };
            ensure!(on.plan_attention(&case.problem, &output)?.kernel() == variant.name, "{kib} KiB: {}", variant.name);
            for window in WINDOWS {
                for (seqlen_q, seqlen_kv) in [(67, 201), (300, 20), (130, 1500)] {
                    let problem = AttentionProblem { seqlen_q, seqlen_kv, window, ..case.problem };
                    properties::all(&on, &Case { problem, ..case.clone() }).context(variant.name)?;
                }
            }
        }
        check_cases(cases(60), &any_case(400), |case| properties::all(&on, case)).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Head dims that are padded: each kernel of the family that they go to, under each kind of window, and long sequences.
pub fn padded_head_dims(on: &OnGpu) -> Result<()> {
    let alike = PADDED_DIMS.map(|dim| [dim, dim]);
    for (seed, [head_dim, value_dim]) in alike.into_iter().chain(VALUE_DIMS).enumerate() {
        for scheme in Scheme::ALL {
            let problem = AttentionProblem::new(2, 4, 2, 67, 201, head_dim).with_head_dim_v(value_dim);
            let problem = problem.with_scheme(scheme);
            let Some(variant) = variant(&problem) else { continue };
            for (i, window) in WINDOWS.into_iter().enumerate() {
                for (seqlen_q, seqlen_kv) in [(67, 201), (300, 20), (130, 1500)] {
                    let case = Case::of_variant(variant, seed + i);
                    let problem = AttentionProblem { seqlen_q, seqlen_kv, window, ..problem };
                    let case = Case { problem, ..case };
                    properties::all(on, &case).with_context(|| format!("{case:?}"))?;
                }
            }
        }
    }
    Ok(())
}

/// More queries than keys under a causal mask: tiles that see none at all, and one that sees some.
pub fn no_keys(on: &OnGpu) -> Result<()> {
    let sliding = Window { left: Some(9), right: Some(0) };
    for (seed, variant) in config::ATTENTION.iter().filter(|variant| variant.family == on.family).enumerate() {
        for (seqlen_q, seqlen_kv, window) in
            [(300, 20, Window::CAUSAL), (1100, 129, Window::CAUSAL), (300, 20, sliding)]
        {
            let case = Case::of_variant(variant, seed);
            let problem = AttentionProblem { seqlen_q, seqlen_kv, window, ..case.problem };
            properties::all(on, &Case { problem, ..case }).with_context(|| format!("{} {window}", variant.name))?;
        }
    }
    for (seed, head_dim) in config::BASELINE.iter().map(|variant| variant.head_dim).enumerate() {
        let problem = AttentionProblem::new(1, 2, 1, 300, 20, head_dim).with_causal(true);
        float16::case(on, &Case::plain(problem, seed as u64))?;
    }
    Ok(())
}

/// Thousands of keys, on a few query positions.
pub fn long_sequences(gpu: &OnGpu) -> Result<()> {
    let (sliding, local) = (Window { left: Some(1023), right: Some(0) }, Window { left: Some(700), right: Some(900) });
    for (head_dim, window) in [
        (64, Window::FULL),
        (64, Window::CAUSAL),
        (64, sliding),
        (128, Window::FULL),
        (128, Window::CAUSAL),
        (128, sliding),
        (128, local),
        (256, Window::FULL),
        (256, sliding),
        (512, Window::FULL),
        (512, sliding),
    ] {
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::new(1, 2, 2, 4000, 9001, head_dim).with_window(window).with_scheme(scheme);
            if variant(&problem).is_none() {
                continue;
            }
            let case = Case::plain(problem, 11);
            let [q, k, v] = case.tensors()?;
            let operands = gpu.quantize(&problem, &q, &k, &v)?;
            let shared = Scored::from(&problem).with_narrow(gpu.shares_k(&problem));
            properties::same_operands(&problem, &operands, &reference::quantize(shared, &q, &k, &v)?, &q)?;
            let (o, lse) = gpu.attention(&(&problem).into(), &operands, &case.output()?, DType::F16, true)?;
            let rows: Vec<usize> = (0..problem.seqlen_q).step_by(97).collect();
            let scored = Scored::from(&problem).with_narrow(gpu.narrow(&problem));
            let (want, bounds) = reference::gpu_bounds_rows(scored, &operands, DType::F16, &rows)?;
            properties::within("o", &values_at(&o, &rows), &want.o, &bounds.o, head_dim)
                .with_context(|| format!("{problem:?}"))?;
            let lse = lse_at(&problem, &lse.context("no log-sum-exp")?, &rows);
            properties::within("lse", &lse, &want.lse, &bounds.lse, 1).with_context(|| format!("{problem:?}"))?;
        }
    }
    Ok(())
}
