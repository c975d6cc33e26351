//! Prefill and decode through layers of the shape of Llama 3 8B or of Gemma 3 with random weights, with plain attention and with INT8: speed and the
//! size of the cache.
//!
//! `cargo run --release -p candle-int-flash-attention --example random_layers -- --help`

use candle_core::{DType, Device, Result};
use clap::{Parser, ValueEnum};
use example_models::decoder::{Decoder, Sizes};
use example_models::{generate, report};

#[derive(Parser)]
struct Arguments {
    /// Whose layers
    #[arg(long, default_value = "llama3-8b")]
    shape: Of,
    /// Layers, of the 32 of Llama 3 8B (each is 0.87 GB in float32) or the 26 of Gemma 3 1B (0.11 GB)
    #[arg(long, default_value_t = 2)]
    layers: usize,
    /// Tokens of the prompt; of several, one run each
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// The most tokens of the prompt that go through the layers at once; else all
    #[arg(long)]
    chunk: Option<usize>,
    /// Tokens to generate
    #[arg(long, default_value_t = 16)]
    generate: usize,
    /// cpu or cuda
    #[arg(long, default_value = "cpu", value_parser = example_models::device)]
    device: Device,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Of {
    #[value(name = "llama3-8b")]
    Llama3,
    #[value(name = "gemma3-1b")]
    Gemma3,
}

impl Of {
    const fn sizes(self, layers: usize) -> Sizes {
        let vocabulary = 1024;
        match self {
            Self::Llama3 => Sizes {
                layers,
                heads: 32,
                heads_kv: 8,
                head_dim: 128,
                width: 4096,
                ffn: 14336,
                vocabulary,
                gemma_window: None,
            },
            Self::Gemma3 => Sizes {
                layers,
                heads: 4,
                heads_kv: 1,
                head_dim: 256,
                width: 1152,
                ffn: 6912,
                vocabulary,
                gemma_window: Some(512),
            },
        }
    }
}

fn main() -> Result<()> {
    let Arguments { shape, layers, prompt, chunk, generate, device } = Arguments::parse();
    // As engines have it there.
    let dtype = if device.is_cpu() { DType::F32 } else { DType::F16 };
    let sizes = shape.sizes(layers);
    let Sizes { heads, heads_kv, head_dim, .. } = sizes;
    let decoder = Decoder::random(sizes, dtype, &device)?;
    for prompt in prompt {
        let tokens: Vec<u32> = (0..prompt).map(|at| (at * 617 % sizes.vocabulary) as u32).collect();
        let bar = report::progress("generating", generate::steps(&decoder, generate));
        let both = generate::both(&decoder, &tokens, chunk, generate, &|| bar.inc(1))?;
        bar.finish_and_clear();
        let chunks = chunk.map_or_else(String::new, |chunk| format!(" in chunks of {chunk}"));
        println!("{layers} layers of {heads}/{heads_kv} heads, d={head_dim}; {generate} tokens after {prompt}{chunks}");
        println!("{}", generate::speeds(&decoder, prompt, &both));
    }
    Ok(())
}
