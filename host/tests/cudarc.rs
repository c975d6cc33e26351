//! `cudarc` beside this crate: its memory and streams are accepted, and it asks for no driver before it is used.
#![cfg(feature = "cudarc")]

use cudarc::driver::{CudaContext, CudaStream};
use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionProblem, CudarcSlice, CudarcSliceMut, DType, DeviceSlice, Error, Gpu, Operand,
    StreamRef, TensorLayout,
};

/// On a GPU: what one library copies, the other reads, in the context that both share.
#[test]
fn cudarc_and_this_crate_share_a_context() {
    // SAFETY: only looks for the library.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        println!("skipped, no driver: {:?}", Gpu::new(0).err().map(|error| error.to_string()));
        return;
    }
    let (context, gpu) = match (CudaContext::new(0), Gpu::new(0)) {
        (Ok(context), Ok(gpu)) => (context, gpu),
        (context, gpu) => return println!("skipped, no GPU: {:?}, {:?}", context.err(), gpu.err()),
    };
    let stream = context.new_stream().expect("a stream");
    let values: Vec<f32> = (0..1000).map(|x| x as f32).collect();
    let theirs = stream.clone_htod(&values).expect("a copy");
    stream.synchronize().expect("the copy is done");
    let ours = gpu.upload(&values).expect("a copy");
    assert_eq!(ours.to_vec().expect("a copy back"), values);
    assert_eq!(stream.clone_dtoh(&theirs).expect("a copy back"), values);
}

/// On a GPU: memory that cudarc frees behind the work of one stream is taken on that one alone.
#[test]
fn memory_of_cudarc_is_taken_on_its_own_stream() {
    // SAFETY: only looks for the library.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return println!("skipped, no driver");
    }
    let (Ok(context), Ok(gpu)) = (CudaContext::new(0), Gpu::new(0)) else { return println!("skipped, no GPU") };
    let (stream, other) = (context.new_stream().expect("a stream"), context.new_stream().expect("a stream"));
    let problem = AttentionProblem::new(1, 1, 1, 4, 4, 32);
    let layout = TensorLayout::bhnd(problem.q_shape());
    let plan = gpu.plan_dequantize(&problem, Operand::Q, &layout, DType::F32).expect("a plan");
    let (codes, mut out) = (gpu.upload(&[1_i8; 128]).expect("memory"), gpu.alloc::<f32>(128).expect("memory"));
    let scales = stream.clone_htod(&[0.5_f32; 4]).expect("memory");
    let mut launch =
        |at: &CudaStream, scales: DeviceSlice<'_, f32>| plan.launch(at, codes.slice(), scales, None, (&mut out).into());
    {
        let scales = CudarcSlice::new(&scales, &stream);
        assert_eq!(launch(&other, scales.view()), Err(Error::OtherStream { name: "the scales" }));
        assert_eq!(launch(&stream, scales.view()), Ok(()));
    }
    let moved = CudarcSlice::new(&scales, &other);
    assert_eq!(launch(&other, moved.view()), Ok(()));
}

/// Never run: what is checked is that these conversions are there.
#[allow(dead_code)]
fn conversions(stream: &CudaStream, floats: &mut cudarc::driver::CudaSlice<f32>) {
    let _: StreamRef<'_> = stream.into();
    let _: AnySlice<'_> = CudarcSlice::new(floats, stream).view().into();
    let _: AnySlice<'_> = CudarcSlice::new(&floats.slice(1..5), stream).view().into();
    let _: AnySliceMut<'_> = CudarcSliceMut::new(floats, stream).view_mut().into();
}
