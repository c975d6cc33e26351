//! K: a lane holds a part of a token, a warp a few tokens at a time.

use super::Kernel;
use super::shared::Shared;
use super::tokens::{Tokens, encode, offsets, signed};
use crate::element::Element;
use crate::layout::{KV_BLOCK, ROW_BYTES, swizzle};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::st_shared_u32;
use crate::rotation::vectors;

/// Codes and scales of all tokens; behind the last, to a whole panel, codes and scales of zero.
///
/// # Safety
/// All warps of the CTA call it, a barrier after `offset::tables`.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, K: Kernel<MT>, const MT: usize>(tokens: Tokens, shared: &Shared<K, MT>) {
    let code = |place: &_, raw, token: u32, inside: bool| unsafe {
        let mut x = signed::<E>(place, &raw, shared.signs());
        unroll!(0..vectors::<E>(), |i| {
            unroll!(0..E::LANES / 4, |quad| {
                let offsets = offsets::<E>(place, shared.offsets(), i, quad);
                unroll!(0..4, |j| {
                    x[i * E::LANES + 4 * quad + j] -= offsets[j];
                });
            });
        });
        let coded = encode::<E, false>(place, x, inside);
        coded.store::<E>(true, place, |dim| {
            let panel = shared.k() + dim / ROW_BYTES as u32 * shared.k_panel();
            panel + swizzle(token as usize, dim as usize % ROW_BYTES) as u32
        });
        let at = shared.factors(token / KV_BLOCK as u32) + 4 * (token % KV_BLOCK as u32);
        st_shared_u32(place.lane == 0, at, selp_b32(inside, coded.scale.to_bits(), 0));
    };
    unsafe { tokens.each::<E, K, MT>(shared, code) };
}
