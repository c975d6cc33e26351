//! INT8 attention on the CPU beside candle's float32 attention on the same threads: candle-nn's flash attention, and matrix products with a
//! softmax between them. The runs take turns, and the best of each counts: on Linux in time that the threads were running, so that what else the
//! machine does counts little.
//!
//! `cargo run --release -p candle-int-flash-attention --example cpu_speed -- --help`

use candle_core::{Device, Result, Tensor};
use candle_int_flash_attention::flash_attn;
use candle_nn::attention::{AttnMask, flash_attn as flash_attn_float};
use clap::Parser;
use example_models::attention::{causal_mask, plain};
use example_models::report::{progress, table};
use std::time::Instant;

#[derive(Parser)]
struct Arguments {
    /// Tokens
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048")]
    seqlens: Vec<usize>,
    /// Heads of Q
    #[arg(long, default_value_t = 9)]
    heads: usize,
    /// Heads of K and V
    #[arg(long, default_value_t = 3)]
    heads_kv: usize,
    /// Channels of a head
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    /// Runs of each, of which the best counts
    #[arg(long, default_value_t = 7)]
    runs: usize,
}

fn main() -> Result<()> {
    let Arguments { seqlens, heads, heads_kv, head_dim, runs } = Arguments::parse();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let threads = candle_core::utils::get_num_threads();
    let mut rows = vec![["tokens", "mask", "INT8, ms", "candle flash, ms", "candle matmul, ms"].map(str::to_owned)];
    let bar = progress("attending", 2 * seqlens.len() * runs);
    for &tokens in &seqlens {
        let tensor = |heads| Tensor::randn(0_f32, 1.0, (1, tokens, heads, head_dim), &Device::Cpu);
        let (q, k, v) = (tensor(heads)?, tensor(heads_kv)?, tensor(heads_kv)?);
        let [dense_q, dense_k, dense_v] = [&q, &k, &v].map(|x| x.transpose(1, 2).and_then(|x| x.contiguous()));
        let (dense_q, dense_k, dense_v) = (dense_q?, dense_k?, dense_v?);
        for causal in [false, true] {
            let mask = causal.then(|| causal_mask(tokens, tokens, None, &Device::Cpu)).transpose()?;
            let attn_mask = || if causal { AttnMask::causal() } else { AttnMask::None };
            let ways: [&dyn Fn() -> Result<Tensor>; 3] = [
                &|| flash_attn(&q, &k, &v, scale, causal),
                &|| flash_attn_float::<f32>(&q, &k, &v, scale, attn_mask(), None, None),
                &|| plain(&dense_q, &dense_k, &dense_v, scale, mask.as_ref()),
            ];
            let mut best = [f64::INFINITY; 3];
            for _ in 0..runs {
                for (best, way) in best.iter_mut().zip(ways) {
                    let (start, running) = (Instant::now(), running()?);
                    way()?;
                    let took = match (running, self::running()?) {
                        (Some(before), Some(after)) => (after - before) as f64 / 1e6,
                        _ => start.elapsed().as_secs_f64() * 1e3 * threads as f64,
                    };
                    *best = best.min(took);
                }
                bar.inc(1);
            }
            let [int8, flash, matmul] = best.map(|best| format!("{best:.2}"));
            rows.push([tokens.to_string(), if causal { "causal" } else { "none" }.to_owned(), int8, flash, matmul]);
        }
    }
    bar.finish_and_clear();
    println!("{heads}/{heads_kv} heads, d={head_dim}; ms of {threads} threads together, best of {runs}");
    print!("{}", table(&rows));
    Ok(())
}

/// Nanoseconds that all threads of this process have run, where the system tells.
fn running() -> Result<Option<u64>> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Ok(None) };
    let mut sum = 0;
    for thread in threads {
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { return Ok(None) };
        let Some(Ok(time)) = text.split(' ').next().map(str::parse::<u64>) else { return Ok(None) };
        sum += time;
    }
    Ok(Some(sum))
}
