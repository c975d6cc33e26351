//! Attention on tensors on a GPU.

pub mod cache;
mod memory;

use crate::call::{Call, refused};
use crate::op::{Attention, Lengths};
use crate::plans::Engine;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CudaStorage, Layout, Result};
use int_flash_attention::{DeviceSliceMut, SeqLens};
use memory::{Held, HeldScores, Read, Write, stream_ref};

/// The output, contiguous in candle's order, when the device's stream has come there.
pub fn forward(op: &Attention, call: &Call, tensors: [(&CudaStorage, &Layout); 3]) -> Result<CudaStorage> {
    let (device, dtype) = (tensors[0].0.device(), tensors[0].0.dtype());
    let stream = &*device.cuda_stream();
    let plan = Engine::of_process(stream.context().ordinal()).and_then(|engine| engine.job(call)).map_err(refused)?;
    let scores = HeldScores::of(&op.options);
    let lengths = match &op.lengths {
        Lengths::Equal => SeqLens::Equal,
        Lengths::Packed(lengths) => SeqLens::Packed {
            cu_seqlens_q: Held::of("seqlens_q", &lengths.seqlens_q),
            cu_seqlens_kv: Held::of("seqlens_k", &lengths.seqlens_k),
        },
        Lengths::Keys(seqlens_k) => SeqLens::KeyLengths { seqlens_kv: Held::of("seqlens_k", seqlens_k) },
    };
    let bytes = plan.workspace_bytes();
    // SAFETY: the kernels write both before anything reads them; rows that belong to no sequence have no meaning (`FlashAttn::forward_varlen`). The
    // workspace goes back to candle's pool in the order of the stream.
    let (mut workspace, mut o) = unsafe {
        // The allocator has no pieces of nothing.
        let workspace = (bytes > 0).then(|| device.alloc::<u8>(bytes)).transpose()?;
        (workspace, device.alloc_uninit(&call.o_shape(), dtype)?)
    };
    {
        let [(q, of_q), (k, of_k), (v, of_v)] = tensors;
        let (q, k, v) =
            (Read::of("q", q, of_q, stream)?, Read::of("k", k, of_k, stream)?, Read::of("v", v, of_v, stream)?);
        let (scores, lengths) = (scores.read(stream)?, lengths.try_map(|held| held.read(stream))?);
        let mut workspace = workspace.as_mut().map(|workspace| Write::of(workspace, stream));
        let workspace = match &mut workspace {
            Some(workspace) => workspace.bytes(),
            None => DeviceSliceMut::empty(),
        };
        let mut o = Write::of_floats(&mut o, stream)?;
        plan.launch_scored(
            stream_ref(stream),
            [q.floats()?, k.floats()?, v.floats()?],
            &scores.views()?,
            &lengths.map(Read::u32s),
            workspace,
            o.floats(dtype)?,
            None,
        )
        .map_err(refused)?;
    }
    Ok(o)
}
