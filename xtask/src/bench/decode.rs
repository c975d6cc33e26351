//! `cargo xtask bench --decode`: a step of a decoder on a paged cache, as one graph of many steps on caches that take turns, so that L2 has
//! nothing of them left.

use super::report::Figures;
use super::step;
use super::timing::{Spread, spread};
use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::reference::{decode_bounds, first_excess};
use int_flash_attention::{
    AttentionOutput, DType, DecodeHeads, DecodePlan, DecodeProblem, DecodeResult, DeviceBuffer, DeviceQ, Gpu,
    HostPagedKv, HostQ, QuantizedQ, Scheme, StreamRef, TensorLayout, ViewPagedKv,
};
use int_flash_attention_kernels::config::decode::SCALE_BYTES;
use int_flash_attention_kernels::layout::page::{page_head_bytes, page_head_bytes_v4};
use int_flash_attention_kernels::layout::v4::{V4_LARGEST, V4_LARGEST_STEP, v4_steps_offset};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, v_byte};
use serde::Serialize;
use std::path::Path;

/// A row: its name in PyTorch's table, and its problem.
pub(super) struct Case {
    name: &'static str,
    problem: DecodeProblem,
    /// Whether V has 4 bits.
    v4: bool,
}

const fn case(
    name: &'static str,
    batch: usize,
    [heads_q, heads_kv]: [usize; 2],
    keys: usize,
    new: usize,
    d: usize,
) -> Case {
    let problem = DecodeProblem { seqlen_q: new, ..DecodeProblem::new(batch, heads_q, heads_kv, keys, d) };
    Case { name, problem, v4: false }
}

const fn v4(case: Case) -> Case {
    Case { v4: true, ..case }
}

const CASES: [Case; 13] = [
    case("decode-b1-4k", 1, [32, 8], 4096, 1, 128),
    case("decode-b1-8k", 1, [32, 8], 8192, 1, 128),
    case("decode-b1-128k", 1, [32, 8], 131_072, 1, 128),
    case("decode-b16-8k", 16, [32, 8], 8192, 1, 128),
    case("decode-b64-8k", 64, [32, 8], 8192, 1, 128),
    case("decode-b64-8k-4new", 64, [32, 8], 8192, 4, 128),
    case("decode-b64-2k-mha-d64", 64, [16, 16], 2048, 1, 64),
    case("decode-b4-2k-d96", 4, [32, 8], 2048, 1, 96),
    v4(case("decode-b1-8k-v4", 1, [32, 8], 8192, 1, 128)),
    v4(case("decode-b1-128k-v4", 1, [32, 8], 131_072, 1, 128)),
    v4(case("decode-b16-8k-v4", 16, [32, 8], 8192, 1, 128)),
    v4(case("decode-b64-8k-v4", 64, [32, 8], 8192, 1, 128)),
    v4(case("decode-b64-2k-mha-d64-v4", 64, [16, 16], 2048, 1, 64)),
];

/// Steps with an append, each of the case of a row.
const STEPS_OF: [(&str, usize); 4] = [("step-b1-4k", 0), ("step-b1-8k", 1), ("step-b16-8k", 3), ("step-b64-8k", 4)];

/// Bytes of caches that take turns: several times L2.
const ROTATED_BYTES: usize = 256 << 20;
/// Steps of a graph.
const STEPS: usize = 40;
/// Graphs whose times are taken.
const SAMPLES: usize = 15;

#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Microseconds of a step in the graph, kernels and gaps.
    us: f64,
    spread: Spread,
    /// Bytes of K, V and their scales over that, in 1e12 a second.
    tb_per_s: f64,
    /// The largest difference from the reference as a share of its bound, of the first sequence.
    error_of_bound: f64,
}

/// An append and a decode.
#[derive(Serialize)]
struct Step {
    name: &'static str,
    /// Microseconds of both in the graph, kernels and gaps.
    us: f64,
    spread: Spread,
    /// That over the sum of an append's in a graph of appends and a decode's in one of decodes.
    of_sum: f64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Figure {
    Decode(Row),
    Step(Step),
}

/// Measures the rows whose name has `only` in it. `workers`: CTAs and the fewest blocks of one, in place of the plan's own.
pub fn run(gpu: &Gpu, only: &str, workers: Option<(usize, usize)>, json: Option<&Path>) -> Result<()> {
    let mut figures = Figures::new(gpu);
    println!("{:<24} {:>10} {:>10} {:>12}", "", "us", "TB/s", "error/bound");
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        let row = measure(gpu, case, workers)?;
        println!("{:<24} {:>10.2} {:>10.3} {:>12.3}", row.name, row.us, row.tb_per_s, row.error_of_bound);
        figures.rows.push(Figure::Decode(row));
    }
    for (name, case) in STEPS_OF.iter().filter(|(name, _)| name.contains(only)) {
        let (spread, of_sum) = step::measure(gpu, &CASES[*case], workers)?;
        println!("{name:<24} {:>10.2} {of_sum:>10.3} of the sum", spread.median);
        figures.rows.push(Figure::Step(Step { name, us: spread.median, spread, of_sum }));
    }
    figures.write(json)
}

/// Caches of one problem, and what a step needs.
pub(super) struct Caches {
    pub problem: DecodeProblem,
    plan: DecodePlan,
    pub copies: usize,
    pub pages: DeviceBuffer<u8>,
    tables: Vec<DeviceBuffer<u32>>,
    lengths: DeviceBuffer<u32>,
    pub q: DeviceQ,
    workspace: DeviceBuffer<f32>,
    o: DeviceBuffer<f16>,
    host: (Vec<u8>, Vec<u32>, HostQ),
}

impl Caches {
    pub(super) fn new(gpu: &Gpu, Case { problem, v4, .. }: &Case, workers: Option<(usize, usize)>) -> Result<Self> {
        let output = AttentionOutput { layout: TensorLayout::bhnd(problem.q_shape()), dtype: DType::F16, lse: false };
        let (page, blocks) = (bytes_of_page(problem, *v4), problem.batch * problem.max_blocks());
        let copies = ROTATED_BYTES.div_ceil(page * blocks).min(STEPS);
        let count = copies * blocks;
        let problem = DecodeProblem { v4_pages: if *v4 { count } else { 0 }, ..*problem };
        let plan = gpu.plan_decode_with(&problem, &output, workers)?;
        let (pattern, q) = (pattern(&problem), queries(&problem));
        // The same few pages over and over: neither the kernel nor DRAM looks at what they hold.
        let pages: Vec<u8> = pattern.iter().copied().cycle().take(pattern.len().min(count * page)).collect();
        let pages = pages.repeat((count * page).div_ceil(pages.len()))[..count * page].to_vec();
        let tables = (0..copies).map(|copy| gpu.upload(&table(blocks, copy))).collect::<Result<_, _>>()?;
        Ok(Self {
            problem,
            copies,
            pages: gpu.upload(&pages)?,
            tables,
            lengths: gpu.upload(&vec![problem.max_seqlen_kv as u32; problem.batch])?,
            q: DeviceQ {
                shape: q.shape,
                scheme: q.scheme,
                data: gpu.upload(&q.data)?,
                scale: gpu.upload(&q.scale)?,
                bias: q.bias.as_ref().map(|bias| gpu.upload(bias)).transpose()?,
            },
            workspace: gpu.alloc(plan.workspace_len())?,
            o: gpu.alloc(problem.q_shape().elements())?,
            host: (pages, table(blocks, 0), q),
            plan,
        })
    }

    /// The block table of a step.
    pub(super) fn table(&self, copy: usize) -> Vec<u32> {
        table(self.problem.batch * self.problem.max_blocks(), copy)
    }

    pub(super) fn step(&mut self, copy: usize, stream: StreamRef<'_>) -> int_flash_attention::Result<()> {
        let cache = ViewPagedKv {
            pages: self.pages.slice(),
            v4_pages: self.problem.v4_pages,
            block_table: self.tables[copy % self.copies].slice(),
            table_stride: self.problem.max_blocks(),
            seqlens_kv: self.lengths.slice(),
        };
        let result = DecodeResult { o: (&mut self.o).into(), lse: None };
        self.plan.launch(stream, &self.q.view(), &cache, &DecodeHeads::default(), self.workspace.slice_mut(), result)
    }

    /// The first sequence against the reference, the largest difference as a share of the bound.
    fn check(&self) -> Result<f64> {
        let (pages, table, q) = &self.host;
        let one = DecodeProblem { batch: 1, ..self.problem };
        let rows = one.q_shape().rows();
        let q = HostQ {
            shape: one.q_shape(),
            scheme: q.scheme,
            data: q.data[..rows * one.head_dim].to_vec(),
            scale: q.scale[..rows].to_vec(),
            bias: q.bias.as_ref().map(|bias| bias[..rows].to_vec()),
        };
        let cache = HostPagedKv {
            pages,
            v4_pages: one.v4_pages,
            block_table: table,
            table_stride: one.max_blocks(),
            seqlens_kv: &[one.max_seqlen_kv as u32],
        };
        let (want, bounds) = decode_bounds(&one, &q, &cache, &DecodeHeads::default(), DType::F16)?;
        let got: Vec<f64> = self.o.to_vec()?[..want.o.len()].iter().map(|o| o.to_f64()).collect();
        let excess = first_excess(&got, &want.o, &bounds.o);
        ensure!(excess.is_none(), "the output is not the reference's: {excess:?}");
        let shares = got.iter().zip(&want.o).zip(&bounds.o).map(|((got, want), bound)| (got - want).abs() / bound);
        Ok(shares.fold(0.0, f64::max))
    }
}

/// The pages of copy number `copy`, of so many blocks, in no order, as after long use.
fn table(blocks: usize, copy: usize) -> Vec<u32> {
    (0..blocks).map(|i| (copy * blocks + (i * 7919 + copy) % blocks) as u32).collect()
}

/// Microseconds of a step of a graph of [`STEPS`].
pub(super) fn graph_us(
    gpu: &Gpu,
    mut step: impl FnMut(usize, StreamRef<'_>) -> int_flash_attention::Result<()>,
) -> Result<Spread> {
    let stream = gpu.stream()?;
    let graph = gpu.capture(&stream, || (0..STEPS).try_for_each(|i| step(i, (&stream).into())))?;
    let mut times = Vec::new();
    for sample in 0..SAMPLES + 2 {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(&stream)?;
        graph.launch(&stream)?;
        end.record(&stream)?;
        end.synchronize()?;
        if sample >= 2 {
            times.push(f64::from(end.elapsed_ms(&start)?) * 1e3 / STEPS as f64);
        }
    }
    Ok(spread(times))
}

fn measure(gpu: &Gpu, case: &Case, workers: Option<(usize, usize)>) -> Result<Row> {
    let mut caches = Caches::new(gpu, case, workers)?;
    let stream = gpu.stream()?;
    caches.step(0, (&stream).into())?;
    stream.synchronize()?;
    let error_of_bound = caches.check()?;
    let spread = graph_us(gpu, |step, stream| caches.step(step, stream))?;
    let p = &case.problem;
    let bytes = p.batch * p.max_blocks() * bytes_of_page(p, case.v4);
    Ok(Row {
        name: case.name,
        us: spread.median,
        spread,
        tb_per_s: bytes as f64 / spread.median * 1e-6,
        error_of_bound,
    })
}

fn bytes_of_page(problem: &DecodeProblem, v4: bool) -> usize {
    let head = if v4 { page_head_bytes_v4(problem.head_dim) } else { page_head_bytes(problem.head_dim) };
    problem.heads_kv * head
}

/// Pages of some MB with codes and scales as a model's, all with V in 4 bits where some are.
pub(super) fn pattern(problem: &DecodeProblem) -> Vec<u8> {
    let (d, v4) = (problem.head_dim, problem.v4_pages > 0);
    let page = bytes_of_page(problem, v4);
    let head_bytes = page / problem.heads_kv;
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut bytes = vec![0; (16_usize << 20).div_ceil(page) * page];
    for head in bytes.chunks_exact_mut(head_bytes) {
        let (codes, scales) = head.split_at_mut(head_bytes - SCALE_BYTES);
        for (i, byte) in codes.iter_mut().enumerate() {
            let code = (next() % 255) as i32 - 127;
            *byte = if i < block_bytes(d) { code as i8 } else { v_byte(code as i8) } as u8;
        }
        if v4 {
            for range in codes[block_bytes(d) + v4_steps_offset(d)..].as_chunks_mut::<2>().0 {
                let step = 1 + next() % V4_LARGEST_STEP;
                *range = [1 + next() % (255 - V4_LARGEST * step), step].map(|byte| byte as u8);
            }
        }
        for (i, scale) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let spread = 0.5 + (next() % 1024) as f32 / 1024.0;
            *scale = (spread * if i < KV_BLOCK { 0.2 } else { 0.01 }).to_le_bytes();
        }
    }
    bytes
}

pub(super) fn queries(problem: &DecodeProblem) -> HostQ {
    let shape = problem.q_shape();
    let data = (0..shape.elements()).map(|i| ((i * 7919 % 255) as i32 - 127) as i8).collect();
    let bias = Some(vec![0.0; shape.rows()]);
    QuantizedQ { shape, scheme: Scheme::Default, data, scale: vec![0.2; shape.rows()], bias }
}
