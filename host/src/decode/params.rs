//! What the kernels are handed for a problem.

use super::{DecodeProblem, Split};
use crate::dtype::DType;
use crate::problem::window_params;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::layout::KV_BLOCK;
use int_flash_attention_kernels::params::{DecodeParams, Global, MergedParams, SplitParams, Strided};

impl DecodeProblem {
    /// How the work is dealt out to so many workers, all but the address of the lengths. For the launches of this crate and of its tests.
    #[doc(hidden)]
    #[must_use]
    pub fn split_params(&self, workers: usize, min_blocks: usize) -> SplitParams {
        // Of lengths that are beyond the longest, too, up to where they are cut.
        let longest = self.max_blocks() * KV_BLOCK;
        let (window_left, window_right) = window_params(self.window.of_lengths(self.seqlen_q, longest));
        let (split_blocks, max_splits) = match self.split {
            Split::Even => (0, 0),
            Split::Fixed(keys) => {
                let blocks = (keys / KV_BLOCK).min(self.max_blocks());
                (blocks, self.max_blocks().div_ceil(blocks))
            }
        };
        SplitParams {
            seqlens_kv: Global::NULL,
            batch: self.batch as u32,
            heads_kv: self.heads_kv as u32,
            group: self.group() as u32,
            seqlen_q: self.seqlen_q as u32,
            row_tiles: self.row_tiles() as u32,
            max_blocks: self.max_blocks() as u32,
            workers: workers as u32,
            min_blocks: min_blocks as u32,
            split_blocks: split_blocks as u32,
            max_splits: max_splits as u32,
            window_left,
            window_right,
        }
    }

    /// What the decode kernels are handed, all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn params(&self, split: SplitParams, table_stride: usize, pages: usize) -> DecodeParams {
        DecodeParams {
            split,
            page_count: pages as u32,
            v8_pages: (pages - self.v4_pages) as u32,
            table_stride: table_stride as u32,
            softmax_scale: self.scale(),
            softcap: self.softcap.unwrap_or(0.0),
            ..DecodeParams::NONE
        }
    }
}

/// Where merged rows of so many states go, for an output of this layout and type, all but the addresses. A CTA has so many dims.
#[doc(hidden)]
#[must_use]
pub fn merged_params(o: &TensorLayout, dtype: DType, states: usize, cta_dims: usize) -> MergedParams {
    let ([stride_b, stride_h, stride_n], shape) = (o.strides(), o.shape());
    MergedParams {
        o: Strided { stride_b, stride_h, stride_n, ..Strided::NONE },
        heads_q: shape.heads as u32,
        seqlen_q: shape.seqlen as u32,
        head_dim: shape.head_dim as u32,
        o_dtype: dtype.code(),
        cta_dims: cta_dims as u32,
        states: states as u32,
        rows: shape.rows() as u64,
        ..MergedParams::NONE
    }
}
