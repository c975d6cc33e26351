//! Another library's memory and streams, whose functions are the pretended driver's as well.

use crate::{Job, is_other_context, layouts, nothing_is_left, problem};
use cust::memory::DeviceBuffer;
use cust::stream::{Stream, StreamFlags};
use int_flash_attention::{AttentionOutput, DType, DeviceSliceMut, Error, Gpu};
use pretended_driver::{PretendedGpu, begin};

#[test]
fn memory_and_streams_of_cust_are_checked() {
    let session = begin(&[PretendedGpu::H200; 2]);
    {
        let (here, there) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let (q, _) = layouts(&problem());
        let plan =
            here.plan_attention(&problem(), &AttentionOutput { layout: q, dtype: DType::F32, lse: false }).unwrap();
        let job = Job::new(&here).unwrap();
        let on = |gpu: &Gpu| {
            // Makes the GPU's context current, which is where `cust` allocates.
            gpu.memory().unwrap();
            // SAFETY: nothing is read from it.
            let memory = unsafe { DeviceBuffer::<f32>::uninitialized(q.span()) }.unwrap();
            (memory, Stream::new(StreamFlags::NON_BLOCKING, None).unwrap())
        };
        let (mut memory, stream) = on(&here);
        let (mut foreign_memory, foreign_stream) = on(&there);
        let launch = |stream: &Stream, o: &mut DeviceBuffer<f32>| {
            plan.launch(stream, &job.operands.view(), DeviceSliceMut::from(o).into(), None)
        };
        launch(&stream, &mut memory).unwrap();
        is_other_context(launch(&stream, &mut foreign_memory), "o");
        is_other_context(launch(&foreign_stream, &mut memory), "the stream");

        // A graph cannot keep what it does not own.
        let own = here.stream().unwrap();
        let recorded = here
            .capture(&own, || plan.launch(&own, &job.operands.view(), DeviceSliceMut::from(&mut memory).into(), None));
        assert!(matches!(recorded, Err(Error::RecordedForeign { name: "o" })), "{:?}", recorded.err());

        // Nor does another library's recording keep what is launched into it.
        let driver = int_flash_attention::driver::Driver::load().unwrap();
        here.memory().unwrap();
        let handle = int_flash_attention::driver::StreamHandle(stream.as_inner().cast());
        // SAFETY: the stream is alive, and its recording ends below.
        unsafe { driver.begin_capture(handle, int_flash_attention::driver::CaptureMode::Relaxed) }.unwrap();
        let recorded = launch(&stream, &mut memory);
        assert!(matches!(recorded, Err(Error::RecordedForeign { .. })), "{recorded:?}");
        // SAFETY: as above; the graph is this test's.
        unsafe {
            let graph = driver.end_capture(handle).unwrap();
            driver.destroy_graph(graph).unwrap();
        }
        drop((memory, stream));
        there.memory().unwrap();
        drop((foreign_memory, foreign_stream));
    }
    nothing_is_left(&session);
}
