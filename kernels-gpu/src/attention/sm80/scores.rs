//! S = Q K^T on the int8 tensor cores.

use super::place::Place;
use super::{Kernel, MAX_PAIRS, pairs};
use crate::attention::lane::panel_row;
use crate::attention::sequence::at;
use crate::attention::softmax::{MAGIC, MAGIC_BITS, Softmax};
use crate::config::sm80::{PIECE_DIMS, parked_offset, ring_bytes};
use crate::layout::{KV_BLOCK, ROW_BYTES, slot_key};
use crate::params::AttentionParams;
use crate::ptx::global::{ld_global_nc_f32, ld_global_nc_u32};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::add_rn_f32;
use crate::ptx::mma::mma_m16n8k32_s32_s8_s8;
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_f32, ld_shared_v4_u32, st_shared_f32, st_shared_v4_u32};
use crate::ptx::special::tid_x;
use crate::smem;
use core::marker::PhantomData;

/// k steps of the widest head.
const MAX_STEPS: usize = 16;

/// The warp's query rows as A fragments.
#[derive(Clone, Copy)]
pub(crate) struct Query<const MT: usize> {
    fragment: [[[u32; 4]; MAX_STEPS]; MT],
}

impl<const MT: usize> Query<MT> {
    pub(crate) const NONE: Self = Self { fragment: [[[0; 4]; MAX_STEPS]; MT] };

    /// Rows past the end are zero.
    #[inline(always)]
    pub(crate) unsafe fn load(params: &AttentionParams, head_dim: usize, place: &Place) -> Self {
        let Self { mut fragment } = Self::NONE;
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let row = place.lane.query(mt, half);
                let codes = place.sequence.q(params, head_dim, row);
                unroll!(0..MAX_STEPS, |step| {
                    unroll!(0..2, |upper| {
                        if step < head_dim / ROW_BYTES && row < place.sequence.seqlen_q {
                            let offset = ROW_BYTES * step + 16 * upper + 4 * place.lane.quad as usize;
                            fragment[mt][step][half + 2 * upper] = unsafe { ld_global_nc_u32(codes.add(offset)) };
                        }
                    });
                });
            });
        });
        Self { fragment }
    }

    /// Stores it, for this thread to load again.
    #[inline(always)]
    pub(crate) unsafe fn park<K: Kernel<MT>>(&self) {
        unroll!(0..MT, |mt| {
            unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                unsafe { st_shared_v4_u32(true, Self::place_of::<K>(mt, step), self.fragment[mt][step]) };
            });
        });
    }

    /// What [`Self::park`] stored.
    #[inline(always)]
    pub(crate) unsafe fn parked<K: Kernel<MT>>() -> Self {
        let Self { mut fragment } = Self::NONE;
        unroll!(0..MT, |mt| {
            unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                fragment[mt][step] = unsafe { ld_shared_v4_u32(Self::place_of::<K>(mt, step)) };
            });
        });
        Self { fragment }
    }

    #[inline(always)]
    fn place_of<K: Kernel<MT>>(mt: usize, step: usize) -> u32 {
        let first = smem::base() + parked_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32;
        first + 16 * opaque(tid_x()) + ((mt * (K::HEAD_DIM / ROW_BYTES) + step) * 16 * 32 * K::WARPS) as u32
    }
}

/// The scales of the lane's query rows; 1 for rows past the end.
#[inline(always)]
pub(crate) unsafe fn query_scales<const MT: usize>(params: &AttentionParams, place: &Place) -> [[f32; 2]; MT] {
    let mut scales = [[1.0; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = place.lane.query(mt, half);
            if row < place.sequence.seqlen_q {
                scales[mt][half] = unsafe { ld_global_nc_f32(place.sequence.q_scale(params, row)) };
            }
        });
    });
    scales
}

/// Of the lane's query rows, the scales of those that there are; 0 for the others.
#[inline(always)]
pub(crate) fn scales_of_rows<const MT: usize>(place: &Place, q_scales: [[f32; 2]; MT]) -> [f32; 4] {
    let mut scales = [0.0; 4];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let is = place.lane.query(mt, half) < place.sequence.seqlen_q;
            scales[2 * mt + half] = f32::from_bits(selp_b32(is, q_scales[mt][half].to_bits(), 0));
        });
    });
    scales
}

/// The products of the lane's query rows with K's offset; 0 for rows past the end, and where K has none.
#[inline(always)]
pub(crate) unsafe fn query_biases<const MT: usize>(params: &AttentionParams, place: &Place) -> [[f32; 2]; MT] {
    let mut biases = [[0.0; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = place.lane.query(mt, half);
            if !params.q_bias.is_null() && row < place.sequence.seqlen_q {
                biases[mt][half] = unsafe { ld_global_nc_f32(place.sequence.q_bias(params, row)) };
            }
        });
    });
    biases
}

/// The key factors of two blocks in shared memory, the keys of 32 in the order of `key_slot`: a lane's four of two n8 tiles are
/// one load. The bias -MAGIC * factor is cheaper to multiply again than to load.
pub(crate) struct KeyFactors<K, const MT: usize> {
    shared: u32,
    thread: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> KeyFactors<K, MT> {
    #[inline(always)]
    pub(crate) fn new(place: &Place) -> Self {
        let shared = place.shared + ring_bytes(K::HEAD_DIM, K::SLOTS) as u32;
        Self { shared, thread: place.thread, kernel: PhantomData }
    }

    /// The scale of this thread's key of block `number`, read early, if there is such a block; else any value will do.
    #[inline(always)]
    pub(crate) unsafe fn fetch(&self, params: &AttentionParams, number: impl Fn() -> u32, is: bool) -> f32 {
        let mut scale = 0.0;
        if is & self.has_key() {
            let thread = opaque(tid_x());
            let key = thread / 32 * 32 + slot_key((thread % 32) as usize) as u32;
            let block = at(params.k_scale, number(), params.blocks.scale_bytes);
            scale = unsafe { ld_global_nc_f32(block.wrapping_add(key as usize)) };
        }
        scale
    }

    /// Stores the factor of a fetched scale; visible after the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn publish(&self, block: u32, scale: f32, common_factor: f32) {
        let slot = block % 2 * KV_BLOCK as u32 + self.thread;
        if self.has_key() {
            unsafe { st_shared_f32(self.shared + 4 * slot, K::Softmax::key_factor(common_factor, scale)) };
        }
    }

    /// Whether this thread is one of the first, who have a key of a block each.
    #[inline(always)]
    fn has_key(&self) -> bool {
        32 * K::WARPS == KV_BLOCK || self.thread < KV_BLOCK as u32
    }

    /// The factors of this lane's four keys of the n8 tiles `2 * pair` and `2 * pair + 1`.
    #[inline(always)]
    pub(crate) unsafe fn factors(&self, block: u32, pair: u32, place: &Place) -> [f32; 4] {
        unsafe { ld_shared_v4_f32(self.shared + block % 2 * (KV_BLOCK as u32 * 4) + place.lane.quad * 16 + pair * 64) }
    }
}

/// Adds to the products of a group of pairs of n8 tiles those of the dims of piece `piece`, whose rows begin at shared address `row`.
#[inline(always)]
unsafe fn add_products<K: Kernel<MT>, const MT: usize>(
    acc: &mut [PairSums<MT>; MAX_PAIRS],
    query: &Query<MT>,
    row: u32,
    group: usize,
    piece: usize,
) {
    let steps = K::HEAD_DIM / ROW_BYTES / K::PIECES;
    unroll!(0..K::HEAD_DIM / ROW_BYTES / K::PIECES, |step| {
        unroll!(0..pairs(MT), |i| {
            let offset = (step * KV_BLOCK * ROW_BYTES + (group * pairs(MT) + i) * 16 * ROW_BYTES) as u32;
            let b = unsafe { ldmatrix_x4(row + offset) };
            unroll!(0..MT, |mt| {
                let a = query.fragment[mt][piece * steps + step];
                acc[i][mt][0] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[0], b[1]], acc[i][mt][0]) };
                acc[i][mt][1] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[2], b[3]], acc[i][mt][1]) };
            });
        });
    });
}

/// The sums of a lane's keys of two neighbouring n8 tiles, which began at [`MAGIC_BITS`].
pub(crate) type PairSums<const MT: usize> = [[[i32; 4]; 2]; MT];

/// The sums of the team's rows and the warp's keys of the block at shared address `k`: `take` gets those of each pair of n8 tiles.
#[inline(always)]
pub(crate) unsafe fn block<K: Kernel<MT>, const MT: usize>(
    query: &Query<MT>,
    k: u32,
    place: &Place,
    mut take: impl FnMut(usize, &PairSums<MT>),
) {
    let row = first_row::<K, MT>(k, place);
    unroll!(0..K::KEY_TILES / 2 / pairs(MT), |group| {
        let mut acc = [[[[MAGIC_BITS; 4]; 2]; MT]; MAX_PAIRS];
        unsafe { add_products::<K, MT>(&mut acc, query, row, group, 0) };
        unroll!(0..pairs(MT), |i| {
            take(group * pairs(MT) + i, &acc[i]);
        });
    });
}

/// The first pair of n8 tiles of a block's keys that the warp has.
#[inline(always)]
pub(crate) fn first_pair<K: Kernel<MT>, const MT: usize>(place: &Place) -> u32 {
    place.member * (K::KEY_TILES / 2) as u32
}

/// Where the warp's first row is in the panel of a lane's rows of the block, or piece of one, at shared address `k`.
#[inline(always)]
fn first_row<K: Kernel<MT>, const MT: usize>(k: u32, place: &Place) -> u32 {
    panel_row(k) + first_pair::<K, MT>(place) * (16 * ROW_BYTES) as u32
}

/// The scores of the team's rows and the warp's keys of a block that comes in pieces; `next` is the shared address of each in turn. The products
/// of all dims leave the range of those that start at `MAGIC`, and those of a piece do not: their sum is exact in float32.
#[inline(always)]
pub(crate) unsafe fn block_of_pieces<K: Kernel<MT>, const MT: usize>(
    query: &Query<MT>,
    mut next: impl FnMut(usize) -> u32,
    keys: &KeyFactors<K, MT>,
    softmax: &K::Softmax,
    block: u32,
    place: &Place,
) -> <K::Softmax as Softmax<MT>>::Scores {
    // Float32 has all integers up to 2^24.
    const { assert!(127 * 127 * PIECE_DIMS < 1 << 22 && 127 * 127 * K::HEAD_DIM < 1 << 24) }
    const { assert!(K::PIECES == 1 || K::KEY_TILES == 2 * pairs(MT)) }
    let mut sums = [[[[0.0; 4]; 2]; MT]; MAX_PAIRS];
    unroll!(0..K::PIECES, |piece| {
        let row = first_row::<K, MT>(next(piece), place);
        let mut acc = [[[[MAGIC_BITS; 4]; 2]; MT]; MAX_PAIRS];
        unsafe { add_products::<K, MT>(&mut acc, query, row, 0, piece) };
        unroll!(0..pairs(MT), |i| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |n| {
                    unroll!(0..4, |j| {
                        let of_piece = add_rn_f32(f32::from_bits(acc[i][mt][n][j] as u32), -MAGIC);
                        let before = sums[i][mt][n][j];
                        sums[i][mt][n][j] = if piece == 0 { of_piece } else { add_rn_f32(before, of_piece) };
                    });
                });
            });
        });
    });
    let mut scores = K::Softmax::empty();
    let first = first_pair::<K, MT>(place);
    unroll!(0..pairs(MT), |i| {
        let factors = unsafe { keys.factors(block, first + i as u32, place) };
        unroll!(0..2, |n| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let sums = [sums[i][mt][n][2 * half], sums[i][mt][n][2 * half + 1]];
                    let key = [factors[2 * n], factors[2 * n + 1]];
                    softmax.scores_of_sums(&mut scores, mt, half, 2 * i + n, sums, key);
                });
            });
        });
    });
    scores
}
