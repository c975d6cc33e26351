//! Which elements of V a lane handles.
//!
//! The head dim is a run-time number: it only moves addresses, so one body serves all of them. 96 dims are walked as 128
//! of which the last quarter is idle.

use super::launch::{TOKENS, threads};
use crate::element::Element;
use crate::layout::{ROW_BYTES, octet_key, swizzle, v_row};
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// A lane takes one vector of dims of eight keys whose bytes are neighbours in a packed row.
///
/// Four lanes hold the four octets of a row of 32 keys, so that a quad covers whole 32-byte rows of the block.
pub(crate) struct ByChannel<E> {
    octet: u32,
    panel: u32,
    vector: u32,
    vectors: u32,
    head_dim: u32,
    element: PhantomData<E>,
}

impl<E: Element> ByChannel<E> {
    /// Units that a lane takes one after the other.
    #[inline(always)]
    pub fn passes(head_dim: u32) -> u32 {
        let units = (TOKENS / 8) as u32 * (head_dim / E::LANES as u32).next_power_of_two();
        units >> (threads(head_dim as usize) as u32).trailing_zeros()
    }

    /// The lane's unit number `pass`.
    #[inline(always)]
    pub fn of_lane(head_dim: u32, pass: u32) -> Self {
        let vectors = head_dim / E::LANES as u32;
        let padded = vectors.next_power_of_two();
        // 4 octets, `padded` vectors, 4 panels
        let unit = opaque(tid_x()) + pass * threads(head_dim as usize) as u32;
        let rest = unit / 4;
        let (panel, vector) = (rest >> padded.trailing_zeros(), rest & (padded - 1));
        Self { octet: unit % 4, panel, vector, vectors, head_dim, element: PhantomData }
    }

    /// The lane's vector of a row, or the last one where there is none.
    #[inline(always)]
    pub fn vector(&self) -> u32 {
        self.vector.min(self.vectors - 1)
    }

    /// First dim of the lane's vector.
    #[inline(always)]
    pub fn dim(&self) -> usize {
        self.vector() as usize * E::LANES
    }

    /// Whether the lane has a vector.
    #[inline(always)]
    pub fn has(&self) -> bool {
        self.vector < self.vectors
    }

    /// Key of the block in the lane's slot number `i` of eight.
    #[inline(always)]
    pub fn key(&self, i: usize) -> u32 {
        self.panel * ROW_BYTES as u32 + octet_key(self.octet, i)
    }

    /// Byte in shared memory of the lane's eight slots of dim `dim() + i`.
    #[inline(always)]
    pub fn shared_offset(&self, i: usize) -> u32 {
        let row = v_row(self.dim() + i);
        spread(self.panel * self.head_dim * ROW_BYTES as u32 + swizzle(row, 8 * self.octet as usize) as u32)
    }
}

/// Where byte `offset` of a packed V block lies in shared memory while it is transposed.
///
/// Sixteen lanes read four rows of 32 bytes at a time, which are (`layout::v_row`) 0, 2, 4 and 6 or 0, 2, 16 and 18 rows from the first.
/// Exchanging every other of these with its neighbour makes them cover all banks.
#[inline(always)]
pub(crate) const fn spread(offset: u32) -> u32 {
    let row = offset / ROW_BYTES as u32;
    offset ^ ((row >> 2 ^ row >> 4) & 1) * ROW_BYTES as u32
}
