//! `cargo xtask paper`: what arXiv 2409.16997 claims, measured here beside the figures it gives.

mod error;

use crate::attention::Target;
use crate::bench;
use anyhow::{Context, Result, bail};
use int_flash_attention::{AttentionProblem, Device, Gpu};

/// The paper's shape.
const BATCH: usize = 4;
const HEADS: usize = 32;
const HEAD_DIM: usize = 64;
/// Time that the authors' full INT8 saves of FlashAttention in float16 on their GPU, by length.
const TIME_SAVED: [(usize, f64); 5] = [(1024, 0.31), (2048, 0.52), (4096, 0.66), (8192, 0.72), (16384, 0.73)];

#[derive(clap::Args)]
pub struct Args {
    /// auto, cpu, cuda or cuda:N; times need a GPU
    #[arg(long, default_value = "auto")]
    device: Target,
    /// Sequence lengths, of queries and keys
    #[arg(long, value_delimiter = ',', default_value = "1024,2048,4096,8192,16384")]
    seqlen: Vec<usize>,
}

pub fn run(args: &Args) -> Result<()> {
    let (target, why_not_gpu) = args.device.resolve();
    let Target::On(device) = target else { bail!("--device is one of auto, cpu, cuda, cuda:N here") };
    for &seqlen in &args.seqlen {
        AttentionProblem::new(BATCH, HEADS, HEADS, seqlen, seqlen, HEAD_DIM).check().context("--seqlen")?;
    }
    match device {
        Device::Cuda(ordinal) => times(Gpu::new(ordinal)?, &args.seqlen)?,
        Device::Cpu => {
            let why = why_not_gpu.unwrap_or_else(|| "the CPU was asked for".into());
            println!("time: not measured, as it is about a GPU ({why})");
        }
    }
    println!();
    error::table(device, &args.seqlen)
}

/// Milliseconds of a launch of attention on quantized inputs, and what they save of the float16 kernel's.
fn times(gpu: Gpu, seqlens: &[usize]) -> Result<()> {
    println!(
        "time: {}, batch {BATCH}, heads {HEADS}, head_dim {HEAD_DIM}, no mask; saved of the time in float16",
        gpu.name()
    );
    println!(
        "{:>7} {:>10} {:>12} {:>8} {:>12} {:>8} {:>12}",
        "seqlen", "f16 ms", "full INT8", "saved", "default", "saved", "published"
    );
    let bench = bench::Bench::new(gpu, &[])?;
    for &seqlen in seqlens {
        let rows = bench.shape(AttentionProblem::new(BATCH, HEADS, HEADS, seqlen, seqlen, HEAD_DIM))?;
        let ms = |what: &str| {
            let row = rows.iter().find(|row| row.what == what);
            row.map(|row| row.ms).with_context(|| format!("{what} was not measured"))
        };
        let (f16, paper, default) = (ms("f16")?, ms("int8-paper")?, ms("int8-default")?);
        let saved = |ms: f64| percent(1.0 - ms / f16);
        println!(
            "{seqlen:7} {f16:10.4} {paper:12.4} {:>8} {default:12.4} {:>8} {:>12}",
            saved(paper),
            saved(default),
            published(seqlen)
        );
    }
    println!("published: full INT8 against FlashAttention in float16, on the authors' GPU");
    Ok(())
}

fn published(seqlen: usize) -> String {
    let found = TIME_SAVED.iter().find(|(length, _)| *length == seqlen);
    found.map_or("-".into(), |&(_, saved)| percent(saved))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
