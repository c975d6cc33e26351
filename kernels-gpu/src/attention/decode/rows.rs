//! The rows of a tile: query heads of a group times new tokens.

use super::Kernel;
use super::walk::Block;
use crate::attention::lane::Lane;
use crate::config::decode::{TILE_ROWS, WARPS, rows_offset};
use crate::division::div_rem_or_one;
use crate::layout::ROW_BYTES;
use crate::params::DecodeParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_nc_f32, ld_global_nc_u32_if};
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::special::tid_x_again;
use crate::smem;
use core::marker::PhantomData;

/// The rows as A fragments, in shared memory for all warps of the CTA, and their scales: those of a lane are `lane / 4` and eight later.
///
/// ```text
/// [head_dim/32 steps][32 lanes][4 registers]
/// ```
pub(crate) struct Rows<K> {
    /// Zero in rows that are not there.
    pub scale: [f32; 2],
    kernel: PhantomData<K>,
}

/// A row of Q.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// Whether it is there; else it is the last one again.
    pub exists: bool,
    /// Its number among the rows of its head of K and V.
    pub index: u32,
    /// Among all queries: `(batch * heads_q + head_q) * seqlen_q + token`.
    pub query: usize,
    pub head_q: u32,
    pub token: u32,
}

/// The lane's row in half `half` of the block's tile.
#[inline(always)]
pub(crate) fn row(params: &DecodeParams, block: &Block, half: usize) -> Row {
    row_of(params, block, Lane::new(tid_x_again(), 0).query(0, half))
}

/// Row `of_tile` of the block's tile.
#[inline(always)]
pub(crate) fn row_of(params: &DecodeParams, block: &Block, of_tile: u32) -> Row {
    let split = &params.split;
    // SAFETY: the host's plan has tiles, heads and tokens.
    unsafe {
        let (head, tile) = div_rem_or_one(block.tile, split.row_tiles);
        let (index, rows) = (tile * TILE_ROWS as u32 + of_tile, split.group * split.seqlen_q);
        let exists = index < rows;
        let index = index.min(rows - 1);
        let (of_group, token) = div_rem_or_one(index, split.seqlen_q);
        let first = (block.sequence as usize * split.heads_kv as usize + head as usize) * rows as usize;
        Row { exists, index, query: first + index as usize, head_q: head * split.group + of_group, token }
    }
}

impl<K: Kernel> Rows<K> {
    const STEPS: usize = K::HEAD_DIM / ROW_BYTES;

    /// None.
    #[inline(always)]
    pub(crate) fn none() -> Self {
        Self { scale: [0.0; 2], kernel: PhantomData }
    }

    /// Shared address of the lane's fragment of a step.
    #[inline(always)]
    fn place(step: u32) -> u32 {
        smem::base() + rows_offset(K::HEAD_DIM) as u32 + 16 * (32 * step + tid_x_again() % 32)
    }

    /// The fragment of a step: codes, zero in rows that are not there.
    ///
    /// # Safety
    /// The rows have been loaded.
    #[inline(always)]
    pub(crate) unsafe fn fragment(&self, step: usize) -> [u32; 4] {
        unsafe { ld_shared_v4_u32(Self::place(step as u32)) }
    }

    /// Those of a block's tile.
    ///
    /// # Safety
    /// By the whole CTA, whose warps have done with the rows before. The block exists.
    #[inline(always)]
    pub(crate) unsafe fn load(params: &DecodeParams, block: &Block) -> Self {
        let mut rows = Self::none();
        let rows_of_lane = [row(params, block, 0), row(params, block, 1)];
        unsafe {
            // A warp has every so many-th step.
            let mut step = tid_x_again() / 32;
            while step < Self::STEPS as u32 {
                let mut fragment = [0; 4];
                unroll!(0..2, |half| {
                    let row = &rows_of_lane[half];
                    let at = row.query * K::HEAD_DIM + ROW_BYTES * step as usize + 4 * (tid_x_again() as usize % 4);
                    unroll!(0..2, |upper| {
                        let code = params.q.ptr().wrapping_add(at + 16 * upper);
                        fragment[half + 2 * upper] = ld_global_nc_u32_if(row.exists, code);
                    });
                });
                st_shared_v4_u32(true, Self::place(step), fragment);
                step += WARPS as u32;
            }
            unroll!(0..2, |half| {
                let row = &rows_of_lane[half];
                let scale = params.q_scale.ptr().wrapping_add(row.query);
                rows.scale[half] = f32::from_bits(ld_global_nc_u32_if(row.exists, scale.cast()));
            });
            bar_sync();
        }
        rows
    }
}

/// `softmax_scale * q . k_offset` of a row, the part of its scores that its codes do not have.
///
/// # Safety
/// The row is one of Q.
#[inline(always)]
pub(crate) unsafe fn bias(params: &DecodeParams, row: &Row) -> f32 {
    if params.q_bias.is_null() {
        return 0.0;
    }
    params.softmax_scale * unsafe { ld_global_nc_f32(params.q_bias.ptr().wrapping_add(row.query)) }
}
