//! The published error on activations of a model.

use crate::device::OnGpu;
use anyhow::{Result, ensure};
use int_flash_attention::{AttentionProblem, DType, HostTensor, Order, Scheme, TensorLayout, reference};
use int_flash_attention_tests::properties::Kernels;

/// Layers, and the error that the paper has of them.
const MINILM: [(u32, &[u8], f64); 2] = [
    (0, include_bytes!("../../data/minilm-layer0-qkv.safetensors"), 1.4e-2),
    (5, include_bytes!("../../data/minilm-layer5-qkv.safetensors"), 2.8e-2),
];

fn tensors(file: &[u8]) -> Result<[HostTensor; 3]> {
    let file = safetensors::SafeTensors::deserialize(file)?;
    let tensor = |name| -> Result<HostTensor> {
        let view = file.tensor(name)?;
        Ok(HostTensor::from_bytes(DType::F16, view.data(), TensorLayout::from_dims(view.shape(), Order::Bhnd)?)?)
    };
    Ok([tensor("q")?, tensor("k")?, tensor("v")?])
}

pub fn published_error(gpu: &OnGpu) -> Result<()> {
    for (layer, file, published) in MINILM {
        let [q, k, v] = tensors(file)?;
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::of(q.shape(), k.shape(), v.shape())?.with_scheme(scheme);
            let operands = gpu.quantize(&problem, &q, &k, &v)?;
            let (o, _) = gpu.attention(&(&problem).into(), &operands, &q.layout(), DType::F16, false)?;
            let exact = reference::exact(&problem, &q, &k, &v)?;
            let error = reference::compare(&o.dense_f64(), &exact.o).relative_l2;
            println!("MiniLM layer {layer}, {scheme}: relative L2 {error:.3e}");
            match scheme {
                Scheme::Default => ensure!(error <= 1.0e-2, "layer {layer}: {error:.3e}, at most 1.0e-2"),
                Scheme::Paper => {
                    ensure!(
                        (error / published - 1.0).abs() <= 0.1,
                        "layer {layer}: {error:.3e}, the paper's {published:.1e}"
                    );
                }
            }
        }
    }
    Ok(())
}
