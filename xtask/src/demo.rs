//! `cargo xtask demo`: the job on real activations, both schemes, in one small table.

use crate::accuracy;
use crate::attention::{self, Target};
use crate::workspace;
use anyhow::Result;
use int_flash_attention::{Options, Order, Scheme};
use std::time::Duration;
use xtask::tensors;

/// Encoder layers of all-MiniLM-L6-v2 (tests/data/README.md).
const LAYERS: [u32; 2] = [0, 5];
/// Timed runs after the first, which also starts the device; the fastest counts.
const RUNS: usize = 3;

#[derive(clap::Args)]
pub struct Args {
    /// auto, cpu, cuda, cuda:N or sim
    #[arg(long, default_value = "auto")]
    device: Target,
}

pub fn run(args: &Args) -> Result<()> {
    let (target, why_not_gpu) = args.device.resolve();
    if let Some(why) = why_not_gpu {
        println!("no GPU, so the CPU computes: {why}");
    }
    println!(
        "INT8 attention on {target}: activations of all-MiniLM-L6-v2, batch 2, 12 heads, 512 tokens, head_dim 32, f16"
    );
    println!("{:8} {:8} {:>12} {:>12} {:>12} {:>10}", "layer", "scheme", "relative L2", "max abs", "cosine", "time");
    for layer in LAYERS {
        let path = workspace::data_dir().join(format!("minilm-layer{layer}-qkv.safetensors"));
        let inputs = tensors::read(&path, Order::Bhnd)?;
        for scheme in [Scheme::Default, Scheme::Paper] {
            let options = Options { scheme, ..Options::default() };
            let (output, mut time) = attention::job(target, &inputs, &options)?;
            let again = if target == Target::Sim { 0 } else { RUNS };
            for _ in 0..again {
                time = time.min(attention::job(target, &inputs, &options)?.1);
            }
            let figures =
                accuracy::measure(&options.problem(&inputs.q, &inputs.k, &inputs.v)?, &inputs, &output.o)?.figures;
            println!(
                "{:8} {:8} {:12.3e} {:12.3e} {:12.9} {:>10}",
                layer,
                scheme.to_string(),
                figures.relative_l2,
                figures.max_abs,
                figures.cosine,
                shown(time)
            );
        }
    }
    println!("errors against float64 attention; time of the whole job, copies to and from a GPU included");
    Ok(())
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
