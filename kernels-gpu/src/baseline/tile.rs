//! Tiles of float16 rows in shared memory: row-major, the 16-byte chunks of a row exchanged so that eight consecutive rows of
//! one chunk cover all 32 banks once.

use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;

/// Bytes of one row.
pub(crate) const fn row_bytes(d: usize) -> u32 {
    2 * d as u32
}

/// Chunks that change places among themselves: all of a 128-byte line, or half of one where rows are an odd multiple of 64 bytes.
pub(crate) const fn line(d: usize) -> u32 {
    if d.is_multiple_of(64) { 8 } else { 4 }
}

/// What the chunk index of row `row` is xored with.
#[inline(always)]
pub(crate) fn swizzle(d: usize, row: u32) -> u32 {
    if line(d) == 8 { row % 8 } else { row / 2 % 4 }
}

/// A lane's row for `ldmatrix.x4` in a block of 16 rows, where matrices are 8 rows by one chunk.
///
/// Found anew for every tile (`opaque`): kept across the loop, it costs the registers that then spill.
#[derive(Clone, Copy)]
pub(crate) struct LaneRow {
    /// Byte of the row, from the tile's first.
    row: u32,
    /// What a pair's first chunk is xored with: the lane's chunk of the pair, and the swizzle.
    chunk: u32,
}

impl LaneRow {
    /// Matrices in the order (rows 0-7, chunk 0), (rows 8-15, chunk 0), (rows 0-7, chunk 1), (rows 8-15, chunk 1): an A fragment,
    /// or two B fragments when loaded transposed.
    #[inline(always)]
    pub(crate) fn rows_first(d: usize) -> Self {
        let lane = opaque(tid_x()) % 32;
        Self::new(d, lane % 16, lane / 16)
    }

    /// Matrices in the order (rows 0-7, chunk 0), (rows 0-7, chunk 1), (rows 8-15, chunk 0), (rows 8-15, chunk 1): two B fragments.
    #[inline(always)]
    pub(crate) fn chunks_first(d: usize) -> Self {
        let lane = opaque(tid_x()) % 32;
        Self::new(d, lane / 16 * 8 + lane % 8, lane / 8 % 2)
    }

    #[inline(always)]
    fn new(d: usize, row: u32, chunk: u32) -> Self {
        Self { row: row * row_bytes(d), chunk: chunk ^ swizzle(d, row) }
    }

    /// The lane's address for chunks `2*pair` and `2*pair + 1` of the 16 rows at shared address `base`.
    #[inline(always)]
    pub(crate) fn address(self, base: u32, pair: usize) -> u32 {
        base + self.row + ((2 * pair as u32 ^ self.chunk) * 16)
    }
}
