//! O += w G/255 (P V) on the int8 tensor cores, and a piece's rows to the workspace.

use super::Kernel;
use super::ring::Ring;
use super::rows::{Row, bias, row_of};
use super::scores::{MAGIC, natural};
use super::softmax::{Softmax, Weights, finish};
use super::walk::Block;
use crate::attention::lane::panel_row;
use crate::config::decode::{HALF_ROWS, MAX_TILES, THREADS, TILE_ROWS, WARPS, rows_of_piece};
use crate::layout::v4::{V4_PANEL_BYTES, V4_PANEL_STEP_BYTES};
use crate::layout::{ROW_BYTES, V_GROUP, V_ROTATION, rotate_v_back};
use crate::nibbles::unpack;
use crate::params::DecodeParams;
use crate::ptx::barrier::{bar_sync, warp_sync};
use crate::ptx::global::{st_global_f32, st_global_v4_u32};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::fma_rn_f32;
use crate::ptx::mma::mma_m16n8k32_s32_u8_u8;
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_u32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::{ctaid_x, tid_x, tid_x_again};
use core::marker::PhantomData;

/// The rows of a tile in accumulator fragments, rotated as V is: of the warp's keys.
pub(crate) struct Output<K> {
    o: [[f32; 4]; MAX_TILES],
    kernel: PhantomData<K>,
}

impl<K: Kernel> Output<K> {
    #[inline(always)]
    pub(crate) fn zero() -> Self {
        Self { o: [[0.0; 4]; MAX_TILES], kernel: PhantomData }
    }

    /// Adds V of the warp's keys of a block, at a shared address.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn add(&mut self, weights: &Weights, values: u32) {
        unsafe { self.rescale(weights) };
        let panel = panel_row(values);
        unroll!(0..K::HEAD_DIM / 16, |pair| {
            let b = unsafe { ldmatrix_x4(panel + (pair * 16 * ROW_BYTES) as u32) };
            unroll!(0..2, |n| {
                let sums = weights.first_sums();
                let sums = unsafe { mma_m16n8k32_s32_u8_u8(weights.p, [b[2 * n], b[2 * n + 1]], sums) };
                self.add_sums(weights, 2 * pair + n, sums);
            });
        });
    }

    /// [`add`](Self::add) of V in 4 bits (`layout::v4`): a lane makes the bytes of its operands itself, of a group of dims at a time.
    ///
    /// # Safety
    /// By a whole warp.
    #[inline(always)]
    pub(crate) unsafe fn add_v4(&mut self, weights: &Weights, values: u32) {
        unsafe { self.rescale(weights) };
        let nibbles = values + 16 * (tid_x() % 32);
        let steps = values + (K::HEAD_DIM / V_GROUP * V4_PANEL_BYTES) as u32 + 16 * (tid_x() % 4);
        unroll!(0..K::HEAD_DIM / V_GROUP, |group| {
            let b = unsafe {
                unpack(
                    ld_shared_v4_u32(nibbles + (group * V4_PANEL_BYTES) as u32),
                    ld_shared_v4_u32(steps + (group * V4_PANEL_STEP_BYTES) as u32),
                )
            };
            unroll!(0..4, |tile| {
                let sums = unsafe { mma_m16n8k32_s32_u8_u8(weights.p, b[tile], weights.first_sums()) };
                self.add_sums(weights, 4 * group + tile, sums);
            });
        });
    }

    /// Multiplies what there is with the weights' `rescale`.
    #[inline(always)]
    unsafe fn rescale(&mut self, Weights { rescale, .. }: &Weights) {
        // Seldom: the largest score moves less and less.
        if unsafe { vote_any(rescale[0] != 1.0 || rescale[1] != 1.0) } {
            unroll!(0..K::HEAD_DIM / 8, |tile| {
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
            // At most 255 * 127 * 32 < 2^22 in magnitude.
            *o = fma_rn_f32(f32::from_bits(sums[i] as u32) - MAGIC, factor[i / 2], *o);
        });
    }

    /// Leaves the rows of a piece, whose last block is given, and their log-sum-exps in the workspace: sums over the warps, in their order. Eight
    /// rows at a time, which each warp has room for where its last values were:
    ///
    /// ```text
    /// warp  [8 rows][head_dim] f32, vectors of four dims exchanged by the row's number so that no two rows' are in one bank
    /// ```
    ///
    /// # Safety
    /// By a whole CTA.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, params: &DecodeParams, block: &Block, softmax: &Softmax, ring: &Ring<K>) {
        const { assert!(size_of::<f32>() * HALF_ROWS == ROW_BYTES) };
        let vectors = K::HEAD_DIM as u32 / 4;
        let vector = |row: u32, at: u32| 16 * (row * vectors + (at ^ row));
        let (lane, own) = (tid_x_again() % 32, Ring::<K>::of_warp(tid_x_again() / 32));
        let (of_lane, quad) = (lane / 4, lane % 4);
        unroll!(0..2, |half| {
            let first = row_of(params, block, (HALF_ROWS * half) as u32);
            if first.exists {
                unsafe {
                    // All lanes have read what was there; of the second half, all warps have.
                    warp_sync();
                    unroll!(0..K::HEAD_DIM / V_GROUP, |group| {
                        unroll!(0..2, |four| {
                            let mut x = [0; V_ROTATION];
                            unroll!(0..V_ROTATION, |i| {
                                // The lane's neighbouring dims (`layout::v_row`).
                                x[i] = self.o[4 * group + 2 * four + i / 2][2 * half + i % 2].to_bits();
                            });
                            let at = (V_GROUP / 4 * group + four) as u32 + 2 * quad;
                            st_shared_v4_u32(true, own + ring.used() + vector(of_lane, at), x);
                        });
                    });
                    let states = own + Ring::<K>::scales_of(block);
                    st_shared_v2_u32(quad == 0, states + 8 * of_lane, softmax.state(half));
                    bar_sync();
                    let mut index = tid_x_again();
                    while index < HALF_ROWS as u32 * vectors {
                        let (of_half, at) = (index / vectors, index % vectors);
                        let row = row_of(params, block, HALF_ROWS as u32 * half as u32 + of_half);
                        let from = ring.used() + vector(of_half, at);
                        let states = Ring::<K>::scales_of(block) + 8 * of_half;
                        if row.exists {
                            store_vector::<K>(params, block, &row, 4 * at as usize, from, states);
                        }
                        index += THREADS as u32;
                    }
                    // All warps have read it, before it is written again.
                    bar_sync();
                }
            }
        });
    }
}

/// Four dims of a row from the warps' sums and states, which are at these addresses of each warp, and with the first ones the log-sum-exp.
#[inline(always)]
unsafe fn store_vector<K: Kernel>(params: &DecodeParams, block: &Block, row: &Row, dim: usize, sums: u32, states: u32) {
    unsafe {
        let mut of_warps = [[0; 2]; WARPS];
        unroll!(0..WARPS, |warp| {
            of_warps[warp] = ld_shared_v2_u32(Ring::<K>::of_warp(warp as u32) + states);
        });
        let (factors, lse) = finish(of_warps);
        let mut x = [0.0; V_ROTATION];
        unroll!(0..WARPS, |warp| {
            let of_warp = ld_shared_v4_u32(Ring::<K>::of_warp(warp as u32) + sums);
            unroll!(0..V_ROTATION, |i| {
                x[i] = fma_rn_f32(factors[warp], f32::from_bits(of_warp[i]), x[i]);
            });
        });
        // Rotated back, four dims are four times as large.
        let x = rotate_v_back(x.map(|x| x * (1.0 / V_ROTATION as f32)));
        let x = x.map(|x| if lse == f32::NEG_INFINITY { 0 } else { x.to_bits() });
        let place = block.place(params, ctaid_x()) as usize * rows_of_piece(&params.split) as usize;
        let at = place + row.index as usize % TILE_ROWS;
        let o = params.partial_o.ptr().cast_mut().wrapping_add(at * K::HEAD_DIM + dim);
        st_global_v4_u32(true, o.cast(), x);
        if dim == 0 {
            // Inside a softcap the offset's share is in the scores.
            let bias = if params.softcap != 0.0 { 0.0 } else { bias(params, row) };
            st_global_f32(true, params.partial_lse.ptr().cast_mut().wrapping_add(at), [natural(lse, bias)]);
        }
    }
}
