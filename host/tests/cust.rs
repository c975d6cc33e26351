//! `cust` beside this crate: it links and starts without a driver, and its memory is accepted. A test counts as ignored where there is no GPU,
//! or, if it is about that, no lack of a driver; it says which.

use cust::error::CudaError;
use cust::memory::{DeviceBuffer, DeviceSlice as CustSlice};
use cust::stream::{Stream, StreamFlags};
use half::f16;
use int_flash_attention::driver::{Driver, DriverError};
use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionProblem, DType, DeviceSlice, DeviceSliceMut, Gpu, Operand, Scheme, StreamRef,
    TensorLayout,
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    let tests = vec![
        Trial::ignorable_test("without_a_driver_cust_is_refused", without_a_driver_cust_is_refused),
        Trial::ignorable_test("memory_of_cust_is_read_and_written", memory_of_cust_is_read_and_written),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn without_a_driver_cust_is_refused() -> Result<Completion, Failed> {
    let Err(DriverError::NotFound { library, .. }) = Driver::load() else {
        return Ok(Completion::ignored_with("there is a driver"));
    };
    let refused = cust::init(cust::CudaFlags::empty());
    assert_eq!(refused, Err(CudaError::NotInitialized));
    // cust asks the driver for its errors' texts, and panics where it gets none.
    assert!(CudaError::NotInitialized.to_string().contains(library), "{}", CudaError::NotInitialized);
    Ok(Completion::Completed)
}

fn memory_of_cust_is_read_and_written() -> Result<Completion, Failed> {
    // Ours first, the primary context, which is cust's.
    let gpu = match Gpu::new(0) {
        Ok(gpu) => gpu,
        Err(why) => return Ok(Completion::ignored_with(why)),
    };
    let _context = cust::quick_init()?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let problem = AttentionProblem::new(1, 1, 1, 4, 4, 32).with_scheme(Scheme::Paper);
    let plan = gpu.plan_dequantize(&problem, Operand::Q, &TensorLayout::bhnd(problem.q_shape()), DType::F32)?;
    let (codes, scales) = (DeviceBuffer::from_slice(&[3_i8; 128])?, DeviceBuffer::from_slice(&[0.5_f32; 4])?);
    let mut out = DeviceBuffer::from_slice(&[0_f32; 128])?;
    plan.launch(&stream, (&codes).into(), (&scales).into(), None, DeviceSliceMut::from(&mut out).into())?;
    stream.synchronize()?;
    assert_eq!(out.as_host_vec()?, [1.5; 128]);
    Ok(Completion::Completed)
}

/// Never run: what is checked is that these conversions are there.
#[allow(dead_code)]
fn conversions(floats: &mut DeviceBuffer<f32>, halves: &mut DeviceBuffer<u16>, stream: &Stream) {
    let _: StreamRef<'_> = stream.into();
    let _: DeviceSlice<'_, f32> = (&*floats).into();
    let part: &CustSlice<f32> = floats;
    let _: DeviceSlice<'_, f32> = part.into();
    let _: DeviceSliceMut<'_, f32> = floats.into();
    let _: AnySlice<'_> = DeviceSlice::from(&*halves).cast::<f16>().into();
    let _: AnySliceMut<'_> = DeviceSliceMut::from(halves).cast::<f16>().into();
}
