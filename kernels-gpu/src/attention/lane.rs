//! Which elements of a warp's fragments a lane has (drawn in `ptx/mma.rs`).

use crate::layout::swizzle;
use crate::ptx::special::tid_x;

/// The place of a lane in the fragments, and the queries of its warp.
#[derive(Clone, Copy)]
pub(crate) struct Lane {
    /// `lane / 4`: its row in each eight rows of a fragment.
    pub group: u32,
    /// `lane % 4`: its pair of columns in each eight columns of a fragment.
    pub quad: u32,
    /// First query of the fragments.
    pub row: u32,
}

impl Lane {
    /// Of thread `thread` of the CTA, whose warp has the queries from `row` on.
    #[inline(always)]
    pub(crate) fn new(thread: u32, row: u32) -> Self {
        Self { group: thread % 32 / 4, quad: thread % 4, row }
    }

    /// The lane's query in half `half` of m16 tile `mt`.
    #[inline(always)]
    pub(crate) fn query(&self, mt: usize, half: usize) -> u32 {
        self.row + (16 * mt + 8 * half) as u32 + self.group
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
