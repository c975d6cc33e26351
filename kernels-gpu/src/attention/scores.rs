//! S = Q K^T on the int8 tensor cores.

use super::{Args, KEY_TILES, MAX_PAIRS, Place, Softmax, pairs};
use crate::layout::{KV_BLOCK, ROW_BYTES, slot_key, swizzle};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::memory::ld_shared_v4_f32;
use crate::ptx::mma::mma_m16n8k32_s32_s8_s8;
use crate::ptx::shared::st_shared_f32;
use crate::ptx::special::tid_x;

/// 2^23 + 2^22 as bits. An int32 sum that starts here and moves by less than 2^22 is, read as a float, 12582912 + sum.
pub(crate) const MAGIC_BITS: i32 = 0x4b40_0000;
/// The same as a float.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// k steps of the widest head.
const MAX_STEPS: usize = 8;

/// The warp's query rows as A fragments, resident for the whole kernel.
pub(crate) struct Query<const MT: usize> {
    fragment: [[[u32; 4]; MAX_STEPS]; MT],
}

impl<const MT: usize> Query<MT> {
    /// Rows past the end are zero.
    #[inline(always)]
    pub(crate) unsafe fn load<const D: usize>(args: &Args, place: &Place) -> Self {
        let mut fragment = [[[0; 4]; MAX_STEPS]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let row = place.row + (16 * mt + 8 * half) as u32 + place.group;
                let index = place.head * u64::from(args.seqlen_q) + u64::from(row);
                unroll!(0..D / ROW_BYTES, |step| {
                    unroll!(0..2, |upper| {
                        if row < args.seqlen_q {
                            let offset =
                                index * D as u64 + (ROW_BYTES * step + 16 * upper) as u64 + u64::from(4 * place.quad);
                            fragment[mt][step][half + 2 * upper] =
                                unsafe { *args.q.add(offset as usize).cast::<u32>() };
                        }
                    });
                });
            });
        });
        Self { fragment }
    }
}

/// The scales of the lane's query rows; 1 for rows past the end.
#[inline(always)]
pub(crate) unsafe fn query_scales<const MT: usize>(args: &Args, place: &Place) -> [[f32; 2]; MT] {
    let mut scales = [[1.0; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = place.row + (16 * mt + 8 * half) as u32 + place.group;
            if row < args.seqlen_q {
                let index = place.head * u64::from(args.seqlen_q) + u64::from(row);
                scales[mt][half] = unsafe { *args.q_scale.add(index as usize) };
            }
        });
    });
    scales
}

/// The key factors of two blocks in shared memory, the keys of 32 in the order of `key_slot`: a lane's four of two n8 tiles are
/// one load. The bias -MAGIC * factor is cheaper to multiply again than to load.
pub(crate) struct KeyScales {
    /// This thread's key of the next block to fetch.
    global: *const f32,
    shared: u32,
    thread: u32,
}

impl KeyScales {
    #[inline(always)]
    pub(crate) fn new(args: &Args, place: &Place, offset: usize) -> Self {
        let key = place.thread / 32 * 32 + slot_key((place.thread % 32) as usize) as u32;
        let first =
            place.head_kv * u64::from(args.seqlen_kv.div_ceil(KV_BLOCK as u32)) * KV_BLOCK as u64 + u64::from(key);
        let global = args.k_scale.wrapping_add(first as usize);
        Self { global, shared: place.shared + offset as u32, thread: place.thread }
    }

    /// The scale of this thread's key of the next block, read early, if there is `more`; else any value will do.
    #[inline(always)]
    pub(crate) unsafe fn fetch(&mut self, more: bool) -> f32 {
        let scale = if more { unsafe { *self.global } } else { 0.0 };
        self.global = self.global.wrapping_add(KV_BLOCK);
        scale
    }

    /// Stores the factor of a fetched scale; visible after the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn publish<S: Softmax<D, MT>, const D: usize, const MT: usize>(
        &self,
        block: u32,
        scale: f32,
        unit: f32,
    ) {
        let slot = block % 2 * KV_BLOCK as u32 + self.thread;
        unsafe { st_shared_f32(self.shared + 4 * slot, S::key_factor(unit, scale)) };
    }

    /// The factors of this lane's four keys of the n8 tiles `2 * pair` and `2 * pair + 1`.
    #[inline(always)]
    unsafe fn factors(&self, block: u32, pair: u32, place: &Place) -> [f32; 4] {
        unsafe { ld_shared_v4_f32(self.shared + block % 2 * (KV_BLOCK as u32 * 4) + place.quad * 16 + pair * 64) }
    }
}

/// Shared address of this lane's row for `ldmatrix.x4` at the start of a panel: matrices are (rows 0-7, low half),
/// (rows 0-7, high half), (rows 8-15, low), (rows 8-15, high), so that the four registers are the B fragments of two n8 tiles.
#[inline(always)]
pub(crate) fn panel_row(base: u32) -> u32 {
    let lane = tid_x() % 32;
    let (matrix, row) = (lane / 8, lane % 8);
    base + swizzle((8 * (matrix / 2) + row) as usize, (16 * (matrix % 2)) as usize) as u32
}

/// The scores of the team's rows against the warp's keys of the block at shared address `k`, in the softmax's working unit.
#[inline(always)]
pub(crate) unsafe fn block<S: Softmax<D, MT>, const D: usize, const MT: usize, const TEAM: usize>(
    query: &Query<MT>,
    k: u32,
    scales: &KeyScales,
    softmax: &S,
    block: u32,
    place: &Place,
) -> S::Scores {
    let mut scores = S::empty();
    let first = place.member * (KEY_TILES / 2 / TEAM) as u32;
    let row = panel_row(k) + first * (16 * ROW_BYTES) as u32;
    unroll!(0..KEY_TILES / 2 / TEAM / pairs(MT), |group| {
        let mut acc = [[[[MAGIC_BITS; 4]; 2]; MT]; MAX_PAIRS];
        unroll!(0..D / ROW_BYTES, |step| {
            unroll!(0..pairs(MT), |i| {
                let offset = (step * KV_BLOCK * ROW_BYTES + (group * pairs(MT) + i) * 16 * ROW_BYTES) as u32;
                let b = unsafe { ldmatrix_x4(row + offset) };
                unroll!(0..MT, |mt| {
                    let a = query.fragment[mt][step];
                    acc[i][mt][0] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[0], b[1]], acc[i][mt][0]) };
                    acc[i][mt][1] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[2], b[3]], acc[i][mt][1]) };
                });
            });
        });
        unroll!(0..pairs(MT), |i| {
            let factors = unsafe { scales.factors(block, first + (group * pairs(MT) + i) as u32, place) };
            let bias = factors.map(|factor| mul_rn_f32(-MAGIC, factor));
            unroll!(0..2, |n| {
                let tile = 2 * (group * pairs(MT) + i) + n;
                let key = [factors[2 * n], bias[2 * n], factors[2 * n + 1], bias[2 * n + 1]];
                unroll!(0..MT, |mt| {
                    unroll!(0..2, |half| {
                        let acc = &acc[i][mt][n];
                        let sums = [f32::from_bits(acc[2 * half] as u32), f32::from_bits(acc[2 * half + 1] as u32)];
                        softmax.put(&mut scores, mt, half, tile, sums, key);
                    });
                });
            });
        });
    });
    scores
}
