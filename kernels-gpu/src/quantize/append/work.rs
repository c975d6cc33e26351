//! How `append_*` is launched, and which CTA does what.
//!
//! The tokens of a launch are cut into windows. Of each, a CTA has a head of V, and one or two have a head of K or of Q, as many as have a lane for
//! every 32 elements. Windows are of [`KV_BLOCK`] tokens, so that a whole page of V begins in one of them; a launch of fewer
//! tokens has no whole page, and more lanes a token, of which more multiprocessors have some: what one lane does in turn is what takes longest.

use crate::division::div_rem;
use crate::layout::KV_BLOCK;
use crate::quantize::launch::{FEW_THREADS, MAX_GRID, padded, shared_bytes, threads};

/// Elements of a token that a lane has.
pub(crate) const LANE_DIMS: u32 = 32;
/// The same in a launch without whole pages.
pub(crate) const FEW_LANE_DIMS: u32 = 8;

/// A launch's grid, block and shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// CTAs.
    pub ctas: u32,
    /// Threads of a CTA.
    pub threads: usize,
    /// Bytes of a CTA's dynamic shared memory.
    pub shared_bytes: usize,
}

impl Shape {
    /// For so many tokens. `None` where there are more CTAs than a grid has.
    #[must_use]
    pub fn new(tokens: u32, heads_q: u32, heads_kv: u32, head_dim: usize, element_bytes: usize) -> Option<Self> {
        let few = has_no_page(tokens);
        let threads = if few { FEW_THREADS } else { threads(head_dim, element_bytes) };
        let windows = Windows::new(tokens, heads_q, heads_kv, padded(head_dim) as u32, threads as u32);
        let ctas = u64::from(tokens.div_ceil(windows.window)).checked_mul(windows.each())?;
        let ctas = if ctas <= MAX_GRID as u64 { ctas as u32 } else { return None };
        // Of few tokens, those of V in 4 bits alone wait there (`rows::staged`).
        let few_bytes = windows.row_tokens as usize * (head_dim + 4);
        Some(Self { ctas, threads, shared_bytes: if few { few_bytes } else { shared_bytes(head_dim, element_bytes) } })
    }
}

/// Whether so many tokens are less than a page.
#[inline(always)]
pub(crate) const fn has_no_page(tokens: u32) -> bool {
    tokens < KV_BLOCK as u32
}

/// What a CTA converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A head of K.
    Keys,
    /// A head of V.
    Values,
    /// A head of Q.
    Queries,
}

/// A CTA's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Of what it is.
    pub operand: Operand,
    /// The head.
    pub head: u32,
    /// The first token of the launch; there may be none behind the last.
    pub first: u32,
    /// The token behind the last, if there are so many.
    pub end: u32,
}

/// How a launch is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window.
    window: u32,
    /// Tokens that the lanes of a CTA hold at a time.
    pub row_tokens: u32,
    heads_q: u32,
    heads_kv: u32,
}

impl Windows {
    /// `padded` is the head dim or the next power of two; `threads` a CTA's.
    #[inline(always)]
    #[must_use]
    pub const fn new(tokens: u32, heads_q: u32, heads_kv: u32, padded: u32, threads: u32) -> Self {
        let few = has_no_page(tokens);
        let row_tokens = (threads * if few { FEW_LANE_DIMS } else { LANE_DIMS }) >> padded.trailing_zeros();
        Self { window: if few { row_tokens } else { KV_BLOCK as u32 }, row_tokens, heads_q, heads_kv }
    }

    /// The logarithm of the CTAs that share a head of K or Q in a window.
    #[inline(always)]
    const fn log_parts(&self) -> u32 {
        self.window.trailing_zeros() - self.row_tokens.trailing_zeros()
    }

    /// CTAs of a window.
    const fn each(&self) -> u64 {
        let (heads_q, heads_kv) = (self.heads_q as u64, self.heads_kv as u64);
        heads_kv + ((heads_q + heads_kv) << self.log_parts())
    }

    /// What CTA number `cta` does: of a window K and V in turn, then Q.
    #[inline(always)]
    #[must_use]
    pub fn share(&self, cta: u32) -> Share {
        let log_parts = self.log_parts();
        // SAFETY: a window has CTAs, and a head of K and V has more than one.
        unsafe {
            let (window, index) = div_rem(cta, self.each() as u32);
            let of_head = 1 + (1 << log_parts);
            let (of_kv, first, of_part) = (self.heads_kv * of_head, window * self.window, self.row_tokens);
            if index >= of_kv {
                let index = index - of_kv;
                let first = first + (index & ((1 << log_parts) - 1)) * of_part;
                let head = index >> log_parts;
                return Share { operand: Operand::Queries, head, first, end: first + of_part };
            }
            let (head, part) = div_rem(index, of_head);
            if part == 0 {
                return Share { operand: Operand::Values, head, first, end: first + self.window };
            }
            let first = first + (part - 1) * of_part;
            Share { operand: Operand::Keys, head, first, end: first + of_part }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::layout::page::CACHE_HEAD_DIMS;
    use std::collections::HashSet;

    #[test]
    fn every_token_of_every_head_comes_once() {
        for (tokens, heads_q, heads_kv) in [(1, 4, 2), (70, 4, 2), (127, 0, 3), (128, 2, 2), (1000, 8, 1)] {
            for (d, bytes) in CACHE_HEAD_DIMS.into_iter().flat_map(|d| [(d, 2), (d, 4)]) {
                let shape = Shape::new(tokens, heads_q, heads_kv, d, bytes).unwrap();
                let windows = Windows::new(tokens, heads_q, heads_kv, padded(d) as u32, shape.threads as u32);
                let mut seen = HashSet::new();
                for share in (0..shape.ctas).map(|cta| windows.share(cta)) {
                    assert!(share.head < if share.operand == Operand::Queries { heads_q } else { heads_kv });
                    for token in share.first..share.end.min(tokens) {
                        assert!(seen.insert((share.operand, share.head, token)), "{share:?}");
                    }
                }
                let all = tokens * (heads_q + 2 * heads_kv);
                assert_eq!(seen.len() as u32, all, "{tokens} {d} {bytes}");
            }
        }
    }

    #[test]
    fn few_tokens_are_spread_and_need_little_shared_memory() {
        let shape = Shape::new(64, 32, 8, 128, 2).unwrap();
        assert_eq!(shape, Shape { ctas: (32 + 2 * 8) * 8, threads: 128, shared_bytes: 8 * 132 });
        for (d, bytes) in CACHE_HEAD_DIMS.into_iter().flat_map(|d| [(d, 2), (d, 4)]) {
            let shape = Shape::new(128, 32, 8, d, bytes).unwrap();
            let row_tokens = Windows::new(128, 32, 8, padded(d) as u32, shape.threads as u32).row_tokens;
            // What `rows::STAGED_VALUES` leaves there.
            assert!(row_tokens as usize * (d + 4) <= shape.shared_bytes);
        }
    }

    #[test]
    fn more_than_a_grid_has_is_none() {
        assert_eq!(Shape::new(u32::MAX, 1 << 10, 1 << 10, 128, 2), None);
    }
}
