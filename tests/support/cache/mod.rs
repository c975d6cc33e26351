//! A paged cache, whatever its kernels run on: against the reference bit for bit (`reference.rs`), and against a plain model of what sequences
//! hold (`model.rs`).

mod model;
mod reference;

pub use model::behaves_as_a_model;
pub use reference::{append_as_reference, copy_as_reference, gather_as_reference};

use crate::decode::any_range;
use crate::prefill::PrefillCase;
use crate::values::Noise;
use anyhow::{Context, Result};
use int_flash_attention::{CacheShape, HostCache, HostK, HostQ, HostTables, HostTensor, HostV, Shape, TensorLayout};
use int_flash_attention_kernels::layout::page::{page_head, page_v_offset};
use int_flash_attention_kernels::layout::v4::v4_steps_offset;
use std::collections::HashSet;

/// New tokens.
pub struct New<'a> {
    /// Queries, `[1, heads_q, tokens, head_dim]`, and how many of a sequence follow one another in the operand.
    pub q: Option<(&'a HostTensor, usize)>,
    /// Keys.
    pub k: &'a HostTensor,
    /// Values.
    pub v: &'a HostTensor,
    /// A slot each, any number.
    pub slots: &'a [i64],
    /// Whether the kernel is handed the slots as `i64`.
    pub wide: bool,
}

/// A cache that something keeps.
pub trait Cache {
    /// The cache as it is.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn host(&self) -> Result<HostCache>;

    /// Appends, and gives the quantized queries.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn append(&mut self, new: &New<'_>) -> Result<Option<HostQ>>;

    /// The first tokens of each sequence as operands.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)>;

    /// The output of a prefill on the cache, which is the case's, `[batch][head][token][dim]`.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn prefill(&self, case: &PrefillCase) -> Result<Vec<f64>>;

    /// Copies pages.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()>;

    /// Takes pages out.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn swap_out(&self, pages: &[u32]) -> Result<Vec<u8>>;

    /// Brings pages back.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn swap_in(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()>;
}

/// The CPU's.
impl Cache for HostCache {
    fn host(&self) -> Result<HostCache> {
        Ok(self.clone())
    }

    fn append(&mut self, new: &New<'_>) -> Result<Option<HostQ>> {
        let q = new.q.map(|(q, seqlen)| self.quantize_q(&in_sequences(q, seqlen)?).context("q")).transpose()?;
        Self::append(self, new.k, new.v, &in_pool(&self.shape, new.slots))?;
        Ok(q)
    }

    fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
        Ok(Self::gather(self, tables, seqlen_kv)?)
    }

    fn prefill(&self, case: &PrefillCase) -> Result<Vec<f64>> {
        let (cache, offsets) = (self.sequences(&case.tables)?, case.cu_seqlens_q.as_deref());
        Ok(case.problem.on_cpu(&case.q, offsets, &cache, &case.tensors())?.o)
    }

    fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        Ok(Self::copy_pages(self, pairs)?)
    }

    fn swap_out(&self, pages: &[u32]) -> Result<Vec<u8>> {
        let pages: std::result::Result<Vec<_>, _> = pages.iter().map(|&page| self.page(page)).collect();
        Ok(pages?.concat())
    }

    fn swap_in(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        for &page in pages {
            let (own, rest) = bytes.split_at(self.shape.page_range(page).len());
            self.page_mut(page)?.copy_from_slice(own);
            bytes = rest;
        }
        Ok(())
    }
}

/// What the kernels make of slots: those that the pool has.
fn in_pool(shape: &CacheShape, slots: &[i64]) -> Vec<i64> {
    let inside = |slot: i64| usize::try_from(slot).is_ok_and(|slot| slot < shape.slots());
    slots.iter().map(|&slot| if inside(slot) { slot } else { -1 }).collect()
}

/// Flat queries as those of sequences of so many.
fn in_sequences(q: &HostTensor, seqlen: usize) -> Result<HostTensor> {
    let Shape { heads, seqlen: tokens, head_dim, .. } = q.shape();
    let layout = TensorLayout::bhnd(Shape::new(tokens / seqlen, heads, seqlen, head_dim)?);
    Ok(HostTensor::from_fn(q.dtype(), layout, |b, h, n, d| q.get(0, h, b * seqlen + n, d))?)
}

/// A cache whose bytes are any, with what is taken out of K where that is asked for.
#[must_use]
pub fn any_cache(shape: CacheShape, offset: bool, seed: u64) -> HostCache {
    let mut cache = HostCache::alloc(shape).expect("a small cache");
    for (i, four) in cache.pool.chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&Noise::new(seed, [i, 1, 2, 3]).word().to_le_bytes());
    }
    for (page, head) in (shape.v8_pages()..shape.pages).flat_map(|page| (0..shape.heads_kv).map(move |h| (page, h))) {
        let at = page_head(page, head, shape.heads_kv, shape.head_dim, shape.v8_pages());
        let steps = at.offset + page_v_offset(shape.head_dim) + v4_steps_offset(shape.head_dim);
        for (i, range) in cache.pool[steps..at.offset + at.scales].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *range = any_range(Noise::new(seed, [i, page, head, 7]).word().into());
        }
    }
    let channel = |i| Noise::new(seed, [i, 4, 5, 6]).normal() * 0.3;
    cache.k_offset = offset.then(|| (0..shape.heads_kv * shape.head_dim).map(channel).collect());
    cache
}

/// Slots for so many tokens, none twice: runs of any length, some from the beginning of a page, and runs of none.
#[must_use]
pub fn any_slots(shape: &CacheShape, tokens: usize, noise: &mut Noise) -> Vec<i64> {
    let (mut slots, mut taken) = (Vec::new(), HashSet::new());
    while slots.len() < tokens {
        let run = 1 + noise.word() as usize % if noise.word().is_multiple_of(3) { 300 } else { 40 };
        let skip = noise.word().is_multiple_of(5);
        let mut first = noise.word() as usize % shape.slots();
        if noise.word().is_multiple_of(2) {
            first -= first % CacheShape::PAGE_TOKENS;
        }
        for slot in first..first + run {
            if slots.len() == tokens {
                break;
            }
            let free = slot < shape.slots() && !skip && taken.insert(slot);
            slots.push(if free { slot as i64 } else { -1 });
        }
    }
    slots
}
