//! One CUDA graph for every step of a decode.

use crate::cache::{CONFIG, Two};
use crate::{recording, tensor};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::{CpuStorage, CudaStorage, DType, Device, Error, InplaceOp1, Layout, Result, Tensor, bail};
use candle_int_flash_attention::{FlashAttn, KvCache};

/// Writes these to a tensor in its place, which none of candle's operations does without a kernel.
struct Put<'a, T>(&'a [T]);

impl<T: CudaDType + DeviceRepr + 'static> InplaceOp1 for Put<'_, T> {
    fn name(&self) -> &'static str {
        "put"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("for tensors on a GPU")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let device = storage.device().clone();
        device.memcpy_htod(self.0, storage.as_cuda_slice_mut::<T>()?)
    }
}

/// Slots and lengths are what the tensors hold when the graph runs.
pub fn one_graph_serves_every_step(gpu: &Device) -> Result<()> {
    let _recording = recording();
    let Device::Cuda(device) = gpu else { bail!("a device that is no GPU") };
    let mut cache = KvCache::new(CONFIG, gpu)?;
    let mut sequences = Two::new(gpu);
    let attention = FlashAttn::new(0.1).with_causal(true);
    let [k, v, slots] = sequences.extend([126, 60], 0.3, DType::F16)?;
    cache.append(&k.to_device(gpu)?, &v.to_device(gpu)?, &slots.to_device(gpu)?)?;

    // A step that is not recorded: kernels are loaded, and the memory is there.
    let [k, v, slots] = sequences.extend([1, 1], 0.4, DType::F16)?;
    let q = tensor(&[2, 1, 6, CONFIG.head_dim], 0.5, DType::F16)?;
    let (of_q, of_k, of_v, of_slots) = (q.to_device(gpu)?, k.to_device(gpu)?, v.to_device(gpu)?, slots.to_device(gpu)?);
    let tables = sequences.on_gpu()?;
    let mut step = || cache.append_and_attend([&of_q, &of_k, &of_v], &of_slots, &tables, &attention);
    step()?;
    let stream = device.cuda_stream();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(Error::wrap)?;
    let o = step();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).map_err(Error::wrap)?;
    let (o, graph): (Tensor, _) = (o?, graph.expect("a graph"));

    // Across the end of a page.
    for _ in 0..4 {
        let slots = sequences.tables.extend(&[1, 1]).expect("room");
        of_slots.inplace_op1(&Put(&slots))?;
        tables.context_lens.inplace_op1(&Put(&sequences.tables.seqlens_kv))?;
        graph.launch().map_err(Error::wrap)?;
        sequences.check_decode(&cache, &q, None, &o)?;
    }
    Ok(())
}
