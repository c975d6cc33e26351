//! S = Q K^T on the float16 tensor cores.

use super::load::query_landed;
use super::tile::{LaneRow, row_bytes};
use super::{Kernel, Place};
use crate::attention::window::Window;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::mma::mma_m16n8k16_f32_f16;
use crate::ptx::select::selp_b32;
use core::marker::PhantomData;

/// n8 tiles of the widest key tile.
pub(crate) const MAX_KEY_TILES: usize = 16;
/// k steps of the widest head.
const MAX_STEPS: usize = 16;

/// The scores of a warp against a tile of keys, in accumulator fragments.
pub(crate) type Scores<const MT: usize> = [[[f32; 4]; MAX_KEY_TILES]; MT];

/// The warp's query rows: A fragments in registers where `Q_IN_REGISTERS`, else in shared memory and read for every tile of keys.
pub(crate) struct Query<K, const MT: usize> {
    fragment: [[[u32; 4]; MAX_STEPS]; MT],
    base: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> Query<K, MT> {
    /// The rows at shared address `base`; waits for them if it has to.
    #[inline(always)]
    pub(crate) unsafe fn new(base: u32) -> Self {
        let mut query = Self { fragment: [[[0; 4]; MAX_STEPS]; MT], base, kernel: PhantomData };
        if K::Q_IN_REGISTERS {
            unsafe { query_landed::<K, MT>() };
            unroll!(0..MT, |mt| {
                unroll!(0..K::HEAD_DIM / 16, |step| {
                    query.fragment[mt][step] = unsafe { query.read(mt, step) };
                });
            });
        }
        query
    }

    #[inline(always)]
    unsafe fn read(&self, mt: usize, step: usize) -> [u32; 4] {
        unsafe {
            ldmatrix_x4(
                LaneRow::rows_first(K::HEAD_DIM).address(self.base, step) + 16 * mt as u32 * row_bytes(K::HEAD_DIM),
            )
        }
    }

    #[inline(always)]
    unsafe fn fragment(&self, mt: usize, step: usize) -> [u32; 4] {
        if K::Q_IN_REGISTERS { self.fragment[mt][step] } else { unsafe { self.read(mt, step) } }
    }
}

/// The scores against the tile at shared address `k`, not yet scaled.
#[inline(always)]
pub(crate) unsafe fn tile<K: Kernel<MT>, const MT: usize>(query: &Query<K, MT>, k: u32) -> Scores<MT> {
    let mut s = [[[0.0; 4]; MAX_KEY_TILES]; MT];
    let lane = LaneRow::chunks_first(K::HEAD_DIM);
    unroll!(0..K::HEAD_DIM / 16, |step| {
        let mut a = [[0; 4]; MT];
        unroll!(0..MT, |mt| {
            a[mt] = unsafe { query.fragment(mt, step) };
        });
        let address = lane.address(k, step);
        unroll!(0..K::KEYS / 16, |pair| {
            let b = unsafe { ldmatrix_x4(address + 16 * pair as u32 * row_bytes(K::HEAD_DIM)) };
            unroll!(0..MT, |mt| {
                s[mt][2 * pair] = unsafe { mma_m16n8k16_f32_f16(a[mt], [b[0], b[1]], s[mt][2 * pair]) };
                s[mt][2 * pair + 1] = unsafe { mma_m16n8k16_f32_f16(a[mt], [b[2], b[3]], s[mt][2 * pair + 1]) };
            });
        });
    });
    s
}

/// Scales the scores of a tile and hides those of unseen keys behind minus infinity (after the scale, which may be zero or
/// negative).
#[inline(always)]
pub(crate) fn scale_and_hide<const MT: usize, const KEYS: usize>(
    s: &mut Scores<MT>,
    scale: f32,
    window: &Window<KEYS>,
    block: u32,
    place: &Place,
) {
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let (row, first) = (place.lane.query(mt, half), 2 * place.lane.quad as i32);
            let from = window.first_in_block(row, block) - first;
            let to = window.end_in_block(row, block) - first;
            unroll!(0..KEYS / 8, |tile| {
                unroll!(0..2, |i| {
                    let score = &mut s[mt][tile][2 * half + i];
                    let scaled = mul_rn_f32(*score, scale).to_bits();
                    let key = (8 * tile + i) as i32;
                    // no `if`: libNVVM would draw the products of P and V, which need all lanes, into both of its sides
                    let seen = selp_b32((key >= from) & (key < to), scaled, f32::NEG_INFINITY.to_bits());
                    *score = f32::from_bits(seen);
                });
            });
        });
    });
}
