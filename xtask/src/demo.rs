//! `cargo xtask demo`: the job on real activations, both schemes, in one small table: an encoder's layers, and a decoder's, which
//! have fewer heads of K and V than of Q, a causal mask and first tokens that take most of the weight.

use crate::accuracy;
use crate::attention::{self, Target};
use crate::workspace;
use anyhow::Result;
use int_flash_attention::{Options, Order, Scheme, Window};
use std::time::Duration;
use xtask::tensors::{self, Inputs};

/// One layer's Q, K and V (tests/data/README.md), and how its model attends.
struct Layer {
    model: &'static str,
    layer: u32,
    file: &'static str,
    window: Window,
}

const LAYERS: [Layer; 4] = [
    Layer { model: "all-MiniLM-L6-v2", layer: 0, file: "minilm-layer0-qkv.safetensors", window: Window::FULL },
    Layer { model: "all-MiniLM-L6-v2", layer: 5, file: "minilm-layer5-qkv.safetensors", window: Window::FULL },
    Layer { model: "SmolLM2-135M-Instruct", layer: 7, file: "smollm2-layer7-qkv.safetensors", window: Window::CAUSAL },
    Layer {
        model: "SmolLM2-135M-Instruct",
        layer: 17,
        file: "smollm2-layer17-qkv.safetensors",
        window: Window::CAUSAL,
    },
];
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
    println!("INT8 attention on {target}: activations of an encoder and of a decoder, f16");
    println!(
        "{:21} {:>5} {:24} {:8} {:>11} {:>11} {:>12} {:>10}",
        "model", "layer", "heads, tokens, head_dim", "scheme", "relative L2", "max abs", "cosine", "time"
    );
    for layer in &LAYERS {
        let inputs = tensors::read(&workspace::data_dir().join(layer.file), Order::Bhnd, tensors::Wanted::default())?;
        let shape = layer.shape(&inputs);
        for scheme in Scheme::ALL {
            let options = Options { scheme, window: layer.window, ..Options::default() };
            let (output, mut time) = attention::job(target, &inputs, &options)?;
            let again = if target == Target::Sim { 0 } else { RUNS };
            for _ in 0..again {
                time = time.min(attention::job(target, &inputs, &options)?.1);
            }
            let problem = options.problem(&inputs.q, &inputs.k, &inputs.v)?;
            let figures = accuracy::measure((&problem).into(), &inputs, &output.o)?.figures;
            println!(
                "{:21} {:>5} {:24} {:8} {:11.3e} {:11.3e} {:12.9} {:>10}",
                layer.model,
                layer.layer,
                shape,
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

impl Layer {
    /// Heads of Q, and of K and V where they are fewer; tokens and head_dim; the mask.
    fn shape(&self, inputs: &Inputs) -> String {
        let (q, k) = (inputs.q.shape(), inputs.k.shape());
        let heads = if q.heads == k.heads { q.heads.to_string() } else { format!("{}/{}", q.heads, k.heads) };
        format!("{heads}, {}, {}{}", q.seqlen, q.head_dim, attention::shown(self.window))
    }
}

fn shown(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
