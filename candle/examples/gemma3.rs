//! Gemma 3 270M (head dim 256, windows of 512 tokens) with plain attention and with INT8 attention on the same text.
//!
//! `cargo run --release -p candle-int-flash-attention --example gemma3 -- --help`

use candle_core::{DType, Device, Result};
use clap::Parser;
use example_models::{figures, gemma3, report};
use std::path::PathBuf;

#[derive(Parser)]
struct Arguments {
    /// Tokens of a passage of the text to predict
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Passages, one behind the other, as far as the text goes
    #[arg(long, default_value_t = 1)]
    passages: usize,
    /// A text, in place of one that is part of the example
    #[arg(long)]
    text: Option<PathBuf>,
    /// cpu or cuda
    #[arg(long, default_value = "cpu", value_parser = example_models::device)]
    device: Device,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let text = example_models::text(arguments.text.as_deref())?;
    let (decoder, vocabulary) = gemma3::load(DType::F32, &arguments.device)?;
    let tokens = vocabulary.tokens(&text, arguments.tokens * arguments.passages)?;
    let passages = figures::passages(&tokens, arguments.tokens, arguments.passages);
    let bar = report::progress("predicting", 3 * passages.len() * figures::steps(&decoder));
    let figures = figures::report(&decoder, None, &passages, &|| bar.inc(1))?;
    bar.finish_and_clear();
    println!("Gemma 3 270M in f32\n{figures}");
    Ok(())
}
