//! The kernels on a real GPU, as one self-contained program: copy it to a machine with a driver and run it.
//!
//! `INT_FLASH_CASES` lowers the number of generated cases (under compute-sanitizer), `INT_FLASH_SEED` changes them.
//! Without a GPU every test is reported as ignored, and why.

use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::gpu::{AnySlice, AnySliceMut, BaselineLayouts};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, Device, DeviceBuffer, DeviceOperands, DeviceSliceMut, Gpu, HostQuantized,
    HostTensor, Operand, Options, Order, QuantizeLayouts, Scheme, TensorLayout, reference,
};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_tests::case::{AWKWARD, Case, Placement, any_case};
use int_flash_attention_tests::properties::{self, GUARD, Kernels, POISON, untouched};
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{baseline, cases, check_cases};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;

const MINILM: [(u32, &[u8], f64); 2] = [
    (0, include_bytes!("../data/minilm-layer0-qkv.safetensors"), 1.4e-2),
    (5, include_bytes!("../data/minilm-layer5-qkv.safetensors"), 2.8e-2),
];

type Test = fn(&OnGpu) -> Result<()>;

const TESTS: [(&str, Test); 12] = [
    ("generated_cases_match_the_reference", generated_cases),
    ("awkward_lengths_match_the_reference", awkward_lengths),
    ("hostile_values_match_the_reference", hostile_values),
    ("long_sequences_match_the_reference", long_sequences),
    ("float16_kernels_match_float64", float16),
    ("minilm_error_is_as_published", minilm),
    ("whole_job_equals_the_cpu_within_bounds", whole_job),
    ("a_graph_replays_on_new_inputs", graph),
    ("launches_repeat_bit_for_bit", repeatable),
    ("parts_of_the_quantization_equal_the_whole", quantize_parts),
    ("strides_past_2_to_the_31_elements", far_strides),
    ("operands_past_2_to_the_31_elements", many_elements),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // one at a time: the reference uses all cores, and some tests use much of the GPU's memory
    arguments.test_threads.get_or_insert(1);
    let gpu = Gpu::new(0).map(OnGpu);
    match &gpu {
        Ok(OnGpu(gpu)) => eprintln!("GPU tests on {gpu:?}"),
        Err(why) => eprintln!("GPU tests SKIPPED, all {}: {why}", TESTS.len()),
    }
    let trial = |(name, test): (&str, Test)| match gpu.clone() {
        Ok(gpu) => Trial::test(name, move || test(&gpu).map_err(|error| Failed::from(format!("{error:#}")))),
        Err(_) => Trial::test(name, || Ok(())).with_ignored_flag(true),
    };
    libtest_mimic::run(&arguments, TESTS.into_iter().map(trial).collect()).exit_code()
}

/// The library's plans and launches, with guard bytes around every output.
#[derive(Clone)]
struct OnGpu(Gpu);

impl OnGpu {
    /// A buffer of poison: the output's bytes and a guard at each end.
    fn guarded(&self, bytes: usize) -> Result<DeviceBuffer<u8>> {
        Ok(self.0.upload(&vec![POISON; bytes + 2 * GUARD])?)
    }

    /// Reads an output back; nothing outside its rows may have changed.
    fn read_guarded(buffer: &DeviceBuffer<u8>, layout: TensorLayout, dtype: DType) -> Result<HostTensor> {
        let bytes = buffer.to_vec()?;
        untouched("the output", &bytes, &layout, dtype.size())?;
        Ok(HostTensor::from_bytes(dtype, &bytes[GUARD..bytes.len() - GUARD], layout)?)
    }
}

/// The inside of a guarded buffer.
fn inside(buffer: &mut DeviceBuffer<u8>, dtype: DType) -> Result<AnySliceMut<'_>> {
    let end = buffer.len() - GUARD;
    Ok(AnySliceMut::from_bytes(buffer.slice_mut().range(GUARD, end)?, dtype))
}

fn any<'a>(bytes: &'a DeviceBuffer<u8>, tensor: &HostTensor) -> AnySlice<'a> {
    AnySlice::from_bytes(bytes.slice(), tensor.dtype())
}

impl Kernels for OnGpu {
    fn quantize(
        &self,
        problem: &AttentionProblem,
        q: &HostTensor,
        k: &HostTensor,
        v: &HostTensor,
    ) -> Result<HostQuantized> {
        let gpu = &self.0;
        let layouts = QuantizeLayouts { q: q.layout(), k: k.layout(), v: v.layout(), dtype: q.dtype() };
        let plan = gpu.plan_quantize(problem, &layouts)?;
        let (q_in, k_in, v_in) = (gpu.upload(q.bytes())?, gpu.upload(k.bytes())?, gpu.upload(v.bytes())?);
        let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
        let mut operands = DeviceOperands::alloc(gpu, problem)?;
        let stream = gpu.stream()?;
        let inputs = (any(&q_in, q), any(&k_in, k), any(&v_in, v));
        plan.launch(&stream, inputs.0, inputs.1, inputs.2, workspace.slice_mut(), &mut operands.view_mut())?;
        stream.synchronize()?;
        Ok(operands.to_host()?)
    }

    fn attention(
        &self,
        problem: &AttentionProblem,
        operands: &HostQuantized,
        out: &TensorLayout,
        dtype: DType,
        lse: bool,
    ) -> Result<(HostTensor, Option<Vec<f32>>)> {
        let gpu = &self.0;
        let plan = gpu.plan_attention(problem, &AttentionOutput { layout: *out, dtype, lse })?;
        let operands = operands.to_device(gpu)?;
        let mut o = self.guarded(out.span() * dtype.size())?;
        let rows = problem.q_shape().rows();
        let mut lse_out = if lse { Some(self.guarded(4 * rows)?) } else { None };
        let stream = gpu.stream()?;
        let lse_view = lse_out.as_mut().map(|buffer| {
            // SAFETY: the guarded buffer holds `rows` floats after its first guard, and outlives the launch.
            unsafe { DeviceSliceMut::<f32>::from_raw(buffer.ptr() + GUARD as u64, rows) }
        });
        plan.launch(&stream, &operands.view(), inside(&mut o, dtype)?, lse_view)?;
        stream.synchronize()?;
        let lse = lse_out.map(|buffer| read_lse(&buffer, rows)).transpose()?;
        Ok((Self::read_guarded(&o, *out, dtype)?, lse))
    }

    fn dequantize(
        &self,
        problem: &AttentionProblem,
        operands: &HostQuantized,
        operand: Operand,
        out: &TensorLayout,
        dtype: DType,
    ) -> Result<HostTensor> {
        let gpu = &self.0;
        let plan = gpu.plan_dequantize(problem, operand, out, dtype)?;
        let operands = operands.to_device(gpu)?;
        let (data, scale, mean) = match operand {
            Operand::Q => (&operands.q.data, &operands.q.scale, None),
            Operand::K => (&operands.k.data, &operands.k.scale, Some(operands.k.mean.slice())),
            Operand::V => (&operands.v.data, &operands.v.scale, Some(operands.v.mean.slice())),
        };
        let mut o = self.guarded(out.span() * dtype.size())?;
        let stream = gpu.stream()?;
        plan.launch(&stream, data.slice(), scale.slice(), mean, inside(&mut o, dtype)?)?;
        stream.synchronize()?;
        Self::read_guarded(&o, *out, dtype)
    }
}

fn read_lse(buffer: &DeviceBuffer<u8>, rows: usize) -> Result<Vec<f32>> {
    let bytes = buffer.to_vec()?;
    let guards = bytes[..GUARD].iter().chain(&bytes[GUARD + 4 * rows..]);
    ensure!(guards.into_iter().all(|&byte| byte == POISON), "lse was written outside its elements");
    Ok(bytes[GUARD..GUARD + 4 * rows].chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
}

fn generated_cases(gpu: &OnGpu) -> Result<()> {
    check_cases(cases(200), &any_case(400), |case| properties::all(gpu, case)).map_err(anyhow::Error::msg)
}

fn awkward_lengths(gpu: &OnGpu) -> Result<()> {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for head_dim in HEAD_DIMS {
            for (causal, scheme) in
                [(false, Scheme::Default), (true, Scheme::Default), (false, Scheme::Paper), (true, Scheme::Paper)]
            {
                let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, head_dim)
                    .with_causal(causal)
                    .with_scheme(scheme);
                properties::all(gpu, &Case::plain(problem, seed as u64)).with_context(|| format!("{problem:?}"))?;
            }
        }
    }
    Ok(())
}

fn hostile_values(gpu: &OnGpu) -> Result<()> {
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for (scheme, head_dim) in
            [(Scheme::Default, 64), (Scheme::Paper, 64), (Scheme::Default, 256), (Scheme::Paper, 128)]
        {
            for dtype in [DType::F16, DType::BF16, DType::F32] {
                let problem = AttentionProblem::new(1, 2, 1, 150, 300, head_dim).with_causal(true).with_scheme(scheme);
                let case = Case { values: [values; 3], dtype, out_dtype: dtype, ..Case::plain(problem, seed as u64) };
                properties::all(gpu, &case).with_context(|| format!("{values:?} {dtype} {scheme} {head_dim}"))?;
            }
        }
    }
    Ok(())
}

/// Thousands of keys, on a few query positions.
fn long_sequences(gpu: &OnGpu) -> Result<()> {
    for (head_dim, causal) in [(64, false), (64, true), (128, false), (128, true), (256, false)] {
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::new(1, 2, 2, 4000, 9001, head_dim).with_causal(causal).with_scheme(scheme);
            let case = Case::plain(problem, 11);
            let [q, k, v] = case.tensors()?;
            let operands = gpu.quantize(&problem, &q, &k, &v)?;
            properties::same_operands(&problem, &operands, &reference::quantize(&problem, &q, &k, &v)?, &q)?;
            let (o, _) = gpu.attention(&problem, &operands, &case.output()?, DType::F16, false)?;
            let rows: Vec<usize> = (0..problem.seqlen_q).step_by(97).collect();
            let (want, bounds) = reference::gpu_bounds_rows(&problem, &operands, DType::F16, &rows)?;
            properties::within("o", &values_at(&o, &rows), &want.o, &bounds.o, head_dim)
                .with_context(|| format!("{problem:?}"))?;
        }
    }
    Ok(())
}

/// The values of some query positions of every head.
fn values_at(o: &HostTensor, rows: &[usize]) -> Vec<f64> {
    let shape = o.shape();
    let mut values = Vec::with_capacity(shape.batch * shape.heads * rows.len() * shape.head_dim);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            for &n in rows {
                values.extend((0..shape.head_dim).map(|d| f64::from(o.get(b, h, n, d))));
            }
        }
    }
    values
}

fn float16(on_gpu: &OnGpu) -> Result<()> {
    let gpu = &on_gpu.0;
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for head_dim in HEAD_DIMS {
            let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, head_dim).with_causal(seed % 2 == 1);
            let mut case = Case::plain(problem, seed as u64);
            case.placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
            let [q, k, v] = case.tensors()?;
            let out = case.output()?;
            let layouts = BaselineLayouts { q: q.layout(), k: k.layout(), v: v.layout(), o: out, lse: false };
            let plan = gpu.plan_baseline(&problem, &layouts)?;
            let (q_in, k_in, v_in) = (gpu.upload(q.bytes())?, gpu.upload(k.bytes())?, gpu.upload(v.bytes())?);
            let mut o = on_gpu.guarded(2 * out.span())?;
            let stream = gpu.stream()?;
            plan.launch(&stream, any(&q_in, &q), any(&k_in, &k), any(&v_in, &v), inside(&mut o, DType::F16)?, None)?;
            stream.synchronize()?;
            let o = OnGpu::read_guarded(&o, out, DType::F16)?;
            let rows: Vec<usize> = (0..seqlen_q).step_by(seqlen_q.div_ceil(20)).collect();
            let want = baseline::expected(&problem, &q, &k, &v, &rows);
            properties::within("o", &values_at(&o, &rows), &want.o, &want.bound, head_dim)
                .with_context(|| format!("{problem:?}"))?;
        }
    }
    Ok(())
}

fn minilm_tensors(file: &[u8]) -> Result<[HostTensor; 3]> {
    let file = safetensors::SafeTensors::deserialize(file)?;
    let tensor = |name| -> Result<HostTensor> {
        let view = file.tensor(name)?;
        Ok(HostTensor::from_bytes(DType::F16, view.data(), TensorLayout::from_dims(view.shape(), Order::Bhnd)?)?)
    };
    Ok([tensor("q")?, tensor("k")?, tensor("v")?])
}

fn minilm(_: &OnGpu) -> Result<()> {
    for (layer, file, published) in MINILM {
        let [q, k, v] = minilm_tensors(file)?;
        for scheme in [Scheme::Default, Scheme::Paper] {
            let options = Options { scheme, ..Options::default() };
            let output = int_flash_attention::attention(Device::Cuda(0), &q, &k, &v, &options)?;
            let exact = reference::exact(&options.problem(&q, &k, &v)?, &q, &k, &v)?;
            let error = reference::compare(&output.o.dense_f64(), &exact.o).relative_l2;
            println!("MiniLM layer {layer}, {scheme}: relative L2 {error:.3e}");
            match scheme {
                Scheme::Default => ensure!(error <= 1.0e-2, "layer {layer}: {error:.3e}, at most 1.0e-2"),
                Scheme::Paper => {
                    ensure!(
                        (error / published - 1.0).abs() <= 0.1,
                        "layer {layer}: {error:.3e}, the paper's {published:.1e}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// `attention` on host tensors, GPU against CPU.
fn whole_job(_: &OnGpu) -> Result<()> {
    let generated = any_case(200);
    check_cases(cases(30), &generated, |case| {
        let [q, k, v] = case.tensors()?;
        let problem = case.problem;
        let options = Options {
            causal: problem.causal,
            scheme: problem.scheme,
            softmax_scale: problem.softmax_scale,
            lse: case.lse,
            output_dtype: Some(DType::F32),
            ..Options::default()
        };
        let got = int_flash_attention::attention(Device::Cuda(0), &q, &k, &v, &options)?;
        let operands = reference::quantize(&problem, &q, &k, &v)?;
        let (want, bounds) = reference::gpu_bounds(&problem, &operands, DType::F32)?;
        properties::within("o", &got.o.dense_f64(), &want.o, &bounds.o, problem.head_dim)?;
        ensure!(got.lse.is_some() == case.lse, "the log-sum-exp was asked for and not given, or the reverse");
        Ok(())
    })
    .map_err(anyhow::Error::msg)
}

/// A dense float16 problem on the device: inputs, operands, output.
struct OnDevice {
    inputs: [DeviceBuffer<f16>; 3],
    workspace: DeviceBuffer<f32>,
    operands: DeviceOperands,
    o: DeviceBuffer<f16>,
    plans: (int_flash_attention::QuantizePlan, int_flash_attention::AttentionPlan),
}

impl OnDevice {
    fn new(gpu: &Gpu, problem: AttentionProblem, seed: u64) -> Result<Self> {
        let (q, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let quantize = gpu.plan_quantize(&problem, &QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 })?;
        let attention = gpu.plan_attention(&problem, &AttentionOutput { layout: q, dtype: DType::F16, lse: false })?;
        let [q_in, k_in, v_in] = f16_inputs(&problem, seed)?;
        Ok(Self {
            inputs: [gpu.upload(&q_in)?, gpu.upload(&k_in)?, gpu.upload(&v_in)?],
            workspace: gpu.alloc(quantize.workspace_len())?,
            operands: DeviceOperands::alloc(gpu, &problem)?,
            o: gpu.upload(&vec![f16::NAN; q.span()])?,
            plans: (quantize, attention),
        })
    }

    fn launch(&mut self, stream: &int_flash_attention::Stream) -> int_flash_attention::Result<()> {
        let [q, k, v] = &self.inputs;
        let operands = &mut self.operands.view_mut();
        self.plans.0.launch(stream, q.into(), k.into(), v.into(), self.workspace.slice_mut(), operands)?;
        self.plans.1.launch(stream, &self.operands.view(), (&mut self.o).into(), None)
    }
}

fn f16_inputs(problem: &AttentionProblem, seed: u64) -> Result<[Vec<f16>; 3]> {
    let vector = |tensor: HostTensor| bytemuck::cast_slice::<u8, f16>(tensor.bytes()).to_vec();
    Ok(Case::plain(*problem, seed).tensors()?.map(vector))
}

fn graph(gpu: &OnGpu) -> Result<()> {
    let gpu = &gpu.0;
    for head_dim in [64, 128] {
        let problem = AttentionProblem::new(2, 4, 2, 300, 500, head_dim).with_causal(true);
        let mut captured = OnDevice::new(gpu, problem, 1)?;
        let stream = gpu.stream()?;
        let graph = gpu.capture(&stream, || captured.launch(&stream))?;
        for seed in [2, 3] {
            for (buffer, values) in captured.inputs.iter_mut().zip(f16_inputs(&problem, seed)?) {
                buffer.copy_from(&values)?;
            }
            graph.launch(&stream)?;
            stream.synchronize()?;
            let mut direct = OnDevice::new(gpu, problem, seed)?;
            direct.launch(&stream)?;
            stream.synchronize()?;
            ensure!(
                bits(&captured.o)? == bits(&direct.o)?,
                "the replay differs from a launch, seed {seed}, head_dim {head_dim}"
            );
        }
    }
    Ok(())
}

fn bits(buffer: &DeviceBuffer<f16>) -> Result<Vec<u16>> {
    Ok(buffer.to_vec()?.into_iter().map(f16::to_bits).collect())
}

fn repeatable(gpu: &OnGpu) -> Result<()> {
    let problem = AttentionProblem::new(2, 8, 8, 1000, 1000, 128);
    let mut device = OnDevice::new(&gpu.0, problem, 5)?;
    let stream = gpu.0.stream()?;
    let mut first = None;
    for _ in 0..5 {
        device.launch(&stream)?;
        stream.synchronize()?;
        let o = bits(&device.o)?;
        ensure!(first.get_or_insert_with(|| o.clone()) == &o, "two launches on the same inputs differ");
    }
    Ok(())
}

/// K and V first, Q later (a cache), gives what all three at once give.
fn quantize_parts(gpu: &OnGpu) -> Result<()> {
    let gpu = &gpu.0;
    for scheme in [Scheme::Default, Scheme::Paper] {
        let problem = AttentionProblem::new(2, 6, 3, 77, 333, 96).with_scheme(scheme);
        let mut whole = OnDevice::new(gpu, problem, 8)?;
        let stream = gpu.stream()?;
        whole.launch(&stream)?;
        stream.synchronize()?;
        let (q_layout, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let kv_plan = gpu.plan_quantize_kv(&problem, kv, kv, DType::F16)?;
        let q_plan = gpu.plan_quantize_q(&problem, q_layout, DType::F16)?;
        let mut parts = DeviceOperands::alloc(gpu, &problem)?;
        let mut workspace = gpu.alloc::<f32>(kv_plan.workspace_len())?;
        let [q, k, v] = &whole.inputs;
        let (k_out, v_out) = (&mut parts.k.view_mut(), &mut parts.v.view_mut());
        kv_plan.launch(&stream, k.into(), v.into(), workspace.slice_mut(), k_out, v_out)?;
        q_plan.launch(&stream, q.into(), parts.k.mean.slice(), &mut parts.q.view_mut())?;
        stream.synchronize()?;
        ensure!(parts.to_host()? == whole.operands.to_host()?, "the parts differ from the whole, {scheme}");
    }
    Ok(())
}

/// Few elements, far apart: offsets of inputs and output beyond 2^31 elements.
fn far_strides(gpu: &OnGpu) -> Result<()> {
    let gpu = &gpu.0;
    let far: i64 = (1 << 31) + 4096;
    let problem = AttentionProblem::new(2, 1, 1, 130, 140, 64);
    let layout = |shape| TensorLayout::strided(shape, [far, 64 * 200, 64]);
    let (q_far, kv_far) = (layout(problem.q_shape())?, layout(problem.kv_shape())?);
    let bytes = 2 * (q_far.span() + kv_far.span());
    if !fits(gpu, 2 * bytes)? {
        return Ok(());
    }
    let near = Case::plain(problem, 21);
    let [q, k, v] = near.tensors()?;
    // the same values, each batch copied to its far place
    let spread = |tensor: &HostTensor, far: TensorLayout| -> Result<DeviceBuffer<u8>> {
        let buffer = gpu.alloc::<u8>(2 * far.span())?;
        let batch = 2 * tensor.shape().elements() / 2;
        for (b, bytes) in tensor.bytes().chunks(batch).enumerate() {
            copy_into(&buffer, 2 * far.offset(b, 0, 0), bytes)?;
        }
        Ok(buffer)
    };
    let (q_in, k_in, v_in) = (spread(&q, q_far)?, spread(&k, kv_far)?, spread(&v, kv_far)?);
    let plan = gpu.plan_quantize(&problem, &QuantizeLayouts { q: q_far, k: kv_far, v: kv_far, dtype: DType::F16 })?;
    let mut operands = DeviceOperands::alloc(gpu, &problem)?;
    let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
    let stream = gpu.stream()?;
    plan.launch(
        &stream,
        any(&q_in, &q),
        any(&k_in, &k),
        any(&v_in, &v),
        workspace.slice_mut(),
        &mut operands.view_mut(),
    )?;
    stream.synchronize()?;
    let got = operands.to_host()?;
    properties::same_operands(&problem, &got, &reference::quantize(&problem, &q, &k, &v)?, &q)?;
    drop((k_in, v_in));
    let attention = gpu.plan_attention(&problem, &AttentionOutput { layout: q_far, dtype: DType::F16, lse: false })?;
    let mut o = q_in;
    attention.launch(&stream, &operands.view(), AnySliceMut::from_bytes(o.slice_mut(), DType::F16), None)?;
    stream.synchronize()?;
    let (want, bounds) = reference::gpu_bounds(&problem, &got, DType::F16)?;
    let values = 64 * 130;
    for b in 0..2 {
        let bytes = copy_out(&o, 2 * q_far.offset(b, 0, 0), 2 * values)?;
        let dense: Vec<f64> =
            bytes.chunks_exact(2).map(|pair| f64::from(bytemuck::pod_read_unaligned::<f16>(pair))).collect();
        let part = b * values..(b + 1) * values;
        properties::within("o", &dense, &want.o[part.clone()], &bounds.o[part], 64)
            .with_context(|| format!("batch {b}"))?;
    }
    Ok(())
}

/// Packed operands and an output of more than 2^31 elements each; every batch holds the same inputs (a batch stride of 0),
/// so the last must come out as the first, which is compared with the reference.
fn many_elements(gpu: &OnGpu) -> Result<()> {
    let gpu = &gpu.0;
    let (heads, seqlen, head_dim) = (16, 8192, 128);
    let batch = (1_usize << 31) / (heads * seqlen * head_dim) + 1;
    for (seqlen_q, seqlen_kv) in [(seqlen, 130), (130, seqlen)] {
        let problem = AttentionProblem::new(batch, heads, heads, seqlen_q, seqlen_kv, head_dim);
        let one = AttentionProblem { batch: 1, ..problem };
        let needed = 3 * batch * heads * (seqlen_q + 2 * seqlen_kv.next_multiple_of(128)) * head_dim;
        if !fits(gpu, needed)? {
            continue;
        }
        let repeated = |shape: int_flash_attention::Shape| {
            let [_, h, n] = TensorLayout::bhnd(shape).strides();
            TensorLayout::strided(shape, [0, h, n])
        };
        let (q_layout, kv) = (repeated(problem.q_shape())?, repeated(problem.kv_shape())?);
        let plan = gpu.plan_quantize(&problem, &QuantizeLayouts { q: q_layout, k: kv, v: kv, dtype: DType::F16 })?;
        let [q, k, v] = Case::plain(one, 31).tensors()?;
        let (q_in, k_in, v_in) = (gpu.upload(q.bytes())?, gpu.upload(k.bytes())?, gpu.upload(v.bytes())?);
        let mut operands = DeviceOperands::alloc(gpu, &problem)?;
        let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
        let stream = gpu.stream()?;
        plan.launch(
            &stream,
            any(&q_in, &q),
            any(&k_in, &k),
            any(&v_in, &v),
            workspace.slice_mut(),
            &mut operands.view_mut(),
        )?;
        let layout = TensorLayout::bhnd(problem.q_shape());
        let attention = gpu.plan_attention(&problem, &AttentionOutput { layout, dtype: DType::F16, lse: false })?;
        let mut o = gpu.alloc::<u8>(2 * layout.span())?;
        attention.launch(&stream, &operands.view(), AnySliceMut::from_bytes(o.slice_mut(), DType::F16), None)?;
        stream.synchronize()?;
        let bytes = 2 * one.q_shape().elements();
        let first = copy_out(&o, 0, bytes)?;
        let last = copy_out(&o, (batch - 1) * bytes, bytes)?;
        ensure!(first == last, "the last batch differs from the first, seqlen {seqlen_q}/{seqlen_kv}");
        let o = HostTensor::from_bytes(DType::F16, &first, TensorLayout::bhnd(one.q_shape()))?;
        let rows: Vec<usize> = (0..seqlen_q).step_by(seqlen_q.div_ceil(32)).collect();
        let want = reference::quantize(&one, &q, &k, &v)?;
        let (want, bounds) = reference::gpu_bounds_rows(&one, &want, DType::F16, &rows)?;
        properties::within("o", &values_at(&o, &rows), &want.o, &bounds.o, head_dim)?;
    }
    Ok(())
}

/// Whether the GPU has this much memory free; says so aloud where it has not.
fn fits(gpu: &Gpu, bytes: usize) -> Result<bool> {
    let (free, _) = gpu.memory()?;
    if free < bytes + (1 << 29) {
        println!("SKIPPED: needs {} MiB of GPU memory, {} MiB are free", bytes >> 20, free >> 20);
        return Ok(false);
    }
    Ok(true)
}

/// Copies bytes to a place inside a buffer.
fn copy_into(buffer: &DeviceBuffer<u8>, at: usize, bytes: &[u8]) -> Result<()> {
    let driver = int_flash_attention::driver::Driver::load()?;
    ensure!(at + bytes.len() <= buffer.len(), "the copy leaves the buffer");
    // SAFETY: the bytes lie inside the buffer, and nothing uses them.
    unsafe { driver.copy_to_device(buffer.ptr() + at as u64, bytes)? };
    driver.synchronize()?;
    Ok(())
}

/// Copies bytes from a place inside a buffer.
fn copy_out(buffer: &DeviceBuffer<u8>, at: usize, bytes: usize) -> Result<Vec<u8>> {
    let driver = int_flash_attention::driver::Driver::load()?;
    ensure!(at + bytes <= buffer.len(), "the copy leaves the buffer");
    let mut out = vec![0; bytes];
    // SAFETY: the bytes lie inside the buffer, and the stream that wrote them was waited for.
    unsafe { driver.copy_to_host(&mut out, buffer.ptr() + at as u64)? };
    Ok(out)
}
