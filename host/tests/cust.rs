//! `cust` beside this crate: it links and starts without a driver, and its memory is accepted.
#![cfg(feature = "cust")]

use cust::memory::{DeviceBuffer, DeviceSlice as CustSlice};
use half::f16;
use int_flash_attention::{AnySlice, AnySliceMut, DeviceSlice, DeviceSliceMut, Gpu, StreamRef};

#[test]
fn cust_starts_and_says_what_is_missing() {
    match (cust::init(cust::CudaFlags::empty()), Gpu::new(0)) {
        (Ok(()), Ok(gpu)) => println!("{gpu:?}"),
        (cust, gpu) => println!("skipped, no GPU: {cust:?}, {:?}", gpu.err().map(|error| error.to_string())),
    }
}

/// Never run: what is checked is that these conversions are there.
#[allow(dead_code)]
fn conversions(floats: &mut DeviceBuffer<f32>, halves: &mut DeviceBuffer<u16>, stream: &cust::stream::Stream) {
    let _: StreamRef<'_> = stream.into();
    let _: DeviceSlice<'_, f32> = (&*floats).into();
    let part: &CustSlice<f32> = floats;
    let _: DeviceSlice<'_, f32> = part.into();
    let _: DeviceSliceMut<'_, f32> = floats.into();
    let _: AnySlice<'_> = DeviceSlice::from(&*halves).cast::<f16>().into();
    let _: AnySliceMut<'_> = DeviceSliceMut::from(halves).cast::<f16>().into();
}
