//! A few new tokens of each sequence against a paged cache of K and V.

use crate::cache::{CacheShape, check_stride, check_v4_pages};
use crate::error::{Error, Result};
use crate::gpu::{DeviceSlice, DeviceSliceMut};
use crate::problem::{AttentionProblem, Scheme, Window, check_cache_head_dim, check_softcap};
use crate::quantized::{HostQ, Lengths, check_q};
use crate::reference;
use crate::shape::Shape;
use int_flash_attention_kernels::config::decode::{MAX_NEW_TOKENS, TILE_ROWS};
use int_flash_attention_kernels::layout::KV_BLOCK;
use int_flash_attention_kernels::layout::page::{MAX_PAGES, page_bytes, page_head_bytes_v4};
use std::hash::{Hash, Hasher};

mod params;

#[doc(hidden)]
pub use params::merged_params;

/// How the keys of a sequence are split over the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Split {
    /// Into equal shares of all work: the fastest. A sequence's float32 sums are in an order that depends on the lengths of all sequences.
    #[default]
    Even,
    /// Into pieces of so many keys, a multiple of 128: what comes out of a sequence has the same bits in every batch.
    Fixed(usize),
}

/// Attention of up to eight new tokens of each sequence on what a paged cache has of it, as numbers that do not change from step to step: the
/// lengths are on the device, and are at most `max_seqlen_kv`.
///
/// Query token `i` of `seqlen_q` stands beside key `i + length - seqlen_q`: the new tokens are the last of the sequence.
///
/// Problems can be keys of a cache of plans; scales and softcaps are the same there if their bits are.
#[derive(Clone, Copy, Debug)]
pub struct DecodeProblem {
    /// Sequences.
    pub batch: usize,
    /// Heads of Q and of the output.
    pub heads_q: usize,
    /// Heads of K and V.
    pub heads_kv: usize,
    /// New tokens of each sequence, 1 to [`MAX_NEW_TOKENS`](Self::MAX_NEW_TOKENS).
    pub seqlen_q: usize,
    /// The longest sequence, new tokens included; longer ones count as cut where its last block of 128 ends.
    pub max_seqlen_kv: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Which keys a query sees; causal unless it is changed.
    pub window: Window,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f32>,
    /// Scores become `softcap * tanh(score / softcap)`; from 2^-14 to 2^14.
    pub softcap: Option<f32>,
    /// Whether launches are given a slope a query head: `slope * distance` is taken off a score (ALiBi).
    pub alibi: bool,
    /// Whether launches are given a sink a query head: a logit, not multiplied by the scale, that takes part in the softmax and has no value.
    pub sinks: bool,
    /// How keys are split over the GPU.
    pub split: Split,
    /// How many of the pool's pages, the last ones, have V in 4 bits ([`CacheShape::v4_pages`]).
    pub v4_pages: usize,
}

impl PartialEq for DecodeProblem {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for DecodeProblem {}

impl Hash for DecodeProblem {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// What a paged cache has of one layer: `P` is an array of bytes, `T` one of `u32`.
#[derive(Clone, Copy, Debug)]
pub struct PagedKv<P, T> {
    /// The pool (`int_flash_attention_kernels::layout::page`), whole pages.
    pub pages: P,
    /// How many of them, the last ones, have V in 4 bits.
    pub v4_pages: usize,
    /// Page numbers, `[batch][table_stride]`; a number that is no page hides its keys.
    pub block_table: T,
    /// From one sequence to the next in the block table, at least `ceil(max_seqlen_kv / 128)`.
    pub table_stride: usize,
    /// Tokens of each sequence, `[batch]`.
    pub seqlens_kv: T,
}

/// A paged cache in a GPU's memory, to be read.
pub type ViewPagedKv<'a> = PagedKv<DeviceSlice<'a, u8>, DeviceSlice<'a, u32>>;
/// A paged cache in the host's memory.
pub type HostPagedKv<'a> = PagedKv<&'a [u8], &'a [u32]>;

/// What changes scores head by head: `F` is an array of `f32`, `[heads_q]`.
#[derive(Clone, Copy, Debug)]
pub struct DecodeHeads<F> {
    /// Where the problem says `alibi`.
    pub alibi_slopes: Option<F>,
    /// Where the problem says `sinks`.
    pub sinks: Option<F>,
}

impl<F> Default for DecodeHeads<F> {
    fn default() -> Self {
        Self { alibi_slopes: None, sinks: None }
    }
}

/// Where a GPU's decode leaves its results.
#[derive(Debug)]
pub struct DecodeResult<'a> {
    /// The output, in the plan's layout and type.
    pub o: crate::gpu::AnySliceMut<'a>,
    /// The log-sum-exp, `[batch][heads_q][seqlen_q]`, where the plan was made with it.
    pub lse: Option<DeviceSliceMut<'a, f32>>,
}

/// The most units of work that a kernel counts.
const MAX_UNITS: usize = 1 << 31;

impl DecodeProblem {
    /// The most new tokens of a sequence; attention takes more.
    pub const MAX_NEW_TOKENS: usize = MAX_NEW_TOKENS;

    /// All fields, comparable.
    fn key(&self) -> impl Eq + Hash {
        let Self { batch, heads_q, heads_kv, seqlen_q, max_seqlen_kv, head_dim, .. } = *self;
        let Self { window, softmax_scale, softcap, alibi, sinks, split, v4_pages, .. } = *self;
        let sizes = [batch, heads_q, heads_kv, seqlen_q, max_seqlen_kv, head_dim, v4_pages];
        (sizes, window, [softmax_scale, softcap].map(|factor| factor.map(f32::to_bits)), alibi, sinks, split)
    }

    /// A problem with the causal mask and the usual scale, of one new token unless it is changed; not checked yet.
    #[must_use]
    pub const fn new(batch: usize, heads_q: usize, heads_kv: usize, max_seqlen_kv: usize, head_dim: usize) -> Self {
        Self {
            batch,
            heads_q,
            heads_kv,
            seqlen_q: 1,
            max_seqlen_kv,
            head_dim,
            window: Window::CAUSAL,
            softmax_scale: None,
            softcap: None,
            alibi: false,
            sinks: false,
            split: Split::Even,
            v4_pages: 0,
        }
    }

    /// Shape of Q and of the output.
    #[must_use]
    pub const fn q_shape(&self) -> Shape {
        Shape { batch: self.batch, heads: self.heads_q, seqlen: self.seqlen_q, head_dim: self.head_dim }
    }

    /// The factor of the scores.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.of_length(self.max_seqlen_kv).scale()
    }

    /// Query heads of one key/value head.
    #[must_use]
    pub const fn group(&self) -> usize {
        self.of_length(self.max_seqlen_kv).group()
    }

    /// Blocks of 128 keys of the longest sequence.
    #[must_use]
    pub const fn max_blocks(&self) -> usize {
        self.max_seqlen_kv.div_ceil(KV_BLOCK)
    }

    /// The same for sequences that all have this length, which says what a row sees; without what only decode has.
    pub(crate) const fn of_length(&self, seqlen_kv: usize) -> AttentionProblem {
        let problem =
            AttentionProblem::new(self.batch, self.heads_q, self.heads_kv, self.seqlen_q, seqlen_kv, self.head_dim);
        AttentionProblem { softmax_scale: self.softmax_scale, window: self.window, ..problem }
    }

    /// Tiles of rows that share a head of K and V.
    pub(crate) const fn row_tiles(&self) -> usize {
        (self.group() * self.seqlen_q).div_ceil(TILE_ROWS)
    }

    /// Workers on a GPU that has so many at once: these, or one for each tile of rows of a sequence where tiles all but fill whole rounds. Then, as
    /// far as sequences are of one length, none is split, and there is nothing to merge. No more than there are blocks at most: one without any takes time too.
    pub(crate) fn workers(&self, at_once: usize) -> usize {
        let tiles = self.batch * self.heads_kv * self.row_tiles();
        let rounds = tiles.div_ceil(at_once.max(1));
        if matches!(self.split, Split::Even) && at_once > 0 && 16 * tiles >= 15 * rounds * at_once {
            tiles
        } else {
            at_once.min(tiles * self.max_blocks())
        }
    }

    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// A size of zero or past the limits; heads that do not divide; a head dim without a kernel; a scale, softcap or split that is none.
    pub fn check(&self) -> Result<()> {
        self.of_length(self.max_seqlen_kv).check_sizes()?;
        if self.seqlen_q > MAX_NEW_TOKENS {
            let way = "decode kernels have all rows of a group at once; take more tokens through attention";
            return Err(Error::TooLarge { name: "seqlen_q", given: self.seqlen_q, max: MAX_NEW_TOKENS, way });
        }
        check_cache_head_dim(self.head_dim)?;
        check_v4_pages(self.v4_pages, MAX_PAGES, self.head_dim)?;
        check_softcap(self.softcap)?;
        match self.split {
            Split::Fixed(given) if given == 0 || !given.is_multiple_of(KV_BLOCK) => {
                return Err(Error::SplitLength { given });
            }
            _ => {}
        }
        let units = [self.batch, self.heads_kv, self.row_tiles(), self.max_blocks()];
        match units.into_iter().try_fold(1_usize, usize::checked_mul) {
            Some(units) if units < MAX_UNITS => Ok(()),
            units => {
                let way = "these are sequences times heads times blocks of keys; make a plan for fewer sequences";
                let given = units.unwrap_or(usize::MAX);
                Err(Error::TooLarge { name: "the work of a decode", given, max: MAX_UNITS - 1, way })
            }
        }
    }

    /// Whether what a launch is given head by head is what the problem says.
    pub(crate) fn check_heads<F>(&self, heads: &DecodeHeads<F>) -> Result<()> {
        for (name, given, planned) in
            [("alibi_slopes", heads.alibi_slopes.is_some(), self.alibi), ("sinks", heads.sinks.is_some(), self.sinks)]
        {
            if given != planned {
                let given = if given { "given" } else { "not given" };
                return Err(Error::Optional { name, given, planned: if planned { "with" } else { "without" } });
            }
        }
        Ok(())
    }

    /// The cache that a pool of so many bytes is of, which has been checked.
    pub(crate) const fn cache_shape(&self, pool_bytes: usize) -> CacheShape {
        let Self { heads_kv, head_dim, v4_pages, .. } = *self;
        let shape = CacheShape { pages: v4_pages, v4_pages, heads_kv, head_dim };
        CacheShape { pages: v4_pages + (pool_bytes - shape.bytes()) / shape.page_bytes(), ..shape }
    }

    /// The pages of a pool of so many bytes, and whether it is of the problem's pages and the table has room for the longest sequence.
    pub(crate) fn check_pages(&self, pool_bytes: usize, v4_pages: usize, table_stride: usize) -> Result<usize> {
        if v4_pages != self.v4_pages {
            return Err(Error::V4Pages { given: v4_pages, planned: self.v4_pages });
        }
        let Self { heads_kv, head_dim, .. } = *self;
        let page = page_bytes(heads_kv, head_dim);
        let v4_bytes = v4_pages.checked_mul(heads_kv * page_head_bytes_v4(head_dim));
        let v8_bytes = v4_bytes.and_then(|v4_bytes| pool_bytes.checked_sub(v4_bytes));
        let pages = v8_bytes.filter(|bytes| bytes.is_multiple_of(page)).map(|bytes| bytes / page + v4_pages);
        let Some(pages) = pages.filter(|&pages| pages <= MAX_PAGES) else {
            return Err(Error::Pool { given: pool_bytes, page, max: MAX_PAGES });
        };
        if table_stride < self.max_blocks() {
            return Err(Error::Length {
                name: "a row of block_table",
                given: table_stride,
                expected: self.max_blocks(),
            });
        }
        check_stride(table_stride)?;
        Ok(pages)
    }

    /// Entries that a block table of this stride has to have.
    pub(crate) fn table_len(&self, table_stride: usize) -> usize {
        (self.batch - 1).saturating_mul(table_stride).saturating_add(self.max_blocks())
    }

    /// The output and the log-sum-exp on the CPU: the arithmetic of the kernels (docs/kernel-abi.md, "Decode").
    ///
    /// # Errors
    /// As [`check`](Self::check); arrays of wrong lengths; slopes or sinks that the problem does not have.
    pub fn on_cpu(&self, q: &HostQ, cache: &HostPagedKv<'_>, heads: &DecodeHeads<&[f32]>) -> Result<reference::Int8> {
        reference::decode(self, q, cache, heads)
    }

    /// Everything of a launch on the host that could be wrong.
    pub(crate) fn check_host(&self, q: &HostQ, cache: &HostPagedKv<'_>, heads: &DecodeHeads<&[f32]>) -> Result<()> {
        self.check()?;
        self.check_heads(heads)?;
        q.check()?;
        check_q(Scheme::Default, q)?;
        AttentionProblem::check_shape("q", q.shape, self.q_shape())?;
        self.check_pages(cache.pages.len(), cache.v4_pages, cache.table_stride)?;
        let at_least = |name, given, expected| {
            if given < expected { Err(Error::Length { name, given, expected }) } else { Ok(()) }
        };
        at_least("block_table", cache.block_table.len(), self.table_len(cache.table_stride))?;
        at_least("seqlens_kv", cache.seqlens_kv.len(), self.batch)?;
        for (name, array) in [("alibi_slopes", heads.alibi_slopes), ("sinks", heads.sinks)] {
            at_least(name, array.map_or(self.heads_q, <[f32]>::len), self.heads_q)?;
        }
        Ok(())
    }

    pub(crate) fn q_lengths(&self) -> Result<Lengths> {
        Lengths::of(self.q_shape())
    }
}

#[cfg(test)]
mod tests;
