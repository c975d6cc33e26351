//! The reader of tensor files, beside the crate `safetensors`.

use crate::is_sentence;
use int_flash_attention::{DType, HostTensor, Order};
use safetensors::{Dtype, SafeTensors};
use std::io::Cursor;
use xtask::tensors;

/// A file is read, or refused in one sentence; where the crate `safetensors` reads it too, both see the same tensors.
pub fn file(bytes: &[u8]) {
    for order in [Order::Bhnd, Order::Bnhd] {
        let inputs = match tensors::parse(&mut Cursor::new(bytes), order, tensors::Wanted::default()) {
            Ok(inputs) => inputs,
            Err(error) => {
                is_sentence(&format!("{error:#}"));
                continue;
            }
        };
        // It refuses what is not ours to refuse: gaps, other types, another file's end.
        let Ok(file) = SafeTensors::deserialize(bytes) else { continue };
        for (name, tensor) in [("q", &inputs.q), ("k", &inputs.k), ("v", &inputs.v)] {
            same(tensor, &file.tensor(name).expect("both have read it"), order);
        }
    }
}

fn same(tensor: &HostTensor, view: &safetensors::tensor::TensorView<'_>, order: Order) {
    assert_eq!(tensor.layout().dims(order).as_slice(), view.shape());
    assert_eq!(tensor.bytes(), view.data());
    let dtype = match tensor.dtype() {
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
    };
    assert_eq!(dtype, view.dtype());
    assert!(tensor.check_finite("x").is_ok());
}
