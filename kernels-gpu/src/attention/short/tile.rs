//! A warp's tile of query rows: what the steps through its blocks, and the epilogue, ask of it.

use super::Kernel;
use super::shared::Shared;
use crate::attention::KEY_STEPS;
use crate::attention::lane::Lane;
use crate::attention::sequence::Sequence;
use crate::attention::softmax::{BlockMax, Notes};
use crate::attention::window::{Blocks, Window};
use crate::layout::KV_BLOCK;
use crate::params::AttentionParams;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::ld_shared_f32;
use crate::ptx::special::tid_x;

/// The scheme: the tensor cores add up P.
pub(crate) type Scheme<const MT: usize> = BlockMax<MT, false>;

/// What the steps of a tile have in common.
pub(crate) struct Tile<'a, K, const MT: usize> {
    pub params: &'a AttentionParams,
    pub(super) head_q: u32,
    pub shared: &'a Shared<K, MT>,
    pub warp: u32,
    /// First row.
    pub row: u32,
    /// Which panels of 32 keys the rows see, of all blocks.
    pub(super) panels: Blocks,
    /// The largest reach of the rows.
    pub(super) reach: f32,
}

impl<K: Kernel<MT>, const MT: usize> Tile<'_, K, MT> {
    /// The lane in the fragments; anew, so that it takes no registers between its uses.
    #[inline(always)]
    pub(crate) fn lane(&self) -> Lane {
        Lane::new(opaque(tid_x()), self.row)
    }

    /// The head of Q; anew as well.
    #[inline(always)]
    pub(crate) unsafe fn sequence(&self) -> Sequence {
        unsafe { self.shared.cta().sequence(opaque(self.head_q)) }
    }

    /// The first block that a row sees.
    #[inline(always)]
    pub(super) fn first_block(&self) -> u32 {
        self.panels.first / KEY_STEPS as u32
    }

    /// The window on the sequence.
    #[inline(always)]
    pub(super) unsafe fn window(&self) -> Window<KV_BLOCK> {
        unsafe { self.sequence().window(self.params).anew() }
    }

    #[inline(always)]
    pub(crate) fn notes(&self) -> Notes {
        self.shared.notes(self.warp, opaque(tid_x()) % 32)
    }

    /// The scale, or the bias, of the lane's query.
    #[inline(always)]
    pub(crate) unsafe fn of_row(&self, biases: bool, mt: usize, half: usize) -> f32 {
        let row = (16 * mt + 8 * half) as u32 + opaque(tid_x()) % 32 / 4;
        unsafe { ld_shared_f32(self.shared.rows(self.warp, biases) + 4 * row) }
    }
}
