//! The paged cache on a GPU.

use super::device::OnGpu;
use anyhow::{Context, Result, ensure};
use int_flash_attention::gpu::AnySlice;
use int_flash_attention::{
    AppendProblem, Appended, AttentionProblem, CacheShape, DType, DeviceCache, DeviceK, DeviceQ, DeviceV,
    GatherProblem, Gpu, HostCache, HostK, HostQ, HostTables, HostTensor, HostV, NewTokens, QuantizedQ, Scheme, SeqLens,
    Shape, Slots, TensorLayout,
};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_tests::cache::{Cache, New, any_cache, any_slots, append_as_reference, behaves_as_a_model};
use int_flash_attention_tests::case::Placement;
use int_flash_attention_tests::cases;
use int_flash_attention_tests::prefill::{PrefillCase, PrefillKernels};
use int_flash_attention_tests::values::{Noise, Values};

/// A cache in the GPU's memory.
struct OnDevice {
    gpu: Gpu,
    cache: DeviceCache,
}

impl OnDevice {
    fn new(gpu: &Gpu, cache: &HostCache) -> Result<Self> {
        Ok(Self { gpu: gpu.clone(), cache: cache.to_device(gpu)? })
    }
}

impl Cache for OnDevice {
    fn host(&self) -> Result<HostCache> {
        Ok(self.cache.to_host()?)
    }

    fn append(&mut self, new: &New<'_>) -> Result<Option<HostQ>> {
        let (gpu, tokens) = (&self.gpu, new.k.shape().seqlen);
        let heads_q = new.q.map_or(0, |(q, _)| q.shape().heads);
        // More than there are, now and then.
        let max_tokens = tokens + tokens % 3 * 50;
        let problem = AppendProblem { cache: self.cache.shape, heads_q, max_tokens, dtype: new.k.dtype() };
        let plan = gpu.plan_append(&problem)?;
        let upload = |x: &HostTensor| gpu.upload(x.bytes());
        let (k, v, q) = (upload(new.k)?, upload(new.v)?, new.q.map(|(q, _)| upload(q)).transpose()?);
        let wide = gpu.upload(new.slots)?;
        let narrow = gpu.upload(&new.slots.iter().map(|&slot| slot as u32).collect::<Vec<_>>())?;
        let placed =
            |x: &HostTensor, bytes| NewTokens { data: AnySlice::from_bytes(bytes, x.dtype()), layout: x.layout() };
        let mut out = match new.q {
            None => None,
            Some((q, seqlen)) => {
                let Shape { heads, head_dim, .. } = q.shape();
                let shape = Shape { batch: tokens / seqlen, heads, seqlen, head_dim };
                let rows = shape.rows();
                let (data, scale, bias) = (gpu.alloc(shape.elements())?, gpu.alloc(rows)?, Some(gpu.alloc(rows)?));
                Some(DeviceQ { shape, scheme: Scheme::Default, data, scale, bias })
            }
        };
        let appended = Appended {
            q: new.q.zip(q.as_ref()).map(|((x, _), q)| placed(x, q.slice())),
            k: placed(new.k, k.slice()),
            v: placed(new.v, v.slice()),
            slots: if new.wide { Slots::I64(wide.slice()) } else { Slots::U32(narrow.slice()) },
        };
        let stream = gpu.stream()?;
        let mut view = out.as_mut().map(QuantizedQ::view_mut);
        plan.launch(&stream, &appended, &mut self.cache.view_mut(), view.as_mut())?;
        stream.synchronize()?;
        Ok(out.map(|out| out.to_host()).transpose()?)
    }

    fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
        let (gpu, shape) = (&self.gpu, self.cache.shape);
        let plan = gpu.plan_gather(&GatherProblem { cache: shape, batch: tables.batch, seqlen_kv })?;
        let problem = AttentionProblem::new(tables.batch, shape.heads_kv, shape.heads_kv, 1, seqlen_kv, shape.head_dim);
        let (mut k, mut v) = (DeviceK::alloc(gpu, &problem)?, DeviceV::alloc(gpu, &problem)?);
        let tables = tables.to_device(gpu, &shape)?;
        let stream = gpu.stream()?;
        plan.launch(&stream, &self.cache.view(), &tables.view(), &mut k.view_mut(), &mut v.view_mut())?;
        stream.synchronize()?;
        Ok((k.to_host()?, v.to_host()?))
    }

    fn prefill(&self, case: &PrefillCase) -> Result<Vec<f64>> {
        let family = self.gpu.families()[0];
        let on = OnGpu { gpu: self.gpu.clone(), family, shared_bytes: None, ahead: 0, lengths: SeqLens::Equal };
        Ok(on.prefill(case, DType::F32)?.0.dense_f64())
    }

    fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        let stream = self.gpu.stream()?;
        self.gpu.copy_pages(&stream, &mut self.cache.view_mut(), pairs)?;
        Ok(stream.synchronize()?)
    }

    fn swap_out(&self, pages: &[u32]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cache.shape.bytes_of(pages)];
        self.gpu.pages_to_host(&self.gpu.stream()?, &self.cache.view(), pages, &mut bytes)?;
        Ok(bytes)
    }

    fn swap_in(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        Ok(self.gpu.pages_from_host(&self.gpu.stream()?, &mut self.cache.view_mut(), pages, bytes)?)
    }
}

/// Appends of any number of tokens to any slots, those of no page among them.
pub fn appends(on: &OnGpu) -> Result<()> {
    (0..u64::from(cases(120))).try_for_each(|seed| append(on, seed))
}

/// One of these.
pub fn append(on: &OnGpu, seed: u64) -> Result<()> {
    let mut noise = Noise::new(seed, [5; 4]);
    let mut any = |below: usize| noise.word() as usize % below;
    let (d, dtype) = (CACHE_HEAD_DIMS[any(CACHE_HEAD_DIMS.len())], [DType::F16, DType::BF16, DType::F32][any(3)]);
    let (heads_kv, group, seqlen) = (1 + any(4), 1 + any(4), 1 + any(5));
    let most = [20, 200, 400][any(3)];
    let tokens = seqlen * (1 + any(most));
    let values = Values::ALL[any(Values::ALL.len())];
    let placement = if any(2) == 0 { Placement::Bnhd } else { Placement::Padded { token: any(9), head: 1, batch: 0 } };
    let tensor = |heads: usize, i: u64| {
        let layout = placement.layout(Shape::new(1, heads, tokens, d)?)?;
        values.tensor(dtype, layout, 3 * seed + i)
    };
    let (q, k, v) = (tensor(heads_kv * group, 0)?, tensor(heads_kv, 1)?, tensor(heads_kv, 2)?);
    let shape = CacheShape::new(1 + any(20), heads_kv, d)?;
    let shape = shape.with_v4_pages(if [64, 128].contains(&d) { any(shape.pages + 1) } else { 0 })?;
    let (offset, wide, with_q) = (any(2) == 0, any(2) == 0, any(3) > 0);
    let mut slots = any_slots(&shape, tokens, &mut noise);
    for (i, slot) in slots.iter_mut().enumerate().filter(|(i, _)| i % 37 == 5) {
        // The slots that this leaves out stay free.
        *slot = if wide { [i64::MIN, -2, 1 << 40, shape.slots() as i64][i % 4] } else { shape.slots() as i64 + 3 };
    }
    let new = New { q: with_q.then_some((&q, seqlen)), k: &k, v: &v, slots: &slots, wide };
    append_as_reference(&mut OnDevice::new(&on.gpu, &any_cache(shape, offset, seed))?, &new)
        .with_context(|| format!("seed {seed}: {dtype} {d}, {tokens} tokens, {values:?}"))
}

/// Thousands of steps of an engine.
pub fn model(on: &OnGpu) -> Result<()> {
    for (seed, d) in [(0, 64), (1, 128), (2, 32)] {
        let cache = any_cache(CacheShape::new(24, 2, d)?, seed == 1, seed);
        behaves_as_a_model(&mut OnDevice::new(&on.gpu, &cache)?, seed, 10 * cases(100) as usize)?;
        if d != 32 {
            let cache = any_cache(cache.shape.with_v4_pages(14)?, seed == 0, seed);
            behaves_as_a_model(&mut OnDevice::new(&on.gpu, &cache)?, seed, 10 * cases(100) as usize)?;
        }
    }
    Ok(())
}

/// A few steps of an engine.
pub fn steps(on: &OnGpu, seed: u64) -> Result<()> {
    let d = [32, 64, 128][seed as usize % 3];
    let shape = CacheShape::new(24, 2, d)?.with_v4_pages(if d > 32 && seed.is_multiple_of(2) { 14 } else { 0 })?;
    behaves_as_a_model(&mut OnDevice::new(&on.gpu, &any_cache(shape, seed.is_multiple_of(5), seed))?, seed, 12)
}

/// What is recorded once serves steps with other slots, and what a launch is refused for.
pub fn graph(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    let shape = CacheShape::new(6, 2, 64)?;
    let layout = TensorLayout::bnhd(Shape::new(1, 2, 3, 64)?);
    let x = Values::Normal.tensor(DType::F16, layout, 1)?;
    let plan = gpu.plan_append(&AppendProblem { cache: shape, heads_q: 0, max_tokens: 3, dtype: DType::F16 })?;
    let mut cache = DeviceCache::alloc(gpu, shape)?;
    let (data, mut slots) = (gpu.upload(x.bytes())?, gpu.upload(&[0_i64, 1, 2])?);
    let tokens = |layout| NewTokens { data: AnySlice::from_bytes(data.slice(), DType::F16), layout };
    let stream = gpu.stream()?;
    let graph = {
        let new = Appended { q: None, k: tokens(layout), v: tokens(layout), slots: Slots::I64(slots.slice()) };
        gpu.capture(&stream, || plan.launch(&stream, &new, &mut cache.view_mut(), None))?
    };
    let mut want = HostCache::alloc(shape)?;
    for step in [[5, -1, 700], [128, 129, 130], [-1, -1, -1]] {
        slots.copy_from(&step)?;
        graph.launch(&stream)?;
        stream.synchronize()?;
        want.append(&x, &x, &step)?;
        ensure!(cache.to_host()?.pool == want.pool, "a replay with the slots {step:?}");
    }
    let wrong = TensorLayout::bnhd(Shape::new(1, 2, 4, 64)?);
    let new = Appended { q: None, k: tokens(wrong), v: tokens(wrong), slots: Slots::I64(slots.slice()) };
    ensure!(plan.launch(&stream, &new, &mut cache.view_mut(), None).is_err(), "more tokens than the plan's");
    let new = Appended { q: Some(tokens(layout)), k: tokens(layout), v: tokens(layout), ..new };
    ensure!(plan.launch(&stream, &new, &mut cache.view_mut(), None).is_err(), "queries that the plan has not");
    ensure!(gpu.copy_pages(&stream, &mut cache.view_mut(), &[(0, 6)]).is_err(), "a page that there is not");
    Ok(())
}

/// Two tokens of one slot: what it holds means nothing, and everything else is as it should be.
pub fn one_slot_twice(on: &OnGpu) -> Result<()> {
    let shape = CacheShape::new(3, 1, 64)?;
    for tokens in [5, 300] {
        let x = Values::Normal.tensor(DType::F16, TensorLayout::bnhd(Shape::new(1, 1, tokens, 64)?), 1)?;
        let mut slots: Vec<i64> = (0..tokens as i64).collect();
        (slots[3], slots[tokens - 1]) = (310, 310);
        let mut cache = OnDevice::new(&on.gpu, &any_cache(shape, false, 1))?;
        // Of two launches with the one and the other left out, the bytes that are the same are of other slots.
        let [mut one, mut other] = [any_cache(shape, false, 1), any_cache(shape, false, 2)];
        other.pool.copy_from_slice(&one.pool);
        for (want, left_out) in [(&mut one, 3), (&mut other, tokens - 1)] {
            let mut slots = slots.clone();
            slots[left_out] = -1;
            want.append(&x, &x, &slots)?;
        }
        Cache::append(&mut cache, &New { q: None, k: &x, v: &x, slots: &slots, wide: true })?;
        let got = cache.host()?.pool;
        let wrong = (0..got.len()).find(|&i| got[i] != one.pool[i] && got[i] != other.pool[i]);
        ensure!(wrong.is_none(), "byte {wrong:?}");
    }
    Ok(())
}
