//! Slots, and where a launch writes a whole page.

use crate::layout::KV_BLOCK;
use crate::layout::page::NO_SLOT;
use crate::params::AppendParams;
use crate::ptx::global::ld_global_nc_u32;
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::{ballot, shfl_idx};
use crate::ptx::special::tid_x;

/// Words of a bit for each token of a window.
const WORDS: usize = KV_BLOCK / 32;

/// A token's slot, or [`NO_SLOT`] where it is not one of the pool's, and where there is no such token.
///
/// # Safety
/// The launch has tokens.
#[inline(always)]
pub(super) unsafe fn slot(p: &AppendParams, token: u32) -> u32 {
    let slots = p.slot.ptr().wrapping_add(token.min(p.tokens - 1) as usize * p.slot_bytes as usize);
    let mut high = 0;
    let low = unsafe {
        if p.slot_bytes == 8 {
            high = ld_global_nc_u32(slots.wrapping_add(4));
        }
        ld_global_nc_u32(slots)
    };
    // A pool has fewer slots than 32 bits count (`layout::page::MAX_PAGES`).
    let inside = (token < p.tokens) & (high == 0) & (low < p.pages * KV_BLOCK as u32);
    selp_b32(inside, low, NO_SLOT)
}

/// What the launch does with the window of [`KV_BLOCK`] tokens from `first` on.
pub(super) struct Window {
    /// The token at which the whole page begins that begins in the window; none where this is not below `end`.
    pub page: u32,
    /// The first token of the window that is of no whole page.
    pub rest: u32,
    /// The token behind the last of those.
    pub end: u32,
}

/// A whole page is 128 tokens of the launch with the slots of a page in their order. At most one begins in a window, as at each of its other
/// tokens another slot than a page's first stands; so what is of none is a range.
///
/// # Safety
/// All 32 lanes of a converged warp call it. The window has a token.
#[inline(always)]
pub(super) unsafe fn window(p: &AppendParams, first: u32) -> Window {
    unsafe {
        let lane = tid_x() % 32;
        // All of them under way at once. Before the launch's first token the number is a large one.
        let mut slots = [NO_SLOT; 3 * WORDS];
        unroll!(0..3 * WORDS, |word| {
            let token = first.wrapping_sub(KV_BLOCK as u32).wrapping_add(32 * word as u32 + lane);
            slots[word] = slot(p, token);
        });
        // Bits of the tokens of the window before, of this one and of the next: whether a token's slot is not the one behind the slot of the token
        // before, and of the first two windows whether it is a page's first.
        let mut before = NO_SLOT;
        let (mut breaks, mut starts) = ([u32::MAX; 3 * WORDS + 1], [0; 2 * WORDS]);
        unroll!(0..3 * WORDS, |word| {
            // The last lane gives the first one what is before the word.
            let last = shfl_idx(selp_b32(lane == 31, before, slots[word]), lane.wrapping_sub(1) % 32);
            before = slots[word];
            breaks[word] = ballot((slots[word] == NO_SLOT) | (slots[word] != last.wrapping_add(1)));
            if word < 2 * WORDS {
                // In 4 bits each token of V has its own scale.
                let in_8_bits = slots[word] < p.v8_pages * KV_BLOCK as u32;
                starts[word] = ballot(in_8_bits & (slots[word] % KV_BLOCK as u32 == 0));
            }
        });
        // Each lane for its bit of a word: whether 127 tokens follow without a break.
        let mut begins = [0; 2 * WORDS];
        unroll!(0..2 * WORDS, |word| {
            let behind = |i: usize| {
                let two = u64::from(breaks[word + i + 1]) << 32 | u64::from(breaks[word + i]);
                (two >> (lane + 1)) as u32
            };
            let broken = behind(0) | behind(1) | behind(2) | (behind(3) & 0x7fff_ffff);
            begins[word] = ballot((starts[word] >> lane & 1 != 0) & (broken == 0));
        });
        let end = (first + KV_BLOCK as u32).min(p.tokens);
        let (mut page, mut rest) = (end, first);
        unroll!(0..WORDS, |word| {
            let at = |bits: u32| first + 32 * word as u32 + bits.trailing_zeros();
            // A page that began in the window before reaches as far into this one.
            rest = if begins[word] != 0 { at(begins[word]) } else { rest };
            page = if begins[WORDS + word] != 0 { at(begins[WORDS + word]) } else { page };
        });
        Window { page, rest, end }
    }
}
