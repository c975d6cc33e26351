//! K: a lane holds a part of a token, a warp a few tokens at a time.

use super::Kernel;
use super::shared::Shared;
use super::tokens::{encode, load_token, offsets, signed};
use crate::element::{Element, Rows};
use crate::layout::{KV_BLOCK, ROW_BYTES, swizzle};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::st_shared_u32;
use crate::rotation::{Place, vectors};

/// Codes and scales of all tokens; behind the last, to a whole panel, codes and scales of zero.
///
/// # Safety
/// All warps of the CTA call it, a barrier after `offset::tables`.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, K: Kernel<MT>, const MT: usize>(
    rows: &Rows,
    count: u32,
    shared: &Shared<K, MT>,
    warp: u32,
) {
    unsafe {
        let place = Place::new(K::HEAD_DIM as u32, K::HEAD_DIM as u32);
        let step = K::WARPS as u32 * place.tokens();
        let mut first = warp * place.tokens();
        let mut next = load_token::<E>(rows, &place, (first + place.token).min(count - 1));
        while first < shared.keys {
            let (token, raw) = (first + place.token, next);
            next = load_token::<E>(rows, &place, (token + step).min(count - 1));
            let mut x = signed::<E>(&place, &raw, shared.signs());
            unroll!(0..vectors::<E>(), |i| {
                unroll!(0..E::LANES / 4, |quad| {
                    let offsets = offsets::<E>(&place, shared.offsets(), i, quad);
                    unroll!(0..4, |j| {
                        x[i * E::LANES + 4 * quad + j] -= offsets[j];
                    });
                });
            });
            let inside = token < count;
            let coded = encode::<E, false>(&place, x, inside);
            coded.store::<E>(true, &place, |dim| {
                let panel = shared.k() + dim / ROW_BYTES as u32 * shared.k_panel();
                panel + swizzle(token as usize, dim as usize % ROW_BYTES) as u32
            });
            let at = shared.factors(token / KV_BLOCK as u32) + 4 * (token % KV_BLOCK as u32);
            st_shared_u32(place.lane == 0, at, selp_b32(inside, coded.scale.to_bits(), 0));
            first += step;
        }
    }
}
