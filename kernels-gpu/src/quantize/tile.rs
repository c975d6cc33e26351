//! A tile of the caller's rows in shared memory.
//!
//! Copies go there without registers, so that several CTAs an SM have all of their tile under way at once, and Q, K, V and the
//! statistics each read it in their own order.

use super::launch::{QUANTIZE_THREADS, TILE_BYTES};
use crate::element::{Element, Rows, load_elements};
use crate::ptx::barrier::bar_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::shared::st_shared_v4_u32;
use crate::ptx::special::tid_x;
use crate::smem;

/// Vectors of a whole tile that each thread copies.
const ROUNDS: usize = TILE_BYTES / 16 / QUANTIZE_THREADS;

/// Rows of a head, as they lie in shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// First token.
    pub first: u32,
    /// Tokens that exist.
    pub count: u32,
    /// Rows in shared memory: the tokens, then zeros.
    pub padded: u32,
}

impl Tile {
    /// The tile of at most `tokens` tokens from `first` of a head of `seqlen`, of which `padded` are wanted.
    #[inline(always)]
    pub fn new(first: u32, tokens: u32, seqlen: u32, padded: u32) -> Self {
        Self { first, count: seqlen.saturating_sub(first).min(tokens), padded: (padded - first).min(tokens) }
    }

    /// Starts copying whole rows of `vectors` vectors to where [`tile_address`] says.
    ///
    /// # Safety
    /// The rows are in the tensor.
    #[inline(always)]
    pub unsafe fn load_rows<E: Element>(&self, rows: &Rows, vectors: u32) {
        unsafe { self.load::<E>(rows, 0, vectors, |row, vector| tile_address(row, 16 * vectors, 16 * vector)) }
    }

    /// Starts copying `vectors` vectors of each row, from vector `from` on. `place` says where a vector of a row goes: as many
    /// rows on as all threads take at a time, it is as many rows of `vectors` vectors further. They are there after
    /// [`await_copies`].
    ///
    /// # Safety
    /// The rows are in the tensor; `place` stays in shared memory and names no byte twice.
    #[inline(always)]
    pub unsafe fn load<E: Element>(&self, rows: &Rows, from: u32, vectors: u32, place: impl Fn(u32, u32) -> u32) {
        // neighbouring threads take the vectors of a row, of which there may be no power of two
        let log = u32::BITS - (vectors - 1).leading_zeros();
        let (row, vector) = (tid_x() >> log, tid_x() & ((1 << log) - 1));
        if vector >= vectors {
            return;
        }
        let step = QUANTIZE_THREADS as u32 >> log;
        let (mut to, to_step) = (place(row, vector), 16 * vectors * step);
        let mut at = rows.at((self.first + row, from + vector));
        let at_step = (i64::from(step) * rows.stride) as isize;
        unsafe {
            if rows.aligned && self.count == ROUNDS as u32 * step {
                unroll!(0..ROUNDS, |_round| {
                    cp_async_16(to, at);
                    to += to_step;
                    at = at.wrapping_offset(at_step);
                });
                return;
            }
            let mut row = row;
            while row < self.padded {
                if row >= self.count {
                    st_shared_v4_u32(true, to, [0; 4]);
                } else if rows.aligned {
                    cp_async_16(to, at);
                } else {
                    st_shared_v4_u32(true, to, load_elements::<E>(at));
                }
                row += step;
                to += to_step;
                at = at.wrapping_offset(at_step);
            }
        }
    }
}

/// Waits until all of the CTA's copies are there.
///
/// # Safety
/// Every thread of the CTA calls it.
#[inline(always)]
pub(crate) unsafe fn await_copies() {
    unsafe {
        commit_group();
        wait_group::<0>();
        bar_sync();
    }
}

/// Shared address of a byte of a row of a tile whose rows are `row_bytes` long.
///
/// Units of 16 and 32 bytes are exchanged, so that lanes which read every other vector of two rows, or of two lines of a row,
/// do not meet in a bank, nor lanes that read rows 4 apart (the octets of V, `super::values`).
#[inline(always)]
pub(crate) fn tile_address(row: u32, row_bytes: u32, byte: u32) -> u32 {
    smem::base() + row * row_bytes + (byte ^ ((row ^ byte >> 7) & 1) << 4 ^ (row & fours(row_bytes)) << 3)
}

/// The bit of a row's number that exchanges 32 bytes, for rows of which all threads copy at least eight at a time: those that
/// one thread copies then agree in it, and their places are evenly spaced.
#[inline(always)]
fn fours(row_bytes: u32) -> u32 {
    if row_bytes <= 16 * QUANTIZE_THREADS as u32 / 8 { 4 } else { 0 }
}

/// Shared address of float `index` behind the tile.
#[inline(always)]
pub(crate) fn float_address(index: u32) -> u32 {
    smem::base() + TILE_BYTES as u32 + 4 * index
}
