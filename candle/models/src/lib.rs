//! Models with a choice of attentions, for the examples and tests of `candle-int-flash-attention`: the same weights and the same code with
//! candle's operations or with INT8, so that what differs is the attention's.

use std::time::{Duration, Instant};

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

/// The text of a file, or [`TEXT`].
///
/// # Errors
/// A file that cannot be read.
pub fn text(file: Option<&std::path::Path>) -> std::io::Result<String> {
    file.map_or_else(|| Ok(TEXT.to_owned()), std::fs::read_to_string)
}

/// What `run` gives with the time it took. On a GPU it runs twice and the second time counts: the first one compiles and loads kernels.
///
/// # Errors
/// Those of `run`, and the GPU's.
pub fn timed<T>(
    device: &candle_core::Device,
    mut run: impl FnMut() -> candle_core::Result<T>,
) -> candle_core::Result<(T, Duration)> {
    if !device.is_cpu() {
        run()?;
    }
    device.synchronize()?;
    let start = Instant::now();
    let result = run()?;
    device.synchronize()?;
    Ok((result, start.elapsed()))
}

/// How often [`timed`] runs what it is given.
#[must_use]
pub fn rounds(device: &candle_core::Device) -> usize {
    if device.is_cpu() { 1 } else { 2 }
}

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
