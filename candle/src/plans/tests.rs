//! On a pretended driver: what a call of the CUDA backend asks of it.

use super::*;
use crate::FlashAttn;
use candle_core::{Layout, Shape};
use int_flash_attention::{DType, DeviceBuffer, Error, StreamRef};
use pretended_driver::{PretendedGpu, Session, begin};

/// Calls that allocate, fill, load or wait.
const CALLS: [&str; 9] = [
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemsetD8Async",
    "cuMemsetD8_v2",
    "cuModuleLoadDataEx",
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "cuCtxSynchronize",
    "cuStreamCreate",
];

fn counted(session: &Session) -> [usize; 9] {
    CALLS.map(|name| session.calls(name))
}

fn call(seqlen_q: usize, seqlen_kv: usize) -> Call {
    let op = FlashAttn { softmax_scale: 0.125, window_size_left: None, window_size_right: Some(0) };
    let layout = |tokens, heads| Layout::contiguous(Shape::from((2, tokens, heads, 64)));
    let kv = layout(seqlen_kv, 2);
    Call::new(&op, DType::F16, [&layout(seqlen_q, 6), &kv, &kv]).unwrap()
}

/// Memory as candle would give it.
struct Tensors {
    inputs: [DeviceBuffer<u8>; 3],
    memory: DeviceBuffer<u8>,
    o: DeviceBuffer<u8>,
}

impl Tensors {
    fn new(gpu: &Gpu, call: &Call, bytes: usize) -> Self {
        let tensor = |layout: TensorLayout| gpu.alloc(layout.span() * call.dtype.size()).unwrap();
        let o = tensor(TensorLayout::bnhd(call.problem.q_shape()));
        Self { inputs: call.layouts.map(tensor), memory: gpu.alloc(bytes).unwrap(), o }
    }

    fn launch(&mut self, plans: &Plans) -> Result<()> {
        let inputs = [0, 1, 2].map(|at| AnySlice::from_bytes(self.inputs[at].slice(), DType::F16));
        let o = AnySliceMut::from_bytes(self.o.slice_mut(), DType::F16);
        plans.launch(StreamRef::PER_THREAD, inputs, self.memory.slice_mut(), o)
    }
}

#[test]
fn a_call_is_launches_and_nothing_else() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let engine = Engine::new(gpu.clone());
        let call = call(100, 300);
        let plans = engine.plans(&call).unwrap();
        let mut tensors = Tensors::new(&gpu, &call, plans.bytes());
        let before = counted(&session);
        for _ in 0..3 {
            let again = engine.plans(&call).unwrap();
            assert!(Arc::ptr_eq(&plans, &again));
            tensors.launch(&again).unwrap();
        }
        assert_eq!(counted(&session), before);
        assert_eq!(session.launched().len(), 6);

        // Another length is another plan, of the kernels that are there.
        let longer = engine.plans(&self::call(100, 301)).unwrap();
        assert!(!Arc::ptr_eq(&plans, &longer));
        assert_eq!(counted(&session), before);
    }
    assert_eq!(session.violations(), Vec::<String>::new());
    assert_eq!(session.alive(), pretended_driver::Alive::default());
}

#[test]
fn plans_are_forgotten_before_they_are_too_many() {
    let session = begin(&[PretendedGpu::A10]);
    {
        let engine = Engine::new(Gpu::new(0).unwrap());
        let first = engine.plans(&call(1, 1)).unwrap();
        for length in 2..=MOST_PLANS + 1 {
            engine.plans(&call(1, length)).unwrap();
        }
        assert_eq!(engine.plans.lock().unwrap().len(), 1);
        // What has been given out still works.
        let mut tensors = Tensors::new(&engine.gpu, &call(1, 1), first.bytes());
        tensors.launch(&first).unwrap();
    }
    assert_eq!(session.violations(), Vec::<String>::new());
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let call = call(10, 20);
        let plans = Engine::new(gpu.clone()).plans(&call).unwrap();
        let mut tensors = Tensors::new(&gpu, &call, plans.bytes() - 1);
        assert!(matches!(tensors.launch(&plans), Err(Error::Length { .. })));
        assert_eq!(session.launched(), Vec::<String>::new());
    }
}
