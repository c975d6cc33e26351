//! Attention on pages, and the scales of their blocks.

use super::Check;
use crate::prefill::{CHANGES, LONGER, PrefillCase, PrefillKernels, SHORT, as_contiguous, case};
use crate::properties::Kernels;
use crate::sim::{Places, Simulator};
use anyhow::{Context, Result};
use int_flash_attention::{CacheShape, DType, HostQuantized, Scheme, ScoreMod, Scored, TensorLayout, Window};
use int_flash_attention_kernels::config::{AttentionVariant, Family, Kind};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use ptx_machine::Module;
use std::sync::Arc;

/// A run of a prefill, with the kernels that ship but for one.
pub struct PrefillCheck {
    case: PrefillCase,
    /// The same without the blocks that are no pages, where there are such.
    without: Option<PrefillCase>,
    family: Family,
    shared_bytes: usize,
    places: Places,
}

impl PrefillCheck {
    pub(super) fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let shipped = || Simulator::of(self.family, 2).with_shared_bytes(self.shared_bytes);
        let on_pages = shipped().with_places(self.places).with_modules(name, modules);
        let doubles = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (o, lse) = on_pages.prefill(&self.case, DType::F32)?;
        let contiguous = shipped();
        let contiguous = |scored: &Scored<'_>, operands: &HostQuantized| {
            let layout = TensorLayout::bhnd(scored.problem.o_shape());
            let (o, lse) = contiguous.attention(scored, operands, &layout, DType::F32, true)?;
            Ok((o.dense_f64(), doubles(&lse.context("no log-sum-exp")?)))
        };
        let of = || format!("a prefill of head dim {}", self.case.problem.attention.head_dim);
        as_contiguous(self.without.as_ref().unwrap_or(&self.case), (&o.dense_f64(), &doubles(&lse)), contiguous, &[])
            .with_context(of)
    }
}

fn check(family: Family, shared_bytes: usize, case: PrefillCase) -> Check {
    Check::Prefill(Box::new(PrefillCheck { case, without: None, family, shared_bytes, places: Places::Usual }))
}

/// What lies more than 32 bits behind where it begins: pages, rows of their table, the scales of blocks, of which all sequences would have so many if they
/// were as long as they may be, and the output. Of two sequences an entry is no page, which is as if the block were not there.
fn far(family: Family, shared_bytes: usize, head_dim: usize, change: (ScoreMod, Window)) -> Result<Check> {
    const EMPTY: usize = 36;
    let lengths: Vec<_> = [(0, 0); EMPTY].into_iter().chain(SHORT).chain([(700, 5)]).collect();
    let mut case = PrefillCase { ahead: 1 << 19, ..case(&lengths, head_dim, true, change, 1)? };
    let (mut without, row) = (case.clone(), case.tables.max_blocks);
    for (sequence, block) in [(EMPTY, 0), (EMPTY + SHORT.len(), 3)] {
        let entry = sequence * row + block;
        case.tables.block_table[entry] = u32::MAX;
        without.tables.block_table.copy_within(entry + 1..(sequence + 1) * row, entry);
        without.tables.seqlens_kv[sequence] -= CacheShape::PAGE_TOKENS as u32;
    }
    let check = PrefillCheck { case, without: Some(without), family, shared_bytes, places: Places::AllFar };
    Ok(Check::Prefill(Box::new(check)))
}

/// Of `page_scales`: all head dims, one of them far.
pub(super) fn of() -> Result<Vec<Check>> {
    let (family, shared_bytes) = (Family::Sm80, crate::case::MOST_SHARED);
    let one = |(seed, head_dim): (usize, usize)| {
        let case = case(&SHORT, head_dim, true, CHANGES[0], seed as u64)?;
        Ok(check(family, shared_bytes, case))
    };
    let far = far(family, shared_bytes, CACHE_HEAD_DIMS[0], CHANGES[0]);
    CACHE_HEAD_DIMS.into_iter().enumerate().map(one).chain([far]).collect()
}

/// Of a kernel that caches have: packed queries, on few blocks and on many, and far.
pub(super) fn of_attention(variant: &AttentionVariant) -> Vec<Result<Check>> {
    let cached = CACHE_HEAD_DIMS.contains(&variant.head_dim) && variant.head_dim == variant.head_dim_v;
    if variant.scheme != Scheme::Default || !cached {
        return Vec::new();
    }
    let change = if variant.kind == Kind::General { CHANGES[3] } else { CHANGES[0] };
    let shared_bytes = variant.from_kib() << 10;
    let of = |lengths| {
        let case = case(lengths, variant.head_dim, true, change, 0);
        case.map(|case| check(variant.family, shared_bytes, case))
    };
    let far = far(variant.family, shared_bytes, variant.head_dim, change);
    let lengths: &[&[(u32, u32)]] = if variant.kind == Kind::General { &[&SHORT] } else { &[&SHORT, &LONGER] };
    lengths.iter().copied().map(of).chain([far]).collect()
}
