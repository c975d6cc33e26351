//! Keys that a row does not see: their scores, pairs of neighbours, are made what no maximum takes.

use crate::attention::KEY_TILES;
use crate::ptx::math::prmt;
use crate::ptx::select::selp_b32;

/// Makes the scores of a row against the keys from `keys` on `hidden`, counted from the lane's first.
#[inline(always)]
pub(super) fn hide_from(scores: &mut [u32; KEY_TILES], tiles: usize, hidden: u32, keys: i32) {
    hide(scores, tiles, hidden, |tile| {
        let keys = keys - (8 * tile) as i32;
        selp_b32(keys > 1, BOTH, selp_b32(keys > 0, LOW, NEITHER))
    });
}

/// The same of the keys before `keys`.
#[inline(always)]
pub(super) fn hide_before(scores: &mut [u32; KEY_TILES], tiles: usize, hidden: u32, keys: i32) {
    hide(scores, tiles, hidden, |tile| {
        let keys = keys - (8 * tile) as i32;
        selp_b32(keys < 1, BOTH, selp_b32(keys < 2, HIGH, NEITHER))
    });
}

/// Selectors of `prmt` that take these halves of a pair of scores, and the other ones from what hides.
const BOTH: u32 = 0x3210;
const LOW: u32 = 0x7610;
const HIGH: u32 = 0x3254;
const NEITHER: u32 = 0x7654;

/// Makes the scores of a row `hidden`, a pair, but for the halves that `visible` selects in each of its `tiles` tiles.
#[inline(always)]
fn hide(scores: &mut [u32; KEY_TILES], tiles: usize, hidden: u32, visible: impl Fn(usize) -> u32) {
    unroll!(0..KEY_TILES, |tile| {
        if tile < tiles {
            scores[tile] = prmt(scores[tile], hidden, visible(tile));
        }
    });
}
