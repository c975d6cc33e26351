//! INT8 FlashAttention.
#![deny(missing_docs)]

mod dtype;
mod error;
mod problem;
mod progress;
mod quantized;
pub mod reference;
mod round;
mod shape;
mod tensor;

pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use problem::{AttentionProblem, Scheme};
pub use progress::{Progress, ProgressFn};
pub use quantized::{HostK, HostQ, HostQuantized, HostV, Quantized, QuantizedK, QuantizedQ, QuantizedV};
pub use shape::{Order, Shape, TensorLayout};
pub use tensor::{HostData, HostTensor};
