//! Operands in one allocation, and in an engine's own memory.

use crate::{Job, nothing_is_left, problem};
use int_flash_attention::{DeviceOperands, DeviceSliceMut, Error, Gpu, Scheme, ViewMutOperands};
use pretended_driver::{PretendedGpu, begin};

/// Calls that allocate, fill or wait.
const CALLS: [&str; 5] =
    ["cuMemAlloc_v2", "cuMemsetD8Async", "cuMemsetD8_v2", "cuStreamSynchronize", "cuCtxSynchronize"];

#[test]
fn operands_are_one_allocation_that_nothing_fills_or_waits_for() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        for scheme in [Scheme::Default, Scheme::Paper] {
            let calls = || CALLS.map(|name| session.calls(name));
            let before = calls();
            let operands = DeviceOperands::alloc(&gpu, &problem().with_scheme(scheme)).unwrap();
            let made: Vec<usize> = calls().iter().zip(before).map(|(now, then)| now - then).collect();
            assert_eq!(made, [1, 0, 0, 0, 0]);
            // Taken apart, the parts keep what they share.
            let freed = session.calls("cuMemFree_v2");
            let k = operands.k;
            drop((operands.q, operands.v));
            assert_eq!(session.calls("cuMemFree_v2"), freed);
            assert_eq!(k.to_host().unwrap().data.len(), k.data.len());
            drop(k);
            assert_eq!(session.calls("cuMemFree_v2"), freed + 1);
        }
    }
    nothing_is_left(&session);
}

#[test]
fn an_engine_gives_one_allocation_of_its_pool() {
    let session = begin(&[PretendedGpu::H200; 2]);
    {
        let (here, there) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let p = problem();
        let bytes = DeviceOperands::bytes(&p).unwrap();
        let mut job = Job::new(&here).unwrap();
        let stream = here.stream().unwrap();
        let mut pool = here.alloc::<u8>(bytes + 256).unwrap();
        let part = |pool: DeviceSliceMut<'_, u8>| pool.range(256, 256 + bytes).unwrap().ptr();
        let address = part(pool.slice_mut());
        // SAFETY: the pool's part is as long, and lives to the end.
        let mut operands = unsafe { ViewMutOperands::from_raw(&p, address) }.unwrap();
        let [q, k, v] = &job.inputs;
        let workspace = job.workspace.slice_mut();
        job.quantize.launch(&stream, q.into(), k.into(), v.into(), workspace, &mut operands).unwrap();
        job.attention.launch(&stream, &operands.as_view(), (&mut job.o).into(), Some(job.lse.slice_mut())).unwrap();
        assert_eq!(session.launched().len(), 2);

        // A buffer of this crate is still known by its context.
        let mut foreign = there.alloc::<u8>(bytes).unwrap();
        let elsewhere = ViewMutOperands::in_buffer(&p, foreign.slice_mut()).unwrap();
        let launched =
            job.attention.launch(&stream, &elsewhere.as_view(), (&mut job.o).into(), Some(job.lse.slice_mut()));
        assert!(matches!(launched, Err(Error::OtherContext { .. })), "{launched:?}");
    }
    nothing_is_left(&session);
}
