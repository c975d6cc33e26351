//! Which query tiles a CTA works on, and in which order.
//!
//! All CTAs step through one list of tiles, in which the long ones come first, so that the last ones to be handed out are short.
//! Where every row sees every key those are the tiles with fewer rows, one at the end of each head. Under a window a tile is the
//! longer the later its rows are, or the earlier where only the left side has an end; the list then goes through a few heads at a
//! time, whose K and V stay in the L2 cache. Packed sequences are one: the tiles of all, of which some have no rows.

use super::Kernel;
use crate::attention::sequence::Sequence;
use crate::attention::window::Window;
use crate::division::div_rem;
use crate::params::{AttentionParams, SeqLens};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::special::{ctaid_x, nctaid_x};
use crate::seqlens::{packed_tiles, sequence_of_tile};
use core::marker::PhantomData;

/// Bytes of K and V that CTAs should use at a time: the L2 cache of a Hopper GPU has 50 MB.
const L2_BYTES: u32 = 16 << 20;

/// The CTA's place in the list. Without a window the list is dealt out forth and back, so that nobody has two of the last whole
/// tiles while others have short ones; with one, that would give the same CTAs the longest tiles of each few heads. What a tile is,
/// is worked out when asked for: registers are short where it is not.
pub(crate) struct TileOrder<K> {
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
        let index = ctaid_x();
        let step = if Self::forth_and_back(params) { 2 * (nctaid_x() - index) - 1 } else { nctaid_x() };
        Self { index, step, kernel: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        self.index += self.step;
        self.step = 2 * nctaid_x() - self.step;
    }

    /// Whether all tiles but the last of each head are equally long.
    #[inline(always)]
    fn forth_and_back(params: &AttentionParams) -> bool {
        Window::of(params).hides_nothing() && params.seqlens.packed_q == 0
    }

    /// Query tiles of a head of the tensors.
    #[inline(always)]
    fn m_blocks(params: &AttentionParams) -> u32 {
        if params.seqlens.packed_q == 0 {
            opaque(params.seqlen_q).div_ceil(K::TILE_M)
        } else {
            packed_tiles(opaque(params.seqlens.total_q), params.batch, K::TILE_M)
        }
    }

    /// Heads of the tensors.
    #[inline(always)]
    fn heads(params: &AttentionParams) -> u32 {
        if params.seqlens.packed_q == 0 { params.heads_q * params.batch } else { params.heads_q }
    }

    /// Whether the list goes on.
    #[inline(always)]
    pub(crate) fn left(&self, params: &AttentionParams) -> bool {
        self.index < Self::heads(params) * Self::m_blocks(params)
    }

    /// The current tile, where there is one left.
    ///
    /// # Safety
    /// The arrays of the sequences' lengths are there.
    #[inline(always)]
    pub(crate) unsafe fn tile(&self, params: &AttentionParams) -> QueryTile {
        let index = opaque(self.index);
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
        let SeqLens { cu_seqlens_q, total_q, packed_q, .. } = params.seqlens;
        // SAFETY: there are heads; the arrays are the caller's promise, and the tile is of one of the launch's sequences.
        unsafe {
            let ((batch, head_q), m_block) = if packed_q == 0 {
                (div_rem(head, params.heads_q), m_block)
            } else {
                let (batch, m_block) = sequence_of_tile(cu_seqlens_q, total_q, params.batch, K::TILE_M, m_block);
                ((batch, head), m_block)
            };
            QueryTile { m_block, sequence: Sequence::new(params, batch, head_q) }
        }
    }
}
