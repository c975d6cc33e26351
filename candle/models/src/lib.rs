//! Models with a choice of attentions, for the examples and tests of `candle-int-flash-attention`: the same weights and the same code with
//! candle's operations or with INT8, so that what differs is the attention's.

pub mod attention;
pub mod bert;
pub mod cache;
pub mod decoder;
pub mod figures;
pub mod gemma3;
pub mod generate;
pub mod minilm;
pub mod package;
pub mod report;
pub mod smollm2;

/// English prose, about 1100 tokens.
pub const TEXT: &str = include_str!("text.txt");

/// A device by its name on a command line.
///
/// # Errors
/// Another name than `cpu` and `cuda`, and a GPU that is not there or not built for.
pub fn device(name: &str) -> candle_core::Result<candle_core::Device> {
    match name {
        "cpu" => Ok(candle_core::Device::Cpu),
        "cuda" => candle_core::Device::new_cuda(0),
        other => candle_core::bail!("{other} is neither cpu nor cuda"),
    }
}
