//! SmolLM2-135M with plain attention and with INT8 attention on the same text: perplexity, KL divergence, top-1 agreement; then both generate text.
//!
//! `cargo run --release -p candle-int-flash-attention --example smollm2 -- --help`

use candle_core::{DType, Device, Error, Result};
use clap::Parser;
use example_models::{figures, generate, report, smollm2};
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
    /// Tokens of the text that a continuation is generated for
    #[arg(long, default_value_t = 256)]
    prompt: usize,
    /// Tokens to generate; 0 for none
    #[arg(long, default_value_t = 64)]
    generate: usize,
    /// The type of weights and results: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,
    /// cpu or cuda
    #[arg(long, default_value = "cpu", value_parser = example_models::device)]
    device: Device,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let text = example_models::text(arguments.text.as_deref())?;
    let (decoder, tokenizer) = smollm2::load(arguments.dtype, &arguments.device)?;
    let tokens = smollm2::tokens(&tokenizer, &text, arguments.tokens * arguments.passages)?;
    let passages = figures::passages(&tokens, arguments.tokens, arguments.passages);
    let float32 = match arguments.dtype {
        DType::F32 => None,
        _ => Some(smollm2::load(DType::F32, &arguments.device)?.0),
    };
    let runs = if float32.is_some() { 4 } else { 3 };
    let bar = report::progress("predicting", runs * passages.len() * figures::steps(&decoder));
    let figures = figures::report(&decoder, float32.as_ref(), &passages, &|| bar.inc(1))?;
    bar.finish_and_clear();
    println!("SmolLM2-135M-Instruct in {}\n{figures}", arguments.dtype.as_str());
    if arguments.generate == 0 {
        return Ok(());
    }
    let prompt = &passages[0][..passages[0].len().min(arguments.prompt)];
    let bar = report::progress("generating", generate::steps(&decoder, arguments.generate));
    let both = generate::both(&decoder, prompt, None, arguments.generate, &|| bar.inc(1))?;
    bar.finish_and_clear();
    println!(
        "\n{} tokens after {}\n{}",
        arguments.generate,
        prompt.len(),
        generate::speeds(&decoder, prompt.len(), &both)
    );
    let [plain, int8] = both.map(|generated| generated.tokens);
    println!("the same {} tokens at first, of {}", generate::same(&plain, &int8), plain.len());
    for (name, tokens) in [("plain", plain), ("INT8", int8)] {
        println!("\n{name}: {}", tokenizer.decode(&tokens, true).map_err(Error::wrap)?.trim());
    }
    Ok(())
}
