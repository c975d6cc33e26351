//! What plans load: each module once, what has to be compiled at the same time, and what comes of a compiler that refuses.

use crate::{layouts, nothing_is_left, output, problem, sentence};
use int_flash_attention::driver::{CaptureMode, Driver, StreamHandle};
use int_flash_attention::{
    AppendProblem, AttentionProblem, CacheShape, DType, DecodeProblem, Error, Gpu, JobPath, JobPlan, PrefillProblem,
    QuantizeLayouts, Result, Scheme,
};
use pretended_driver::{PretendedGpu, Session, begin};

fn job(gpu: &Gpu, problem: &AttentionProblem) -> Result<JobPlan> {
    let (q, kv) = layouts(problem);
    let inputs = QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 };
    gpu.plan_job_of(JobPath::Quantized, problem, &inputs, &output(problem.o_shape(), true))
}

/// Modules and libraries that are loaded.
fn loaded(session: &Session) -> [usize; 2] {
    [session.alive().modules, session.alive().libraries]
}

/// In either function the driver may compile.
#[test]
fn what_a_job_needs_is_compiled_at_the_same_time() {
    for function in ["cuLibraryLoadData", "cuKernelGetFunction"] {
        let session = begin(&[PretendedGpu::H200]);
        {
            let gpu = Gpu::new(0).unwrap();
            session.meet(function, 2);
            job(&gpu, &problem()).unwrap();
            assert_eq!(loaded(&session), [0, 2]);
            // The paper's scheme has a kernel more, and a quantization of float16 of its own.
            session.meet(function, 3);
            job(&gpu, &problem().with_scheme(Scheme::Paper)).unwrap();
            assert_eq!(loaded(&session), [0, 5]);
        }
        nothing_is_left(&session);
    }
}

#[test]
fn what_a_cache_needs_is_compiled_at_the_same_time() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        session.meet("cuLibraryLoadData", 2);
        let problem = DecodeProblem::new(2, 4, 2, 300, 64);
        gpu.plan_decode(&problem, &output(problem.q_shape(), false)).unwrap();
        session.meet("cuLibraryLoadData", 2);
        let problem = PrefillProblem::new(2, 4, 2, 40, 300, 64);
        gpu.plan_prefill(&problem, &output(problem.q_shape(), false)).unwrap();
        // Those for few tokens and for many, and the conversion of pages.
        session.meet("cuLibraryLoadData", 3);
        let cache = CacheShape::new(6, 2, 64).unwrap().with_v4_pages(3).unwrap();
        gpu.plan_append(&AppendProblem { cache, heads_q: 4, max_tokens: 130, dtype: DType::F16 }).unwrap();
        assert_eq!(loaded(&session), [0, 7]);
    }
    nothing_is_left(&session);
}

#[test]
fn a_second_plan_compiles_nothing() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let first = job(&gpu, &problem()).unwrap();
        let calls = session.calls_of(|| {
            job(&gpu, &problem()).unwrap();
            // Nor one of another object of the GPU, while the first plan lives.
            job(&Gpu::new(0).unwrap(), &problem()).unwrap();
        });
        let loads = ["cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction", "cuModuleLoadDataEx"];
        assert!(loads.iter().all(|name| !calls.contains_key(name)), "{calls:?}");
        drop(first);
    }
    nothing_is_left(&session);
}

#[test]
fn what_is_loaded_is_not_compiled_again_beside_another() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        gpu.plan_attention(&problem(), &output(problem().o_shape(), true)).unwrap();
        assert_eq!(loaded(&session), [1, 0]);
        let calls = session.calls_of(|| drop(job(&gpu, &problem()).unwrap()));
        // One alone needs no library.
        assert_eq!((loaded(&session), calls.contains_key("cuLibraryLoadData")), ([2, 0], false));
    }
    nothing_is_left(&session);
}

#[test]
fn a_compiler_that_refuses_all_says_so_once() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        session.assembler_says("line 7: no such instruction");
        let error = job(&gpu, &problem()).err().unwrap();
        assert!(matches!(&error, Error::ModuleLoad { module: "quantize_f16", .. }), "{error:?}");
        let chain = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(chain.matches("line 7").count(), 1, "{chain}");
        assert_eq!((loaded(&session), gpu.loaded_modules()), ([0, 0], vec![]));
        // As soon as it does not, the plan is made.
        session.assembler_says("");
        job(&gpu, &problem()).unwrap();
        assert_eq!(loaded(&session), [0, 2]);
    }
    nothing_is_left(&session);
}

#[test]
fn a_module_that_is_refused_takes_no_other_with_it() {
    let session = begin(&[PretendedGpu::H200]);
    session.leave_out("quantize_f16");
    {
        let gpu = Gpu::new(0).unwrap();
        let text = sentence(job(&gpu, &problem()));
        assert!(text.contains("module quantize_f16 has no kernel quantize_f16"), "{text}");
        // The attention's stays, and what was loaded of the other is given back.
        assert_eq!(loaded(&session), [0, 1]);
        let calls = session.calls_of(|| {
            gpu.plan_attention(&problem(), &output(problem().o_shape(), true)).unwrap();
        });
        assert!(!calls.contains_key("cuModuleLoadDataEx") && !calls.contains_key("cuLibraryLoadData"), "{calls:?}");
    }
    nothing_is_left(&session);
}

#[test]
fn a_driver_without_libraries_has_modules() {
    for function in ["cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction"] {
        let session = begin(&[PretendedGpu::H200]);
        session.refuse(function, 801);
        {
            let gpu = Gpu::new(0).unwrap();
            job(&gpu, &problem()).unwrap();
            assert_eq!(loaded(&session), [2, 0], "{function}");
        }
        nothing_is_left(&session);
    }
}

/// The threads that compile leave alone what other threads record: their own thread's, and another library's that forbids every thread to load.
#[test]
fn compiling_leaves_recordings_whole() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        gpu.capture(&stream, || job(&gpu, &problem()).map(drop)).unwrap();
        assert_eq!(loaded(&session), [0, 2]);
    }
    {
        let gpu = Gpu::new(0).unwrap();
        let driver = Driver::load().unwrap();
        let stream: StreamHandle = driver.create_stream().unwrap();
        // SAFETY: the stream is alive, and the graph is never launched.
        unsafe { driver.begin_capture(stream, CaptureMode::Global).unwrap() };
        std::thread::scope(|scope| scope.spawn(|| drop(job(&gpu, &problem()).unwrap())).join().unwrap());
        assert_eq!(loaded(&session), [0, 2]);
        // SAFETY: as above.
        unsafe {
            driver.destroy_graph(driver.end_capture(stream).unwrap()).unwrap();
            driver.destroy_stream(stream).unwrap();
        }
    }
    nothing_is_left(&session);
}
