//! A cache in the host's memory.

use super::{AppendCall, Attended, OnPages, PagedTables, Step};
use crate::call::{NAME, refused};
use crate::cpu::with;
use crate::host;
use candle_core::op::BackpropOp;
use candle_core::{DType as Type, Result, Storage, Tensor, bail};
use int_flash_attention::{
    AttentionProblem, CacheShape, DecodeHeads, HostCache, HostTables, Quantized, ScoreTensors, Scored, TensorLayout,
    reference,
};

pub fn set_k_offset(cache: &mut HostCache, offset: &Tensor) -> Result<()> {
    let values: Vec<f32> = host::values("the offset of K", offset)?;
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        bail!("{NAME}: the offset of K holds {} at element {at}; all of them have to be finite", values[at])
    }
    cache.k_offset = Some(values);
    Ok(())
}

pub fn append(cache: &mut HostCache, call: &AppendCall, k: &Tensor, v: &Tensor, slots: &Tensor) -> Result<()> {
    append_to(cache, call, k, v, &host_slots(slots)?)
}

fn append_to(cache: &mut HostCache, call: &AppendCall, k: &Tensor, v: &Tensor, slots: &[i64]) -> Result<()> {
    let layout = TensorLayout::bnhd(call.layouts[0].shape());
    let (k, v) = (host::tensor("k", k, layout)?, host::tensor("v", v, layout)?);
    cache.append(&k, &v, slots).map_err(refused)
}

fn host_slots(slots: &Tensor) -> Result<Vec<i64>> {
    Ok(match slots.dtype() {
        Type::I64 => host::values("slot_mapping", slots)?,
        _ => {
            let of = |slot: u32| if slot == u32::MAX { -1 } else { i64::from(slot) };
            host::values("slot_mapping", slots)?.into_iter().map(of).collect()
        }
    })
}

/// [`append`], then [`attend`]. Where the attention is refused, the pages are as they were.
pub fn append_and_attend(
    cache: &mut HostCache,
    call: &AppendCall,
    [q, k, v]: [&Tensor; 3],
    slots: &Tensor,
    step: &Step<'_>,
) -> Result<Tensor> {
    host_tables(cache, step.tables)?;
    let slots = host_slots(slots)?;
    cache.shape.check_slots(&slots).map_err(refused)?;
    let page = |&slot: &i64| Some((usize::try_from(slot).ok()? / CacheShape::PAGE_TOKENS) as u32);
    let mut pages: Vec<u32> = slots.iter().filter_map(page).collect();
    pages.sort_unstable();
    pages.dedup();
    let before = read_pages(cache, &pages)?;
    append_to(cache, call, k, v, &slots)?;
    let output = attend(cache, q, step);
    if output.is_err() {
        write_pages(cache, &pages, &before)?;
    }
    output
}

/// The output, in the shape of `q`.
pub fn attend(cache: &HostCache, q: &Tensor, step: &Step<'_>) -> Result<Tensor> {
    let Step { call, packed, tables, attention } = step;
    let tables = host_tables(cache, tables)?;
    let slopes = with("alibi_slopes", &attention.alibi_slopes)?;
    let sinks = with("sinks", &attention.sinks)?;
    let (slopes, sinks) = (slopes.as_deref(), sinks.as_deref());
    let queries = || cache.quantize_q(&host::tensor("q", q, call.o())?).map_err(refused);
    let results = match &call.attended {
        Attended::Pages(OnPages::Decode(problem)) => {
            let heads = DecodeHeads { alibi_slopes: slopes, sinks };
            let pages = cache.sequences(&tables).map_err(refused)?;
            problem.on_cpu(&queries()?, &pages, &heads).map_err(refused)?.o
        }
        Attended::Pages(OnPages::Prefill(problem)) => {
            let offsets: Option<Vec<u32>> =
                packed.map(|packed| host::values("seqlens_q", &packed.seqlens_q)).transpose()?;
            let pages = cache.sequences(&tables).map_err(refused)?;
            let tensors = ScoreTensors { alibi_slopes: slopes, sinks, ..ScoreTensors::default() };
            problem.on_cpu(&queries()?, offsets.as_deref(), &pages, &tensors).map_err(refused)?.o
        }
        Attended::Gathered(_, problem) => {
            let mut results = Vec::with_capacity(call.q.shape().elements());
            for sequence in 0..problem.batch {
                let q = q.narrow(0, sequence, 1)?;
                // Where sequences have slopes of their own, these begin with this one's.
                let slopes = slopes
                    .map(|all| if all.len() > problem.heads_q { &all[sequence * problem.heads_q..] } else { all });
                let tensors = ScoreTensors { alibi_slopes: slopes, sinks, ..ScoreTensors::default() };
                results.extend(gathered(cache, problem, &q, &of_one(&tables, sequence), tensors)?);
            }
            results
        }
    };
    let data = host::rounded(results, call.dtype, call.o())?;
    Ok(Tensor::from_storage(Storage::Cpu(host::storage(data)), q.shape(), BackpropOp::none(), false))
}

/// `[head][token][dim]` of the one sequence that `q` and the tables are of.
fn gathered(
    cache: &HostCache,
    problem: &AttentionProblem,
    q: &Tensor,
    tables: &HostTables,
    tensors: ScoreTensors<'_>,
) -> Result<Vec<f64>> {
    let keys = tables.seqlens_kv[0] as usize;
    let problem = problem.of_one(problem.seqlen_q, keys);
    if keys == 0 {
        return Ok(vec![0.0; problem.q_shape().elements()]);
    }
    let q = host::tensor("q", q, TensorLayout::bnhd(problem.q_shape()))?;
    let q = cache.quantize_q(&q).map_err(refused)?;
    let (k, v) = cache.gather(tables, keys).map_err(refused)?;
    let scored = Scored::new(&problem, tensors);
    Ok(reference::int8(scored, &Quantized { q, k, v }).map_err(refused)?.o)
}

/// Tables of pages that the cache has, and lengths that they have room for.
pub fn host_tables(cache: &HostCache, tables: &PagedTables) -> Result<HostTables> {
    let (batch, max_blocks) = tables.block_tables.dims2()?;
    let tables = HostTables {
        batch,
        max_blocks,
        block_table: host::values("block_tables", &tables.block_tables)?,
        seqlens_kv: host::values("context_lens", &tables.context_lens)?,
    };
    tables.check(&cache.shape).map_err(refused)?;
    Ok(tables)
}

/// Those of one sequence.
fn of_one(tables: &HostTables, sequence: usize) -> HostTables {
    HostTables {
        batch: 1,
        max_blocks: tables.max_blocks,
        block_table: tables.block_table[sequence * tables.max_blocks..][..tables.max_blocks].to_vec(),
        seqlens_kv: vec![tables.seqlens_kv[sequence]],
    }
}

pub fn read_pages(cache: &HostCache, pages: &[u32]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(cache.shape.bytes_of(pages));
    for &page in pages {
        bytes.extend_from_slice(cache.page(page).map_err(refused)?);
    }
    Ok(bytes)
}

/// `bytes` are those of so many pages.
pub fn write_pages(cache: &mut HostCache, pages: &[u32], bytes: &[u8]) -> Result<()> {
    for &page in pages {
        cache.page(page).map_err(refused)?;
    }
    let mut rest = bytes;
    for &page in pages {
        let (own, behind) = rest.split_at(cache.shape.page_range(page).len());
        cache.page_mut(page).map_err(refused)?.copy_from_slice(own);
        rest = behind;
    }
    Ok(())
}
