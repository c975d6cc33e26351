//! What copies of pages come to on a GPU.

use super::CacheShape;
use int_flash_attention_kernels::params::{ConvertParams, PAIRS};
use std::ops::Range;

/// A step of a copy of pages.
#[doc(hidden)]
#[derive(Debug)]
pub enum PageCopy {
    /// Bytes of the pool to where others begin.
    Bytes(Range<usize>, usize),
    /// So many pairs of pages of unlike kinds: the parameter of `convert_pages`, all but the pool.
    Converted(ConvertParams, usize),
}

impl CacheShape {
    /// The steps that copy the pairs `(from, to)` one after the other; all are pages of the pool.
    #[doc(hidden)]
    #[must_use]
    pub fn page_copies(&self, pairs: &[(u32, u32)]) -> Vec<PageCopy> {
        let mut steps: Vec<PageCopy> = Vec::new();
        for &(from, to) in pairs.iter().filter(|(from, to)| from != to) {
            if self.is_v4(from) == self.is_v4(to) {
                steps.push(PageCopy::Bytes(self.page_range(from), self.page_range(to).start));
                continue;
            }
            // What one launch converts has no order.
            if let Some(PageCopy::Converted(params, count)) = steps.last_mut()
                && *count < PAIRS
                && params.pairs[..*count].iter().flatten().all(|&page| page != from && page != to)
            {
                params.pairs[*count] = [from, to];
                *count += 1;
                continue;
            }
            let mut params = ConvertParams {
                v8_pages: self.v8_pages() as u32,
                heads_kv: self.heads_kv as u32,
                head_dim: self.head_dim as u32,
                ..ConvertParams::NONE
            };
            params.pairs[0] = [from, to];
            steps.push(PageCopy::Converted(params, 1));
        }
        steps
    }
}
