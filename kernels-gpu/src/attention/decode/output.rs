//! O += w G/255 (P V) on the int8 tensor cores, and a piece's rows to the workspace.

use super::Kernel;
use super::rows::{bias, row};
use super::scores::{MAGIC, natural};
use super::softmax::{Softmax, Weights};
use super::walk::Block;
use crate::attention::KEY_STEPS;
use crate::attention::lane::panel_row;
use crate::config::decode::{TILE_ROWS, rows_of_piece};
use crate::layout::v4::{V4_PANEL_BYTES, V4_PANEL_STEP_BYTES, v4_steps_offset};
use crate::layout::{ROW_BYTES, V_GROUP, V_PANELS, V_ROTATION, rotate_v_back};
use crate::nibbles::unpack;
use crate::params::DecodeParams;
use crate::ptx::global::{st_global_f32, st_global_v4_u32};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::fma_rn_f32;
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;
use crate::ptx::shared::ld_shared_v4_u32;
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::{ctaid_x, tid_x};
use core::marker::PhantomData;

/// n8 tiles of a warp's part of the widest head.
const MAX_TILES: usize = 16;

/// The rows of a tile in accumulator fragments, rotated as V is: of the warp's part of the dims.
pub(crate) struct Output<K> {
    o: [[f32; 4]; MAX_TILES],
    kernel: PhantomData<K>,
}

impl<K: Kernel> Output<K> {
    /// Dims of the warp.
    const DIMS: usize = K::HEAD_DIM / K::TEAM;

    /// The first of them.
    #[inline(always)]
    fn first_dim() -> u32 {
        if K::TEAM == 1 { 0 } else { tid_x() / 32 * Self::DIMS as u32 }
    }

    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { o: [[0.0; 4]; MAX_TILES], kernel: PhantomData }
    }

    /// Adds a block's V, at a shared address.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn add(&mut self, weights: &Weights, values: u32) {
        unsafe { self.rescale(weights) };
        let panel = panel_row(values) + Self::first_dim() * ROW_BYTES as u32;
        unroll!(0..Self::DIMS / 16, |pair| {
            let mut sums = [weights.first_sums(); 2];
            unroll!(0..KEY_STEPS, |step| {
                let at = step * K::HEAD_DIM * ROW_BYTES + pair * 16 * ROW_BYTES;
                let b = unsafe { ldmatrix_x4(panel + at as u32) };
                sums[0] = unsafe { mma_m16n8k32_s32_u8_u8(weights.p[step], [b[0], b[1]], sums[0]) };
                sums[1] = unsafe { mma_m16n8k32_s32_u8_u8(weights.p[step], [b[2], b[3]], sums[1]) };
            });
            unroll!(0..2, |n| {
                self.add_sums(weights, 2 * pair + n, sums[n]);
            });
        });
    }

    /// [`add`](Self::add) of V in 4 bits (`layout::v4`): a lane makes the bytes of its operands itself, of a group of dims and a panel of keys at a time.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn add_v4(&mut self, weights: &Weights, values: u32) {
        unsafe { self.rescale(weights) };
        let first = Self::first_dim() / V_GROUP as u32 * V_PANELS as u32;
        let nibbles = values + first * V4_PANEL_BYTES as u32 + 16 * (tid_x() % 32);
        let steps =
            values + v4_steps_offset(K::HEAD_DIM) as u32 + first * V4_PANEL_STEP_BYTES as u32 + 16 * (tid_x() % 4);
        unroll!(0..Self::DIMS / V_GROUP, |group| {
            let mut sums = [weights.first_sums(); 4];
            unroll!(0..KEY_STEPS, |step| {
                let at = group * V_PANELS + step;
                let b = unsafe {
                    unpack(
                        ld_shared_v4_u32(nibbles + (at * V4_PANEL_BYTES) as u32),
                        ld_shared_v4_u32(steps + (at * V4_PANEL_STEP_BYTES) as u32),
                    )
                };
                unroll!(0..4, |tile| {
                    sums[tile] = unsafe { mma_m16n8k32_s32_u8_u8(weights.p[step], b[tile], sums[tile]) };
                });
            });
            unroll!(0..4, |tile| {
                self.add_sums(weights, 4 * group + tile, sums[tile]);
            });
        });
    }

    /// Multiplies what there is with the weights' `rescale`.
    #[inline(always)]
    unsafe fn rescale(&mut self, Weights { rescale, .. }: &Weights) {
        // Seldom: the largest score moves less and less.
        if unsafe { vote_any(rescale[0] != 1.0 || rescale[1] != 1.0) } {
            unroll!(0..Self::DIMS / 8, |tile| {
                unroll!(0..4, |i| {
                    self.o[tile][i] *= rescale[i / 2];
                });
            });
        }
    }

    /// Adds the products of an n8 tile, which began as [`Weights::first_sums`].
    #[inline(always)]
    fn add_sums(&mut self, Weights { factor, .. }: &Weights, tile: usize, sums: [i32; 4]) {
        unroll!(0..4, |i| {
            let o = &mut self.o[tile][i];
            // At most 255 * 127 * 128 < 2^22 in magnitude.
            *o = fma_rn_f32(f32::from_bits(sums[i] as u32) - MAGIC, factor[i / 2], *o);
        });
    }

    /// Leaves the rows of a piece, whose last block is given, and their log-sum-exps in the workspace.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, params: &DecodeParams, block: &Block, softmax: &Softmax) {
        let place = block.place(params, ctaid_x()) as usize * rows_of_piece(&params.split) as usize;
        let quad = tid_x() as usize % 4;
        unroll!(0..2, |half| {
            let (sum, lse) = softmax.finish(half);
            let row = row(params, block, half);
            let at = place + row.index as usize % TILE_ROWS;
            // Rotated back, four dims are four times as large.
            let factor = sum * (1.0 / V_ROTATION as f32);
            let o = params
                .partial_o
                .ptr()
                .cast_mut()
                .wrapping_add(at * K::HEAD_DIM + Self::first_dim() as usize + 8 * quad);
            unroll!(0..Self::DIMS / V_GROUP, |group| {
                unroll!(0..2, |four| {
                    let mut x = [0.0; V_ROTATION];
                    unroll!(0..V_ROTATION, |i| {
                        // The lane's neighbouring dims (`layout::v_row`).
                        x[i] = self.o[4 * group + 2 * four + i / 2][2 * half + i % 2] * factor;
                    });
                    let x = rotate_v_back(x).map(|x| if lse == f32::NEG_INFINITY { 0 } else { x.to_bits() });
                    let at = o.wrapping_add(V_GROUP * group + 4 * four);
                    unsafe { st_global_v4_u32(row.exists, at.cast(), x) };
                });
            });
            // Inside a softcap the offset's share is in the scores.
            let bias = if params.softcap != 0.0 { 0.0 } else { unsafe { bias(params, &row) } };
            let to = params.partial_lse.ptr().cast_mut().wrapping_add(at);
            unsafe { st_global_f32(row.exists && quad == 0 && tid_x() < 32, to, [natural(lse, bias)]) };
        });
    }
}
