//! Whole jobs from float tensors: both ways against the reference, the kernels for short K and V against the PTX machine, and graphs.

use crate::device::{OnGpu, bits, f16_inputs};
use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, Device, DeviceBuffer, Gpu, JobPath, JobPlan, Options, QuantizeLayouts,
    Scheme, Scored, SeqLens, Sequences, Stream, TensorLayout, reference,
};
use int_flash_attention_kernels::config::short::SHORT;
use int_flash_attention_kernels::layout::KV_BLOCK;
use int_flash_attention_tests::case::{AWKWARD, Case, Placement, VALUE_DIMS, WINDOWS, any_case, takes_narrow};
use int_flash_attention_tests::sequences;
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{cases, check_cases, properties};

const BOTH: [JobPath; 2] = [JobPath::Fused, JobPath::Quantized];

/// A case by every way that there is for it, within the bounds of the reference.
pub fn all(on: &OnGpu, case: &Case) -> Result<()> {
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let layouts = QuantizeLayouts { q: q.layout(), k: k.layout(), v: v.layout(), dtype: case.dtype };
    let output = AttentionOutput { layout: case.output()?, dtype: case.out_dtype, lse: case.lse };
    let has_fused = problem.scheme == Scheme::Default && SHORT.iter().any(|v| v.head_dim == problem.head_dim);
    for path in BOTH.into_iter().filter(|&path| path == JobPath::Quantized || has_fused) {
        let plan = on.gpu.plan_job_of(path, problem, &layouts, &output)?;
        let scored = Scored::from(problem).with_narrow(takes_narrow(plan.kernel()));
        let operands = reference::quantize(scored, &q, &k, &v)?;
        let (want, bounds) = reference::gpu_bounds(scored, &operands, case.out_dtype)?;
        let (o, lse) = on.job(&plan, [&q, &k, &v], &output, problem.q_shape().rows())?;
        let context = || format!("{path:?}, {case:?}");
        properties::within(
            "o",
            &properties::representable(&o, &want.o, &bounds.o),
            &want.o,
            &bounds.o,
            problem.head_dim,
        )
        .with_context(context)?;
        ensure!(lse.is_some() == case.lse, "a log-sum-exp unasked, or none");
        if let Some(lse) = lse {
            let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
            // The kernel's `q_bias` and the reference's are sums in orders of their own.
            let biases = properties::bias_sums(problem, &operands.k.offset, &q);
            let scale = f64::from(problem.scale().abs());
            let bound: Vec<f64> = bounds.lse.iter().zip(biases).map(|(b, (_, bias))| b + 2.0 * scale * bias).collect();
            properties::within("lse", &lse, &want.lse, &bound, 1).with_context(context)?;
        }
    }
    Ok(())
}

pub fn match_the_reference(on: &OnGpu) -> Result<()> {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().chain([(257, 257), (100, 77), (9, 33)]).enumerate() {
        for (i, variant) in SHORT.iter().enumerate() {
            let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, variant.head_dim);
            let problem = problem.with_window(WINDOWS[(seed + i) % WINDOWS.len()]);
            let dtype = [DType::F16, DType::BF16, DType::F32][(seed + i) % 3];
            // As many keys as any GPU of compute capability 8.6 has shared memory for.
            if seqlen_kv <= variant.most_keys(99 << 10) {
                all(on, &Case { dtype, ..Case::plain(problem, seed as u64) })?;
            }
        }
    }
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            let head_dim = SHORT[seed % SHORT.len()].head_dim;
            let problem = AttentionProblem::new(1, 2, 1, 150, 300, head_dim).with_causal(true);
            all(on, &Case { values: [values; 3], dtype, out_dtype: dtype, ..Case::plain(problem, seed as u64) })?;
        }
    }
    let kinds = [(0, [1, 0, 0]), (0, [0, 3, 0]), (0, [0, 0, 5]), (1, [0, 0, 0]), (8, [0, 0, 0]), (2, [3, 1, 7])];
    for (kind, (ahead, [token, head, batch])) in kinds.into_iter().enumerate() {
        for variant in SHORT {
            let problem = AttentionProblem::new(2, 4, 2, 67, 201, variant.head_dim);
            let dtype = [DType::F16, DType::BF16, DType::F32][kind % 3];
            let placement = [Placement::Padded { token, head, batch }; 4];
            let case = Case { dtype, out_dtype: dtype, placement, ..Case::plain(problem, kind as u64) };
            all(&OnGpu { ahead, ..on.clone() }, &case)?;
        }
    }
    // Head dims that are padded, those of which values have others, and wide heads, of which a run of the quantizer has several tiles.
    let alike = [72, 80, 328, 512].map(|head_dim| [head_dim; 2]);
    for (seed, [head_dim, value_dim]) in VALUE_DIMS.into_iter().chain(alike).enumerate() {
        for window in WINDOWS {
            let problem = AttentionProblem::new(2, 4, 2, 67, 201, head_dim).with_head_dim_v(value_dim);
            all(on, &Case::plain(problem.with_window(window), seed as u64))?;
        }
    }
    all(on, &Case::plain(AttentionProblem::new(1, 8, 8, 40, 8300, 512), 7))?;
    check_cases(cases(150), &any_case(300), |case| all(on, case)).map_err(anyhow::Error::msg)
}

/// Many heads with few rows, and few heads with many, which several CTAs share: both ways give the same up to the order of sums.
pub fn fill_the_card(on: &OnGpu) -> Result<()> {
    for (batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim) in [
        (200, 12, 12, 33, 33, 32),
        (32, 12, 12, 128, 128, 32),
        (2, 10, 10, 4096, 77, 64),
        // Fewer keys than two whole blocks: narrow ones are other numbers, and the first is none.
        (16, 16, 4, 255, 255, 64),
        (1, 32, 1, 1000, 255, 128),
    ] {
        let problem = AttentionProblem::new(batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim);
        let stream = on.gpu.stream()?;
        let [fused, quantized] = BOTH.map(|path| -> Result<Vec<f16>> {
            let (mut job, plan) = Job::new(&on.gpu, path, problem, 3)?;
            job.launch(&plan, &stream)?;
            stream.synchronize()?;
            Ok(job.o.to_vec()?)
        });
        near(&problem, fused?, quantized?)?;
    }
    Ok(())
}

/// Packs by both ways, which give the same up to the order of sums.
pub fn packs(on: &OnGpu) -> Result<()> {
    // Shorter than two whole blocks: narrow ones have other codes of K, and 16 bits of a score, and the first is none.
    let unlike = [0, 1, 33, 130, 255, 64, 0, 180, 16, 5];
    let sentences: Vec<u32> = (0..256).map(|i| 8 + i * 29 % 57).collect();
    for (lengths, head_dim) in
        [(&unlike[..], 32), (&unlike, 64), (&[3, 200, 0, 77, 250], 128), (&sentences, 32), (&sentences, 64)]
    {
        let cu = sequences::offsets(lengths);
        let (tokens, longest) = (cu[lengths.len()] as usize, lengths.iter().copied().max().unwrap_or(1) as usize);
        let problem = AttentionProblem::new(lengths.len(), 12, 12, longest, longest, head_dim)
            .with_sequences(Sequences::Packed { total_q: tokens, total_kv: tokens });
        ensure!(longest < 2 * KV_BLOCK, "{problem:?} has narrow blocks");
        let cu = on.gpu.upload(&cu)?;
        let offsets = SeqLens::Packed { cu_seqlens_q: cu.slice(), cu_seqlens_kv: cu.slice() };
        let stream = on.gpu.stream()?;
        let [fused, quantized] = BOTH.map(|path| -> Result<Vec<f16>> {
            let (mut job, plan) = Job::new(&on.gpu, path, problem, 3)?;
            let Job { inputs: [q, k, v], workspace, o } = &mut job;
            let inputs = [(&*q).into(), (&*k).into(), (&*v).into()];
            plan.launch_with(&stream, inputs, &offsets, workspace.slice_mut(), o.into(), None)?;
            stream.synchronize()?;
            Ok(job.o.to_vec()?)
        });
        near(&problem, fused?, quantized?)?;
    }
    Ok(())
}

/// The same codes by two ways: float32 sums in another order, rounded to float16.
fn near(problem: &AttentionProblem, fused: Vec<f16>, quantized: Vec<f16>) -> Result<()> {
    for (i, (fused, quantized)) in fused.into_iter().zip(quantized).enumerate() {
        let (fused, quantized) = (fused.to_f32(), quantized.to_f32());
        let near = (fused - quantized).abs() <= 2f32.powi(-10) * quantized.abs() + 2f32.powi(-14);
        ensure!(near, "{problem:?}, element {i}: {fused} and {quantized}");
    }
    Ok(())
}

/// A graph of a job, its memory given up, replays on new inputs.
pub fn graph(on: &OnGpu) -> Result<()> {
    for path in BOTH {
        let problem = AttentionProblem::new(2, 4, 2, 100, 200, 64).with_causal(true);
        let stream = on.gpu.stream()?;
        let (mut captured, plan) = Job::new(&on.gpu, path, problem, 1)?;
        let graph = on.gpu.capture(&stream, || captured.launch(&plan, &stream))?;
        for seed in [2, 3] {
            for (buffer, values) in captured.inputs.iter_mut().zip(f16_inputs(&problem, seed)?) {
                buffer.copy_from(&values)?;
            }
            graph.launch(&stream)?;
            let (mut direct, plan) = Job::new(&on.gpu, path, problem, seed)?;
            direct.launch(&plan, &stream)?;
            stream.synchronize()?;
            ensure!(bits(&captured.o)? == bits(&direct.o)?, "the replay differs from a launch, {path:?}, seed {seed}");
        }
    }
    Ok(())
}

/// A float16 job on the device.
pub struct Job {
    inputs: [DeviceBuffer<f16>; 3],
    workspace: DeviceBuffer<u8>,
    o: DeviceBuffer<f16>,
}

impl Job {
    pub fn new(gpu: &Gpu, path: JobPath, problem: AttentionProblem, seed: u64) -> Result<(Self, JobPlan)> {
        let (q, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let layouts = QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 };
        let output = AttentionOutput { layout: q, dtype: DType::F16, lse: false };
        let plan = gpu.plan_job_of(path, &problem, &layouts, &output)?;
        let [q_in, k_in, v_in] = f16_inputs(&problem, seed)?;
        let job = Self {
            inputs: [gpu.upload(&q_in)?, gpu.upload(&k_in)?, gpu.upload(&v_in)?],
            workspace: gpu.alloc(plan.workspace_bytes())?,
            o: gpu.upload(&vec![f16::NAN; q.span()])?,
        };
        Ok((job, plan))
    }

    pub fn bits(&self) -> Result<Vec<u16>> {
        bits(&self.o)
    }

    pub fn launch(&mut self, plan: &JobPlan, stream: &Stream) -> int_flash_attention::Result<()> {
        let Self { inputs: [q, k, v], workspace, o } = self;
        plan.launch(stream, [(&*q).into(), (&*k).into(), (&*v).into()], workspace.slice_mut(), o.into(), None)
    }
}

/// `attention` on host tensors, GPU against CPU; it takes no `Gpu`, so the PTX is always the embedded.
pub fn on_host_tensors(gpu: &OnGpu) -> Result<()> {
    let generated = any_case(200);
    check_cases(cases(30), &generated, |case| {
        let [q, k, v] = case.tensors()?;
        let (problem, scores) = (case.problem, case.scores());
        let options = Options {
            scores: scores.of_heads(&problem),
            window: problem.window,
            scheme: problem.scheme,
            softmax_scale: problem.softmax_scale,
            lse: case.lse,
            output_dtype: Some(DType::F32),
            ..Options::default()
        };
        let got = int_flash_attention::attention(Device::Cuda(0), &q, &k, &v, &options)?;
        // The kernel that such a job takes.
        let layouts = QuantizeLayouts { q: q.layout(), k: k.layout(), v: v.layout(), dtype: q.dtype() };
        let output =
            AttentionOutput { layout: TensorLayout::bhnd(problem.o_shape()), dtype: DType::F32, lse: case.lse };
        let narrow = takes_narrow(gpu.gpu.plan_job(&problem, &layouts, &output)?.kernel());
        let scored = scores.scored(&problem).with_narrow(narrow);
        let operands = reference::quantize(scored, &q, &k, &v)?;
        let (want, bounds) = reference::gpu_bounds(scored, &operands, DType::F32)?;
        properties::within("o", &got.o.dense_f64(), &want.o, &bounds.o, problem.head_dim)?;
        ensure!(got.lse.is_some() == case.lse, "the log-sum-exp was asked for and not given, or the reverse");
        if let Some(lse) = got.lse {
            let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
            properties::within("lse", &lse, &want.lse, &bounds.lse, 1)?;
        }
        Ok(())
    })
    .map_err(anyhow::Error::msg)
}
