//! K: a lane holds a part of a token, a warp a few tokens at a time.

use super::Kernel;
use super::shared::Shared;
use super::tokens::{Tokens, encode, offsets, signed};
use crate::layout::{KV_BLOCK, ROW_BYTES, swizzle};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::st_shared_u32;
use crate::quantize::arithmetic::Rotated;

/// Codes and scales of all tokens; behind the last, to a whole panel, codes and scales of zero.
///
/// # Safety
/// K's team calls it, a barrier after `offset::tables`.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Rotated, K: Kernel<MT>, const MT: usize>(tokens: Tokens, shared: &Shared<K, MT>) {
    let code = |place: &_, raw, token: u32, inside: bool| unsafe {
        let x = signed::<E>(place, &raw, shared.signs());
        let offset = offsets::<E>(place, shared.offsets());
        let coded = encode::<E>(place, K::HEAD_DIM, x, Some(&offset), inside);
        coded.store::<E>(place, |dim| {
            let panel = shared.k() + dim / ROW_BYTES as u32 * shared.k_panel();
            panel + swizzle(token as usize, dim as usize % ROW_BYTES) as u32
        });
        let (block, key) = (token / KV_BLOCK as u32, token % KV_BLOCK as u32);
        let scale = selp_b32(inside, coded.scale.to_bits(), 0);
        st_shared_u32(place.lane == 0, shared.factors(block) + 4 * key, scale);
    };
    unsafe { tokens.each::<E, K, MT>(shared, code) };
}
