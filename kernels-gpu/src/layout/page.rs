//! A page of the paged cache: [`PAGE_TOKENS`] tokens of one layer, all heads of K and V, in one piece.
//!
//! ```text
//! pool  [pages][heads_kv]
//!         K block  [128 * head_dim]     layout::k_offset
//!         V block  [128 * head_dim]     layout::v_offset
//!         k_scale  f32 [128]
//!         v_scale  f32 [128]
//! ```
//!
//! The last pages of a pool may have V in 4 bits: [`v4_block_bytes`] in its block's place, and all of them are behind those with V in 8 bits, so
//! that a page's number says which it is.
//!
//! There is no header and nothing of the page as a whole: a token is `head_dim` bytes of K in a row of each panel, as many single bytes of V,
//! and two scales a head. So a page is shared, copied or swapped as a plain range of bytes, and an append changes its tokens' bytes
//! alone.

use super::v4::v4_block_bytes;
use super::{KV_BLOCK, block_bytes};

/// Version of the pages' bytes and of what they mean; it counts up with [`PACKED_FORMAT`](super::PACKED_FORMAT) too. Version 1 had no pages with V in 4 bits.
pub const CACHE_FORMAT: u32 = 2;
/// The oldest version whose pages are as they are now.
pub const OLDEST_CACHE_FORMAT: u32 = 1;
/// Tokens of a page: a block.
pub const PAGE_TOKENS: usize = KV_BLOCK;
/// Most pages of a pool: every slot, and the number that means none, is then a `u32`.
pub const MAX_PAGES: usize = u32::MAX as usize / PAGE_TOKENS;
/// The slot of a token that is not to be written.
pub const NO_SLOT: u32 = u32::MAX;

/// Head dims that a page may have: those with kernels that append to it and decode from it, which pad nothing.
pub const CACHE_HEAD_DIMS: [usize; 5] = [32, 64, 96, 128, 256];
/// Head dims that pages with V in 4 bits may have: those with decode kernels for them.
pub const V4_HEAD_DIMS: [usize; 2] = [64, 128];

/// Bytes of one head of a page.
#[inline(always)]
#[must_use]
pub const fn page_head_bytes(head_dim: usize) -> usize {
    2 * block_bytes(head_dim) + 2 * size_of::<f32>() * PAGE_TOKENS
}

/// Bytes of one head of a page with V in 4 bits.
#[inline(always)]
#[must_use]
pub const fn page_head_bytes_v4(head_dim: usize) -> usize {
    page_head_bytes(head_dim) - block_bytes(head_dim) + v4_block_bytes(head_dim)
}

/// Bytes of a page.
#[inline(always)]
#[must_use]
pub const fn page_bytes(heads_kv: usize, head_dim: usize) -> usize {
    heads_kv * page_head_bytes(head_dim)
}

/// Byte of the pool at which a page's head begins, with its block of K.
#[inline(always)]
#[must_use]
pub const fn page_head_offset(page: usize, head_kv: usize, heads_kv: usize, head_dim: usize) -> usize {
    (page * heads_kv + head_kv) * page_head_bytes(head_dim)
}

/// A head of a page, of a pool some of whose pages have V in 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHead {
    /// Byte of the pool at which it begins, with its block of K.
    pub offset: usize,
    /// Whether V has 4 bits.
    pub v4: bool,
    /// Byte of it at which K's scales begin, and V's behind them.
    pub scales: usize,
}

/// Where a page's head is in a pool whose pages from number `v8_pages` on have V in 4 bits.
#[inline(always)]
#[must_use]
pub const fn page_head(page: usize, head_kv: usize, heads_kv: usize, head_dim: usize, v8_pages: usize) -> PageHead {
    let scales = page_k_scale_offset(head_dim);
    if page < v8_pages {
        return PageHead { offset: page_head_offset(page, head_kv, heads_kv, head_dim), v4: false, scales };
    }
    let before = page_head_offset(v8_pages, 0, heads_kv, head_dim);
    let offset = before + ((page - v8_pages) * heads_kv + head_kv) * page_head_bytes_v4(head_dim);
    PageHead { offset, v4: true, scales: scales - block_bytes(head_dim) + v4_block_bytes(head_dim) }
}

/// Byte of a page's head at which its block of V begins.
#[inline(always)]
#[must_use]
pub const fn page_v_offset(head_dim: usize) -> usize {
    block_bytes(head_dim)
}

/// Byte of a page's head at which K's scales begin.
#[inline(always)]
#[must_use]
pub const fn page_k_scale_offset(head_dim: usize) -> usize {
    2 * block_bytes(head_dim)
}

/// Byte of a page's head at which V's scales begin.
#[inline(always)]
#[must_use]
pub const fn page_v_scale_offset(head_dim: usize) -> usize {
    page_k_scale_offset(head_dim) + size_of::<f32>() * PAGE_TOKENS
}

#[cfg(test)]
mod tests {
    use super::super::PACKED_FORMAT;
    use super::*;

    #[test]
    fn the_parts_of_a_head_follow_one_another_aligned() {
        for d in CACHE_HEAD_DIMS {
            assert_eq!(page_v_offset(d), block_bytes(d));
            assert_eq!(page_k_scale_offset(d), page_v_offset(d) + block_bytes(d));
            assert_eq!(page_v_scale_offset(d), page_k_scale_offset(d) + 512);
            assert_eq!(page_head_bytes(d), page_v_scale_offset(d) + 512);
            assert!(page_head_bytes(d).is_multiple_of(128));
        }
        assert_eq!(page_head_offset(3, 1, 2, 64), 3 * page_bytes(2, 64) + page_head_bytes(64));
    }

    #[test]
    fn pages_in_4_bits_follow_the_others() {
        let end = |page, head| {
            let at = page_head(page, head, 2, 128, 3);
            at.offset + at.scales + 2 * size_of::<f32>() * PAGE_TOKENS
        };
        for page in 0..6 {
            assert_eq!(page_head(page, 1, 2, 128, 3).v4, page >= 3);
            assert_eq!(end(page, 0), page_head(page, 1, 2, 128, 3).offset);
            assert_eq!(end(page, 1), page_head(page + 1, 0, 2, 128, 3).offset);
            assert!(page_head(page, 1, 2, 128, 3).offset.is_multiple_of(128));
        }
        assert_eq!(page_head(6, 0, 2, 128, 3).offset, 3 * page_bytes(2, 128) + 3 * 2 * page_head_bytes_v4(128));
        // 6.5 bits for each of the 256 elements of a token.
        assert_eq!(page_head_bytes_v4(128) * 8, 128 * 256 * 13 / 2);
        assert!(V4_HEAD_DIMS.iter().all(|&d| page_head_bytes_v4(d).is_multiple_of(128)));
    }

    #[test]
    fn no_slot_of_a_pool_is_the_one_that_means_none() {
        assert!(((MAX_PAGES * PAGE_TOKENS) as u64) <= u64::from(NO_SLOT));
    }

    #[test]
    fn the_format_counts_up_with_that_of_the_blocks() {
        assert_eq!((CACHE_FORMAT, PACKED_FORMAT), (2, 3), "new blocks need a new version of the pages");
    }
}
