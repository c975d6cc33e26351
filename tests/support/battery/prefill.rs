//! Attention on pages, and the scales of their blocks.

use super::Check;
use crate::prefill::{CHANGES, LONGER, PrefillCase, PrefillKernels, SHORT, as_contiguous, case};
use crate::properties::Kernels;
use crate::sim::Simulator;
use anyhow::{Context, Result};
use int_flash_attention::{DType, HostQuantized, Scheme, Scored, TensorLayout};
use int_flash_attention_kernels::config::{AttentionVariant, Family, Kind};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use ptx_machine::Module;
use std::sync::Arc;

/// A run of a prefill, with the kernels that ship but for one.
pub struct PrefillCheck {
    case: PrefillCase,
    family: Family,
    shared_bytes: usize,
}

impl PrefillCheck {
    pub(super) fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let shipped = || Simulator::of(self.family, 2).with_shared_bytes(self.shared_bytes);
        let doubles = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (o, lse) = shipped().with_modules(name, modules).prefill(&self.case, DType::F32)?;
        let contiguous = shipped();
        let contiguous = |scored: &Scored<'_>, operands: &HostQuantized| {
            let layout = TensorLayout::bhnd(scored.problem.o_shape());
            let (o, lse) = contiguous.attention(scored, operands, &layout, DType::F32, true)?;
            Ok((o.dense_f64(), doubles(&lse.context("no log-sum-exp")?)))
        };
        let of = || format!("a prefill of head dim {}", self.case.problem.attention.head_dim);
        as_contiguous(&self.case, (&o.dense_f64(), &doubles(&lse)), contiguous, &[]).with_context(of)
    }
}

fn check(family: Family, shared_bytes: usize, case: PrefillCase) -> Check {
    Check::Prefill(Box::new(PrefillCheck { case, family, shared_bytes }))
}

/// Of `page_scales`: all head dims.
pub(super) fn of() -> Result<Vec<Check>> {
    let one = |(seed, head_dim): (usize, usize)| {
        let case = case(&SHORT, head_dim, true, CHANGES[0], seed as u64)?;
        Ok(check(Family::Sm80, crate::case::MOST_SHARED, case))
    };
    CACHE_HEAD_DIMS.into_iter().enumerate().map(one).collect()
}

/// Of a kernel that caches have: packed queries, on few blocks and on many.
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
    let lengths: &[&[(u32, u32)]] = if variant.kind == Kind::General { &[&SHORT] } else { &[&SHORT, &LONGER] };
    lengths.iter().copied().map(of).collect()
}
