//! `cargo xtask bench --scores`: what it costs to change scores, 2 sequences of 4096 tokens and 32 heads, a window of 1024 keys.

use anyhow::Result;
use half::f16;
use int_flash_attention::{
    Alibi, AttentionOutput, AttentionPlan, AttentionProblem, BiasLayout, DType, DeviceOperands, Family, Gpu, MaskKind,
    MaskLayout, QuantizeLayouts, Scheme, ScoreMod, ScoreViews, SeqLens, StreamRef, TensorLayout, Window,
};

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

/// Prints, for each head dim, the time of the plain kernel of sm_80 with nothing but a window and with sinks, of the general one with as
/// little, and of that with each feature.
pub fn run(gpu: &Gpu) -> Result<()> {
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
    }
    Ok(())
}
