//! Tensors on a GPU: candle's memory and stream, by address.

use crate::call::{Call, NAME, refused};
use crate::plans::Engine;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::{CudaStorage, Layout, Result, bail};
use half::{bf16, f16};
use int_flash_attention::{DType, DeviceSlice, DeviceSliceMut, Element, StreamRef};

/// The output, `(batch, seqlen_q, heads_q, head_dim)`, when the device's stream has come there.
pub fn forward(call: &Call, tensors: [(&CudaStorage, &Layout); 3]) -> Result<CudaStorage> {
    match call.dtype {
        DType::F16 => forward_of::<f16>(call, tensors),
        DType::BF16 => forward_of::<bf16>(call, tensors),
        DType::F32 => forward_of::<f32>(call, tensors),
    }
}

fn forward_of<T: CudaDType + DeviceRepr + Element>(
    call: &Call,
    [(q, q_layout), (k, k_layout), (v, v_layout)]: [(&CudaStorage, &Layout); 3],
) -> Result<CudaStorage> {
    let device = q.device();
    let stream = device.cuda_stream();
    let context = stream.context();
    for (name, other) in [("k", k), ("v", v)] {
        if other.device().cuda_stream().context().cu_ctx() != context.cu_ctx() {
            bail!("{NAME}: {name} is on another GPU than q")
        }
    }
    let plans = Engine::of_process(context.ordinal()).and_then(|engine| engine.plans(call)).map_err(refused)?;

    let q = q.as_cuda_slice::<T>()?.slice(q_layout.start_offset()..);
    let k = k.as_cuda_slice::<T>()?.slice(k_layout.start_offset()..);
    let v = v.as_cuda_slice::<T>()?.slice(v_layout.start_offset()..);
    // SAFETY: the kernels write both before anything reads them. The first goes back to candle's pool in the order of the stream.
    let (mut memory, mut o) =
        unsafe { (device.alloc::<u8>(plans.bytes())?, device.alloc::<T>(q_layout.shape().elem_count())?) };
    let (memory_len, o_len) = (memory.len(), o.len());
    {
        // Each order this stream after what other streams do with the memory, and at the end of the block those after this.
        let ((q_at, _q), (k_at, _k), (v_at, _v)) =
            (q.device_ptr(&stream), k.device_ptr(&stream), v.device_ptr(&stream));
        let ((memory_at, _memory), (o_at, _o)) = (memory.device_ptr_mut(&stream), o.device_ptr_mut(&stream));
        // SAFETY: memory of candle's with its own lengths, borrowed to the end of the block, and freed by candle in the order of the
        // streams; the stream is borrowed as well. All are of the primary context of the GPU with this number, which is the only one
        // that `CudaDevice` is made with, and `Gpu::new` takes the same.
        let (stream, tensors, memory, o) = unsafe {
            (
                StreamRef::from_raw(stream.cu_stream().cast()),
                [(q_at, q.len()), (k_at, k.len()), (v_at, v.len())]
                    .map(|(address, len)| DeviceSlice::<T>::from_raw(address, len).into()),
                DeviceSliceMut::<u8>::from_raw(memory_at, memory_len),
                DeviceSliceMut::<T>::from_raw(o_at, o_len),
            )
        };
        plans.launch(stream, tensors, memory, o.into()).map_err(refused)?;
    }
    Ok(CudaStorage::wrap_cuda_slice(o, device.clone()))
}
