//! What changes scores, on the GPU; the family has sinks, and the kernels for all GPUs the rest.

use crate::device::OnGpu;
use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::{
    Alibi, AttentionOutput, AttentionPlan, AttentionProblem, BiasLayout, DType, DeviceOperands, Family, Gpu, MaskKind,
    MaskLayout, QuantizeLayouts, Scheme, ScoreMod, ScoreViews, SeqLens, StreamRef, TensorLayout, Window, reference,
};
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

/// Milliseconds of a launch: the median of several rounds.
fn milliseconds(gpu: &Gpu, mut launch: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut rounds = Vec::new();
    for round in 0..12 {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(StreamRef::DEFAULT)?;
        for _ in 0..4 {
            launch()?;
        }
        end.record(StreamRef::DEFAULT)?;
        gpu.synchronize()?;
        if round > 1 {
            rounds.push(f64::from(end.elapsed_ms(&start)?) / 4.0);
        }
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[rounds.len() / 2])
}

/// A general kernel for which nothing changes the scores is at least 0.8 times as fast as the plain one of sm_80; prints what each feature
/// costs besides.
pub fn speed(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    let mut slow = Vec::new();
    for (head_dim, scheme) in [32, 64, 96, 128, 256]
        .into_iter()
        .flat_map(|d| [(d, Scheme::Default), (d, Scheme::Paper)])
        .filter(|&(d, scheme)| scheme == Scheme::Default || d == 64 || d == 128)
    {
        let window = Window { left: Some(1023), right: Some(0) };
        let problem = AttentionProblem::new(2, 32, 32, 4096, 4096, head_dim).with_window(window).with_scheme(scheme);
        let output = AttentionOutput { layout: TensorLayout::bhnd(problem.q_shape()), dtype: DType::F16, lse: false };
        let operands = {
            let layout = TensorLayout::bhnd(problem.q_shape());
            let quantize =
                gpu.plan_quantize(&problem, &QuantizeLayouts { q: layout, k: layout, v: layout, dtype: DType::F16 })?;
            let values: Vec<f16> =
                (0..layout.span()).map(|i| f16::from_f32(((i * 7919) % 997) as f32 / 500.0 - 1.0)).collect();
            let x = gpu.upload(&values)?;
            let (mut operands, mut workspace) =
                (DeviceOperands::alloc(gpu, &problem)?, gpu.alloc::<f32>(quantize.workspace_len())?);
            let (q, k, v) = ((&x).into(), (&x).into(), (&x).into());
            quantize.launch(StreamRef::DEFAULT, q, k, v, workspace.slice_mut(), &mut operands.view_mut())?;
            gpu.synchronize()?;
            operands
        };
        let mut o = gpu.alloc::<f16>(output.layout.span())?;
        let mut time = |plan: &AttentionPlan, scores: &ScoreViews<'_>| {
            milliseconds(gpu, || {
                Ok(plan.launch_scored(
                    StreamRef::DEFAULT,
                    &operands.view(),
                    scores,
                    &SeqLens::Equal,
                    (&mut o).into(),
                    None,
                )?)
            })
        };
        let none = ScoreViews::default();
        let plain = time(&gpu.plan_attention_of(Family::Sm80, &problem, &output)?, &none)?;
        let general = time(&gpu.plan_attention_general(&problem, &output)?, &none)?;
        let (slopes, sinks) = (gpu.upload(&[0.01_f32; 32])?, gpu.upload(&[0.5_f32; 32])?);
        let (mask, bias) = (gpu.upload(&vec![0xff_u8; 4096 * 4096])?, gpu.upload(&vec![f16::ONE; 4096 * 4096])?);
        let dims = [1, 1, 4096, 4096];
        let changed = |score_mod| -> Result<AttentionPlan> {
            Ok(gpu.plan_attention_of(Family::Sm80, &problem.with_score_mod(score_mod), &output)?)
        };
        let modified = ScoreMod::NONE;
        let with_sinks =
            time(&changed(ScoreMod { sinks: true, ..modified })?, &ScoreViews { sinks: Some(sinks.slice()), ..none })?;
        let softcap = time(&changed(ScoreMod { softcap: Some(30.0), ..modified })?, &none)?;
        let alibi = time(
            &changed(ScoreMod { alibi: Some(Alibi::PerHead), ..modified })?,
            &ScoreViews { alibi_slopes: Some(slopes.slice()), ..none },
        )?;
        let mut masks = Vec::new();
        for kind in [MaskKind::Bytes, MaskKind::Bits] {
            let layout = MaskLayout::broadcast(kind, dims, &problem)?;
            let views = ScoreViews { mask: Some(mask.slice()), ..none };
            masks.push(time(&changed(ScoreMod { mask: Some(layout), ..modified })?, &views)?);
        }
        let layout = BiasLayout::broadcast(DType::F16, dims, &problem)?;
        let biased = time(
            &changed(ScoreMod { bias: Some(layout), ..modified })?,
            &ScoreViews { bias: Some((&bias).into()), ..none },
        )?;
        println!(
            "d={head_dim} {scheme}, 2 x 32 x 4096, window {window}: plain {plain:.3} ms, with sinks {with_sinks:.3}; general \
             {general:.3} ({:.2} of the speed), softcap {softcap:.3}, ALiBi {alibi:.3}, mask {:.3} (bits {:.3}), float16 bias {biased:.3}",
            plain / general,
            masks[0],
            masks[1],
        );
        if plain / general < 0.8 {
            slow.push(format!("d={head_dim} {scheme}: {:.2}", plain / general));
        }
    }
    ensure!(slow.is_empty(), "general kernels below 0.8 of the plain ones' speed: {}", slow.join(", "));
    Ok(())
}

/// Generated cases through the GPU and through the PTX machine.
pub fn machine(gpu: &OnGpu) -> Result<()> {
    let (machine, agreement) = (Simulator::of(gpu.family, 2), RefCell::new(Agreement::default()));
    let compare = |case: &Case| agreement.borrow_mut().int8(gpu, &machine, case);
    check_cases(cases(100), &any_scored_case(200), compare).map_err(anyhow::Error::msg)?;
    print!("{}", agreement.borrow());
    Ok(())
}
