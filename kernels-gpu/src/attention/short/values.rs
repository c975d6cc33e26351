//! V: the largest magnitude of each token first, a token in a few lanes; then codes, a lane with a vector of dims of four keys that are neighbouring
//! bytes of packed rows.

use super::shared::Shared;
use super::tokens::{Part, Tokens, vectors};
use super::{Kernel, Team};
use crate::element::{Rows, load};
use crate::layout::{KV_BLOCK, ROW_BYTES, V_OFFSETS, octet_key, swizzle, v_row};
use crate::ptx::math::max_nan_f32;
use crate::ptx::opaque::rolled;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v2_u32, st_shared_u32};
use crate::ptx::special::tid_x;
use crate::quantize::arithmetic::{Rotated, Values};
use crate::rotation::TokenLane;

/// The largest magnitude of each token. Behind the last, to a whole panel, those of the last.
///
/// # Safety
/// V's team calls it.
#[inline(always)]
pub(crate) unsafe fn magnitudes<E: Rotated, K: Kernel<MT>, const MT: usize>(tokens: Tokens, shared: &Shared<K, MT>) {
    let of_token = |place: &TokenLane, raw: Part, token: u32, _: bool| unsafe {
        let mut amax = E::values(&raw[0]).largest_rotated();
        unroll!(1..vectors::<E>(), |i| {
            amax = max_nan_f32(amax, E::values(&raw[i]).largest_rotated());
        });
        let at = shared.inverses(token / KV_BLOCK as u32) + 4 * (token % KV_BLOCK as u32);
        st_shared_u32(place.lane == 0, at, place.over_lanes(amax, max_nan_f32).to_bits());
    };
    unsafe { tokens.each::<E, K, MT>(shared, of_token) };
}

/// Codes of all tokens; behind the last, to a whole panel, those of zero.
///
/// # Safety
/// V's team calls it, a barrier after `blocks::values`.
#[inline(always)]
pub(crate) unsafe fn pack<E: Rotated, K: Kernel<MT>, const MT: usize>(
    rows: &Rows,
    count: u32,
    shared: &Shared<K, MT>,
    team: Team,
) {
    unsafe {
        let vectors = (K::HEAD_DIM / E::LANES) as u32;
        // A unit is four keys of a word of packed rows: 8 words a panel, and as many vectors as a token has.
        let units = shared.keys / ROW_BYTES as u32 * 8 * vectors;
        let mut unit = 32 * team.member() + tid_x() % 32;
        while unit < units {
            rolled();
            let (word, vector, panel) = (unit % 8, unit / 8 % vectors, unit / 8 / vectors);
            let key = |i: usize| panel * ROW_BYTES as u32 + octet_key(word / 2, i) + word % 2 * 2;
            let raw = load::<E, 4>(rows, |i| (key(i).min(count - 1), vector));
            let (mut inverse, mut mask) = ([0.0; 4], 0);
            unroll!(0..2, |pair| {
                let (block, at) = (key(2 * pair) / KV_BLOCK as u32, key(2 * pair) % KV_BLOCK as u32);
                let two = ld_shared_v2_u32(shared.inverses(block) + 4 * at);
                unroll!(0..2, |odd| {
                    let (i, of_key) = (2 * pair + odd, f32::from_bits(two[odd]));
                    mask |= selp_b32(of_key.is_nan(), 0, 0xff << (8 * i));
                    inverse[i] = of_key;
                });
            });
            let mut x = raw.map(|vector| E::values(&vector));
            unroll!(0..4, |key| {
                x[key].rotate();
            });
            let words = E::Values::encode([&x[0], &x[1], &x[2], &x[3]], inverse);
            let to = shared.v() + panel * (K::HEAD_DIM * ROW_BYTES) as u32;
            unroll!(0..E::LANES, |i| {
                let row = v_row(vector as usize * E::LANES + i);
                st_shared_u32(true, to + swizzle(row, 4 * word as usize) as u32, words[i] & mask ^ V_OFFSETS);
            });
            unit += 32 * team.size;
        }
    }
}
