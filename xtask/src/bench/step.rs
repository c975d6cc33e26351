//! `cargo xtask bench --decode step`: a token of each sequence appended to the cache and attended to from there, as one graph of such steps, beside
//! graphs of the one and of the other.

use super::decode::{Caches, Case, graph_us};
use super::timing::Spread;
use anyhow::Result;
use half::f16;
use int_flash_attention::{
    AppendPlan, AppendProblem, Appended, CacheFormat, CacheShape, DType, DeviceBuffer, Gpu, KvCache, NewTokens, Shape,
    Slots, StreamRef, TensorLayout,
};

/// What an append of the sequences' last tokens needs.
struct Append {
    plan: AppendPlan,
    shape: CacheShape,
    slots: Vec<DeviceBuffer<i64>>,
    q: (DeviceBuffer<f16>, TensorLayout),
    kv: (DeviceBuffer<f16>, TensorLayout),
}

fn tokens((data, layout): &(DeviceBuffer<f16>, TensorLayout)) -> NewTokens<'_> {
    NewTokens { data: data.slice().into(), layout: *layout }
}

impl Append {
    fn new(gpu: &Gpu, caches: &Caches) -> Result<Self> {
        let p = &caches.problem;
        let blocks = p.max_blocks();
        let shape = CacheShape::new(caches.copies * p.batch * blocks, p.heads_kv, p.head_dim)?;
        let place = (p.max_seqlen_kv - 1) % CacheShape::PAGE_TOKENS;
        let slots = |copy: usize| -> Vec<i64> {
            let table = caches.table(copy);
            let page = |sequence: usize| table[(sequence + 1) * blocks - 1] as usize;
            (0..p.batch).map(|sequence| (page(sequence) * CacheShape::PAGE_TOKENS + place) as i64).collect()
        };
        let tensor = |heads: usize| -> Result<(DeviceBuffer<f16>, TensorLayout)> {
            let layout = TensorLayout::bnhd(Shape::new(1, heads, p.batch, p.head_dim)?);
            let noise = |i: usize| f16::from_f32((i as f32 * 0.37).sin());
            Ok((gpu.upload(&(0..layout.span()).map(noise).collect::<Vec<_>>())?, layout))
        };
        let problem = AppendProblem { cache: shape, heads_q: p.heads_q, max_tokens: p.batch, dtype: DType::F16 };
        Ok(Self {
            plan: gpu.plan_append(&problem)?,
            shape,
            slots: (0..caches.copies).map(|copy| gpu.upload(&slots(copy))).collect::<Result<_, _>>()?,
            q: tensor(p.heads_q)?,
            kv: tensor(p.heads_kv)?,
        })
    }

    fn step(&self, caches: &mut Caches, copy: usize, stream: StreamRef<'_>) -> int_flash_attention::Result<()> {
        let new = Appended {
            q: Some(tokens(&self.q)),
            k: tokens(&self.kv),
            v: tokens(&self.kv),
            slots: Slots::I64(self.slots[copy % self.slots.len()].slice()),
        };
        let mut cache =
            KvCache { shape: self.shape, format: CacheFormat::CURRENT, pool: caches.pages.slice_mut(), k_offset: None };
        self.plan.launch(stream, &new, &mut cache, Some(&mut caches.q.view_mut()))
    }
}

/// Microseconds of a step, and those over the sum of an append's and a decode's.
pub(super) fn measure(gpu: &Gpu, case: &Case, workers: Option<(usize, usize)>) -> Result<(Spread, f64)> {
    let mut caches = Caches::new(gpu, case, workers)?;
    let append = Append::new(gpu, &caches)?;
    let decodes = graph_us(gpu, |step, stream| caches.step(step, stream))?;
    let appends = graph_us(gpu, |step, stream| append.step(&mut caches, step, stream))?;
    let both = graph_us(gpu, |step, stream| {
        append.step(&mut caches, step, stream)?;
        caches.step(step, stream)
    })?;
    Ok((both, both.median / (appends.median + decodes.median)))
}
