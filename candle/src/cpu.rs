//! Attention on tensors in the host's memory.

use crate::call::{Call, refused};
use crate::host;
use crate::op::{Attention, Lengths};
use candle_core::{CpuStorage, Layout, Result, Tensor, WithDType};
use int_flash_attention::{
    Device, HostBias, HostMask, HostScores, HostView, MaskKind, Options, Order, SeqLens, attention,
};

/// The output, contiguous in candle's order.
pub fn forward(op: &Attention, call: &Call, tensors: [(&CpuStorage, &Layout); 3]) -> Result<CpuStorage> {
    let mut views = Vec::with_capacity(3);
    for ((storage, place), layout) in tensors.into_iter().zip(call.layouts) {
        views.push(HostView::new(host::floats(storage, place)?, layout).map_err(refused)?);
    }
    let lengths = match &op.lengths {
        Lengths::Equal => SeqLens::Equal,
        Lengths::Packed(lengths) => SeqLens::Packed {
            cu_seqlens_q: host::values("seqlens_q", &lengths.seqlens_q)?,
            cu_seqlens_kv: host::values("seqlens_k", &lengths.seqlens_k)?,
        },
        Lengths::Keys(seqlens_k) => SeqLens::KeyLengths { seqlens_kv: host::values("seqlens_k", seqlens_k)? },
    };
    let lengths = lengths.map(|array: &Vec<u32>| array.as_slice());
    // Against the lengths that were said; the library goes by the longest that there is.
    call.problem.spans(&lengths).map_err(refused)?;

    let slopes = with("alibi_slopes", &op.options.alibi_slopes)?;
    let sinks = with("sinks", &op.options.sinks)?;
    let bias = op.options.bias.as_ref().map(|bias| host::data("bias", bias)).transpose()?;
    let mask: Option<Vec<u8>> = with("mask", &op.options.mask)?;
    let scores = HostScores {
        softcap: op.options.softcap,
        alibi_slopes: slopes.as_deref(),
        bias: bias.as_ref().map(|data| HostBias { dims: dims(&op.options.bias), data }),
        mask: mask.as_ref().map(|data| HostMask { dims: dims(&op.options.mask), kind: MaskKind::Bytes, data }),
        sinks: sinks.as_deref(),
    };
    let options = Options {
        window: call.problem.window,
        softmax_scale: call.problem.softmax_scale,
        lengths,
        scores,
        output_order: Some(Order::Bnhd),
        ..Options::default()
    };
    let output = attention(Device::Cpu, views[0], views[1], views[2], &options).map_err(refused)?;
    Ok(host::storage(output.o.into_data()))
}

/// All elements of a tensor, where there is one.
pub fn with<T: WithDType>(name: &str, tensor: &Option<Tensor>) -> Result<Option<Vec<T>>> {
    tensor.as_ref().map(|tensor| host::values(name, tensor)).transpose()
}

/// The sizes of a tensor that has been found to have four.
fn dims(tensor: &Option<Tensor>) -> [usize; 4] {
    let mut dims = [0; 4];
    tensor.iter().flat_map(Tensor::dims).zip(&mut dims).for_each(|(&from, to)| *to = from);
    dims
}
