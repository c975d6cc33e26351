//! Which query tiles a CTA works on, and in which order.
//!
//! All CTAs step through one list of tiles, in which the long ones come first, so that the last ones to be handed out are short.
//! Without a causal mask those are the tiles with fewer rows, one at the end of each head. With it, a tile is the longer the later
//! its rows are; the list then goes through a few heads at a time, whose K and V stay in the L2 cache.

use super::Heads;
use super::load::tile_m;
use crate::attention::Args;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_u32, st_shared_f32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::special::{ctaid_x, nctaid_x};

/// Bytes of K and V that CTAs should use at a time: the L2 cache of a Hopper GPU has 50 MB.
const L2_BYTES: u32 = 16 << 20;

/// The CTA's place in the list. Without a causal mask the list is dealt out forth and back, so that nobody has two of the last whole
/// tiles while others have short ones; with it, that would give the same CTAs the longest tiles of each few heads. What a tile is,
/// is worked out when asked for: registers are short where it is not.
#[derive(Clone, Copy)]
pub(crate) struct Work<const D: usize, const WGS: usize, const CAUSAL: bool> {
    index: u32,
    /// From this tile to the CTA's next, where there is no causal mask.
    step: u32,
}

/// A tile of query rows of one head.
#[derive(Clone, Copy)]
pub(crate) struct Item {
    pub m_block: u32,
    pub batch: u32,
    pub head_q: u32,
    /// `batch * heads_q + head_q`.
    pub head: u32,
    /// `batch * heads_kv + head_q / group`.
    pub head_kv: u32,
}

impl Item {
    /// Writes the tile to shared memory, where `first`.
    #[inline(always)]
    pub(crate) unsafe fn publish(&self, first: bool, address: u32) {
        unsafe {
            st_shared_v4_u32(first, address, [self.m_block, self.batch, self.head_q, self.head]);
            st_shared_v2_u32(first, address + 16, [self.head_kv, 0]);
        }
    }

    /// Adds the unit of the head's scores.
    #[inline(always)]
    pub(crate) unsafe fn publish_unit(address: u32, unit: f32) {
        unsafe { st_shared_f32(address + 20, unit) }
    }

    /// Reads what [`Self::publish`] and [`Self::publish_unit`] wrote.
    #[inline(always)]
    pub(crate) unsafe fn read(address: u32) -> (Self, f32) {
        let ([m_block, batch, head_q, head], [head_kv, unit]) =
            unsafe { (ld_shared_v4_u32(address), ld_shared_v2_u32(address + 16)) };
        (Self { m_block, batch, head_q, head, head_kv }, f32::from_bits(unit))
    }
}

impl<const D: usize, const WGS: usize, const CAUSAL: bool> Work<D, WGS, CAUSAL> {
    #[inline(always)]
    pub(crate) fn first() -> Self {
        let index = ctaid_x();
        Self { index, step: if CAUSAL { 0 } else { 2 * (nctaid_x() - index) - 1 } }
    }

    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        if CAUSAL {
            self.index += nctaid_x();
        } else {
            self.index += self.step;
            self.step = 2 * nctaid_x() - self.step;
        }
    }

    /// Query tiles of a head.
    #[inline(always)]
    fn m_blocks(seqlen_q: u32) -> u32 {
        // Not `div_ceil(seqlen_q + tile_m - 1)`: lengths near 2^32 must not wrap.
        seqlen_q / tile_m(WGS) + u32::from(!seqlen_q.is_multiple_of(tile_m(WGS)))
    }

    /// Whether the list goes on.
    #[inline(always)]
    pub(crate) fn left(&self, args: &Args, heads: Heads) -> bool {
        self.index < heads.heads_q * heads.batch * Self::m_blocks(opaque(args.seqlen_q))
    }

    /// The current tile, where there is one left.
    #[inline(always)]
    pub(crate) fn item(&self, args: &Args, heads: Heads) -> Item {
        let index = opaque(self.index);
        let (m_blocks, all) = (Self::m_blocks(opaque(args.seqlen_q)), heads.heads_q * heads.batch);
        // SAFETY: where there are tiles, no length is zero, and a band that has tiles has heads.
        unsafe {
            let (head, m_block) = if CAUSAL {
                // Heads worked on at a time.
                let (fit, _) = divide(L2_BYTES / (2 * D) as u32, opaque(args.seqlen_kv));
                let band = if fit == 0 {
                    1
                } else if fit < all {
                    fit
                } else {
                    all
                };
                let (bands, _) = divide(index, band * m_blocks);
                let first = bands * band;
                let in_band = if all - first < band { all - first } else { band };
                let (rank, head) = divide(index - first * m_blocks, in_band);
                (first + head, m_blocks - 1 - rank)
            } else {
                let whole = opaque(args.seqlen_q) / tile_m(WGS);
                if index < all * whole { divide(index, whole) } else { (index - all * whole, whole) }
            };
            let (batch, head_q) = divide(head, heads.heads_q);
            let (kv_of_head, _) = divide(head_q, args.group);
            let (heads_kv, _) = divide(heads.heads_q, args.group);
            Item { m_block, batch, head_q, head, head_kv: batch * heads_kv + kv_of_head }
        }
    }
}

/// Quotient and remainder. The panic of a checked division has no place on the device.
///
/// # Safety
/// `b` is not zero.
#[inline(always)]
unsafe fn divide(a: u32, b: u32) -> (u32, u32) {
    unsafe { (a.checked_div(b).unwrap_unchecked(), a.checked_rem(b).unwrap_unchecked()) }
}
