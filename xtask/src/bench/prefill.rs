//! `cargo xtask bench --prefill`: chunks of new tokens on the pages of a cache, beside the same kernel on operands that were gathered from them before.

use super::decode::{pattern, queries};
use super::report::Figures;
use super::timing::{Spread, launch_ms};
use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::{
    AttentionOutput, CacheShape, DType, DecodeProblem, DecodeResult, DeviceBuffer, DeviceK, DeviceQ, DeviceV, Family,
    GatherProblem, Gpu, KvCache, PageTables, PrefillProblem, PrefillQueries, Quantized, ScoreViews, SeqLens, Sequences,
    StreamRef, TensorLayout,
};
use int_flash_attention_kernels::layout::page::{page_head_bytes, page_v_scale_offset};
use serde::Serialize;
use std::path::Path;

/// A row: its name, sequences, heads of queries and of keys, new tokens and all tokens of each, head dim.
struct Case {
    name: &'static str,
    batch: usize,
    heads: [usize; 2],
    new: usize,
    keys: usize,
    d: usize,
}

const CASES: [Case; 4] = [
    Case { name: "chunk-512-of-32k", batch: 1, heads: [32, 8], new: 512, keys: 32_768, d: 128 },
    Case { name: "chunk-512-of-32k-d64", batch: 1, heads: [32, 8], new: 512, keys: 32_768, d: 64 },
    Case { name: "chunk-128-of-8k-b16", batch: 16, heads: [32, 8], new: 128, keys: 8192, d: 128 },
    Case { name: "prompt-4k-b4", batch: 4, heads: [32, 8], new: 4096, keys: 4096, d: 128 },
];

#[derive(Serialize)]
struct Row {
    name: &'static str,
    kernel: &'static str,
    /// Milliseconds on pages, the scales of their blocks included, and on operands.
    paged: Spread,
    contiguous: Spread,
    /// The first over the second.
    ratio: f64,
}

/// Measures the rows whose name has `only` in it, with the kernels of every family that the GPU runs.
pub fn run(gpu: &Gpu, only: &str, json: Option<&Path>) -> Result<()> {
    let mut figures = Figures::new(gpu);
    println!("{:<24} {:<30} {:>10} {:>12} {:>8}", "", "", "pages us", "operands us", "ratio");
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        for family in gpu.families() {
            let row = measure(gpu, case, family)?;
            let [paged, contiguous] = [row.paged, row.contiguous].map(|spread| 1e3 * spread.median);
            println!("{:<24} {:<30} {paged:>10.1} {contiguous:>12.1} {:>8.3}", row.name, row.kernel, row.ratio);
            figures.rows.push(row);
        }
    }
    figures.write(json)
}

fn measure(gpu: &Gpu, case: &Case, family: Family) -> Result<Row> {
    let &Case { name, batch, heads: [heads_q, heads_kv], new, keys, d } = case;
    let problem = PrefillProblem::new(batch, heads_q, heads_kv, new, keys, d);
    let output = AttentionOutput { layout: TensorLayout::bnhd(problem.q_shape()), dtype: DType::F16, lse: false };
    let blocks = keys.div_ceil(CacheShape::PAGE_TOKENS);
    let shape = CacheShape::new(batch * blocks, heads_kv, d)?;
    let mut pages = pattern(&DecodeProblem::new(batch, heads_q, heads_kv, keys, d));
    // A prompt's: values of a page share a scale.
    for head in pages.chunks_exact_mut(page_head_bytes(d)) {
        head[page_v_scale_offset(d)..].as_chunks_mut::<4>().0.fill((1.0_f32 / 128.0).to_le_bytes());
    }
    let pool = pages.repeat(shape.bytes().div_ceil(pages.len()));
    let cache = KvCache {
        shape,
        format: int_flash_attention::CacheFormat::CURRENT,
        pool: gpu.upload(&pool[..shape.bytes()])?,
        k_offset: None::<DeviceBuffer<f32>>,
    };
    // In no order, as after long use.
    let table: Vec<u32> = (0..shape.pages).map(|i| (i * 7919 % shape.pages) as u32).collect();
    let tables = PageTables {
        batch,
        max_blocks: blocks,
        block_table: gpu.upload(&table)?,
        seqlens_kv: gpu.upload(&vec![keys as u32; batch])?,
    };
    let of_q = queries(&DecodeProblem { seqlen_q: new, ..DecodeProblem::new(batch, heads_q, heads_kv, keys, d) });
    let q = DeviceQ {
        shape: of_q.shape,
        scheme: of_q.scheme,
        data: gpu.upload(&of_q.data)?,
        scale: gpu.upload(&of_q.scale)?,
        bias: of_q.bias.as_ref().map(|bias| gpu.upload(bias)).transpose()?,
    };
    let [mut o, mut want] = [gpu.alloc::<f16>(output.layout.span())?, gpu.alloc::<f16>(output.layout.span())?];

    let attention = problem.attention.with_sequences(Sequences::KeyLengths);
    let (mut k, mut v) = (DeviceK::alloc(gpu, &attention)?, DeviceV::alloc(gpu, &attention)?);
    let gather = gpu.plan_gather(&GatherProblem { cache: shape, batch, seqlen_kv: keys })?;
    gather.launch(StreamRef::DEFAULT, &cache.view(), &tables.view(), &mut k.view_mut(), &mut v.view_mut())?;
    let plan = gpu.plan_attention_of(family, &attention, &output)?;
    let lengths = SeqLens::KeyLengths { seqlens_kv: tables.seqlens_kv.slice() };
    let operands = Quantized { q: q.view(), k: k.view(), v: v.view() };
    let contiguous =
        launch_ms(gpu, |_| Ok(plan.launch_with(StreamRef::DEFAULT, &operands, &lengths, (&mut want).into(), None)?))?;

    let plan = gpu.plan_prefill_of(family, &problem, &output)?;
    let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
    let queries = PrefillQueries { q: q.view(), cu_seqlens_q: None };
    let pages = cache.view().sequences(&tables.view());
    let paged = launch_ms(gpu, |_| {
        let result = DecodeResult { o: (&mut o).into(), lse: None };
        let (scores, workspace) = (ScoreViews::default(), workspace.slice_mut());
        Ok(plan.launch(StreamRef::DEFAULT, &queries, &pages, &scores, workspace, result)?)
    })?;
    gpu.synchronize()?;
    ensure!(o.to_vec()? == want.to_vec()?, "{name}: pages give something else than operands");
    Ok(Row { name, kernel: plan.kernel(), paged, contiguous, ratio: paged.median / contiguous.median })
}
