//! What an append is of.

use super::CacheShape;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, strided};
use crate::shape::{Shape, TensorLayout};
use int_flash_attention_kernels::params::AppendParams;
use int_flash_attention_kernels::quantize::append::work;

/// An append as numbers that do not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppendProblem {
    /// The cache.
    pub cache: CacheShape,
    /// Heads of the new tokens' queries, which are quantized as well; 0 where they are not.
    pub heads_q: usize,
    /// Most new tokens of a launch, those of all sequences together.
    pub max_tokens: usize,
    /// Element type of the new tokens.
    pub dtype: DType,
}

/// More would not be counted with the window that a CTA looks at.
const MAX_TOKENS: usize = (1 << 31) - 256;

impl AppendProblem {
    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// A wrong cache; no tokens, or too many; heads of Q that are no multiple of the cache's; more blocks than a grid has.
    pub fn check(&self) -> Result<()> {
        self.cache.check()?;
        if self.max_tokens == 0 {
            return Err(Error::ZeroSize { name: "max_tokens" });
        }
        if self.max_tokens > MAX_TOKENS {
            let way = "append them in several launches";
            return Err(Error::TooLarge { name: "max_tokens", given: self.max_tokens, max: MAX_TOKENS, way });
        }
        let heads_kv = self.cache.heads_kv;
        if !self.heads_q.is_multiple_of(heads_kv) {
            return Err(Error::HeadGroups { heads_q: self.heads_q, heads_kv });
        }
        // Launches of less than a page have other blocks.
        for tokens in [self.max_tokens, self.max_tokens.min(CacheShape::PAGE_TOKENS - 1)] {
            self.grid(tokens)?;
        }
        Ok(())
    }

    /// A launch's grid, block and shared memory.
    #[doc(hidden)]
    pub fn grid(&self, tokens: usize) -> Result<work::Shape> {
        let CacheShape { heads_kv, head_dim, .. } = self.cache;
        let heads_q = u32::try_from(self.heads_q).ok();
        heads_q
            .and_then(|heads_q| work::Shape::new(tokens as u32, heads_q, heads_kv as u32, head_dim, self.dtype.size()))
            .ok_or_else(|| Error::Grid { kernel: "append", shape: format!("{self:?}") })
    }

    /// Shape of `heads` heads of so many new tokens.
    fn new_shape(&self, heads: usize, tokens: usize) -> Shape {
        Shape { batch: 1, heads, seqlen: tokens, head_dim: self.cache.head_dim }
    }

    /// What the kernel is handed for new tokens in these places (of Q, where there is one, with the shape of its operand, K and V), all but the addresses.
    ///
    /// # Errors
    /// Shapes that do not go together; no tokens, or more than was said.
    #[doc(hidden)]
    pub fn params(
        &self,
        q: Option<(&TensorLayout, Shape)>,
        [k, v]: [&TensorLayout; 2],
        slot_bytes: usize,
    ) -> Result<AppendParams> {
        let CacheShape { pages, heads_kv, head_dim, .. } = self.cache;
        let v8_pages = self.cache.v8_pages() as u32;
        let tokens = k.shape().seqlen;
        if tokens == 0 {
            return Err(Error::ZeroSize { name: "the number of new tokens" });
        }
        if tokens > self.max_tokens {
            let way = "that many were said when the plan was made";
            return Err(Error::TooLarge { name: "the number of new tokens", given: tokens, max: self.max_tokens, way });
        }
        self.cache.check_new("k", k.shape(), tokens)?;
        self.cache.check_new("v", v.shape(), tokens)?;
        let mut params = AppendParams {
            k: strided(k),
            v: strided(v),
            tokens: tokens as u32,
            heads_kv: heads_kv as u32,
            head_dim: head_dim as u32,
            pages: pages as u32,
            v8_pages,
            slot_bytes: slot_bytes as u32,
            ..AppendParams::NONE
        };
        if let Some((q, out)) = q {
            AttentionProblem::check_shape("q", q.shape(), self.new_shape(self.heads_q, tokens))?;
            let seqlen = if out.seqlen == 0 { 1 } else { out.seqlen };
            // As many tokens, in whole sequences.
            let expected = Shape { batch: tokens / seqlen, ..self.new_shape(self.heads_q, seqlen) };
            if !tokens.is_multiple_of(seqlen) {
                let expected = format!("a number of tokens that divides the {tokens} new ones");
                return Err(Error::ShapeMismatch { name: "the quantized q", given: out.to_string(), expected });
            }
            AttentionProblem::check_shape("the quantized q", out, expected)?;
            params.q = strided(q);
            (params.heads_q, params.seqlen_q) = (self.heads_q as u32, seqlen as u32);
        }
        Ok(params)
    }
}
