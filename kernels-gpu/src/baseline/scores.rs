//! S = Q K^T on the float16 tensor cores.

use super::load::query_landed;
use super::tile::{LaneRow, row_bytes};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::mma::mma_m16n8k16_f32_f16;

/// n8 tiles of the widest key tile.
pub(crate) const MAX_KEY_TILES: usize = 16;
/// k steps of the widest head.
const MAX_STEPS: usize = 16;

/// The scores of a warp against a tile of keys, in accumulator fragments.
pub(crate) type Scores<const MT: usize> = [[[f32; 4]; MAX_KEY_TILES]; MT];

/// The warp's query rows: A fragments in registers where `RESIDENT`, else in shared memory and read for every tile of keys.
pub(crate) struct Query<const MT: usize, const RESIDENT: bool> {
    fragment: [[[u32; 4]; MAX_STEPS]; MT],
    base: u32,
}

impl<const MT: usize, const RESIDENT: bool> Query<MT, RESIDENT> {
    /// The rows at shared address `base`; waits for them if it has to.
    #[inline(always)]
    pub(crate) unsafe fn new<const D: usize, const STAGES: usize>(base: u32) -> Self {
        let mut query = Self { fragment: [[[0; 4]; MAX_STEPS]; MT], base };
        if RESIDENT {
            unsafe { query_landed::<STAGES>() };
            unroll!(0..MT, |mt| {
                unroll!(0..D / 16, |step| {
                    query.fragment[mt][step] = unsafe { query.read::<D>(mt, step) };
                });
            });
        }
        query
    }

    #[inline(always)]
    unsafe fn read<const D: usize>(&self, mt: usize, step: usize) -> [u32; 4] {
        unsafe { ldmatrix_x4(LaneRow::rows_first::<D>().address(self.base, step) + 16 * mt as u32 * row_bytes(D)) }
    }

    #[inline(always)]
    unsafe fn fragment<const D: usize>(&self, mt: usize, step: usize) -> [u32; 4] {
        if RESIDENT { self.fragment[mt][step] } else { unsafe { self.read::<D>(mt, step) } }
    }
}

/// The scores against the tile at shared address `k`, not yet scaled.
#[inline(always)]
pub(crate) unsafe fn tile<const D: usize, const MT: usize, const KEYS: usize, const RESIDENT: bool>(
    query: &Query<MT, RESIDENT>,
    k: u32,
) -> Scores<MT> {
    let mut s = [[[0.0; 4]; MAX_KEY_TILES]; MT];
    let lane = LaneRow::chunks_first::<D>();
    unroll!(0..D / 16, |step| {
        let mut a = [[0; 4]; MT];
        unroll!(0..MT, |mt| {
            a[mt] = unsafe { query.fragment::<D>(mt, step) };
        });
        let address = lane.address(k, step);
        unroll!(0..KEYS / 16, |pair| {
            let b = unsafe { ldmatrix_x4(address + 16 * pair as u32 * row_bytes(D)) };
            unroll!(0..MT, |mt| {
                s[mt][2 * pair] = unsafe { mma_m16n8k16_f32_f16(a[mt], [b[0], b[1]], s[mt][2 * pair]) };
                s[mt][2 * pair + 1] = unsafe { mma_m16n8k16_f32_f16(a[mt], [b[2], b[3]], s[mt][2 * pair + 1]) };
            });
        });
    });
    s
}
