//! A tile of Q: codes, scales and biases to the warp's own shared memory, and from there to fragments.

use super::Kernel;
use super::keys::load_token;
use super::shared::Shared;
use super::tokens::{encode, offsets, signed};
use crate::attention::sequence::Sequence;
use crate::element::{Element, Rows};
use crate::layout::{ROW_BYTES, swizzle};
use crate::params::ShortParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::{add_rn_f32, fma_rn_f32};
use crate::ptx::shared::st_shared_u32;
use crate::ptx::special::tid_x;
use crate::rotation::{Place, vectors};

/// k steps of the widest head.
const MAX_STEPS: usize = 4;

/// The tile as A fragments.
pub(crate) struct Query<const MT: usize> {
    pub fragment: [[[u32; 4]; MAX_STEPS]; MT],
}

/// Bytes of a panel of 32 dims of the tile's codes.
const fn panel(mt: usize) -> u32 {
    (16 * mt * ROW_BYTES) as u32
}

/// Codes, scales and, where the log-sum-exp is wanted, biases of the tile from `row` on; visible to the warp when it returns. Rows behind the
/// last are as the last.
///
/// # Safety
/// In whole warps, a barrier after `offset::tables`; the row is one of the sequence.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, K: Kernel<MT>, const MT: usize>(
    params: &ShortParams,
    sequence: &Sequence,
    row: u32,
    shared: &Shared<K, MT>,
    warp: u32,
) {
    unsafe {
        let rows = Rows::new::<E>(&params.q, sequence.batch, sequence.head_q);
        let place = Place::new(K::HEAD_DIM as u32, K::HEAD_DIM as u32);
        let last = params.attention.seqlen_q - 1;
        let biased = !params.attention.lse.is_null();
        // All lanes have done with the tile before.
        warp_sync();
        unroll!(0..(16 * MT * K::HEAD_DIM / 1024).max(1), |i| {
            let of_tile = i as u32 * place.tokens() + place.token;
            let raw = load_token::<E>(&rows, &place, (row + of_tile).min(last));
            let x = signed::<E>(&place, &raw, shared.signs());
            // A tile may have fewer rows than a warp holds.
            let has = of_tile < K::TILE_M;
            if biased {
                let mut bias = [0.0; 4];
                unroll!(0..vectors::<E>(), |i| {
                    unroll!(0..E::LANES / 4, |quad| {
                        let offsets = offsets::<E>(&place, shared.offsets(), i, quad);
                        unroll!(0..4, |j| {
                            bias[j] = fma_rn_f32(x[i * E::LANES + 4 * quad + j], offsets[j], bias[j]);
                        });
                    });
                });
                let bias = place.over_lanes((bias[0] + bias[1]) + (bias[2] + bias[3]), add_rn_f32);
                st_shared_u32(has & (place.lane == 0), shared.rows(warp, true) + 4 * of_tile, bias.to_bits());
            }
            let coded = encode::<E, true>(&place, x, true);
            coded.store::<E>(has, &place, |dim| {
                let panel = shared.warp(warp) + dim / ROW_BYTES as u32 * panel(MT);
                panel + swizzle(of_tile as usize, dim as usize % ROW_BYTES) as u32
            });
            st_shared_u32(has & (place.lane == 0), shared.rows(warp, false) + 4 * of_tile, coded.scale.to_bits());
        });
        warp_sync();
    }
}

impl<const MT: usize> Query<MT> {
    /// # Safety
    /// In whole warps, after [`quantize`].
    #[inline(always)]
    pub(crate) unsafe fn load<K: Kernel<MT>>(shared: &Shared<K, MT>, warp: u32) -> Self {
        let mut fragment = [[[0; 4]; MAX_STEPS]; MT];
        // Matrices in the order of A's registers: (rows 0-7, low half), (rows 8-15, low), (rows 0-7, high), (rows 8-15, high).
        let (matrix, row) = (tid_x() % 32 / 8, tid_x() % 8);
        let row = shared.warp(warp) + swizzle((8 * (matrix % 2) + row) as usize, 16 * (matrix / 2) as usize) as u32;
        unroll!(0..MT, |mt| {
            unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                let at = row + (16 * mt * ROW_BYTES) as u32 + step as u32 * panel(MT);
                fragment[mt][step] = unsafe { ldmatrix_x4(at) };
            });
        });
        Self { fragment }
    }
}
