//! `cudarc` beside this crate: its memory and streams are accepted, and it asks for no driver before it is used. Without a GPU the tests
//! count as ignored, and say why.

use cudarc::driver::{CudaContext, CudaStream};
use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionProblem, CudarcSlice, CudarcSliceMut, DType, DeviceSlice, Error, Gpu, Operand,
    StreamRef, TensorLayout,
};
use libtest_mimic::{Arguments, Completion, Trial};
use std::process::ExitCode;
use std::sync::Arc;

type Test = fn(Arc<CudaContext>, Gpu);

fn main() -> ExitCode {
    let trial = |name: &str, test: Test| {
        Trial::ignorable_test(name, move || {
            let gpu = match Gpu::new(0) {
                Ok(gpu) => gpu,
                Err(why) => return Ok(Completion::ignored_with(why)),
            };
            test(CudaContext::new(0).map_err(|error| format!("{error:?}"))?, gpu);
            Ok(Completion::Completed)
        })
    };
    let tests = vec![
        trial("cudarc_and_this_crate_share_a_context", cudarc_and_this_crate_share_a_context),
        trial("memory_of_cudarc_is_taken_on_its_own_stream", memory_of_cudarc_is_taken_on_its_own_stream),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// What one library copies, the other reads, in the context that both share.
fn cudarc_and_this_crate_share_a_context(context: Arc<CudaContext>, gpu: Gpu) {
    let stream = context.new_stream().expect("a stream");
    let values: Vec<f32> = (0..1000).map(|x| x as f32).collect();
    let theirs = stream.clone_htod(&values).expect("a copy");
    stream.synchronize().expect("the copy is done");
    let ours = gpu.upload(&values).expect("a copy");
    assert_eq!(ours.to_vec().expect("a copy back"), values);
    assert_eq!(stream.clone_dtoh(&theirs).expect("a copy back"), values);
}

/// Memory that cudarc frees behind the work of one stream is taken on that one alone.
fn memory_of_cudarc_is_taken_on_its_own_stream(context: Arc<CudaContext>, gpu: Gpu) {
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
