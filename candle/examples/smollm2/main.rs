//! SmolLM2-135M with plain attention and with INT8 attention on the same text, on the CPU: perplexity, KL divergence, top-1 agreement.
//!
//! `cargo run --release -p candle-int-flash-attention --example smollm2 -- [TOKENS [TEXT_FILE]]`

mod measure;
mod model;

use measure::Figures;
use std::time::Instant;

fn main() -> candle_core::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let most = match arguments.next() {
        Some(number) => number.parse().map_err(candle_core::Error::wrap)?,
        None => 1024,
    };
    let text = match arguments.next() {
        Some(file) => std::fs::read_to_string(file)?,
        None => measure::TEXT.to_owned(),
    };
    let model = model::Model::load(&measure::model_file()?)?;
    let bar = indicatif::ProgressBar::new(2 * model.layers() as u64);
    let start = Instant::now();
    let figures = measure::measure(&model, &text, most, || bar.inc(1))?;
    bar.finish_and_clear();
    let Figures { tokens, perplexity_plain, perplexity_int8, kl, top1 } = figures;
    println!("SmolLM2-135M-Instruct, {tokens} tokens, {:.1} s for both runs", start.elapsed().as_secs_f64());
    println!(
        "perplexity       plain {perplexity_plain:.4}   INT8 {perplexity_int8:.4}   {:+.3} %",
        100.0 * (perplexity_int8 / perplexity_plain - 1.0)
    );
    println!("KL(plain||INT8)  {kl:.5} nats a token");
    println!("top-1 agreement  {:.2} %", 100.0 * top1);
    Ok(())
}
