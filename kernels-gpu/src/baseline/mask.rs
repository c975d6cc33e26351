//! The mask on a tile's scores.

use super::Place;
use super::scores::Scores;
use crate::mask::Mask;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::select::selp_b32;

/// Scales the scores of a tile and hides those of unseen keys behind minus infinity (after the scale, which may be zero or
/// negative).
#[inline(always)]
pub(crate) fn scale_and_hide<const CAUSAL: bool, const MT: usize, const KEYS: usize>(
    mask: &Mask<CAUSAL, KEYS>,
    s: &mut Scores<MT>,
    scale: f32,
    block: u32,
    place: &Place,
) {
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let keys = mask.keys(place.row + (16 * mt + 8 * half) as u32 + place.group, block) - 2 * place.quad as i32;
            unroll!(0..KEYS / 8, |tile| {
                unroll!(0..2, |i| {
                    let score = &mut s[mt][tile][2 * half + i];
                    let scaled = mul_rn_f32(*score, scale).to_bits();
                    // no `if`: libNVVM would draw the products of P and V, which need all lanes, into both of its sides
                    let seen = selp_b32(((8 * tile + i) as i32) < keys, scaled, f32::NEG_INFINITY.to_bits());
                    *score = f32::from_bits(seen);
                });
            });
        });
    });
}
