//! The flags of `attention` that change scores.

use anyhow::{Context, Result, bail};
use int_flash_attention::HostScores;
use std::path::Path;
use xtask::tensors::{self, Inputs, Wanted};

#[derive(clap::Args)]
pub struct ScoreArgs {
    /// Scores become CAP * tanh(score / CAP)
    #[arg(long, value_name = "CAP", allow_negative_numbers = true)]
    softcap: Option<f32>,
    /// ALiBi slopes, one a query head (or one a query head of every sequence): numbers between commas, or a file of them
    #[arg(long, value_name = "SLOPES|FILE", allow_hyphen_values = true)]
    alibi: Option<String>,
    /// Sinks, one a query head: logits that every row's sum has besides its keys; numbers between commas, or a file of them
    #[arg(long, value_name = "LOGITS|FILE", allow_hyphen_values = true)]
    sinks: Option<String>,
    /// Hide the keys that the input's tensor mask has 0 for: BOOL or U8 [batch or 1, heads or 1, seqlen_q or 1, seqlen_kv]
    #[arg(long)]
    mask: bool,
    /// Add the input's tensor bias to the scores: F16, BF16 or F32, of such dimensions
    #[arg(long)]
    bias: bool,
}

/// What the flags come to, apart from the tensors of the input.
pub struct OfHeads {
    softcap: Option<f32>,
    slopes: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
}

impl ScoreArgs {
    /// The tensors that are wanted of the input.
    pub fn wanted(&self) -> Wanted {
        Wanted { mask: self.mask, bias: self.bias }
    }

    /// What may be files that numbers are read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.alibi, &self.sinks].into_iter().flatten().map(Path::new)
    }

    /// The numbers.
    pub fn of_heads(&self) -> Result<OfHeads> {
        let read = |flag, text: &Option<String>| text.as_deref().map(|text| numbers(flag, text)).transpose();
        Ok(OfHeads {
            softcap: self.softcap,
            slopes: read("--alibi", &self.alibi)?,
            sinks: read("--sinks", &self.sinks)?,
        })
    }

    /// As the text of a report has it.
    pub fn shown(&self) -> String {
        let mut shown = self.softcap.map(|cap| format!(" softcap {cap}")).unwrap_or_default();
        for (there, word) in [
            (self.alibi.is_some(), " ALiBi"),
            (self.bias, " bias"),
            (self.mask, " mask"),
            (self.sinks.is_some(), " sinks"),
        ] {
            if there {
                shown.push_str(word);
            }
        }
        shown
    }
}

impl OfHeads {
    /// With the tensors of the input.
    pub fn scores<'a>(&'a self, inputs: &'a Inputs) -> HostScores<'a> {
        HostScores {
            softcap: self.softcap,
            alibi_slopes: self.slopes.as_deref(),
            bias: inputs.bias.as_ref().map(tensors::Bias::host),
            mask: inputs.mask.as_ref().map(tensors::Mask::host),
            sinks: self.sinks.as_deref(),
        }
    }
}

/// Numbers between commas, or in a file between commas, spaces and lines.
fn numbers(flag: &str, text: &str) -> Result<Vec<f32>> {
    let parse = |text: &str| -> Option<Vec<f32>> {
        let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
        words.map(|word| word.parse().ok()).collect::<Option<Vec<f32>>>().filter(|numbers| !numbers.is_empty())
    };
    if let Some(numbers) = parse(text) {
        return Ok(numbers);
    }
    let path = Path::new(text);
    let content = std::fs::read_to_string(path)
        .with_context(|| format!("{flag} is neither numbers between commas nor a file that can be read: {text}"))?;
    match parse(&content) {
        Some(numbers) => Ok(numbers),
        None => bail!("{flag}: {text} does not hold numbers alone"),
    }
}
