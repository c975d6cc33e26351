//! Plans of whole jobs: which way they take, what they refuse, and what recordings of them keep.

use crate::{layouts, nothing_is_left, problem, sentence};
use half::f16;
use int_flash_attention::driver::{CaptureMode, Driver};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, DeviceBuffer, DeviceSliceMut, Error, Gpu, JobPath, JobPlan,
    QuantizeLayouts, Result, Scheme, Sequences, Shape, Stream, StreamRef, TensorLayout,
};
use int_flash_attention_kernels::config::short::short;
use pretended_driver::{PretendedGpu, begin};

const BOTH: [JobPath; 2] = [JobPath::Fused, JobPath::Quantized];

fn tensors(problem: &AttentionProblem) -> (QuantizeLayouts, AttentionOutput) {
    let (q, kv) = layouts(problem);
    let output = AttentionOutput { layout: q, dtype: DType::F16, lse: true };
    (QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 }, output)
}

fn plan(gpu: &Gpu, path: JobPath, problem: &AttentionProblem) -> Result<JobPlan> {
    let (inputs, output) = tensors(problem);
    gpu.plan_job_of(path, problem, &inputs, &output)
}

/// A job's memory.
struct Buffers {
    inputs: [DeviceBuffer<f16>; 3],
    workspace: DeviceBuffer<u8>,
    o: DeviceBuffer<f16>,
    lse: DeviceBuffer<f32>,
}

impl Buffers {
    fn new(gpu: &Gpu, problem: &AttentionProblem, workspace: usize) -> Result<Self> {
        let (q, kv) = (problem.q_shape().elements(), problem.kv_shape().elements());
        let inputs = [gpu.alloc(q)?, gpu.alloc(kv)?, gpu.alloc(kv)?];
        let (o, lse) = (gpu.alloc(q)?, gpu.alloc(problem.q_shape().rows())?);
        Ok(Self { inputs, workspace: gpu.alloc(workspace)?, o, lse })
    }

    fn launch(&mut self, plan: &JobPlan, stream: &Stream) -> Result<()> {
        let Self { inputs: [q, k, v], workspace, o, lse } = self;
        let inputs = [(&*q).into(), (&*k).into(), (&*v).into()];
        plan.launch(stream, inputs, workspace.slice_mut(), o.into(), Some(lse.slice_mut()))
    }
}

#[test]
fn the_way_is_that_of_the_table() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let path = |problem: AttentionProblem| {
            let (inputs, output) = tensors(&problem);
            gpu.plan_job(&problem, &inputs, &output).unwrap().path()
        };
        for head_dim in [32, 64, 128] {
            let variant = short(head_dim).unwrap();
            // Of as many heads of Q as of K and V, or twice as many.
            let of = |heads_q, queries, keys| AttentionProblem::new(2, heads_q, 2, queries, keys, head_dim);
            assert!((1..=variant.any_queries).all(|n| path(of(4, 1000, n)) == JobPath::Fused));
            assert_eq!(path(of(4, 1000, variant.any_queries + 1)), JobPath::Quantized);
            for n in variant.any_queries + 1..=variant.to_keys {
                assert_eq!(path(of(2, n, n)), JobPath::Fused);
                assert_eq!(path(of(2, n + 1, n)), JobPath::Quantized);
                assert_eq!(path(of(4, n, n)), JobPath::Quantized);
            }
            let more = variant.to_keys + 1;
            assert_eq!(path(of(2, more, more)), JobPath::Quantized);
            // 128 heads are nearly as many as multiprocessors; 384 nearly three times as many.
            let many_of = |batch, heads, n| AttentionProblem::new(batch, heads, heads, n, n, head_dim);
            let many = |batch, heads, n| path(many_of(batch, heads, n));
            let filled = variant.to_keys_filled;
            assert_eq!([filled, filled + 1].map(|n| many(4, 32, n)), [JobPath::Fused, JobPath::Quantized]);
            if filled > variant.to_keys {
                assert_eq!(many(32, 12, filled), JobPath::Quantized);
                // Packs go by what their sequences have on the average.
                let pack = |mean: usize| {
                    let sequences = Sequences::Packed { total_q: 32 * mean, total_kv: 32 * mean };
                    many_of(32, 12, filled).with_sequences(sequences)
                };
                let ways = [variant.to_keys, variant.to_keys + 1].map(|mean| path(pack(mean)));
                assert_eq!(ways, [JobPath::Fused, JobPath::Quantized]);
            }
            assert_eq!(path(of(2, 1, 1).with_scheme(Scheme::Paper)), JobPath::Quantized);
        }
        assert_eq!(path(AttentionProblem::new(1, 1, 1, 10, 10, 96)), JobPath::Quantized);
    }
    nothing_is_left(&session);
}

#[test]
fn plans_refuse_what_there_is_no_way_for() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::B300]);
    {
        let (gpu, ultra) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let p = problem();
        let (inputs, output) = tensors(&p);
        for (head_dim, scheme) in [(96, Scheme::Default), (64, Scheme::Paper)] {
            let p = AttentionProblem { head_dim, ..p }.with_scheme(scheme);
            assert!(matches!(plan(&gpu, JobPath::Fused, &p), Err(Error::NotShort { .. })), "{head_dim} {scheme}");
            assert!(plan(&gpu, JobPath::Quantized, &p).is_ok());
        }
        // More keys than fit, up to as many as there are.
        for seqlen_kv in [5000, (1 << 31) - 256] {
            let long = AttentionProblem { seqlen_kv, ..p };
            let text = sentence(plan(&gpu, JobPath::Fused, &long));
            assert!(text.contains("shared memory") && text.contains("attention_short_d64"), "{text}");
        }
        let other = TensorLayout::bhnd(Shape::new(1, 2, 11, 64).unwrap());
        let crossed = TensorLayout::strided(p.q_shape(), [64, 32, 32]).unwrap();
        for path in BOTH {
            for (inputs, output, wrong) in [
                (QuantizeLayouts { q: other, ..inputs }, output, "q"),
                (QuantizeLayouts { k: other, ..inputs }, output, "k"),
                (QuantizeLayouts { v: other, ..inputs }, output, "v"),
                (inputs, AttentionOutput { layout: other, ..output }, "o"),
            ] {
                let error = gpu.plan_job_of(path, &p, &inputs, &output).err();
                let fits = matches!(&error, Some(Error::ShapeMismatch { name, .. }) if *name == wrong);
                assert!(fits, "{path:?} {wrong}: {error:?}");
            }
            let overlap = gpu.plan_job_of(path, &p, &inputs, &AttentionOutput { layout: crossed, ..output });
            assert!(matches!(overlap, Err(Error::Overlap { .. })), "{path:?}");
        }
        assert!(matches!(ultra.plan_job(&p, &inputs, &output), Err(Error::SlowInt8 { .. })));
        // Sequences and heads have a dimension of the grid each.
        let many = AttentionProblem::new(65535, 65535, 65535, 1, 20, 32);
        assert!(plan(&gpu, JobPath::Fused, &many).is_ok());
    }
    nothing_is_left(&session);
}

/// Fields of a problem are public: the way is chosen when they have been looked at.
#[test]
fn problems_built_by_hand_are_refused_by_any_way() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let (inputs, output) = tensors(&problem());
        for problem in [
            AttentionProblem::new(0, 0, 0, 0, 0, 64),
            AttentionProblem::new(1, 2, 0, 10, 20, 64),
            AttentionProblem::new(1, 2, 1, 0, 20, 64),
            AttentionProblem::new(1, 2, 1, 10, 0, 64),
            AttentionProblem::new(usize::MAX, 2, 2, 10, 20, 64),
            AttentionProblem::new(2, usize::MAX, usize::MAX, usize::MAX, 20, 64),
        ] {
            sentence(gpu.plan_job(&problem, &inputs, &output));
            for path in BOTH {
                sentence(gpu.plan_job_of(path, &problem, &inputs, &output));
            }
        }
    }
    nothing_is_left(&session);
}

#[test]
fn launches_refuse_buffers_that_do_not_fit() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::H200]);
    {
        let (gpu, elsewhere) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let stream = gpu.stream().unwrap();
        let p = problem();
        for path in BOTH {
            let plan = plan(&gpu, path, &p).unwrap();
            let mut job = Buffers::new(&gpu, &p, plan.workspace_bytes()).unwrap();
            job.launch(&plan, &stream).expect("what fits is launched");
            for (i, name) in ["q", "k", "v"].into_iter().enumerate() {
                let short = gpu.alloc(job.inputs[i].len() - 1).unwrap();
                let whole = std::mem::replace(&mut job.inputs[i], short);
                let error = job.launch(&plan, &stream).err();
                assert!(matches!(error, Some(Error::Length { name: n, .. }) if n == name), "{name}: {error:?}");
                job.inputs[i] = elsewhere.alloc(whole.len()).unwrap();
                let error = job.launch(&plan, &stream).err();
                assert!(matches!(error, Some(Error::OtherContext { name: n, .. }) if n == name), "{name}: {error:?}");
                job.inputs[i] = whole;
            }
            let Buffers { inputs: [q, k, v], workspace, o, lse } = &mut job;
            let inputs = || [(&*q).into(), (&*k).into(), (&*v).into()];
            let without = plan.launch(&stream, inputs(), workspace.slice_mut(), o.into(), None);
            assert!(matches!(without, Err(Error::Optional { name: "lse", given: "not given", .. })));
            // SAFETY: never used, because it is refused.
            let odd = unsafe { DeviceSliceMut::<f16>::from_raw(o.ptr() + 1, o.len()) };
            let odd = plan.launch(&stream, inputs(), workspace.slice_mut(), odd.into(), Some(lse.slice_mut()));
            assert!(matches!(odd, Err(Error::Alignment { name: "o", .. })));
        }
        let plan = plan(&gpu, JobPath::Quantized, &p).unwrap();
        let mut job = Buffers::new(&gpu, &p, plan.workspace_bytes() - 1).unwrap();
        let error = job.launch(&plan, &stream).err();
        assert!(matches!(error, Some(Error::Length { name: "the workspace", .. })), "{error:?}");
    }
    nothing_is_left(&session);
}

/// What a plan needs of its kernel is not taken away by a plan that needs less of the same kernel.
#[test]
fn plans_of_one_kernel_do_not_hinder_each_other() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let of = |seqlen_kv| AttentionProblem { seqlen_kv, ..problem() };
        let large = plan(&gpu, JobPath::Fused, &of(500)).unwrap();
        let small = plan(&gpu, JobPath::Fused, &of(300)).unwrap();
        for (plan, p) in [(&small, of(300)), (&large, of(500))] {
            Buffers::new(&gpu, &p, 0).unwrap().launch(plan, &stream).unwrap();
        }
    }
    nothing_is_left(&session);
}

/// A launch asks which context is current, once, and gives the stream its kernels: nothing is looked up, allocated or waited for. Two kernels are one
/// launch, but on a second stream, where they would wait for those on the first.
#[test]
fn a_job_is_one_launch_and_nothing_else() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let (stream, other, p) = (gpu.stream().unwrap(), gpu.stream().unwrap(), problem());
        let [one, two] = [1, 2].map(|kernels| [("cuCtxGetCurrent", 1), ("cuLaunchKernel", kernels)].into());
        let chain = [("cuCtxGetCurrent", 1), ("cuGraphExecKernelNodeSetParams", 2), ("cuGraphLaunch", 1)].into();
        for (path, stream, want) in
            [(JobPath::Fused, [&stream, &other], [&one, &one]), (JobPath::Quantized, [&stream, &other], [&chain, &two])]
        {
            let plan = plan(&gpu, path, &p).unwrap();
            // Memory that is not that of the launch before.
            for stream in stream.into_iter().zip(want).chain([(stream[0], want[0])]) {
                let mut job = Buffers::new(&gpu, &p, plan.workspace_bytes()).unwrap();
                let before = session.launched().len();
                let calls = session.calls_of(|| job.launch(&plan, stream.0).unwrap());
                assert_eq!(&calls, stream.1, "{path:?}");
                let kernels = &session.launched()[before..];
                assert_eq!(kernels.last().map(String::as_str), Some(plan.kernel()));
                assert_eq!(kernels.len(), if path == JobPath::Fused { 1 } else { 2 });
            }
        }
    }
    nothing_is_left(&session);
}

/// A stream that another library records gets the kernels themselves.
#[test]
fn a_recording_of_another_library_has_the_kernels() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let (p, driver) = (problem(), Driver::load().unwrap());
        let plan = plan(&gpu, JobPath::Quantized, &p).unwrap();
        let Buffers { inputs: [q, k, v], mut workspace, mut o, mut lse } =
            Buffers::new(&gpu, &p, plan.workspace_bytes()).unwrap();
        let stream = driver.create_stream().unwrap();
        // SAFETY: the stream is alive, and the graph is never launched.
        unsafe {
            driver.begin_capture(stream, CaptureMode::Relaxed).unwrap();
            let calls = session.calls_of(|| {
                let (inputs, lse) = ([(&q).into(), (&k).into(), (&v).into()], Some(lse.slice_mut()));
                let stream = StreamRef::from_raw(stream.0);
                plan.launch(stream, inputs, workspace.slice_mut(), (&mut o).into(), lse).unwrap();
            });
            assert_eq!((calls.get("cuLaunchKernel"), calls.get("cuGraphLaunch")), (Some(&2), None));
            driver.destroy_graph(driver.end_capture(stream).unwrap()).unwrap();
            driver.destroy_stream(stream).unwrap();
        }
    }
    nothing_is_left(&session);
}

#[test]
fn a_recorded_job_keeps_its_memory() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        for path in BOTH {
            let p = problem();
            let plan = plan(&gpu, path, &p).unwrap();
            let mut job = Buffers::new(&gpu, &p, plan.workspace_bytes()).unwrap();
            let graph = gpu.capture(&stream, || job.launch(&plan, &stream)).unwrap();
            drop((job, plan));
            graph.launch(&stream).unwrap();
            stream.synchronize().unwrap();
        }
    }
    nothing_is_left(&session);
}
