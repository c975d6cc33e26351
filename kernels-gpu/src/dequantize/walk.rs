//! Which elements a lane handles.
//!
//! The head dim is a run-time number: it only moves addresses, so one body serves all of them. 96 dims are walked as 128
//! of which the last quarter is idle.

use super::launch::{TOKENS, threads};
use crate::element::{BATCH, Element};
use crate::layout::{ROW_BYTES, octet_key, swizzle, v_row};
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// Dims of a row that a lane holds.
const DIMS: usize = 8;

/// The way of Q and K: neighbouring lanes take neighbouring vectors of a row, a warp takes a run of whole rows.
pub(crate) struct ByToken<E> {
    /// Lanes that share a row, each with eight dims of it: a power of two.
    lanes: u32,
    /// The lane's number among them.
    lane: u32,
    /// Vectors of a row.
    vectors: u32,
    /// Rows of a warp in one step.
    rows: u32,
    /// Row of the block in step 0 of batch 0.
    row: u32,
    element: PhantomData<E>,
}

impl<E: Element> ByToken<E> {
    /// Vectors that the lane's eight dims of a row take.
    pub const PIECES: usize = DIMS / E::LANES;
    /// Rows that a lane takes in one batch of loads.
    pub const STEPS: usize = BATCH / Self::PIECES;

    /// The place of the calling lane.
    #[inline(always)]
    pub fn of_lane(head_dim: u32) -> Self {
        let thread = opaque(tid_x());
        let (lane, warp) = (thread % 32, thread / 32);
        let lanes = (head_dim / DIMS as u32).next_power_of_two();
        let log_lanes = lanes.trailing_zeros();
        let rows = 32 >> log_lanes;
        let row = warp * rows * Self::STEPS as u32 * Self::batches(head_dim) + (lane >> log_lanes);
        Self { lanes, lane: lane & (lanes - 1), vectors: head_dim / E::LANES as u32, rows, row, element: PhantomData }
    }

    /// Batches until the block is done.
    #[inline(always)]
    pub fn batches(head_dim: u32) -> u32 {
        let lanes = (head_dim / DIMS as u32).next_power_of_two();
        ((TOKENS / Self::STEPS) as u32 * lanes) >> (threads(head_dim as usize) as u32).trailing_zeros()
    }

    /// Row of the block that the lane's `step` of `batch` is in.
    #[inline(always)]
    pub fn row(&self, batch: u32, step: u32) -> u32 {
        self.row + (batch * Self::STEPS as u32 + step) * self.rows
    }

    /// The lane's vector number `piece` of a row, or the last one where there is none.
    #[inline(always)]
    pub fn vector(&self, piece: usize) -> u32 {
        (self.lane + self.lanes * piece as u32).min(self.vectors - 1)
    }

    /// First dim of the lane's vector number `piece`.
    #[inline(always)]
    pub fn dim(&self, piece: usize) -> usize {
        self.vector(piece) as usize * E::LANES
    }

    /// Whether the lane has a vector number `piece`.
    #[inline(always)]
    pub fn has(&self, piece: usize) -> bool {
        self.lane + self.lanes * (piece as u32) < self.vectors
    }
}

/// The way of V: a lane takes one vector of dims of eight keys whose bytes are neighbours in a packed row.
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
