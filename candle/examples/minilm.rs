//! Sentence embeddings of all-MiniLM-L6-v2, sentences of unlike lengths padded and packed, with plain attention and with INT8.
//!
//! `cargo run --release -p candle-int-flash-attention --example minilm -- --help`

use candle_core::{Device, Result};
use clap::Parser;
use example_models::bert::Attention;
use example_models::minilm::{self, cosines, load, runs, sentences, tokens};
use example_models::report;
use std::path::PathBuf;

#[derive(Parser)]
struct Arguments {
    /// Sentences of the text, beside its paragraphs and the whole
    #[arg(long, default_value_t = 24)]
    sentences: usize,
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
    let (bert, tokenizer) = load(&arguments.device)?;
    let sentences = tokens(&tokenizer, &sentences(&text, arguments.sentences))?;
    let lengths = || sentences.iter().map(Vec::len);
    let bar = report::progress("embedding", minilm::steps(&bert));
    let runs = runs(&bert, &sentences, || bar.inc(1))?;
    bar.finish_and_clear();
    println!(
        "all-MiniLM-L6-v2, {} sentences of {} to {} tokens, {} in all",
        sentences.len(),
        lengths().min().unwrap_or(0),
        lengths().max().unwrap_or(0),
        lengths().sum::<usize>(),
    );
    let mut rows = vec![["batch, attention", "tokens/s", "least cosine", "mean cosine"].map(str::to_owned)];
    // What the others are compared with: each sentence on its own.
    let plain = runs.iter().find(|run| (run.batch, run.attention) == ("packed", Attention::Plain));
    let plain = &plain.expect("it is one of them").embeddings;
    for run in &runs {
        let cosines = cosines(&run.embeddings, plain)?;
        rows.push([
            format!("{}, {:?}", run.batch, run.attention),
            format!("{:.0}", lengths().sum::<usize>() as f64 / run.time.as_secs_f64()),
            format!("{:.6}", cosines.iter().copied().fold(f64::INFINITY, f64::min)),
            format!("{:.6}", cosines.iter().sum::<f64>() / cosines.len() as f64),
        ]);
    }
    print!("{}", report::table(&rows));
    Ok(())
}
