//! Attention over ranks: over copies of the driver and over NCCL, on as many GPUs as there are, and on one that several ranks share.

use crate::device::OnGpu;
use anyhow::{Context, Result, ensure};
use int_flash_attention::ranks::{
    Communicator, Nccl, NcclId, OnGpu as Place, Peers, RanksDecode, RingProblem, Simulated, UlyssesProblem,
};
use int_flash_attention::reference::{self, decode_bounds, first_excess};
use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionProblem, CacheShape, DType, DecodeHeads, DecodeProblem,
    DecodeResult, DeviceOperands, Gpu, HostCache, HostTables, HostTensor, QuantizeLayouts, Shape, TensorLayout,
    ViewPagedKv, Window,
};
use int_flash_attention_tests::ranks::{ring_bounds, tokens};
use int_flash_attention_tests::values::Values;
use std::ops::Range;

type Rank = Box<dyn Communicator<Place> + Send>;
/// Ranks with their GPUs.
type Ranks = Vec<(Gpu, Rank)>;

/// Each set of ranks that this machine has, with their GPUs; all that there are up to four. NCCL has no two ranks on one GPU.
fn all_ranks(on: &OnGpu) -> Result<Vec<(String, Ranks)>> {
    let there: Vec<Gpu> =
        std::iter::once(on.gpu.clone()).chain((1..4).map_while(|number| Gpu::new(number).ok())).collect();
    let mut all = Vec::new();
    let peers = |gpus: &[Gpu]| -> Result<Ranks> {
        let ranks = Peers::ranks(gpus)?.into_iter().map(|rank| Box::new(rank) as Rank);
        Ok(gpus.iter().cloned().zip(ranks).collect())
    };
    for count in [2, 3] {
        all.push((format!("{count} ranks on one GPU"), peers(&vec![on.gpu.clone(); count])?));
    }
    if there.len() < 2 {
        println!("SKIPPED between GPUs: needs two, there is one");
        return Ok(all);
    }
    for count in [2, 4].into_iter().filter(|&count| count <= there.len()) {
        all.push((format!("peer copies of {count} GPUs"), peers(&there[..count])?));
        match NcclId::new() {
            Ok(id) => {
                let ranks: Vec<_> = std::thread::scope(|scope| {
                    let join = |(rank, gpu): (usize, &Gpu)| {
                        let gpu = gpu.clone();
                        scope.spawn(move || Nccl::new(&gpu, id, rank, count).map(|nccl| (gpu, Box::new(nccl) as Rank)))
                    };
                    let threads: Vec<_> = there[..count].iter().enumerate().map(join).collect();
                    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
                });
                let ranks = ranks.into_iter().collect::<int_flash_attention::Result<Vec<_>>>()?;
                all.push((format!("NCCL on {count} GPUs"), ranks));
            }
            Err(why) => println!("SKIPPED over NCCL: {why}"),
        }
    }
    Ok(all)
}

/// Runs every rank in a thread of its own.
fn each<T: Send>(ranks: Ranks, body: impl Fn(&Gpu, &Rank) -> Result<T> + Sync) -> Result<Vec<T>> {
    let body = &body;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|(gpu, rank)| scope.spawn(move || body(&gpu, &rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn inputs(attention: &AttentionProblem, dtype: DType) -> Result<[HostTensor; 3]> {
    let tensor = |shape, seed| Values::LoudTokens.tensor(dtype, TensorLayout::bhnd(shape), seed);
    Ok([tensor(attention.q_shape(), 1)?, tensor(attention.kv_shape(), 2)?, tensor(attention.v_shape(), 3)?])
}

/// Launches twice with inputs of a rank's tokens, and checks that both give the same.
fn launched(
    gpu: &Gpu,
    inputs: [&HostTensor; 3],
    own: &[Range<usize>],
    output: &AttentionOutput,
    mut launch: impl FnMut(
        &int_flash_attention::Stream,
        [AnySlice<'_>; 3],
        AnySliceMut<'_>,
    ) -> int_flash_attention::Result<()>,
) -> Result<Vec<u8>> {
    let stream = gpu.stream()?;
    let dtype = inputs[0].dtype();
    let [q, k, v] = inputs.map(|x| gpu.upload(tokens(x, own).bytes()));
    let (q, k, v) = (q?, k?, v?);
    let mut o = gpu.alloc::<u8>(output.layout.span() * output.dtype.size())?;
    let mut results = Vec::new();
    for _ in 0..2 {
        let inputs = [&q, &k, &v].map(|x| AnySlice::from_bytes(x.slice(), dtype));
        launch(&stream, inputs, AnySliceMut::from_bytes(o.slice_mut(), output.dtype))?;
        results.push(o.to_vec_on(&stream)?);
    }
    ensure!(results[0] == results[1], "a second launch gives other bits");
    results.pop().context("results")
}

pub fn ring(on: &OnGpu) -> Result<()> {
    let base = AttentionProblem::new(1, 4, 2, 2500, 2500, 64);
    for attention in [
        base.with_causal(true),
        AttentionProblem { batch: 2, head_dim: 128, ..base },
        base.with_window(Window { left: Some(700), right: Some(0) }),
        base.with_window(Window { left: Some(300), right: Some(100) }),
    ] {
        let [q, k, v] = inputs(&attention, DType::F16)?;
        for (name, ranks) in all_ranks(on)? {
            let ring = RingProblem { attention, ranks: ranks.len() };
            let (one, bounds) = ring_bounds(&ring, [&q, &k, &v], false, ring.shares_k(&on.gpu))?;
            let parts = each(ranks, |gpu, rank| {
                let own = ring.chunks(rank.rank());
                let shape = |shape| TensorLayout::bhnd(Shape { ..shape });
                let (of_q, of_kv) = (shape(ring.q_shape(rank.rank())), shape(ring.kv_shape(rank.rank())));
                let layouts = QuantizeLayouts { q: of_q, k: of_kv, v: of_kv, dtype: DType::F16 };
                let output = AttentionOutput { layout: of_q, dtype: DType::F32, lse: false };
                let mut plan = gpu.plan_ring(&ring, rank.as_ref(), &layouts, &output)?;
                let o = launched(gpu, [&q, &k, &v], &own, &output, |stream, inputs, o| {
                    plan.launch(stream, rank.as_ref(), inputs, o)
                })?;
                Ok((own, bytemuck::pod_collect_to_vec::<u8, f32>(&o)))
            })?;
            let d = attention.head_dim;
            for (own, o) in parts {
                let numbers: Vec<usize> = own.into_iter().flatten().collect();
                for (row, o) in o.chunks_exact(d).enumerate() {
                    let at = (row / numbers.len() * attention.seqlen_q + numbers[row % numbers.len()]) * d;
                    let got: Vec<f64> = o.iter().map(|&o| o.into()).collect();
                    let excess = first_excess(&got, &one.o[at..at + d], &bounds.o[at..at + d]);
                    ensure!(excess.is_none(), "{name}, {attention:?}, row {row}: {excess:?}");
                }
            }
        }
    }
    Ok(())
}

/// The bits of one GPU.
pub fn ulysses(on: &OnGpu) -> Result<()> {
    for (heads_q, heads_kv) in [(12, 12), (12, 3), (12, 1)] {
        let attention = AttentionProblem::new(2, heads_q, heads_kv, 1111, 1111, 64).with_causal(true);
        let [q, k, v] = inputs(&attention, DType::F16)?;
        let one = {
            let (of_q, of_kv) = (TensorLayout::bhnd(attention.q_shape()), TensorLayout::bhnd(attention.kv_shape()));
            let layouts = QuantizeLayouts { q: of_q, k: of_kv, v: of_kv, dtype: DType::F16 };
            let output = AttentionOutput { layout: of_q, dtype: DType::F16, lse: false };
            let (quantize, plan) =
                (on.gpu.plan_quantize(&attention, &layouts)?, on.gpu.plan_attention(&attention, &output)?);
            let mut operands = DeviceOperands::alloc(&on.gpu, &attention)?;
            launched(&on.gpu, [&q, &k, &v], &[0..1024, 1024..1111], &output, |stream, [q, k, v], o| {
                quantize.launch(
                    stream,
                    q,
                    k,
                    v,
                    int_flash_attention::DeviceSliceMut::empty(),
                    &mut operands.view_mut(),
                )?;
                plan.launch(stream, &operands.view(), o, None)
            })?
        };
        for (name, ranks) in all_ranks(on)? {
            let problem = UlyssesProblem { attention, ranks: ranks.len() };
            if let Err(why) = problem.check() {
                println!("{name}: {why}");
                continue;
            }
            let parts = each(ranks, |gpu, rank| {
                let own = problem.tokens(rank.rank());
                let local = problem.of_tokens(rank.rank());
                let (of_q, of_kv) = (TensorLayout::bhnd(local.q_shape()), TensorLayout::bhnd(local.kv_shape()));
                let layouts = QuantizeLayouts { q: of_q, k: of_kv, v: of_kv, dtype: DType::F16 };
                let output = AttentionOutput { layout: of_q, dtype: DType::F16, lse: false };
                let mut plan = gpu.plan_ulysses(&problem, rank.as_ref(), &layouts, &output)?;
                let range = own.clone();
                let o = launched(gpu, [&q, &k, &v], &[range], &output, |stream, inputs, o| {
                    plan.launch(stream, rank.as_ref(), inputs, o)
                })?;
                Ok((own, o))
            })?;
            for (own, o) in parts {
                for (row, o) in o.chunks_exact(2 * 64).enumerate() {
                    let at = (row / own.len() * 1111 + own.start + row % own.len()) * 2 * 64;
                    ensure!(one[at..at + 2 * 64] == *o, "{name}, {heads_q}/{heads_kv}: row {row} has other bits");
                }
            }
        }
    }
    Ok(())
}

/// A cache of these tokens of one sequence.
fn cache(k: &HostTensor, v: &HostTensor, own: &Range<usize>) -> Result<(HostCache, HostTables)> {
    let Shape { heads, head_dim, .. } = k.shape();
    let pages = own.len().div_ceil(128).max(1);
    let mut tables = HostTables::contiguous(1, pages);
    let mut cache = HostCache::alloc(CacheShape::new(pages, heads, head_dim)?)?;
    if !own.is_empty() {
        let slots = tables.extend(&[own.len()])?;
        let range = std::slice::from_ref(own);
        cache.append(&tokens(k, range), &tokens(v, range), &slots)?;
    }
    Ok((cache, tables))
}

/// Against the same over simulated ranks, within the bounds of each rank's decode and of the merge.
pub fn decode(on: &OnGpu) -> Result<()> {
    let problem = DecodeProblem { seqlen_q: 2, max_seqlen_kv: 3072, ..DecodeProblem::new(1, 8, 2, 3000, 128) };
    let shape = problem.q_shape();
    let of_kv = Shape { heads: 2, seqlen: 3000, ..shape };
    let tensor = |shape, seed| Values::LoudTokens.tensor(DType::F16, TensorLayout::bhnd(shape), seed);
    let (q, k, v) = (tensor(shape, 1)?, tensor(of_kv, 2)?, tensor(of_kv, 3)?);
    let largest = 1.02 * v.dense_f64().iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    for (name, ranks) in all_ranks(on)? {
        let count = ranks.len();
        let own = |rank: usize| {
            let start = |rank: usize| if rank == count { 3000 } else { 23 * rank / count * 128 };
            start(rank)..start(rank + 1)
        };
        let plan = RanksDecode { decode: problem, ranks: count };
        let on_cpu = |rank: Simulated| -> Result<_> {
            let (cache, tables) = cache(&k, &v, &own(rank.rank()))?;
            let (q, view) = (cache.quantize_q(&q)?, cache.sequences(&tables)?);
            let plan =
                RanksDecode { decode: DecodeProblem { max_seqlen_kv: tables.max_blocks * 128, ..problem }, ..plan };
            let (_, bounds) =
                decode_bounds(&plan.of_rank(rank.rank()), &q, &view, &DecodeHeads::default(), DType::F32)?;
            Ok((plan.on_cpu(&rank, &q, &view, None)?, bounds))
        };
        let on_cpu = &on_cpu;
        let want = std::thread::scope(|scope| {
            let threads: Vec<_> =
                Simulated::ranks(count).into_iter().map(|rank| scope.spawn(move || on_cpu(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
        })?;
        let gamma = (-16_f64).exp2() + count as f64 * (-23_f64).exp2();
        let one: &reference::Int8 = &want[0].0;
        let of_row = |row: usize| {
            let of_merge = gamma + (-21_f64).exp2() * (1.0 + one.lse[row].abs());
            want.iter().map(|(_, bounds)| bounds.lse[row]).sum::<f64>() + of_merge
        };
        let of_o = |at: usize| {
            let own: f64 = want.iter().map(|(_, bounds)| bounds.o[at]).sum();
            own + 2.0 * (gamma + of_row(at / 128)) * largest
        };
        let got = each(ranks, |gpu, rank| {
            let (cache, tables) = cache(&k, &v, &own(rank.rank()))?;
            let q = cache.quantize_q(&q)?;
            let bias = q.bias.clone().or_else(|| Some(vec![0.0; q.scale.len()]));
            let q = int_flash_attention::HostQ { bias, ..q }.to_device(gpu)?;
            let plan =
                RanksDecode { decode: DecodeProblem { max_seqlen_kv: tables.max_blocks * 128, ..problem }, ..plan };
            let output = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F32, lse: true };
            let mut plan = gpu.plan_decode_over_ranks(&plan, rank.as_ref(), &output)?;
            let (pages, table) = (gpu.upload(&cache.pool)?, gpu.upload(&tables.block_table)?);
            let lengths = gpu.upload(&tables.seqlens_kv)?;
            let view = ViewPagedKv {
                pages: pages.slice(),
                v4_pages: 0,
                block_table: table.slice(),
                table_stride: tables.max_blocks,
                seqlens_kv: lengths.slice(),
            };
            let (mut o, mut lse) = (gpu.alloc::<f32>(shape.elements())?, gpu.alloc::<f32>(shape.rows())?);
            let stream = gpu.stream()?;
            let result = DecodeResult { o: (&mut o).into(), lse: Some((&mut lse).into()) };
            plan.launch(&stream, rank.as_ref(), &q.view(), &view, None, result)?;
            Ok((o.to_vec_on(&stream)?, lse.to_vec_on(&stream)?))
        })?;
        let double = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let allowed: (Vec<f64>, Vec<f64>) =
            ((0..shape.elements()).map(of_o).collect(), (0..shape.rows()).map(of_row).collect());
        for (o, lse) in &got {
            ensure!(
                first_excess(&double(o), &one.o, &allowed.0).is_none(),
                "{name}: {:?}",
                first_excess(&double(o), &one.o, &allowed.0)
            );
            ensure!(first_excess(&double(lse), &one.lse, &allowed.1).is_none(), "{name}: the log-sum-exp");
            ensure!((o, lse) == (&got[0].0, &got[0].1), "{name}: ranks have other bits");
        }
    }
    Ok(())
}
