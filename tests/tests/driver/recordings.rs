//! Recordings: what a graph keeps alive, what may happen beside them, and how they end.

use crate::{Job, layouts, nothing_is_left, problem};
use int_flash_attention::driver::{CaptureMode, Driver, StreamHandle};
use int_flash_attention::{
    AttentionOutput, DType, DeviceSlice, DeviceSliceMut, Error, Gpu, HostTensor, JobPath, Operand, Options,
    QuantizeLayouts, StreamRef,
};
use pretended_driver::{PretendedGpu, Session, begin};
use std::panic::{AssertUnwindSafe, catch_unwind};

const BOTH: [&str; 2] = ["quantize_f16", "attention"];

/// The launches since `before`, quantization and attention in turn.
fn assert_pairs(session: &Session, before: usize, pairs: usize) {
    let launched = &session.launched()[before..];
    assert_eq!(launched.len(), 2 * pairs, "{launched:?}");
    for pair in launched.chunks(2) {
        assert_eq!(pair[0], BOTH[0]);
        assert!(pair[1].contains(BOTH[1]), "{pair:?}");
    }
}

#[test]
fn a_graph_keeps_what_it_was_recorded_with() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let graph = {
            let mut job = Job::new(&gpu).unwrap();
            gpu.capture(&stream, || job.launch(&stream)).unwrap()
        };
        assert_pairs(&session, 0, 0);
        // The job is gone, with its plans. What others allocate now is not what the graph writes.
        let others: Vec<_> = (0..20).map(|_| gpu.alloc::<f32>(100).unwrap()).collect();
        graph.launch(&stream).unwrap();
        assert_pairs(&session, 0, 1);
        assert_eq!(session.violations(), Vec::<String>::new());
        drop(others);
        // Even with every other object of the GPU gone, kernels included.
        drop((gpu, stream));
        graph.launch(StreamRef::DEFAULT).unwrap();
        assert_pairs(&session, 0, 2);
    }
    nothing_is_left(&session);
}

/// Its own object has other kernels than the plan's, and no buffer of this crate holds those.
#[test]
fn a_graph_keeps_the_kernels_of_another_object() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let (q, _) = layouts(&problem());
        let (codes, scales) = (gpu.alloc::<i8>(q.span()).unwrap(), gpu.alloc::<f32>(q.span()).unwrap());
        let graph = {
            let ptx = concat!(env!("CARGO_MANIFEST_DIR"), "/../host/ptx");
            // SAFETY: the PTX of these kernels.
            let other = unsafe { Gpu::with_ptx(0, ptx) }.unwrap();
            let plan = other.plan_dequantize(&problem(), Operand::Q, &q, DType::F32).unwrap();
            // SAFETY: the buffers live until after the graph's last launch.
            let (data, scale, out) = unsafe {
                (
                    DeviceSlice::from_raw(codes.ptr(), codes.len()),
                    DeviceSlice::from_raw(scales.ptr(), scales.len()),
                    DeviceSliceMut::<f32>::from_raw(scales.ptr(), scales.len()),
                )
            };
            gpu.capture(&stream, || plan.launch(&stream, data, scale, None, out.into())).unwrap()
        };
        graph.launch(&stream).unwrap();
        assert_eq!(session.launched(), ["dequantize_f32"]);
    }
    nothing_is_left(&session);
}

#[test]
fn a_graph_of_graphs_keeps_what_they_keep() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let outer = {
            let mut job = Job::new(&gpu).unwrap();
            let inner = gpu.capture(&stream, || job.launch(&stream)).unwrap();
            gpu.capture(&stream, || inner.launch(&stream)).unwrap()
        };
        outer.launch(&stream).unwrap();
        assert_pairs(&session, 0, 1);
    }
    nothing_is_left(&session);
}

#[test]
fn a_stream_that_joins_a_recording_is_recorded_too() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let (stream, side) = (gpu.stream().unwrap(), gpu.stream().unwrap());
        let (fork, join) = (gpu.event().unwrap(), gpu.event().unwrap());
        let graph = {
            let mut job = Job::new(&gpu).unwrap();
            let record = || {
                fork.record(&stream)?;
                side.wait(&fork)?;
                job.launch(&side)?;
                join.record(&side)?;
                stream.wait(&join)
            };
            gpu.capture(&stream, record).unwrap()
        };
        graph.launch(&stream).unwrap();
        assert_pairs(&session, 0, 1);
    }
    nothing_is_left(&session);
}

#[test]
fn other_threads_work_beside_a_recording() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let mut job = Job::new(&gpu).unwrap();
        let dropped = gpu.alloc::<f32>(1000).unwrap();
        let graph = gpu.capture(&stream, || {
            job.quantize(&stream)?;
            std::thread::scope(|threads| threads.spawn(|| beside(&gpu, dropped)).join().unwrap());
            job.attend(&stream)
        });
        let graph = graph.expect("the recording is whole");
        let before = session.launched().len();
        graph.launch(&stream).unwrap();
        assert_pairs(&session, before, 1);
    }
    nothing_is_left(&session);
}

/// What another thread may do.
fn beside(gpu: &Gpu, dropped: int_flash_attention::DeviceBuffer<f32>) {
    let values = [1.0_f32, 2.0, 3.0];
    let stream = gpu.stream().unwrap();
    assert_eq!(gpu.upload(&values).unwrap().to_vec_on(&stream).unwrap(), values);
    let mut other = Job::new(gpu).unwrap();
    other.launch(&stream).unwrap();
    stream.synchronize().unwrap();
    drop(dropped);
    let x = HostTensor::from_fn(DType::F16, layouts(&problem()).1, |_, _, n, d| (n + d) as f32).unwrap();
    gpu.attention(&x, &x, &x, &Options { lse: true, ..Options::default() }).unwrap();
    // A recording of its own.
    gpu.capture(&stream, || other.launch(&stream)).unwrap().launch(&stream).unwrap();
    for refused in [gpu.synchronize(), other.o.to_vec().map(|_| ()), other.lse.copy_from(&[0.0; 20])] {
        assert!(matches!(refused, Err(Error::Recording { .. })), "{refused:?}");
    }
}

#[test]
fn the_recording_thread_may_allocate_and_drop() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let old = gpu.alloc::<f32>(64).unwrap();
        let before = session.alive().allocations;
        let graph = gpu.capture(&stream, || {
            drop(old);
            assert_eq!(session.alive().allocations, before, "freed only when the recording has ended");
            let temporary = gpu.upload(&[1.0_f32; 100])?;
            drop(temporary);
            for refused in [gpu.synchronize(), stream.synchronize()] {
                assert!(matches!(refused, Err(Error::Recording { .. })), "{refused:?}");
            }
            let nested = gpu.capture(&stream, || Ok(()));
            assert!(matches!(nested, Err(Error::Recording { .. })));
            Job::new(&gpu)?.launch(&stream)
        });
        let graph = graph.expect("the recording is whole");
        // Of the job, all 16 arrays are kept; the others are gone.
        graph.launch(&stream).unwrap();
        drop(graph);
        assert_eq!(session.alive().allocations, 0);
    }
    nothing_is_left(&session);
}

#[test]
fn a_recording_ends_when_it_fails_or_panics() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let mut job = Job::new(&gpu).unwrap();
        let failed = gpu.capture(&stream, || {
            job.launch(&stream)?;
            Err(Error::SoftmaxScale { given: f32::NAN })
        });
        assert!(matches!(failed, Err(Error::SoftmaxScale { .. })));
        assert_eq!((session.alive().recordings, session.alive().graphs), (0, 0));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            gpu.capture(&stream, || {
                job.launch(&stream)?;
                panic!("in the middle of a recording")
            })
        }));
        assert!(panicked.is_err());
        assert_eq!((session.alive().recordings, session.alive().graphs), (0, 0));
        // The stream works, and so does the whole GPU.
        job.launch(&stream).unwrap();
        gpu.synchronize().unwrap();
        for call in ["cuStreamBeginCapture_v2", "cuStreamGetCaptureInfo_v2", "cuGraphInstantiateWithFlags"] {
            session.refuse(call, 999);
            assert!(matches!(gpu.capture(&stream, || Ok(())), Err(Error::Driver(_))), "{call}");
            session.refuse_nothing();
            gpu.synchronize().unwrap();
            assert_eq!((session.alive().recordings, session.alive().graphs), (0, 0), "{call}");
        }
    }
    nothing_is_left(&session);
}

#[test]
fn memory_that_another_librarys_recording_keeps_from_being_freed_is_freed_later() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let buffer = gpu.alloc::<f32>(10).unwrap();
        session.refuse("cuMemFree_v2", 900);
        drop(buffer);
        assert_eq!(session.alive().allocations, 1);
        session.refuse_nothing();
        gpu.alloc::<f32>(10).unwrap();
        assert_eq!(session.alive().allocations, 0);
    }
    nothing_is_left(&session);
}

/// A thread's default stream is every library's.
#[test]
fn what_another_library_records_on_the_threads_stream_is_refused() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let mut job = Job::new(&gpu).unwrap();
        let (q, kv) = layouts(&problem());
        let output = AttentionOutput { layout: q, dtype: DType::F16, lse: true };
        let layouts = QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 };
        let plan = gpu.plan_job_of(JobPath::Quantized, &problem(), &layouts, &output).unwrap();
        let mut workspace = gpu.alloc::<u8>(plan.workspace_bytes()).unwrap();
        let event = gpu.event().unwrap();
        let mut launch = |job: &mut Job| {
            let [q, k, v] = &job.inputs;
            let inputs = [q.into(), k.into(), v.into()];
            let (o, lse) = ((&mut job.o).into(), Some(job.lse.slice_mut()));
            plan.launch(StreamRef::PER_THREAD, inputs, workspace.slice_mut(), o, lse)
        };
        launch(&mut job).unwrap();
        let (driver, stream) = (Driver::load().unwrap(), StreamHandle(std::ptr::without_provenance_mut(2)));
        // SAFETY: the thread's default stream.
        unsafe { driver.begin_capture(stream, CaptureMode::Relaxed) }.unwrap();
        assert!(matches!(launch(&mut job), Err(Error::RecordedForeign { .. })));
        assert!(matches!(event.record(StreamRef::PER_THREAD), Err(Error::RecordedForeign { .. })));
        // SAFETY: as above; nothing else has the graph.
        unsafe { driver.destroy_graph(driver.end_capture(stream).unwrap()) }.unwrap();
        launch(&mut job).unwrap();
    }
    nothing_is_left(&session);
}

#[test]
fn promised_memory_is_recorded_as_promised() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let mut job = Job::new(&gpu).unwrap();
        let (q, _) = layouts(&problem());
        let plan =
            gpu.plan_attention(&problem(), &AttentionOutput { layout: q, dtype: DType::F32, lse: false }).unwrap();
        let o = gpu.alloc::<f32>(q.span()).unwrap();
        job.quantize(&stream).unwrap();
        let graph = gpu.capture(&stream, || {
            // SAFETY: `o` lives until after the graph's last launch.
            let promised = unsafe { DeviceSliceMut::<f32>::from_raw(o.ptr(), o.len()) };
            plan.launch(&stream, &job.operands.view(), promised.into(), None)
        });
        graph.unwrap().launch(&stream).unwrap();
    }
    nothing_is_left(&session);
}
