//! `cargo xtask bench --append`: new tokens to a paged cache, as one graph of many launches whose tokens and pages take turns, beside a copy of as
//! many bytes.

use super::report::Figures;
use super::timing::{Spread, spread};
use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::{
    AppendPlan, AppendProblem, Appended, AttentionProblem, CacheShape, DType, DeviceBuffer, DeviceCache, DeviceQ, Gpu,
    HostCache, HostTensor, NewTokens, Shape, Slots, Stream, TensorLayout,
};
use serde::Serialize;
use std::path::Path;

/// A row: so many sequences get so many new tokens each, the first of them at this place of a page.
struct Case {
    name: &'static str,
    sequences: usize,
    new: usize,
    place: usize,
    /// Heads of Q, 0 where it is not quantized, and of K and V.
    heads: [usize; 2],
    head_dim: usize,
}

const fn case(
    name: &'static str,
    sequences: usize,
    new: usize,
    place: usize,
    heads: [usize; 2],
    head_dim: usize,
) -> Case {
    Case { name, sequences, new, place, heads, head_dim }
}

const CASES: [Case; 11] = [
    case("append-b1", 1, 1, 77, [32, 8], 128),
    case("append-b64", 64, 1, 77, [32, 8], 128),
    case("append-b64-kv", 64, 1, 77, [0, 8], 128),
    case("append-b256", 256, 1, 77, [32, 8], 128),
    case("append-b64-4new", 64, 4, 77, [32, 8], 128),
    case("append-prompt-8k", 1, 8192, 0, [0, 8], 128),
    case("append-prompt-32k", 1, 32_768, 0, [0, 8], 128),
    case("append-prompt-32k-q", 1, 32_768, 0, [32, 8], 128),
    case("append-prompt-32k-from-70", 1, 32_768, 70, [0, 8], 128),
    case("append-prompt-32k-d64", 1, 32_768, 0, [0, 16], 64),
    case("append-64-prompts-1000", 64, 1000, 0, [0, 8], 128),
];

/// Bytes that take turns: several times L2.
const ROTATED_BYTES: usize = 256 << 20;
/// Graphs whose times are taken.
const SAMPLES: usize = 15;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Microseconds of a launch in the graph, gaps included.
    us: f64,
    spread: Spread,
    /// Bytes read and written over that, in 1e12 a second.
    tb_per_s: f64,
    /// That over what a copy comes to that reads and writes as many.
    of_copy: f64,
}

/// Measures the rows whose name has `only` in it.
pub fn run(gpu: &Gpu, only: &str, json: Option<&Path>) -> Result<()> {
    let mut figures = Figures::new(gpu);
    println!("{:<28} {:>10} {:>10} {:>10}", "", "us", "TB/s", "of a copy");
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        let row = measure(gpu, case)?;
        println!("{:<28} {:>10.2} {:>10.3} {:>10.3}", row.name, row.us, row.tb_per_s, row.of_copy);
        figures.rows.push(row);
    }
    figures.write(json)
}

/// What a launch needs, and what takes turns with it.
struct Launches {
    plan: AppendPlan,
    /// `[copy][token][head][dim]`.
    q: DeviceBuffer<f16>,
    kv: DeviceBuffer<f16>,
    layouts: [TensorLayout; 2],
    slots: Vec<DeviceBuffer<i64>>,
    cache: DeviceCache,
    quantized: DeviceQ,
}

/// Tensor number `number` of those in a buffer.
fn tensor(
    buffer: &DeviceBuffer<f16>,
    layout: TensorLayout,
    number: usize,
) -> int_flash_attention::Result<NewTokens<'_>> {
    let span = layout.span();
    let data = buffer.slice().range(number * span, (number + 1) * span)?.into();
    Ok(NewTokens { data, layout })
}

impl Launches {
    fn launch(&mut self, copy: usize, stream: &Stream) -> int_flash_attention::Result<()> {
        let copy = copy % self.slots.len();
        let with_q = !self.q.is_empty();
        let new = Appended {
            q: with_q.then(|| tensor(&self.q, self.layouts[0], copy)).transpose()?,
            k: tensor(&self.kv, self.layouts[1], 2 * copy)?,
            v: tensor(&self.kv, self.layouts[1], 2 * copy + 1)?,
            slots: Slots::I64(self.slots[copy].slice()),
        };
        let mut out = self.quantized.view_mut();
        self.plan.launch(stream, &new, &mut self.cache.view_mut(), with_q.then_some(&mut out))
    }
}

fn measure(gpu: &Gpu, case: &Case) -> Result<Row> {
    let Case { sequences, new, place, heads: [heads_q, heads_kv], head_dim, .. } = *case;
    let tokens = sequences * new;
    let blocks = (place + new).div_ceil(CacheShape::PAGE_TOKENS);
    let rows = tokens * (heads_q + 2 * heads_kv);
    let bytes = rows * head_dim * 3 + 4 * rows + 8 * tokens;
    let copies = ROTATED_BYTES.div_ceil(bytes).clamp(3, 40);
    let shape = CacheShape::new(copies * sequences * blocks, heads_kv, head_dim)?;
    let layout = |heads: usize| Shape::new(1, heads.max(1), tokens, head_dim).map(TensorLayout::bnhd);
    let layouts = [layout(heads_q)?, layout(heads_kv)?];
    // In no order, as after long use.
    let slots = |copy: usize| -> Vec<i64> {
        let page = |i: usize| copy * sequences * blocks + (i * 7919 + copy) % (sequences * blocks);
        let slot = |sequence: usize, token: usize| {
            page(sequence * blocks + token / CacheShape::PAGE_TOKENS) * CacheShape::PAGE_TOKENS
                + token % CacheShape::PAGE_TOKENS
        };
        (0..tokens).map(|i| slot(i / new, place + i % new) as i64).collect()
    };
    let noise = |i: usize| f16::from_f32(((i % 8191) as f32 * 0.37).sin() * (1.0 + (i % 7) as f32));
    let host: Vec<f16> = (0..2 * layouts[1].span()).map(noise).collect();
    let problem = AppendProblem { cache: shape, heads_q, max_tokens: tokens, dtype: DType::F16 };
    let q_len = if heads_q > 0 { copies * layouts[0].span() } else { 0 };
    let of_q = AttentionProblem::new(sequences, heads_q.max(1), 1, new, 1, head_dim);
    let mut launches = Launches {
        plan: gpu.plan_append(&problem)?,
        q: gpu.upload(&(0..q_len).map(noise).collect::<Vec<_>>())?,
        kv: gpu.upload(&host.repeat(copies))?,
        layouts,
        slots: (0..copies).map(|copy| gpu.upload(&slots(copy))).collect::<Result<_, _>>()?,
        cache: DeviceCache::alloc(gpu, shape)?,
        quantized: DeviceQ::alloc(gpu, &of_q)?,
    };
    let stream = gpu.stream()?;
    launches.launch(0, &stream)?;
    stream.synchronize()?;
    check(gpu, &launches, &host, &slots(0), blocks * sequences)?;
    let graph = gpu.capture(&stream, || (0..copies).try_for_each(|copy| launches.launch(copy, &stream)))?;
    let times = graph_us(gpu, &stream, &graph, copies)?;
    Ok(Row {
        name: case.name,
        us: times.median,
        spread: times,
        tb_per_s: bytes as f64 / times.median * 1e-6,
        of_copy: copy_us(gpu, bytes, copies)? / times.median,
    })
}

/// The pages of the first launch against the reference.
fn check(gpu: &Gpu, launches: &Launches, host: &[f16], slots: &[i64], pages: usize) -> Result<()> {
    let mut want = HostCache::alloc(CacheShape { pages, ..launches.cache.shape })?;
    let tensor = |number: usize| {
        let layout = launches.layouts[1];
        HostTensor::new(host[number * layout.span()..][..layout.span()].to_vec(), layout)
    };
    want.append(&tensor(0)?, &tensor(1)?, slots)?;
    let mut got = vec![0; want.pool.len()];
    let all: Vec<u32> = (0..pages as u32).collect();
    gpu.pages_to_host(&gpu.stream()?, &launches.cache.view(), &all, &mut got)?;
    ensure!(got == want.pool, "the pages are not the reference's");
    Ok(())
}

/// Microseconds of a part of a graph of so many.
fn graph_us(gpu: &Gpu, stream: &Stream, graph: &int_flash_attention::Graph, parts: usize) -> Result<Spread> {
    let mut times = Vec::new();
    for sample in 0..SAMPLES + 2 {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(stream)?;
        graph.launch(stream)?;
        end.record(stream)?;
        end.synchronize()?;
        if sample >= 2 {
            times.push(f64::from(end.elapsed_ms(&start)?) * 1e3 / parts as f64);
        }
    }
    Ok(spread(times))
}

/// Microseconds of a copy that reads and writes so many bytes in all: of pages as large as half of that.
fn copy_us(gpu: &Gpu, bytes: usize, copies: usize) -> Result<f64> {
    let head = CacheShape::new(1, 1, 32)?.page_bytes();
    let shape = CacheShape::new(2 * copies, (bytes / 2).div_ceil(head), 32)?;
    let mut cache = DeviceCache::alloc(gpu, shape)?;
    let stream = gpu.stream()?;
    let graph = gpu.capture(&stream, || {
        (0..copies as u32).try_for_each(|i| gpu.copy_pages(&stream, &mut cache.view_mut(), &[(2 * i, 2 * i + 1)]))
    })?;
    let times = graph_us(gpu, &stream, &graph, copies)?;
    Ok(times.median * bytes as f64 / (2 * shape.page_bytes()) as f64)
}
