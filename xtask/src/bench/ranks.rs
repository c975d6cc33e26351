//! `cargo xtask bench --ranks N`: attention over N GPUs of this host, beside one GPU in the same run.

use super::data::{self, seeds};
use super::decode::{pattern, queries};
use super::timing::{Spread, spread};
use crate::workspace;
use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::ranks::{Communicator, Nccl, NcclId, OnGpu, Peers, RanksDecode, RingProblem, UlyssesProblem};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, DecodeHeads, DecodeProblem, DecodeResult, DeviceBuffer, DeviceOperands,
    DeviceQ, DeviceSliceMut, Gpu, QuantizeLayouts, Shape, Stream, TensorLayout, ViewPagedKv,
};
use int_flash_attention_kernels::layout::page::page_bytes;
use serde::Serialize;
use std::ops::Range;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

/// What carries the bytes.
#[derive(Clone, Copy, Debug, Serialize, clap::ValueEnum)]
pub enum Engine {
    /// Copies of the CUDA driver
    Peers,
    /// NCCL
    Nccl,
}

type Rank = Box<dyn Communicator<OnGpu> + Send>;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    ranks: usize,
    /// Milliseconds on one GPU, and over the ranks.
    one: Spread,
    all: Spread,
    /// How many times faster the ranks are.
    ratio: f64,
}

#[derive(Serialize)]
struct Figures {
    device: String,
    engine: Engine,
    rows: Vec<Row>,
}

/// Samples of a figure, launches of one, and those before.
const SAMPLES: usize = 7;
const WARM: usize = 2;

/// The largest difference between outputs of one GPU and of ranks, in float16, for values of V up to 6: two roundings to float16 of an output, and a merge's
/// `2^-16` of the largest value for each state.
const ALLOWED: f64 = 6.0 * (1.0 / 1024.0 + 64.0 / 65536.0);

pub fn run(gpus: &[Gpu], engine: Engine, json: Option<&Path>) -> Result<()> {
    let mut figures = Figures { device: gpus[0].name().to_owned(), engine, rows: Vec::new() };
    let causal = AttentionProblem::new(1, 32, 8, 1 << 17, 1 << 17, 128).with_causal(true);
    let video = AttentionProblem::new(1, 32, 32, 1 << 15, 1 << 15, 128);
    println!("{} GPUs, {engine:?}\n{:<28} {:>12} {:>12} {:>8}", gpus.len(), "", "one, ms", "all, ms", "ratio");
    let mut add = |name, (one, all): (Spread, Spread)| {
        let ratio = one.median / all.median;
        println!("{name:<28} {:>12.3} {:>12.3} {ratio:>8.2}", one.median, all.median);
        figures.rows.push(Row { name, ranks: gpus.len(), one, all, ratio });
    };
    add("ring-prefill-128k-causal", prefill(gpus, engine, causal, Way::Ring)?);
    add("ulysses-prefill-32k", prefill(gpus, engine, video, Way::Ulysses)?);
    add("decode-1m", decode(gpus, engine)?);
    if let Some(file) = json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

/// Runs every rank in a thread of its own.
fn each<T: Send>(
    gpus: &[Gpu],
    engine: Engine,
    body: impl Fn(&Gpu, &Rank, &Barrier) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (count, body, barrier) = (gpus.len(), &body, &Barrier::new(gpus.len()));
    let mut peers: Vec<Option<Rank>> = match engine {
        Engine::Peers => Peers::ranks(gpus)?.into_iter().map(|rank| Some(Box::new(rank) as Rank)).collect(),
        Engine::Nccl => gpus.iter().map(|_| None).collect(),
    };
    let id = match engine {
        Engine::Peers => None,
        Engine::Nccl => Some(NcclId::new()?),
    };
    std::thread::scope(|scope| {
        let threads = gpus.iter().zip(&mut peers).enumerate().map(|(number, (gpu, rank))| {
            let rank = rank.take();
            scope.spawn(move || {
                let rank = match (rank, id) {
                    (Some(rank), _) => rank,
                    (None, Some(id)) => Box::new(Nccl::new(gpu, id, number, count)?) as Rank,
                    (None, None) => unreachable!("an engine has ranks or an id"),
                };
                body(gpu, &rank, barrier)
            })
        });
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Times of so many launches one after the other, on every rank at once; milliseconds of one.
fn time(stream: &Stream, barrier: &Barrier, launches: usize, mut launch: impl FnMut() -> Result<()>) -> Result<Spread> {
    let mut times = Vec::new();
    for sample in 0..WARM + SAMPLES {
        stream.synchronize()?;
        barrier.wait();
        let start = Instant::now();
        for _ in 0..launches {
            launch()?;
        }
        stream.synchronize()?;
        barrier.wait();
        if sample >= WARM {
            times.push(start.elapsed().as_secs_f64() * 1e3 / launches as f64);
        }
    }
    Ok(spread(times))
}

/// These tokens of a tensor of a seed, `[batch][heads][tokens][dim]`.
fn tokens(seed: u64, shape: Shape, ranges: &[Range<usize>]) -> Vec<f16> {
    let Shape { batch, heads, seqlen, head_dim } = shape;
    let of_head = |head: usize| {
        ranges
            .iter()
            .flat_map(move |range| data::values(seed, (head * seqlen + range.start) * head_dim, range.len() * head_dim))
    };
    (0..batch * heads).flat_map(of_head).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Ring,
    Ulysses,
}

/// Tensors of a rank's tokens, and its output.
struct Tensors {
    inputs: [DeviceBuffer<f16>; 3],
    layouts: QuantizeLayouts,
    output: AttentionOutput,
    o: DeviceBuffer<f16>,
}

impl Tensors {
    fn new(gpu: &Gpu, problem: &AttentionProblem, own: &[Range<usize>]) -> Result<Self> {
        let seqlen = own.iter().map(Range::len).sum();
        let shapes = [problem.q_shape(), problem.kv_shape(), problem.v_shape()];
        let [q, k, v] = shapes.map(|shape| TensorLayout::bhnd(Shape { seqlen, ..shape }));
        let of_seed = seeds(1, 0);
        let upload = |i: usize| gpu.upload(&tokens(of_seed[i], shapes[i], own));
        Ok(Self {
            inputs: [upload(0)?, upload(1)?, upload(2)?],
            layouts: QuantizeLayouts { q, k, v, dtype: DType::F16 },
            output: AttentionOutput { layout: q, dtype: DType::F16, lse: false },
            o: gpu.alloc(q.span())?,
        })
    }
}

/// A prefill, quantization included, on one GPU and over the ranks.
fn prefill(gpus: &[Gpu], engine: Engine, attention: AttentionProblem, way: Way) -> Result<(Spread, Spread)> {
    let (one, want) = {
        let gpu = &gpus[0];
        let mut t = Tensors::new(gpu, &attention, std::slice::from_ref(&(0..attention.seqlen_q)))?;
        let (quantize, plan) = (gpu.plan_quantize(&attention, &t.layouts)?, gpu.plan_attention(&attention, &t.output)?);
        let mut operands = DeviceOperands::alloc(gpu, &attention)?;
        let (stream, [q, k, v]) = (gpu.stream()?, &t.inputs);
        let times = time(&stream, &Barrier::new(1), 1, || {
            let none = DeviceSliceMut::empty();
            quantize.launch(&stream, q.into(), k.into(), v.into(), none, &mut operands.view_mut())?;
            Ok(plan.launch(&stream, &operands.view(), (&mut t.o).into(), None)?)
        })?;
        (times, t.o.to_vec()?)
    };
    let ring = RingProblem { attention, ranks: gpus.len() };
    let ulysses = UlyssesProblem { attention, ranks: gpus.len() };
    let all = each(gpus, engine, |gpu, rank, barrier| {
        let stream = gpu.stream()?;
        let own = if way == Way::Ring { ring.chunks(rank.rank()) } else { vec![ulysses.tokens(rank.rank())] };
        let mut t = Tensors::new(gpu, &attention, &own)?;
        let [q, k, v] = &t.inputs;
        let inputs = || [q.into(), k.into(), v.into()];
        let times = match way {
            Way::Ring => {
                let mut plan = gpu.plan_ring(&ring, rank.as_ref(), &t.layouts, &t.output)?;
                time(&stream, barrier, 1, || Ok(plan.launch(&stream, rank.as_ref(), inputs(), (&mut t.o).into())?))?
            }
            Way::Ulysses => {
                let mut plan = gpu.plan_ulysses(&ulysses, rank.as_ref(), &t.layouts, &t.output)?;
                time(&stream, barrier, 1, || Ok(plan.launch(&stream, rank.as_ref(), inputs(), (&mut t.o).into())?))?
            }
        };
        let (got, d, n) = (t.o.to_vec()?, attention.head_dim, attention.seqlen_q);
        let numbers: Vec<usize> = own.into_iter().flatten().collect();
        for (row, o) in got.chunks_exact(d).enumerate().step_by(61) {
            let at = (row / numbers.len() * n + numbers[row % numbers.len()]) * d;
            let off = o.iter().zip(&want[at..]).map(|(a, b)| (a.to_f64() - b.to_f64()).abs()).fold(0.0, f64::max);
            ensure!(off <= ALLOWED, "row {row} of rank {} is off by {off:e}", rank.rank());
        }
        Ok(times)
    })?;
    Ok((one, all[0]))
}

/// A part of a sequence's cache, and the query.
struct Cache {
    pages: DeviceBuffer<u8>,
    table: DeviceBuffer<u32>,
    lengths: DeviceBuffer<u32>,
    q: DeviceQ,
    problem: DecodeProblem,
}

impl Cache {
    /// So many tokens, from this one on, a multiple of 128.
    fn new(gpu: &Gpu, first: usize, tokens: usize) -> Result<Self> {
        let problem = DecodeProblem::new(1, 32, 8, tokens, 128);
        let (page, blocks) = (page_bytes(problem.heads_kv, problem.head_dim), problem.max_blocks());
        let pattern = pattern(&problem);
        let ahead = page * (first / 128) % pattern.len();
        let pages: Vec<u8> = pattern.iter().copied().cycle().skip(ahead).take(page * blocks).collect();
        Ok(Self {
            pages: gpu.upload(&pages)?,
            table: gpu.upload(&(0..blocks as u32).collect::<Vec<_>>())?,
            lengths: gpu.upload(&[tokens as u32])?,
            q: queries(&problem).to_device(gpu)?,
            problem,
        })
    }

    fn view(&self) -> ViewPagedKv<'_> {
        ViewPagedKv {
            pages: self.pages.slice(),
            v4_pages: 0,
            block_table: self.table.slice(),
            table_stride: self.problem.max_blocks(),
            seqlens_kv: self.lengths.slice(),
        }
    }
}

/// A step of decode on 2^20 tokens, on one GPU and over the ranks.
fn decode(gpus: &[Gpu], engine: Engine) -> Result<(Spread, Spread)> {
    const TOKENS: usize = 1 << 20;
    const STEPS: usize = 20;
    let (one, want) = {
        let (gpu, cache) = (&gpus[0], Cache::new(&gpus[0], 0, TOKENS)?);
        let shape = cache.problem.q_shape();
        let output = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F16, lse: false };
        let plan = gpu.plan_decode(&cache.problem, &output)?;
        let (mut workspace, mut o) = (gpu.alloc(plan.workspace_len())?, gpu.alloc::<f16>(shape.elements())?);
        let stream = gpu.stream()?;
        let times = time(&stream, &Barrier::new(1), STEPS, || {
            let result = DecodeResult { o: (&mut o).into(), lse: None };
            let heads = DecodeHeads::default();
            Ok(plan.launch(&stream, &cache.q.view(), &cache.view(), &heads, workspace.slice_mut(), result)?)
        })?;
        (times, o.to_vec()?)
    };
    let ranks = gpus.len();
    let all = each(gpus, engine, |gpu, rank, barrier| {
        let start = |rank: usize| TOKENS / 128 * rank / ranks * 128;
        let cache = Cache::new(gpu, start(rank.rank()), start(rank.rank() + 1) - start(rank.rank()))?;
        let shape = cache.problem.q_shape();
        let output = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F16, lse: false };
        let mut plan =
            gpu.plan_decode_over_ranks(&RanksDecode { decode: cache.problem, ranks }, rank.as_ref(), &output)?;
        let (stream, mut o) = (gpu.stream()?, gpu.alloc::<f16>(shape.elements())?);
        let times = time(&stream, barrier, STEPS, || {
            let result = DecodeResult { o: (&mut o).into(), lse: None };
            Ok(plan.launch(&stream, rank.as_ref(), &cache.q.view(), &cache.view(), None, result)?)
        })?;
        Ok((times, o.to_vec()?))
    })?;
    for (_, o) in &all {
        let off = o.iter().zip(&want).map(|(a, b)| (a.to_f64() - b.to_f64()).abs()).fold(0.0, f64::max);
        ensure!(off <= ALLOWED, "a rank's decode is off by {off:e}");
    }
    Ok((one, all[0].0))
}
