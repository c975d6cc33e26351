//! Prefill and decode through layers of the shape of Llama 3 8B with random weights, with plain attention and with INT8: speed and the size of
//! the cache.
//!
//! `cargo run --release -p candle-int-flash-attention --example llama_layers -- --help`

use candle_core::{DType, Device, Result};
use clap::Parser;
use example_models::decoder::{Decoder, Sizes};
use example_models::{generate, report};

#[derive(Parser)]
struct Arguments {
    /// Layers, of the 32 that the model has; each is 0.87 GB in float32
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// Tokens of the prompt; of several, one run each
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// Tokens to generate
    #[arg(long, default_value_t = 16)]
    generate: usize,
    /// cpu or cuda
    #[arg(long, default_value = "cpu", value_parser = example_models::device)]
    device: Device,
}

fn main() -> Result<()> {
    let Arguments { layers, prompt, generate, device } = Arguments::parse();
    // As engines have it there.
    let dtype = if device.is_cpu() { DType::F32 } else { DType::F16 };
    let sizes = Sizes { layers, heads: 32, heads_kv: 8, head_dim: 128, width: 4096, ffn: 14336, vocabulary: 1024 };
    let decoder = Decoder::random(sizes, dtype, &device)?;
    for prompt in prompt {
        let tokens: Vec<u32> = (0..prompt).map(|at| (at * 617 % sizes.vocabulary) as u32).collect();
        let bar = report::progress("generating", generate::steps(&decoder, generate));
        let both = generate::both(&decoder, &tokens, generate, &|| bar.inc(1))?;
        bar.finish_and_clear();
        println!("{layers} layers of 32/8 heads, d=128; {generate} tokens after {prompt}");
        println!("{}", generate::speeds(&decoder, prompt, &both));
    }
    Ok(())
}
