//! K: a lane holds a part of a token, a warp a few tokens at a time.

use super::blocks::four;
use super::shared::Shared;
use super::tokens::{Tokens, VECTORS, encode, offsets, rotated_scale, signed};
use super::{Kernel, warps};
use crate::element::Element;
use crate::layout::{KV_BLOCK, ROW_BYTES, swizzle};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_f32, st_shared_u32};
use crate::ptx::special::tid_x;
use crate::quantize::reduce::share_of_keys;
use crate::rotation::{DIMS, Place, vectors};

/// The lane's part of a token without K's offset, before the rotation.
#[inline(always)]
unsafe fn without_offset<E: Element, K: Kernel<MT>, const MT: usize>(
    place: &Place,
    raw: &[[u32; 4]; VECTORS],
    shared: &Shared<K, MT>,
) -> [f32; DIMS] {
    unsafe {
        let mut x = signed::<E>(place, raw, shared.signs());
        unroll!(0..vectors::<E>(), |i| {
            unroll!(0..E::LANES / 4, |quad| {
                let offsets = offsets::<E>(place, shared.offsets(), i, quad);
                unroll!(0..4, |j| {
                    x[i * E::LANES + 4 * quad + j] -= offsets[j];
                });
            });
        });
        x
    }
}

/// The scale that each token would have alone; zero behind the last, to a whole panel.
///
/// # Safety
/// As [`quantize`].
#[inline(always)]
pub(crate) unsafe fn own_scales<E: Element, K: Kernel<MT>, const MT: usize>(tokens: Tokens, shared: &Shared<K, MT>) {
    let scale = |place: &Place, raw, token: u32, inside: bool| unsafe {
        let (_, scale) = rotated_scale::<E, false>(place, without_offset::<E, K, MT>(place, &raw, shared));
        let at = shared.factors(token / KV_BLOCK as u32) + 4 * (token % KV_BLOCK as u32);
        st_shared_u32(place.lane == 0, at, selp_b32(inside, scale.to_bits(), 0));
    };
    unsafe { tokens.each::<E, K, MT>(shared, scale) };
}

/// The scale that the tokens of each block share, or zero, beside the block's scales.
///
/// # Safety
/// All warps of the CTA call it, a barrier after [`own_scales`].
#[inline(always)]
pub(crate) unsafe fn share<K: Kernel<MT>, const MT: usize>(shared: &Shared<K, MT>, warp: u32) {
    let mut block = warp;
    while block < shared.blocks {
        unsafe {
            let places = (shared.keys - block * KV_BLOCK as u32).min(KV_BLOCK as u32);
            let (largest, near) = share_of_keys(four(shared.factors(block), places));
            let scale = selp_b32((block != 0) & near, largest.to_bits(), 0);
            st_shared_u32(tid_x() % 32 == 0, shared.block(block) + 8, scale);
        }
        block += warps();
    }
}

/// Codes and scales of all tokens; behind the last, to a whole panel, codes and scales of zero.
///
/// # Safety
/// All warps of the CTA call it, a barrier after `offset::tables`, and after [`share`] where there is more than one block.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, K: Kernel<MT>, const MT: usize>(tokens: Tokens, shared: &Shared<K, MT>) {
    let code = |place: &Place, raw, token: u32, inside: bool| unsafe {
        let x = without_offset::<E, K, MT>(place, &raw, shared);
        let block = shared.block(token / KV_BLOCK as u32);
        let shares = if shared.blocks > 1 { ld_shared_f32(block + 8) } else { 0.0 };
        let coded = encode::<E, false>(place, x, inside, shares);
        coded.store::<E>(true, place, |dim| {
            let panel = shared.k() + dim / ROW_BYTES as u32 * shared.k_panel();
            panel + swizzle(token as usize, dim as usize % ROW_BYTES) as u32
        });
        let at = shared.factors(token / KV_BLOCK as u32) + 4 * (token % KV_BLOCK as u32);
        st_shared_u32(place.lane == 0, at, selp_b32(inside, coded.scale.to_bits(), 0));
    };
    unsafe { tokens.each::<E, K, MT>(shared, code) };
}
