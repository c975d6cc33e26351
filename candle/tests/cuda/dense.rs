//! Sequences of equal lengths, and what changes scores.

use crate::{check, host, on_gpu, tensor};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{FlashAttn, flash_attn_windowed};
use int_flash_attention::reference::{compare, gpu_bounds, quantize};
use int_flash_attention::{
    Alibi, AttentionProblem, MaskKind, MaskLayout, ScoreMod, ScoreTensors, Scored, TensorLayout, Window,
};

/// Against the reference on the CPU.
fn check_scored(scored: Scored<'_>, [q, k, v]: [&Tensor; 3], o: &Tensor) -> Result<()> {
    let scored = on_gpu(scored);
    let problem = scored.problem;
    let layouts = [problem.q_shape(), problem.kv_shape(), problem.kv_shape()].map(TensorLayout::bnhd);
    let (q, k, v) = (host(q, layouts[0])?, host(k, layouts[1])?, host(v, layouts[2])?);
    let o = host(o, layouts[0])?;
    let operands = quantize(scored, &q, &k, &v).expect("operands");
    let (want, bounds) = gpu_bounds(scored, &operands, o.dtype()).expect("a reference");
    check(&format!("{problem:?}"), &o, &want.o, &bounds);
    Ok(())
}

pub fn gpu_tensors_give_what_cpu_tensors_give(gpu: &Device) -> Result<()> {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        for (head_dim, seqlen_q, seqlen_kv, window) in [
            (64, 100, 100, Window::CAUSAL),
            (128, 1, 500, Window::FULL),
            (32, 200, 300, Window { left: Some(40), right: Some(7) }),
            (80, 50, 1100, Window::CAUSAL),
            (256, 70, 140, Window::CAUSAL),
        ] {
            let problem = AttentionProblem::new(2, 6, 2, seqlen_q, seqlen_kv, head_dim)
                .with_window(window)
                .with_softmax_scale(0.1);
            let q = tensor(&[2, seqlen_q, 6, head_dim], 0.1, dtype)?;
            let (k, v) =
                (tensor(&[2, seqlen_kv, 2, head_dim], 0.2, dtype)?, tensor(&[2, seqlen_kv, 2, head_dim], 0.3, dtype)?);
            let there = |tensor: &Tensor| tensor.to_device(gpu);
            let o = flash_attn_windowed(&there(&q)?, &there(&k)?, &there(&v)?, 0.1, window.left, window.right)?;
            assert_eq!((o.dims(), o.dtype()), (q.dims(), dtype));
            check_scored((&problem).into(), [&q, &k, &v], &o)?;
        }
    }
    Ok(())
}

/// Views with offsets and strides, and memory that candle's allocator gives out again at once.
pub fn views_and_used_memory(gpu: &Device) -> Result<()> {
    let problem = AttentionProblem::new(2, 4, 4, 50, 50, 64).with_causal(true).with_softmax_scale(0.1);
    for seed in 0..20 {
        let qkv = tensor(&[2, 50, 12, 64], seed as f32, DType::F16)?;
        let there = qkv.to_device(gpu)?;
        let part = |tensor: &Tensor, at: usize| tensor.narrow(2, 4 * at, 4);
        let o = flash_attn_windowed(&part(&there, 0)?, &part(&there, 1)?, &part(&there, 2)?, 0.1, None, Some(0))?;
        let [q, k, v] = [part(&qkv, 0)?, part(&qkv, 1)?, part(&qkv, 2)?];
        check_scored((&problem).into(), [&q, &k, &v], &o)?;
    }
    Ok(())
}

/// Every product of what changes scores; slopes and sinks from the middle of longer tensors.
pub fn scores(gpu: &Device) -> Result<()> {
    let (q, k, v) = (
        tensor(&[2, 40, 6, 64], 0.1, DType::F16)?,
        tensor(&[2, 200, 2, 64], 0.2, DType::F16)?,
        tensor(&[2, 200, 2, 64], 0.3, DType::F16)?,
    );
    let many: Vec<f32> = (0..13).map(|at| (at as f32 * 0.37).sin() * 0.2).collect();
    let mask: Vec<u8> = (0..2 * 200).map(|at| u8::from(at % 3 != 1)).collect();
    for features in 0..16 {
        let has = |feature: u32| features >> feature & 1 == 1;
        let problem = AttentionProblem::new(2, 6, 2, 40, 200, 64).with_causal(true).with_softmax_scale(0.1);
        let layout = MaskLayout::broadcast(MaskKind::Bytes, [2, 1, 1, 200], &problem).expect("a mask");
        let problem = problem.with_score_mod(ScoreMod {
            softcap: has(0).then_some(1.5),
            alibi: has(1).then_some(Alibi::PerHead),
            sinks: has(2),
            mask: has(3).then_some(layout),
            ..ScoreMod::NONE
        });
        let tensors = ScoreTensors {
            alibi_slopes: has(1).then_some(&many[3..9]),
            sinks: has(2).then_some(&many[7..13]),
            mask: has(3).then_some(&mask[..]),
            ..ScoreTensors::default()
        };
        let of_gpu = |has: bool, values: Tensor| has.then(|| values.to_device(gpu)).transpose();
        let all = Tensor::new(many.as_slice(), &Device::Cpu)?.to_device(gpu)?;
        let attention = FlashAttn::new(0.1)
            .with_causal(true)
            .with_softcap(problem.score_mod.softcap)
            .with_alibi_slopes(of_gpu(has(1), all.narrow(0, 3, 6)?)?)
            .with_sinks(of_gpu(has(2), all.narrow(0, 7, 6)?)?)
            .with_mask(of_gpu(has(3), Tensor::from_vec(mask.clone(), (2, 1, 1, 200), &Device::Cpu)?)?);
        let o = attention.forward(&q.to_device(gpu)?, &k.to_device(gpu)?, &v.to_device(gpu)?)?;
        check_scored(Scored::new(&problem, tensors), [&q, &k, &v], &o)?;
    }
    Ok(())
}

/// A bias of another type and of every query, a view of a wider one: what the CPU gives, but for roundings.
pub fn a_bias(gpu: &Device) -> Result<()> {
    let x = tensor(&[2, 50, 4, 64], 0.1, DType::F16)?;
    let bias = tensor(&[2, 4, 50, 60], 0.2, DType::F32)?;
    let attend = |device: &Device| {
        let (x, bias) = (x.to_device(device)?, bias.to_device(device)?.narrow(3, 7, 50)?);
        FlashAttn::new(0.1).with_bias(bias).forward(&x, &x, &x)
    };
    let layout = TensorLayout::bnhd(AttentionProblem::new(2, 4, 4, 50, 50, 64).q_shape());
    let [got, want] = [host(&attend(gpu)?, layout)?, host(&attend(&Device::Cpu)?, layout)?];
    let error = compare(&got.dense_f64(), &want.dense_f64()).relative_l2;
    assert!(error < 5e-3, "{error}");
    Ok(())
}

/// A tensor on another device is an error that names it.
pub fn what_is_elsewhere_is_refused(gpu: &Device) -> Result<()> {
    let x = tensor(&[1, 20, 4, 64], 0.1, DType::F16)?.to_device(gpu)?;
    let sinks = Tensor::zeros(4, DType::F32, &Device::Cpu)?;
    let error = FlashAttn::new(0.1).with_sinks(sinks).forward(&x, &x, &x).expect_err("a refusal").to_string();
    assert!(error.contains("sinks is on the CPU, the others on a GPU"), "{error}");
    Ok(())
}
