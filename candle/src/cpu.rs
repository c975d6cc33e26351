//! Tensors in the host's memory.

use crate::call::{Call, NAME, refused};
use candle_core::{CpuStorage, Layout, Result, bail};
use int_flash_attention::{Device, HostData, HostSlice, HostView, Options, Order, attention};

/// The output, `(batch, seqlen_q, heads_q, head_dim)`.
pub fn forward(call: &Call, tensors: [(&CpuStorage, &Layout); 3]) -> Result<CpuStorage> {
    let mut views = Vec::with_capacity(3);
    for ((storage, place), layout) in tensors.into_iter().zip(call.layouts) {
        let from = place.start_offset();
        let elements: HostSlice<'_> = match storage {
            CpuStorage::F16(values) => values[from..].into(),
            CpuStorage::BF16(values) => values[from..].into(),
            CpuStorage::F32(values) => values[from..].into(),
            // What `dtype_of` lets through is one of these.
            _ => bail!("{NAME}: elements of another type than was checked"),
        };
        views.push(HostView::new(elements, layout).map_err(refused)?);
    }
    let options = Options {
        window: call.problem.window,
        softmax_scale: call.problem.softmax_scale,
        output_order: Some(Order::Bnhd),
        ..Options::default()
    };
    let output = attention(Device::Cpu, views[0], views[1], views[2], &options).map_err(refused)?;
    Ok(match output.o.into_data() {
        HostData::F16(values) => CpuStorage::F16(values),
        HostData::BF16(values) => CpuStorage::BF16(values),
        HostData::F32(values) => CpuStorage::F32(values),
    })
}
