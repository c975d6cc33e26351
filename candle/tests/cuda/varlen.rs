//! Sequences of unlike lengths, read on the GPU.

use crate::{check, host, on_gpu, tensor};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{FlashAttn, VarLen};
use int_flash_attention::reference::sequences;
use int_flash_attention::{
    Alibi, AttentionProblem, HostSeqLens, ScoreMod, ScoreTensors, Scored, SeqLens, Sequences, TensorLayout, Window,
};

fn check_lengths(scored: Scored<'_>, lengths: &HostSeqLens<'_>, [q, k, v]: [&Tensor; 3], o: &Tensor) -> Result<()> {
    let scored = on_gpu(scored);
    let problem = scored.problem;
    let (of_q, of_kv) = (TensorLayout::bnhd(problem.q_shape()), TensorLayout::bnhd(problem.kv_shape()));
    let (q, k, v, o) = (host(q, of_q)?, host(k, of_kv)?, host(v, of_kv)?, host(o, of_q)?);
    let operands = sequences::quantize(scored, lengths, &q, &k, &v).expect("operands");
    let bounds = sequences::gpu_bounds(scored, lengths, &operands, o.dtype(), false);
    let (want, bounds) = bounds.expect("a reference");
    check(&format!("{problem:?}"), &o, &want.o, &bounds);
    Ok(())
}

/// An attention of four heads with a softcap, slopes and sinks, which are the same numbers.
fn with_scores(gpu: &Device, attention: FlashAttn) -> Result<(FlashAttn, ScoreMod, Vec<f32>)> {
    let per_head = vec![0.5, 0.25, 0.125, 0.0625];
    let there = Tensor::new(per_head.as_slice(), &Device::Cpu)?.to_device(gpu)?;
    let score_mod = ScoreMod { softcap: Some(1.5), alibi: Some(Alibi::PerHead), sinks: true, ..ScoreMod::NONE };
    Ok((attention.with_softcap(1.5).with_alibi_slopes(there.clone()).with_sinks(there), score_mod, per_head))
}

fn scored<'a>(problem: &'a AttentionProblem, per_head: &'a [f32]) -> Scored<'a> {
    let tensors = ScoreTensors { alibi_slopes: Some(per_head), sinks: Some(per_head), ..ScoreTensors::default() };
    Scored::new(problem, tensors)
}

pub fn packed_sequences(gpu: &Device) -> Result<()> {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let all = tensor(&[300, 8, 64], 0.4, dtype)?;
        let there = all.to_device(gpu)?;
        let parts = |all: &Tensor| -> Result<[Tensor; 3]> {
            Ok([all.narrow(1, 0, 4)?, all.narrow(1, 4, 2)?, all.narrow(1, 6, 2)?])
        };
        let ([q, k, v], [of_q, of_k, of_v]) = (parts(&there)?, parts(&all)?);
        let problem = AttentionProblem::new(4, 4, 2, 200, 200, 64)
            .with_sequences(Sequences::Packed { total_q: 300, total_kv: 300 })
            .with_softmax_scale(0.1);
        // The same plan for other lengths.
        for ends in [[0_u32, 200, 207, 207, 300], [0, 1, 100, 299, 300]] {
            let offsets = Tensor::new(&ends, &Device::Cpu)?.to_device(gpu)?;
            let lengths =
                VarLen { seqlens_q: offsets.clone(), seqlens_k: offsets, max_seqlen_q: 200, max_seqlen_k: 200 };
            let window = Window { left: Some(60), right: Some(0) };
            let attention = FlashAttn::new(0.1).with_window(window.left, window.right);
            let o = attention.forward_varlen(&q, &k, &v, &lengths)?;
            assert_eq!((o.dims(), o.dtype()), (q.dims(), dtype));
            let problem = problem.with_window(window);
            let on_host = SeqLens::Packed { cu_seqlens_q: &ends[..], cu_seqlens_kv: &ends[..] };
            check_lengths((&problem).into(), &on_host, [&of_q, &of_k, &of_v], &o)?;

            let (attention, score_mod, per_head) = with_scores(gpu, attention)?;
            let o = attention.forward_varlen(&q, &k, &v, &lengths)?;
            let problem = problem.with_score_mod(score_mod);
            check_lengths(scored(&problem, &per_head), &on_host, [&of_q, &of_k, &of_v], &o)?;
        }
    }
    Ok(())
}

pub fn padded_sequences(gpu: &Device) -> Result<()> {
    let (q, k, v) = (
        tensor(&[3, 30, 4, 128], 0.1, DType::F16)?,
        tensor(&[3, 400, 2, 128], 0.2, DType::F16)?,
        tensor(&[3, 400, 2, 128], 0.3, DType::F16)?,
    );
    let problem = AttentionProblem::new(3, 4, 2, 30, 400, 128)
        .with_sequences(Sequences::KeyLengths)
        .with_causal(true)
        .with_softmax_scale(0.1);
    let attention = FlashAttn::new(0.1).with_causal(true);
    for lengths in [[400_u32, 31, 0], [129, 400, 17]] {
        let there = Tensor::new(&lengths, &Device::Cpu)?.to_device(gpu)?;
        let o = attention.forward_padded(&q.to_device(gpu)?, &k.to_device(gpu)?, &v.to_device(gpu)?, &there)?;
        let on_host = SeqLens::KeyLengths { seqlens_kv: &lengths[..] };
        check_lengths((&problem).into(), &on_host, [&q, &k, &v], &o)?;

        let (attention, score_mod, per_head) = with_scores(gpu, attention.clone())?;
        let o = attention.forward_padded(&q.to_device(gpu)?, &k.to_device(gpu)?, &v.to_device(gpu)?, &there)?;
        let problem = problem.with_score_mod(score_mod);
        check_lengths(scored(&problem, &per_head), &on_host, [&q, &k, &v], &o)?;
    }
    Ok(())
}
