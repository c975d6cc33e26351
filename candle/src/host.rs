//! Candle's tensors in the host's memory as the library takes them, and back.

use crate::call::{NAME, refused};
use candle_core::{CpuStorage, DType as Type, Layout, Result, Tensor, WithDType, bail};
use half::{bf16, f16};
use int_flash_attention::{DType, HostData, HostSlice, HostTensor, TensorLayout};

/// Floats from a tensor's first on.
pub fn floats<'a>(storage: &'a CpuStorage, place: &Layout) -> Result<HostSlice<'a>> {
    let from = place.start_offset();
    Ok(match storage {
        CpuStorage::F16(values) => values[from..].into(),
        CpuStorage::BF16(values) => values[from..].into(),
        CpuStorage::F32(values) => values[from..].into(),
        // What `float` lets through is one of these.
        _ => bail!("{NAME}: elements of another type than was checked"),
    })
}

/// Candle's storage of elements.
pub fn storage(data: HostData) -> CpuStorage {
    match data {
        HostData::F16(values) => CpuStorage::F16(values),
        HostData::BF16(values) => CpuStorage::BF16(values),
        HostData::F32(values) => CpuStorage::F32(values),
    }
}

/// Whether a tensor is in the host's memory.
fn check_device(name: &str, tensor: &Tensor) -> Result<()> {
    if !tensor.device().is_cpu() {
        bail!(
            "{NAME}: {name} is on {:?}, this attention on the CPU: `to_device` brings it there",
            tensor.device().location()
        )
    }
    Ok(())
}

/// All elements.
pub fn values<T: WithDType>(name: &str, tensor: &Tensor) -> Result<Vec<T>> {
    check_device(name, tensor)?;
    tensor.flatten_all()?.to_vec1()
}

/// All elements of a tensor of floats.
pub fn data(name: &str, tensor: &Tensor) -> Result<HostData> {
    Ok(match tensor.dtype() {
        Type::F16 => values::<f16>(name, tensor)?.into(),
        Type::BF16 => values::<bf16>(name, tensor)?.into(),
        _ => values::<f32>(name, tensor)?.into(),
    })
}

/// A copy of a tensor of floats, whose elements lie in candle's order as `layout` says of contiguous ones.
pub fn tensor(name: &str, tensor: &Tensor, layout: TensorLayout) -> Result<HostTensor> {
    HostTensor::new(data(name, tensor)?, layout).map_err(refused)
}

/// Results, `[batch][head][token][dim]`, as elements of this type in candle's order; those that are too large saturate.
pub fn rounded(mut results: Vec<f64>, dtype: DType, layout: TensorLayout) -> Result<HostData> {
    if dtype != DType::F32 {
        let largest = dtype.largest();
        results.iter_mut().for_each(|result| *result = result.clamp(-largest, largest));
    }
    Ok(HostTensor::from_dense(dtype, layout, &results).map_err(refused)?.into_data())
}
