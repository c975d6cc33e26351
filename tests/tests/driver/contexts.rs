//! Buffers, streams, events and graphs are of one context, which lives as long as any of them.

use crate::{Job, is_other_context, nothing_is_left, problem, sentence};
use int_flash_attention::{Error, Gpu, Scheme, StreamRef};
use pretended_driver::{PretendedGpu, begin};

#[test]
fn things_of_another_gpu_are_refused() {
    let session = begin(&[PretendedGpu::H200; 2]);
    {
        let (here, there) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let (mut a, mut b) = (Job::new(&here).unwrap(), Job::new(&there).unwrap());
        let (stream, foreign) = (here.stream().unwrap(), there.stream().unwrap());
        a.launch(&stream).unwrap();
        b.launch(&foreign).unwrap();

        is_other_context(a.launch(&foreign), "the stream");
        for (which, name) in ["q", "k", "v"].into_iter().enumerate() {
            std::mem::swap(&mut a.inputs[which], &mut b.inputs[which]);
            is_other_context(a.quantize(&stream), name);
            std::mem::swap(&mut a.inputs[which], &mut b.inputs[which]);
        }
        let mut paper = Job::of(&here, problem().with_scheme(Scheme::Paper)).unwrap();
        paper.workspace = there.alloc(paper.workspace.len()).unwrap();
        is_other_context(paper.quantize(&stream), "the workspace");
        std::mem::swap(&mut a.operands.k, &mut b.operands.k);
        is_other_context(a.quantize(&stream), "k");
        is_other_context(a.attend(&stream), "k");
        std::mem::swap(&mut a.operands.k, &mut b.operands.k);
        std::mem::swap(&mut a.o, &mut b.o);
        is_other_context(a.attend(&stream), "o");
        std::mem::swap(&mut a.o, &mut b.o);
        std::mem::swap(&mut a.lse, &mut b.lse);
        is_other_context(a.attend(&stream), "lse");

        is_other_context(here.event().unwrap().record(&foreign), "the stream");
        let graph = here.capture(&stream, || Ok(())).unwrap();
        is_other_context(graph.launch(&foreign), "the stream");
        is_other_context(here.capture(&foreign, || Ok(())).map(|_| ()), "the stream");
        is_other_context(a.inputs[0].to_vec_on(&foreign).map(|_| ()), "the stream");

        // To wait for another GPU's event is what events are for.
        let event = there.event().unwrap();
        event.record(&foreign).unwrap();
        stream.wait(&event).unwrap();
    }
    nothing_is_left(&session);
}

#[test]
fn a_mismatch_names_both_sides() {
    let session = begin(&[PretendedGpu::H200; 2]);
    let text = {
        let (here, there) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let mut job = Job::new(&here).unwrap();
        sentence(job.launch(&there.stream().unwrap()))
    };
    assert!(text.contains("the stream is of CUDA device 1") && text.contains("CUDA device 0 was meant"), "{text}");
    nothing_is_left(&session);
}

#[test]
fn two_objects_of_one_gpu_go_together_and_load_kernels_once() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let (one, two) = (Gpu::new(0).unwrap(), Gpu::new(0).unwrap());
        let mut job = Job::new(&one).unwrap();
        let loads = session.calls("cuModuleLoadDataEx");
        job.launch(&two.stream().unwrap()).unwrap();
        drop(one);
        Job::new(&two).unwrap();
        assert_eq!(session.calls("cuModuleLoadDataEx"), loads);
        job.launch(&two.stream().unwrap()).unwrap();
        job.attention
            .launch(StreamRef::PER_THREAD, &job.operands.view(), (&mut job.o).into(), Some(job.lse.slice_mut()))
            .unwrap();
    }
    nothing_is_left(&session);
}

#[test]
fn the_current_context_is_held() {
    let session = begin(&[PretendedGpu::H200]);
    {
        assert!(Gpu::current().is_err(), "no context is current");
        let library = session.other_library(0);
        let gpu = Gpu::current().unwrap();
        drop(library);
        // The other library is gone; its context is not.
        Job::new(&gpu).unwrap().launch(&gpu.stream().unwrap()).unwrap();

        let first = Gpu::new(0).unwrap();
        let second = Gpu::current().unwrap();
        drop((first, gpu));
        Job::new(&second).unwrap().launch(&second.stream().unwrap()).unwrap();
    }
    nothing_is_left(&session);
}

#[test]
fn a_context_that_cannot_be_held_is_refused() {
    let session = begin(&[PretendedGpu::H200]);
    session.create_context(0);
    assert!(matches!(Gpu::current(), Err(Error::NotPrimary)));
    // Also beside a primary context that is held.
    let _primary = Gpu::new(0).unwrap();
    session.create_context(0);
    assert!(matches!(Gpu::current(), Err(Error::NotPrimary)));
    // SAFETY: the pretended context is never destroyed.
    let gpu = unsafe { Gpu::borrow_current() }.unwrap();
    Job::new(&gpu).unwrap().launch(&gpu.stream().unwrap()).unwrap();
    assert_eq!(session.violations(), Vec::<String>::new());
}

#[test]
fn copies_arrive() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let values: Vec<f32> = (0..100).map(|x| x as f32).collect();
        let mut buffer = gpu.upload(&values).unwrap();
        assert_eq!(buffer.to_vec().unwrap(), values);
        assert_eq!(gpu.alloc::<f32>(7).unwrap().to_vec().unwrap(), [0.0; 7]);
        let stream = gpu.stream().unwrap();
        let twice: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
        buffer.copy_from_on(&stream, &twice).unwrap();
        assert_eq!(buffer.to_vec_on(&stream).unwrap(), twice);
        assert!(matches!(buffer.copy_from(&values[1..]), Err(Error::Length { given: 99, expected: 100, .. })));
        assert!(matches!(buffer.copy_to(&mut [0.0]), Err(Error::Length { given: 1, .. })));
        assert!(matches!(buffer.copy_from_on(&stream, &[]), Err(Error::Length { given: 0, .. })));
        buffer.copy_from(&values).unwrap();
        assert_eq!(buffer.to_vec().unwrap(), values);
        assert!(matches!(gpu.alloc::<f32>(usize::MAX / 2), Err(Error::Overflow { .. })));
        assert!(sentence(gpu.alloc::<u8>(1 << 40)).contains("cuMemAlloc failed"));
    }
    nothing_is_left(&session);
}
