//! V: the largest magnitude of each token first, a token in a few lanes; then codes, a lane with a vector of dims of eight keys that are neighbouring
//! bytes of packed rows, as in `crate::quantize::values`.

use super::shared::Shared;
use super::tokens::{Tokens, VECTORS};
use super::{Kernel, warps};
use crate::element::{Element, Rows, Vector, load};
use crate::layout::{KV_BLOCK, ROW_BYTES, V_OFFSETS, V_ROTATION, octet_key, rotate_v, swizzle, v_row};
use crate::ptx::math::{max_nan_f32, mul_rn_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v2_u32, st_shared_u32, st_shared_v2_u32};
use crate::ptx::special::tid_x;
use crate::quantize::pack::{clamp, code, with_byte};
use crate::rotation::{Place, vectors};

/// The dims of a vector, rotated.
#[inline(always)]
fn rotated<E: Element>(vector: &Vector) -> [f32; 8] {
    let mut x = [0.0; 8];
    unroll!(0..E::LANES, |i| {
        x[i] = E::get(vector, i);
    });
    unroll!(0..E::LANES / V_ROTATION, |i| {
        let four = rotate_v([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
        (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]) = (four[0], four[1], four[2], four[3]);
    });
    x
}

/// The largest magnitude of each token. Behind the last, to a whole panel, those of the last.
///
/// # Safety
/// All warps of the CTA call it.
#[inline(always)]
pub(crate) unsafe fn magnitudes<E: Element, K: Kernel<MT>, const MT: usize>(tokens: Tokens, shared: &Shared<K, MT>) {
    let largest = |place: &Place, raw: [Vector; VECTORS], token: u32, _: bool| unsafe {
        let mut amax = [0.0; 4];
        unroll!(0..vectors::<E>(), |i| {
            let x = rotated::<E>(&raw[i]);
            unroll!(0..E::LANES, |j| {
                amax[j % 4] = max_nan_f32(amax[j % 4], x[j].abs());
            });
        });
        let amax = max_nan_f32(max_nan_f32(amax[0], amax[1]), max_nan_f32(amax[2], amax[3]));
        let amax = place.over_lanes(amax, max_nan_f32);
        let at = shared.inverses(token / KV_BLOCK as u32) + 4 * (token % KV_BLOCK as u32);
        st_shared_u32(place.lane == 0, at, amax.to_bits());
    };
    unsafe { tokens.each::<E, K, MT>(shared, largest) };
}

/// Codes of all tokens; behind the last, to a whole panel, those of zero.
///
/// # Safety
/// All warps of the CTA call it, a barrier after `blocks::scales`.
#[inline(always)]
pub(crate) unsafe fn pack<E: Element, K: Kernel<MT>, const MT: usize>(
    rows: &Rows,
    count: u32,
    shared: &Shared<K, MT>,
    warp: u32,
) {
    unsafe {
        let (lane, vectors) = (tid_x() % 32, (K::HEAD_DIM / E::LANES) as u32);
        let (panels, octet) = (shared.keys / ROW_BYTES as u32, lane % 4);
        let mut first = 8 * warp;
        while first < panels * vectors {
            // Lanes behind the last panel repeat it.
            let unit = first + lane / 4;
            let (panel, vector) = (unit / vectors, unit % vectors);
            let (has, panel) = (panel < panels, panel.min(panels - 1));
            let key = |i: usize| panel * ROW_BYTES as u32 + octet_key(octet, i);
            let raw = load::<E, 8>(rows, |i| (key(i).min(count - 1), vector));
            let (mut inverse, mut masks) = ([0.0; 8], [0; 2]);
            unroll!(0..4, |pair| {
                let (block, at) = (key(2 * pair) / KV_BLOCK as u32, key(2 * pair) % KV_BLOCK as u32);
                let two = ld_shared_v2_u32(shared.inverses(block) + 4 * at);
                unroll!(0..2, |odd| {
                    let (i, of_key) = (2 * pair + odd, f32::from_bits(two[odd]));
                    masks[i / 4] |= selp_b32(of_key.is_nan(), 0, 0xff << (8 * (i % 4)));
                    inverse[i] = of_key;
                });
            });
            let mut words = [[0; 2]; 8];
            unroll!(0..8, |key| {
                let x = rotated::<E>(&raw[key]);
                unroll!(0..E::LANES, |dim| {
                    let code = code(clamp::<E>(mul_rn_f32(x[dim], inverse[key])));
                    words[dim][key / 4] = with_byte(words[dim][key / 4], key % 4, code);
                });
            });
            let to = shared.v() + panel * (K::HEAD_DIM * ROW_BYTES) as u32;
            unroll!(0..E::LANES, |i| {
                let codes = [words[i][0] & masks[0] ^ V_OFFSETS, words[i][1] & masks[1] ^ V_OFFSETS];
                let row = v_row(vector as usize * E::LANES + i);
                st_shared_v2_u32(has, to + swizzle(row, 8 * octet as usize) as u32, codes);
            });
            first += 8 * warps();
        }
    }
}
