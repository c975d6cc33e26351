//! The rows of a tile: query heads of a group times new tokens.

use super::Kernel;
use super::walk::Block;
use crate::attention::lane::Lane;
use crate::config::decode::TILE_ROWS;
use crate::division::div_rem_or_one;
use crate::layout::ROW_BYTES;
use crate::params::DecodeParams;
use crate::ptx::global::{ld_global_nc_f32, ld_global_nc_u32};
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// k steps of the widest head.
const MAX_STEPS: usize = 8;

/// The rows as A fragments and their scales: those of a lane are `lane / 4` and eight later.
pub(crate) struct Rows<K> {
    /// Codes; zero in rows that are not there.
    pub fragment: [[u32; 4]; MAX_STEPS],
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
    let split = &params.split;
    // SAFETY: the host's plan has tiles, heads and tokens.
    unsafe {
        let (head, tile) = div_rem_or_one(block.tile, split.row_tiles);
        let (index, rows) = (Lane::new(tid_x(), tile * TILE_ROWS as u32).query(0, half), split.group * split.seqlen_q);
        let exists = index < rows;
        let index = index.min(rows - 1);
        let (of_group, token) = div_rem_or_one(index, split.seqlen_q);
        let first = (block.sequence as usize * split.heads_kv as usize + head as usize) * rows as usize;
        Row { exists, index, query: first + index as usize, head_q: head * split.group + of_group, token }
    }
}

impl<K: Kernel> Rows<K> {
    /// None.
    #[inline(always)]
    pub(crate) fn none() -> Self {
        Self { fragment: [[0; 4]; MAX_STEPS], scale: [0.0; 2], kernel: PhantomData }
    }

    /// Those of a block's tile.
    ///
    /// # Safety
    /// The block exists.
    #[inline(always)]
    pub(crate) unsafe fn load(params: &DecodeParams, block: &Block) -> Self {
        let mut rows = Self::none();
        let quad = tid_x() % 4;
        unroll!(0..2, |half| {
            let row = row(params, block, half);
            if row.exists {
                let codes = params.q.ptr().wrapping_add(row.query * K::HEAD_DIM + 4 * quad as usize);
                unroll!(0..MAX_STEPS, |step| {
                    unroll!(0..2, |upper| {
                        if step < K::HEAD_DIM / ROW_BYTES {
                            let at = codes.wrapping_add(ROW_BYTES * step + 16 * upper);
                            rows.fragment[step][half + 2 * upper] = unsafe { ld_global_nc_u32(at) };
                        }
                    });
                });
                rows.scale[half] = unsafe { ld_global_nc_f32(params.q_scale.ptr().wrapping_add(row.query)) };
            }
        });
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
