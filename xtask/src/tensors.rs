//! Q, K and V from a safetensors file, the output into one.

use crate::workspace;
use anyhow::{Context, Result, anyhow, bail};
use int_flash_attention::{DType, HostTensor, Order, Output, TensorLayout};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::fs;
use std::path::Path;

/// The inputs of the job.
pub struct Inputs {
    pub q: HostTensor,
    pub k: HostTensor,
    pub v: HostTensor,
}

/// Reads the tensors `q`, `k` and `v`; each has four dimensions in `order`.
pub fn read(path: &Path, order: Order) -> Result<Inputs> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| anyhow!("{} is not a whole safetensors file ({error})", path.display()))?;
    let tensor = |name: &'static str| tensor(&file, name, order).with_context(|| format!("in {}", path.display()));
    let inputs = Inputs { q: tensor("q")?, k: tensor("k")?, v: tensor("v")? };
    for (name, other) in [("k", &inputs.k), ("v", &inputs.v)] {
        if other.dtype() != inputs.q.dtype() {
            bail!("q is {} but {name} is {}; all three must have one dtype", inputs.q.dtype(), other.dtype());
        }
    }
    Ok(inputs)
}

fn tensor(file: &SafeTensors<'_>, name: &'static str, order: Order) -> Result<HostTensor> {
    let Ok(view) = file.tensor(name) else {
        let mut names = file.names();
        names.sort_unstable();
        bail!(
            "there is no tensor `{name}`; the file has {}",
            if names.is_empty() { "none".into() } else { names.join(", ") }
        );
    };
    let dtype = match view.dtype() {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        other => bail!("tensor `{name}` is {other:?}; allowed are F16, BF16 and F32"),
    };
    let layout = TensorLayout::from_dims(view.shape(), order).with_context(|| format!("tensor `{name}`"))?;
    let tensor = HostTensor::from_bytes(dtype, view.data(), layout).with_context(|| format!("tensor `{name}`"))?;
    tensor.check_finite(name)?;
    Ok(tensor)
}

/// Writes `o` in `order` and, where there is one, `lse` as float32 [batch, heads, seqlen_q].
pub fn write(path: &Path, output: &Output, order: Order) -> Result<()> {
    let shape = output.o.shape();
    let dims = match order {
        Order::Bhnd => vec![shape.batch, shape.heads, shape.seqlen, shape.head_dim],
        Order::Bnhd => vec![shape.batch, shape.seqlen, shape.heads, shape.head_dim],
    };
    let dtype = match output.o.dtype() {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
    };
    let mut tensors = vec![("o", TensorView::new(dtype, dims, output.o.bytes())?)];
    let lse: Option<Vec<u8>> = output.lse.as_ref().map(|lse| lse.iter().flat_map(|x| x.to_le_bytes()).collect());
    if let Some(lse) = &lse {
        tensors.push(("lse", TensorView::new(Dtype::F32, vec![shape.batch, shape.heads, shape.seqlen], lse)?));
    }
    let bytes = safetensors::serialize(tensors, None).context("cannot encode the output")?;
    workspace::write_atomically(path, &bytes)
}
