//! Chunks of new tokens, of any lengths, against a paged cache of K and V.

use crate::decode::{DecodeProblem, HostPagedKv};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, ScoreMod, Sequences, Window, check_cache_head_dim};
use crate::quantized::HostQ;
use crate::reference;
use crate::scores::ScoreTensors;
use crate::shape::{Shape, TensorLayout};
use int_flash_attention_kernels::layout::kv_blocks;
use int_flash_attention_kernels::layout::page::{
    page_head_bytes, page_k_scale_offset, page_v_offset, page_v_scale_offset,
};
use int_flash_attention_kernels::params::{AttentionParams, BlockParams, SeqLens};

/// Attention of the last tokens of each sequence on what a paged cache has of it, those tokens included: chunks of prompts, prompts whose prefix others
/// have in the cache already, and single tokens among them. As [`DecodeProblem`], numbers that do not change from step to step: lengths and block tables
/// are on the device.
///
/// Query token `i` of `n` stands beside key `i + length - n`. A batch of up to eight new tokens of each sequence is faster as a decode.
///
/// ```
/// use int_flash_attention::{PrefillProblem, Window};
/// // up to 16 sequences of up to 32768 tokens, of which a launch attends with 2048 in all, up to 512 of a sequence
/// let problem = PrefillProblem::new(16, 32, 8, 512, 32768, 128).with_packed_queries(2048);
/// assert_eq!((problem.q_shape().batch, problem.q_shape().seqlen), (1, 2048));
/// assert_eq!(problem.attention.window, Window::CAUSAL);
/// problem.check()?;
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefillProblem {
    /// What is computed: heads, head dim, window, scale, what changes a score. `batch` sequences, which have at most `seqlen_q` new tokens and
    /// `seqlen_kv` in all. In the default scheme; [`sequences`](AttentionProblem::sequences) stays [`Sequences::Equal`], as lengths come with a launch.
    pub attention: AttentionProblem,
    /// How many query tokens all sequences together have room for, where they stand one behind the other; `None` where each has a batch of `seqlen_q`.
    pub packed_q: Option<usize>,
}

impl PrefillProblem {
    /// A problem with the causal mask and the usual scale, of `max_seqlen_q` new tokens of each sequence; not checked yet.
    #[must_use]
    pub const fn new(
        batch: usize,
        heads_q: usize,
        heads_kv: usize,
        max_seqlen_q: usize,
        max_seqlen_kv: usize,
        head_dim: usize,
    ) -> Self {
        let attention = AttentionProblem::new(batch, heads_q, heads_kv, max_seqlen_q, max_seqlen_kv, head_dim);
        Self { attention: attention.with_window(Window::CAUSAL), packed_q: None }
    }

    /// With queries of all sequences one behind the other, each with its own number of them: `total_q`, or room for so many.
    #[must_use]
    pub const fn with_packed_queries(self, total_q: usize) -> Self {
        Self { packed_q: Some(total_q), ..self }
    }

    /// With this window.
    #[must_use]
    pub const fn with_window(self, window: Window) -> Self {
        Self { attention: self.attention.with_window(window), ..self }
    }

    /// With this change of the scores.
    #[must_use]
    pub const fn with_score_mod(self, score_mod: ScoreMod) -> Self {
        Self { attention: self.attention.with_score_mod(score_mod), ..self }
    }

    /// Shape of Q and of the output: of one batch where queries are packed.
    #[must_use]
    pub const fn q_shape(&self) -> Shape {
        self.whole().q_shape()
    }

    /// Blocks of 128 keys of the longest sequence.
    #[must_use]
    pub const fn max_blocks(&self) -> usize {
        kv_blocks(self.attention.seqlen_kv)
    }

    /// The problem as the kernels take it, but for where keys and values are.
    pub(crate) const fn whole(&self) -> AttentionProblem {
        let sequences = match self.packed_q {
            // Nothing is packed so of K and V; no more than one has to fit.
            Some(total_q) => Sequences::Packed { total_q, total_kv: self.attention.seqlen_kv },
            None => Sequences::KeyLengths,
        };
        self.attention.with_sequences(sequences)
    }

    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// As [`AttentionProblem::check`]; another scheme than the default, a head dim that caches do not have, or lengths that are not left to launches.
    pub fn check(&self) -> Result<()> {
        let p = &self.attention;
        self.whole().check()?;
        check_cache_head_dim(p.head_dim)?;
        AttentionProblem::check_shape("v", p.v_shape(), p.kv_shape())?;
        if p.scheme != Scheme::Default {
            return Err(Error::OperandScheme { name: "the cache", given: Scheme::Default, planned: p.scheme });
        }
        p.check_equal()?;
        self.blocks().map(|_| ())
    }

    /// Blocks of all heads of all sequences, as many as 32 bits count.
    pub(crate) fn blocks(&self) -> Result<usize> {
        let AttentionProblem { batch, heads_kv, .. } = self.attention;
        let blocks = [batch, heads_kv, self.max_blocks()].into_iter().try_fold(1_usize, usize::checked_mul);
        let fits = |&blocks: &usize| u32::try_from(blocks).is_ok();
        let overflow = || Error::Overflow { what: "the blocks", shape: self.attention.kv_shape().to_string() };
        blocks.filter(fits).ok_or_else(overflow)
    }

    /// The pages of a pool of so many bytes, none of which has V in 4 bits, and whether the table has room for the longest sequence.
    pub(crate) fn check_pages(&self, pool_bytes: usize, v4_pages: usize, table_stride: usize) -> Result<usize> {
        let heads = self.attention.heads_kv;
        if v4_pages > 0 {
            return Err(Error::PrefillV4 { given: v4_pages });
        }
        let pages = self.decode().check_pages(pool_bytes, v4_pages, table_stride)?;
        if pages == 0 {
            return Err(Error::ZeroSize { name: "the number of pages" });
        }
        match pages.checked_mul(heads) {
            Some(all) if u32::try_from(all).is_ok() => Ok(pages),
            all => {
                let (name, way) = ("pages times heads_kv", "use several caches");
                let given = all.unwrap_or(usize::MAX);
                Err(Error::TooLarge { name, given, max: u32::MAX as usize, way })
            }
        }
    }

    /// Entries that a block table of this stride has to have.
    pub(crate) fn table_len(&self, table_stride: usize) -> usize {
        self.decode().table_len(table_stride)
    }

    /// The decode of the same cache, which has the same tables.
    const fn decode(&self) -> DecodeProblem {
        let AttentionProblem { batch, heads_q, heads_kv, seqlen_kv, head_dim, .. } = self.attention;
        DecodeProblem::new(batch, heads_q, heads_kv, seqlen_kv, head_dim)
    }

    /// What the attention kernels are handed for an output of this layout and type, a pool of so many pages and a block table of this stride, all but the
    /// addresses. For the launches of this crate and of its tests.
    #[doc(hidden)]
    #[must_use]
    pub fn params(&self, o: &TensorLayout, dtype: DType, pages: usize, table_stride: usize) -> AttentionParams {
        self.paged(self.whole().params(o, dtype), pages, table_stride)
    }

    /// The parameter of the [`whole`](Self::whole) with pages in place of operands.
    pub(crate) fn paged(&self, params: AttentionParams, pages: usize, table_stride: usize) -> AttentionParams {
        let head_bytes = page_head_bytes(self.attention.head_dim) as u32;
        AttentionParams {
            seqlens: SeqLens { total_kv: self.attention.seqlen_kv as u32, packed_kv: 0, ..params.seqlens },
            blocks: BlockParams {
                pages: pages as u32,
                table_stride: table_stride as u32,
                k_bytes: head_bytes,
                v_bytes: head_bytes,
                scale_bytes: head_bytes,
                ..BlockParams::NONE
            },
            ..params
        }
    }

    /// Where, behind the first byte of a pool, the first page has V, K's scales and V's.
    #[doc(hidden)]
    #[must_use]
    pub const fn page_parts(&self) -> [usize; 3] {
        let d = self.attention.head_dim;
        [page_v_offset(d), page_k_scale_offset(d), page_v_scale_offset(d)]
    }

    /// The output and the log-sum-exp on the CPU, of packed queries `[heads_q][total_q]`: the arithmetic of the kernels (docs/kernel-abi.md). `cu_seqlens_q` are
    /// the offsets of packed queries, one more than sequences.
    ///
    /// # Errors
    /// As [`check`](Self::check); arrays of wrong lengths; offsets where queries are not packed, or wrong ones; a sequence longer than the problem's, or with a
    /// page that the pool does not have: both name the sequence; tensors that the problem does not have.
    pub fn on_cpu(
        &self,
        q: &HostQ,
        cu_seqlens_q: Option<&[u32]>,
        cache: &HostPagedKv<'_>,
        scores: &ScoreTensors<'_>,
    ) -> Result<reference::Int8> {
        reference::prefill(self, q, cu_seqlens_q, cache, scores)
    }

    /// Whether offsets are given exactly where queries are packed.
    pub(crate) const fn check_offsets<T>(&self, cu_seqlens_q: Option<&T>) -> Result<()> {
        let name = "cu_seqlens_q";
        match (cu_seqlens_q, self.packed_q) {
            (Some(_), None) => Err(Error::Optional { name, given: "given", planned: "without" }),
            (None, Some(_)) => Err(Error::Optional { name, given: "not given", planned: "with" }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: PrefillProblem = PrefillProblem::new(3, 8, 2, 100, 1000, 128);

    #[test]
    fn problems_without_kernels_are_refused_in_sentences() {
        assert_eq!(GOOD.check(), Ok(()));
        assert_eq!(GOOD.with_packed_queries(150).check(), Ok(()));
        let of = |attention| PrefillProblem { attention, packed_q: None };
        for (problem, part) in [
            (GOOD.with_packed_queries(0), "the number of query tokens is 0"),
            (PrefillProblem::new(3, 7, 2, 100, 1000, 128), "7 query heads"),
            (PrefillProblem::new(3, 8, 2, 100, 1000, 80), "head_dim is 80"),
            (PrefillProblem::new(60000, 8, 2, 1, 1 << 30, 128), "the blocks"),
            (of(GOOD.attention.with_scheme(Scheme::Paper)), "the cache"),
            (of(GOOD.attention.with_head_dim_v(96)), "V's head_dim is 96"),
            (of(PrefillProblem::new(3, 8, 2, 100, 1000, 256).attention.with_head_dim_v(128)), "v has the shape"),
            (of(GOOD.attention.with_sequences(Sequences::KeyLengths)), "seqlens_kv"),
        ] {
            let error = problem.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn pools_and_tables_are_checked() {
        let page = 2 * page_head_bytes(128);
        assert_eq!(GOOD.check_pages(3 * page, 0, 8), Ok(3));
        assert_eq!(GOOD.check_pages(0, 0, 8), Err(Error::ZeroSize { name: "the number of pages" }));
        assert!(GOOD.check_pages(3 * page + 1, 0, 8).unwrap_err().to_string().contains("whole number of pages"));
        let v4 = GOOD.check_pages(3 * page, 1, 8).unwrap_err().to_string();
        assert!(v4.starts_with("1 pages of the cache have V in 4 bits") && v4.contains("gather"), "{v4}");
        assert!(GOOD.check_pages(3 * page, 0, 7).unwrap_err().to_string().contains("a row of block_table"));
    }

    /// The kernels' parameter goes on as if nothing of K and V were packed.
    #[test]
    fn keys_are_in_blocks_of_each_sequence() {
        let problem = GOOD.with_packed_queries(150);
        let params = problem.params(&TensorLayout::bhnd(problem.q_shape()), DType::F16, 5, 9);
        assert_eq!((params.seqlens.packed_q, params.seqlens.total_q), (1, 150));
        assert_eq!((params.seqlens.packed_kv, params.seqlens.kv_blocks(3)), (0, 8));
        assert_eq!((params.blocks.pages, params.blocks.table_stride), (5, 9));
    }
}
