//! S = Q K^T on the int8 tensor cores, and what changes a score.

use super::Kernel;
use super::rows::{Rows, bias, row};
use super::schedule::{end_key, first_key as first_key_seen};
use super::walk::Block;
use crate::attention::KEY_TILES;
use crate::attention::lane::panel_row;
use crate::layout::{KV_BLOCK, ROW_BYTES, rotation};
use crate::params::DecodeParams;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::{ex2_approx_ftz_f32, fma_rn_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::mma::mma_m16n8k32_s32_s8_s8;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::ld_shared_v2_u32;
use crate::ptx::special::tid_x;
use core::f32::consts::{LN_2, LOG2_E};

/// 2^23 + 2^22 as bits: an int32 sum that starts here and moves by less than 2^22 is, read as a float, this number and the sum.
pub(crate) const MAGIC_BITS: i32 = 0x4b40_0000;
/// The same as a float.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// The scores of the lane's two rows against its keys of a block: keys `8 * tile + 2 * (lane % 4)` and the next.
pub(crate) type Scores = [[[f32; 2]; KEY_TILES]; 2];

/// The lane's first key of an n8 tile, counted from the block's first.
#[inline(always)]
pub(crate) fn first_key(tile: usize) -> u32 {
    8 * tile as u32 + 2 * (tid_x() % 4)
}

/// `s * k_scale * c` of the block of K and the scales at these shared addresses: the rows' own scales come later.
#[inline(always)]
pub(crate) unsafe fn block<K: Kernel>(rows: &Rows<K>, keys: u32, scales: u32, params: &DecodeParams) -> Scores {
    let c = params.softmax_scale * LOG2_E * (1.0 / rotation(K::HEAD_DIM) as f32);
    let (panel, scales) = (panel_row(keys), scales + 4 * first_key(0));
    let mut scores = [[[0.0; 2]; KEY_TILES]; 2];
    unroll!(0..KEY_TILES / 2, |pair| {
        let mut sums = [[MAGIC_BITS; 4]; 2];
        unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
            let b = unsafe { ldmatrix_x4(panel + (step * KV_BLOCK * ROW_BYTES + pair * 16 * ROW_BYTES) as u32) };
            let a = rows.fragment[step];
            sums[0] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[0], b[1]], sums[0]) };
            sums[1] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[2], b[3]], sums[1]) };
        });
        unroll!(0..2, |n| {
            let tile = 2 * pair + n;
            let scale = unsafe { ld_shared_v2_u32(scales + 32 * tile as u32) };
            unroll!(0..2, |i| {
                let factor = mul_rn_f32(f32::from_bits(scale[i]), c);
                unroll!(0..2, |half| {
                    let sum = f32::from_bits(sums[n][2 * half + i] as u32) - MAGIC;
                    scores[half][tile][i] = mul_rn_f32(sum, factor);
                });
            });
        });
    });
    scores
}

/// Softcap, ALiBi and the mask, in this order, and what the scores are to be multiplied with: the rows' scales, or 1 where they had to be
/// multiplied before.
#[inline(always)]
pub(crate) unsafe fn finish<K: Kernel>(
    scores: &mut Scores,
    rows: &Rows<K>,
    block: &Block,
    params: &DecodeParams,
    edge: bool,
) -> [f32; 2] {
    let mut unit = rows.scale;
    if params.softcap != 0.0 || !params.alibi_slopes.is_null() {
        unroll!(0..2, |half| {
            unsafe { change(&mut scores[half], unit[half], half, block, params) };
            unit[half] = 1.0;
        });
    }
    if edge {
        let mask = Mask::new(block, params);
        unroll!(0..2, |half| {
            unroll!(0..KEY_TILES, |tile| {
                unroll!(0..2, |i| {
                    let score = scores[half][tile][i].to_bits();
                    let seen = mask.sees(half, tile, i);
                    scores[half][tile][i] = f32::from_bits(selp_b32(seen, score, f32::NEG_INFINITY.to_bits()));
                });
            });
        });
    }
    unit
}

/// Softcap and ALiBi of a row, whose scale is `unit`.
#[inline(always)]
unsafe fn change(scores: &mut [[f32; 2]; KEY_TILES], unit: f32, half: usize, block: &Block, params: &DecodeParams) {
    let row = row(params, block, half);
    let cap = params.softcap * LOG2_E;
    let bias = if cap != 0.0 { unsafe { bias(params, &row) * LOG2_E } } else { 0.0 };
    let steep = 2.0 * LOG2_E * rcp_approx_ftz_f32(cap);
    let slope = if params.alibi_slopes.is_null() {
        0.0
    } else {
        unsafe { ld_global_nc_f32(params.alibi_slopes.ptr().wrapping_add(row.head_q as usize)) * LOG2_E }
    };
    // From the block's first key to the one beside the row.
    let beside = (row.token + block.seqlen_kv) as i32 - (params.split.seqlen_q + block.block * KV_BLOCK as u32) as i32;
    unroll!(0..KEY_TILES, |tile| {
        unroll!(0..2, |i| {
            let mut t = mul_rn_f32(scores[tile][i], unit);
            if cap != 0.0 {
                // tanh(x) = 1 - 2/(1 + e^2x): what is lost of small x is next to nothing of the cap.
                let e = ex2_approx_ftz_f32((t + bias) * steep);
                t = fma_rn_f32(-2.0 * cap, rcp_approx_ftz_f32(1.0 + e), cap);
            }
            let distance = (beside - (first_key(tile) as i32 + i as i32)).abs();
            scores[tile][i] = fma_rn_f32(-slope, distance as f32, t);
        });
    });
}

/// Which keys of a block the lane's rows see.
pub(crate) struct Mask {
    /// The first, counted from the block's, and how many.
    first: [u32; 2],
    keys: [u32; 2],
}

impl Mask {
    #[inline(always)]
    pub(crate) fn new(block: &Block, params: &DecodeParams) -> Self {
        let (split, from) = (&params.split, block.block * KV_BLOCK as u32);
        let in_block = |key: u32| key.saturating_sub(from).min(KV_BLOCK as u32);
        let tokens = [row(params, block, 0).token, row(params, block, 1).token];
        let first = tokens.map(|token| in_block(first_key_seen(split, block.seqlen_kv, token)));
        let end = tokens.map(|token| in_block(end_key(split, block.seqlen_kv, token)));
        // None where a window ends before it begins.
        Self { first, keys: [end[0].saturating_sub(first[0]), end[1].saturating_sub(first[1])] }
    }

    /// Whether the row of half `half` sees the lane's key `i` of an n8 tile.
    #[inline(always)]
    pub(crate) fn sees(&self, half: usize, tile: usize, i: usize) -> bool {
        // Below the first, the difference is larger than any.
        (first_key(tile) + i as u32).wrapping_sub(self.first[half]) < self.keys[half]
    }
}

/// A natural logarithm of a number whose binary one is given.
#[inline(always)]
pub(crate) fn natural(log2: f32, bias: f32) -> f32 {
    fma_rn_f32(log2, LN_2, bias)
}
