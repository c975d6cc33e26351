//! A paged cache of K and V (docs/kernel-abi.md, "Paged cache"): pages of 128 tokens in one pool, which block tables make sequences of.
//!
//! ```
//! use int_flash_attention::{CacheShape, DType, HostCache, HostTables, HostTensor, Shape, TensorLayout};
//! // one layer: 6 pages of 128 tokens, 2 heads of 64 channels
//! let mut cache = HostCache::alloc(CacheShape::new(6, 2, 64)?)?;
//! // two sequences, with pages of their own
//! let mut tables = HostTables::contiguous(2, 3);
//! let slots = tables.extend(&[130, 1])?;
//! let new = TensorLayout::bnhd(Shape::new(1, 2, 131, 64)?); // tokens, heads, head_dim
//! let x = HostTensor::from_fn(DType::F16, new, |_, h, n, d| ((h + n * d) as f32).sin())?;
//! cache.append(&x, &x, &slots)?;
//! assert_eq!(tables.seqlens_kv, [130, 1]);
//! # Ok::<(), int_flash_attention::Error>(())
//! ```

use crate::decode::{HostPagedKv, PagedKv};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, check_cache_head_dim};
use crate::quantized::HostQ;
use crate::reference;
use crate::resources::zeroed;
use crate::shape::Shape;
use crate::tensor::HostTensor;
use int_flash_attention_kernels::layout::page::{
    CACHE_FORMAT, MAX_PAGES, OLDEST_CACHE_FORMAT, PAGE_TOKENS, V4_HEAD_DIMS, page_bytes, page_head_bytes,
    page_head_bytes_v4,
};
use std::ops::Range;

mod append;
mod copies;
mod gather;
mod page;
mod tables;

pub(crate) use page::HeadPlace;

pub use append::AppendProblem;
#[doc(hidden)]
pub use copies::PageCopy;
pub use gather::GatherProblem;
pub(crate) use gather::gather_sequence;
pub(crate) use tables::check_stride;
pub use tables::{HostTables, PageTables};

/// How the bytes of a pool's pages lie, and what they mean. Version 2; version 1, which had no pages with V in 4 bits, is read as well.
///
/// As of [`PackedFormat`](crate::PackedFormat): who keeps pages beyond a process stores [`version`](Self::version) with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheFormat(());

impl CacheFormat {
    /// What this version of the library reads and writes.
    pub const CURRENT: Self = Self(());

    /// The number to store.
    #[must_use]
    pub const fn version(self) -> u32 {
        CACHE_FORMAT
    }

    /// The format with a stored number.
    ///
    /// # Errors
    /// A version that this library does not read.
    pub const fn from_version(version: u32) -> Result<Self> {
        let known = OLDEST_CACHE_FORMAT <= version && version <= CACHE_FORMAT;
        if known { Ok(Self::CURRENT) } else { Err(Error::CacheFormat { given: version }) }
    }
}

/// The sizes of a cache of one layer. Of sizes that [`new`](Self::new) refuses, numbers of bytes end at `usize::MAX`.
///
/// Pages have K and V in 8 bits, or K in 8 and V in 4, which is a fifth less memory and a coarser V. Which it is follows from a page's number, so a block
/// table may mix them, and [`copy_pages`](KvCache::copy_pages) from one kind to the other converts. What a model looks at most, a sequence's first page and its
/// last ones, is worth 8 bits; README.md has the errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheShape {
    /// Pages of 128 tokens, all of them.
    pub pages: usize,
    /// How many of them, the last ones, have V in 4 bits.
    pub v4_pages: usize,
    /// Heads of K and V.
    pub heads_kv: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl CacheShape {
    /// Tokens of a page.
    pub const PAGE_TOKENS: usize = PAGE_TOKENS;

    /// Checked sizes.
    ///
    /// # Errors
    /// A size of zero, more than 2^25 - 1 pages, more bytes than 63 bits hold, or a head dim without kernels.
    pub fn new(pages: usize, heads_kv: usize, head_dim: usize) -> Result<Self> {
        let shape = Self { pages, v4_pages: 0, heads_kv, head_dim };
        shape.check()?;
        Ok(shape)
    }

    /// The same with V in 4 bits in the last `v4_pages` of the pages.
    ///
    /// # Errors
    /// More than there are pages, or a head dim that such pages do not have.
    pub fn with_v4_pages(self, v4_pages: usize) -> Result<Self> {
        let shape = Self { v4_pages, ..self };
        shape.check()?;
        Ok(shape)
    }

    /// Whether [`new`](Self::new) would have made it: the sizes are public.
    pub(crate) fn check(&self) -> Result<()> {
        for (name, size) in [("the number of pages", self.pages), ("heads_kv", self.heads_kv)] {
            if size == 0 {
                return Err(Error::ZeroSize { name });
            }
        }
        check_cache_head_dim(self.head_dim)?;
        if self.pages > MAX_PAGES {
            let way = "a slot is a number of 32 bits; use several caches";
            return Err(Error::TooLarge { name: "the number of pages", given: self.pages, max: MAX_PAGES, way });
        }
        let way = "give each GPU its part of the heads";
        let max = u32::MAX as usize >> 8;
        if self.heads_kv > max {
            return Err(Error::TooLarge { name: "heads_kv", given: self.heads_kv, max, way });
        }
        check_v4_pages(self.v4_pages, self.pages, self.head_dim)?;
        match page_bytes(self.heads_kv, self.head_dim).checked_mul(self.pages) {
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(()),
            _ => Err(Error::Overflow { what: "the bytes", shape: format!("{self:?}") }),
        }
    }

    /// Bytes of a page with V in 8 bits.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.heads_kv.saturating_mul(page_head_bytes(self.any_head_dim()))
    }

    /// Bytes of a page with V in 4 bits.
    #[must_use]
    pub const fn v4_page_bytes(&self) -> usize {
        self.heads_kv.saturating_mul(page_head_bytes_v4(self.any_head_dim()))
    }

    /// The head dim, or one of which no bytes overflow where it is larger than any: the sizes are public.
    const fn any_head_dim(&self) -> usize {
        const MOST: usize = u32::MAX as usize;
        if self.head_dim < MOST { self.head_dim } else { MOST }
    }

    /// Pages with V in 8 bits, the first ones.
    #[must_use]
    pub const fn v8_pages(&self) -> usize {
        self.pages.saturating_sub(self.v4_pages)
    }

    /// Whether a page has V in 4 bits.
    #[must_use]
    pub const fn is_v4(&self, page: u32) -> bool {
        page as usize >= self.v8_pages()
    }

    /// Where in the pool the bytes of one of its pages are.
    #[must_use]
    pub const fn page_range(&self, page: u32) -> Range<usize> {
        let v8 = self.v8_pages();
        let (page, bytes) = (page as usize, self.page_bytes());
        if page < v8 {
            return page.saturating_mul(bytes)..(page + 1).saturating_mul(bytes);
        }
        let (v8_bytes, bytes) = (v8.saturating_mul(bytes), self.v4_page_bytes());
        let first = v8_bytes.saturating_add((page - v8).saturating_mul(bytes));
        first..first.saturating_add(bytes)
    }

    /// Bytes of these pages, one behind the other.
    #[must_use]
    pub fn bytes_of(&self, pages: &[u32]) -> usize {
        let of_page = |&page: &u32| if self.is_v4(page) { self.v4_page_bytes() } else { self.page_bytes() };
        pages.iter().map(of_page).fold(0, usize::saturating_add)
    }

    /// Bytes of the pool.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        let v4_bytes = self.v4_pages.saturating_mul(self.v4_page_bytes());
        self.v8_pages().saturating_mul(self.page_bytes()).saturating_add(v4_bytes)
    }

    /// Tokens that the pool holds.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.pages.saturating_mul(PAGE_TOKENS)
    }

    /// Whether slots can be written at once: each in the pool, or -1 for a token that is left out, and none twice.
    ///
    /// # Errors
    /// [`Error::Slot`] or [`Error::SlotTwice`], with the token.
    pub fn check_slots(&self, slots: &[i64]) -> Result<()> {
        let mut taken: Vec<(i64, usize)> = Vec::with_capacity(slots.len());
        for (token, &given) in slots.iter().enumerate().filter(|&(_, &slot)| slot != -1) {
            if !usize::try_from(given).is_ok_and(|slot| slot < self.slots()) {
                return Err(Error::Slot { token, given, slots: self.slots() });
            }
            taken.push((given, token));
        }
        taken.sort_unstable();
        match taken.windows(2).find(|two| two[0].0 == two[1].0) {
            Some(two) => Err(Error::SlotTwice { slot: two[0].0, first: two[0].1, second: two[1].1 }),
            None => Ok(()),
        }
    }

    /// Whether a tensor has one sequence of new tokens of K or V, as many as there are slots.
    pub(crate) fn check_new(&self, name: &'static str, given: Shape, tokens: usize) -> Result<()> {
        let expected = Shape { batch: 1, heads: self.heads_kv, seqlen: tokens, head_dim: self.head_dim };
        AttentionProblem::check_shape(name, given, expected)
    }

    /// Whether pages are of the pool.
    pub(crate) fn check_pages(&self, what: &'static str, pages: impl IntoIterator<Item = u32>) -> Result<()> {
        match pages.into_iter().find(|&page| page as usize >= self.pages) {
            Some(given) => Err(Error::NoPage { what: what.into(), given, pages: self.pages }),
            None => Ok(()),
        }
    }
}

/// Whether the last `v4_pages` of so many pages can have V in 4 bits.
pub(crate) fn check_v4_pages(v4_pages: usize, pages: usize, head_dim: usize) -> Result<()> {
    if v4_pages > pages {
        let way = "they are the last of the cache's pages, all of them at most";
        return Err(Error::TooLarge { name: "the number of pages with V in 4 bits", given: v4_pages, max: pages, way });
    }
    if v4_pages > 0 && !V4_HEAD_DIMS.contains(&head_dim) {
        return Err(Error::V4HeadDim { given: head_dim, allowed: V4_HEAD_DIMS.to_vec() });
    }
    Ok(())
}

/// A cache of one layer: `P` is an array of bytes, `F` one of `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct KvCache<P, F> {
    /// The sizes.
    pub shape: CacheShape,
    /// How the pages lie.
    pub format: CacheFormat,
    /// The pool, [`CacheShape::bytes`], from an address that is a multiple of 16.
    pub pool: P,
    /// What is taken out of every token of a head of K, `[heads_kv][head_dim]`: a constant, which must not change while tokens are in use that
    /// were written with it. `None` takes nothing out.
    pub k_offset: Option<F>,
}

/// A cache in the host's memory, for the CPU.
pub type HostCache = KvCache<Vec<u8>, Vec<f32>>;

impl HostCache {
    /// An empty cache.
    ///
    /// # Errors
    /// Wrong sizes, or memory that the system does not give.
    pub fn alloc(shape: CacheShape) -> Result<Self> {
        shape.check()?;
        let mut pool = Vec::new();
        let bytes = shape.bytes();
        pool.try_reserve_exact(bytes).map_err(|_| Error::Memory { what: "a cache", bytes })?;
        pool.resize(bytes, 0);
        Ok(Self { shape, format: CacheFormat::CURRENT, pool, k_offset: None })
    }

    /// Whether both arrays have the lengths that the shape asks.
    ///
    /// # Errors
    /// Wrong sizes or lengths.
    pub fn check(&self) -> Result<()> {
        self.shape.check()?;
        crate::quantized::check_len("the pool", self.pool.len(), self.shape.bytes())?;
        let channels = self.shape.heads_kv * self.shape.head_dim;
        let offset = self.k_offset.as_ref().map_or(channels, Vec::len);
        crate::quantized::check_len("k_offset", offset, channels)
    }

    /// Quantizes new tokens to their slots: `k` and `v` are `[1, heads_kv, tokens, head_dim]` in any layout, token `i` goes to slot `slots[i]`,
    /// `128 * page + place in the page`, or nowhere where that is -1.
    ///
    /// # Errors
    /// Arrays or tensors of other shapes; a slot that is not in the pool, or of two tokens. The cache is as it was then.
    pub fn append(&mut self, k: &HostTensor, v: &HostTensor, slots: &[i64]) -> Result<()> {
        self.check()?;
        let tokens = k.shape().seqlen;
        self.shape.check_new("k", k.shape(), tokens)?;
        self.shape.check_new("v", v.shape(), tokens)?;
        if slots.len() != tokens {
            return Err(Error::Length { name: "slots", given: slots.len(), expected: tokens });
        }
        if v.dtype() != k.dtype() {
            return Err(Error::DTypeMismatch { name: "v", given: v.dtype(), expected: k.dtype() });
        }
        self.shape.check_slots(slots)?;
        reference::append(self, k, v, slots);
        Ok(())
    }

    /// Quantizes queries for attention on this cache, `[batch, heads_q, tokens, head_dim]`.
    ///
    /// # Errors
    /// Heads that are no multiple of the cache's, or another head dim.
    pub fn quantize_q(&self, q: &HostTensor) -> Result<HostQ> {
        self.check()?;
        let Shape { batch, heads, head_dim, .. } = q.shape();
        let CacheShape { heads_kv, .. } = self.shape;
        if !heads.is_multiple_of(heads_kv) {
            return Err(Error::HeadGroups { heads_q: heads, heads_kv });
        }
        AttentionProblem::check_shape("q", q.shape(), Shape { head_dim: self.shape.head_dim, ..q.shape() })?;
        let channels = heads_kv * head_dim;
        let mut offset = zeroed("the offset of K", batch.saturating_mul(channels))?;
        if let Some(one) = &self.k_offset {
            offset.chunks_exact_mut(channels).for_each(|of_sequence| of_sequence.copy_from_slice(one));
        }
        reference::quantize_q(Scheme::Default, q, Some(&offset))
    }

    /// Copies pages, the pairs `(from, to)` one after the other. From a page with V in 8 bits to one with 4, V is rounded; back to one with 8, nothing is
    /// lost any more.
    ///
    /// # Errors
    /// A page that is not of the pool; nothing is copied then.
    pub fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        self.check()?;
        self.shape.check_pages("a copy of pages", pairs.iter().flat_map(|&(from, to)| [from, to]))?;
        for &(from, to) in pairs {
            if self.shape.is_v4(from) == self.shape.is_v4(to) {
                self.pool.copy_within(self.shape.page_range(from), self.shape.page_range(to).start);
                continue;
            }
            for head in 0..self.shape.heads_kv {
                let places = [from, to].map(|page| HeadPlace::new(&self.shape, page as usize, head));
                page::convert(&self.shape, &mut self.pool, places);
            }
        }
        Ok(())
    }

    /// The bytes of a page, to be kept elsewhere.
    ///
    /// # Errors
    /// A page that is not of the pool.
    pub fn page(&self, page: u32) -> Result<&[u8]> {
        self.check()?;
        self.shape.check_pages("a read of a page", [page])?;
        Ok(&self.pool[self.shape.page_range(page)])
    }

    /// The bytes of a page, to be brought back.
    ///
    /// # Errors
    /// A page that is not of the pool.
    pub fn page_mut(&mut self, page: u32) -> Result<&mut [u8]> {
        self.check()?;
        self.shape.check_pages("a write of a page", [page])?;
        Ok(&mut self.pool[self.shape.page_range(page)])
    }

    /// The sequences that tables make of it, for [`DecodeProblem::on_cpu`](crate::DecodeProblem::on_cpu).
    ///
    /// # Errors
    /// As [`HostTables::check`].
    pub fn sequences<'a>(&'a self, tables: &'a HostTables) -> Result<HostPagedKv<'a>> {
        self.check()?;
        tables.check(&self.shape)?;
        Ok(PagedKv {
            pages: &self.pool,
            v4_pages: self.shape.v4_pages,
            block_table: &tables.block_table,
            table_stride: tables.max_blocks,
            seqlens_kv: &tables.seqlens_kv,
        })
    }
}

#[cfg(test)]
mod tests;
