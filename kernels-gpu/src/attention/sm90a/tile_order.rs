//! Which query tiles a CTA works on, and in which order.
//!
//! All CTAs step through one list of tiles, in which the long ones come first, so that the last ones to be handed out are short.
//! Where every row sees every key those are the tiles with fewer rows, one at the end of each head. Under a window a tile is the
//! longer the later its rows are, or the earlier where only the left side has an end; the list then goes through a few heads at a
//! time, whose K and V stay in the L2 cache. Packed sequences are one: the tiles of all, of which some have no rows.
//!
//! Tiles of unlike lengths are dealt out unevenly however they are ordered, so that the end of such a list is for the GPU to hand out: the
//! grid's further rows are CTAs of a tile each, which start as the first row's end (`AttentionVariant::grid`).

use super::Kernel;
use crate::attention::sequence::Sequence;
use crate::attention::window::Window;
use crate::config::sm90a;
use crate::division::div_rem;
use crate::params::AttentionParams;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_y_again, nctaid_x, nctaid_y};
use core::marker::PhantomData;

/// Bytes of K and V that CTAs should use at a time: the L2 cache of a Hopper GPU has 50 MB.
const L2_BYTES: u32 = 16 << 20;

/// The CTA's place in the list. Without a window the list is dealt out forth and back, so that nobody has two of the last whole
/// tiles while others have short ones; with one, that would give the same CTAs the longest tiles of each few heads. What a tile is,
/// is worked out when asked for: registers are short where it is not.
pub(crate) struct TileOrder<K> {
    /// As many tiles before the end of the list as the current one is before the end of the CTA's part of it.
    index: u32,
    /// From this tile to the CTA's next.
    step: u32,
    kernel: PhantomData<K>,
}

/// A tile of query rows of one head.
#[derive(Clone, Copy)]
pub(crate) struct QueryTile {
    pub m_block: u32,
    pub sequence: Sequence,
}

impl QueryTile {
    /// Writes the tile to shared memory, where `first`.
    #[inline(always)]
    pub(crate) unsafe fn publish(&self, first: bool, address: u32) {
        let Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv, first_block } = self.sequence;
        unsafe {
            st_shared_v4_u32(first, address, [self.m_block, seqlen_q, seqlen_kv, batch]);
            st_shared_v4_u32(first, address + 16, [head_q, first_q, index_kv, first_block]);
        }
    }

    /// Reads what [`Self::publish`] wrote.
    #[inline(always)]
    pub(crate) unsafe fn read(address: u32) -> Self {
        let ([m_block, seqlen_q, seqlen_kv, batch], [head_q, first_q, index_kv, first_block]) =
            unsafe { (ld_shared_v4_u32(address), ld_shared_v4_u32(address + 16)) };
        let sequence = Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv, first_block };
        Self { m_block, sequence }
    }

    /// The first of its rows, of `tile_m`.
    #[inline(always)]
    pub(crate) fn first_row(&self, tile_m: u32) -> u32 {
        self.m_block * tile_m
    }

    /// Whether it has rows: of packed sequences some have not.
    #[inline(always)]
    pub(crate) fn has_rows(&self, tile_m: u32) -> bool {
        self.first_row(tile_m) < self.sequence.seqlen_q
    }
}

impl<K: Kernel> TileOrder<K> {
    #[inline(always)]
    pub(crate) fn first(params: &AttentionParams) -> Self {
        let step = if Self::forth_and_back(params) { 2 * (nctaid_x() - ctaid_x()) - 1 } else { nctaid_x() };
        let rows = if ctaid_y() == 0 { (nctaid_y() - 1) * nctaid_x() } else { Self::all(params) - nctaid_x() };
        Self { index: rows + ctaid_x(), step, kernel: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        self.index += self.step;
        self.step = 2 * nctaid_x() - self.step;
    }

    #[inline(always)]
    fn forth_and_back(params: &AttentionParams) -> bool {
        sm90a::tiles_are_alike(params)
    }

    /// Query tiles of a head of the tensors.
    #[inline(always)]
    fn m_blocks(params: &AttentionParams) -> u32 {
        if params.seqlens.packed_q == 0 {
            opaque(params.seqlen_q).div_ceil(K::TILE_M)
        } else {
            params.seqlens.query_tiles(params.batch, opaque(params.seqlen_q), K::TILE_M)
        }
    }

    /// Heads of the tensors.
    #[inline(always)]
    fn heads(params: &AttentionParams) -> u32 {
        if params.seqlens.packed_q == 0 { params.heads_q * params.batch } else { params.heads_q }
    }

    /// Tiles of the list.
    #[inline(always)]
    fn all(params: &AttentionParams) -> u32 {
        Self::heads(params) * Self::m_blocks(params)
    }

    /// Whether the CTA's part of the list goes on.
    #[inline(always)]
    pub(crate) fn left(&self, params: &AttentionParams) -> bool {
        self.index < Self::all(params)
    }

    /// The current tile, where there is one left.
    ///
    /// # Safety
    /// The arrays of the sequences' lengths are there.
    #[inline(always)]
    pub(crate) unsafe fn tile(&self, params: &AttentionParams) -> QueryTile {
        let index = opaque(self.index) - (nctaid_y() - 1 - ctaid_y_again()) * nctaid_x();
        let (m_blocks, all) = (Self::m_blocks(params), Self::heads(params));
        // SAFETY: where there are tiles, no length is zero, and a band that has tiles has heads.
        let (head, m_block) = unsafe {
            if Self::forth_and_back(params) {
                let whole = opaque(params.seqlen_q) / K::TILE_M;
                if index < all * whole { div_rem(index, whole) } else { (index - all * whole, whole) }
            } else {
                // Heads worked on at a time.
                let (fit, _) = div_rem(L2_BYTES / (2 * K::HEAD_DIM) as u32, opaque(params.seqlen_kv));
                let band = if fit == 0 {
                    1
                } else if fit < all {
                    fit
                } else {
                    all
                };
                let (bands, _) = div_rem(index, band * m_blocks);
                let first = bands * band;
                let in_band = if all - first < band { all - first } else { band };
                let (rank, head) = div_rem(index - first * m_blocks, in_band);
                (first + head, if Window::of(params).grows() { m_blocks - 1 - rank } else { rank })
            }
        };
        let seqlens = &params.seqlens;
        // SAFETY: there are heads; the arrays are the caller's promise, and the tile is of one of the launch's sequences.
        unsafe {
            let ((batch, head_q), m_block) = if seqlens.packed_q == 0 {
                (div_rem(head, params.heads_q), m_block)
            } else {
                let (batch, m_block) = seqlens.of_query_tile(params.batch, params.seqlen_q, K::TILE_M, m_block);
                ((batch, head), m_block)
            };
            QueryTile { m_block, sequence: Sequence::new(params, batch, head_q) }
        }
    }
}
