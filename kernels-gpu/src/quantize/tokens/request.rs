//! A warp's tokens of halves on their way by shared memory, a step ahead: which lane brings what, and which one reads it.

use super::{Lane, steps};
use crate::element::{Rows, load_elements};
use crate::layout::KV_BLOCK;
use crate::ptx::cp_async::{commit_group, cp_async_16, cp_async_16_zfill};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::st_shared_v4_u32;
use crate::ptx::special::tid_x_again;
use crate::quantize::arithmetic::Rotated;
use crate::quantize::tile::{STEP, Tile, of_warp, padded};
use crate::rotation::TokenLane;

impl Lane {
    /// Starts loading the warp's tokens of step `step` of a tile to shared memory.
    #[inline(always)]
    pub(super) unsafe fn request<E: Rotated, const N: usize>(&self, rows: &Rows, tile: Tile, step: u32) {
        unsafe {
            let (brought, rows) = (Brought::new::<E, N>(&self.place, step), rows.skip(tile.first()));
            if rows.aligned & self.place.is_whole(self.dims) & (tile.count() == KV_BLOCK as u32) {
                let mut at = rows.at((brought.row, brought.vector));
                unroll!(0..N / E::LANES, |i| {
                    cp_async_16(brought.to(i as u32), at);
                    at = at.wrapping_offset(rows.stride.wrapping_mul(i64::from(brought.further)) as isize);
                });
            } else {
                // A compiler that knew how many there are would unroll this, and have them all in registers that the token has.
                let count = (padded::<E>() >> self.place.log_lanes) / E::LANES as u32;
                let (mut i, last) = (0, self.dims / E::LANES as u32 - 1);
                while i < count {
                    let row = (brought.row + i * brought.further).min(tile.count() - 1);
                    let (at, to) = (rows.at((row, brought.vector.min(last))), brought.to(i));
                    let is = brought.vector <= last;
                    if rows.aligned {
                        cp_async_16_zfill(to, at, if is { 16 } else { 0 });
                    } else {
                        let loaded = load_elements::<E>(at);
                        st_shared_v4_u32(true, to, loaded.map(|word| selp_b32(is, word, 0)));
                    }
                    i += 1;
                }
            }
            commit_group();
        }
    }
}

/// What a lane brings of a warp's tokens: of 32 vectors that are neighbours in memory, each, so that a copy is of whole rows. Which lane brings a
/// vector is not which works on it ([`TokenLane`]): those lie one behind the other, but for the three lowest bits of a vector's number, which are exchanged so
/// that eight lanes that read at a time have other banks each.
struct Brought {
    /// Its first row of the tile; the next ones are `further` rows behind.
    row: u32,
    further: u32,
    /// Vector of the row.
    vector: u32,
    /// Where the first one goes.
    first: u32,
    /// What is exchanged of every second one's address.
    odd: u32,
}

impl Brought {
    #[inline(always)]
    fn new<E: Rotated, const N: usize>(place: &TokenLane, step: u32) -> Self {
        let (warp, lane) = (tid_x_again() / 32, tid_x_again() % 32);
        let log = ((N / E::LANES) as u32).trailing_zeros() + place.log_lanes;
        let first = (warp * steps::<E, N>() + step) * place.tokens();
        let exchanged = lane ^ (lane >> 3 & !(place.lanes() - 1));
        Self {
            row: first + (lane >> log),
            further: 32 >> log,
            vector: lane & ((1 << log) - 1),
            first: of_warp() + step * (STEP * (N / E::LANES) as u32) + 16 * exchanged,
            odd: if N / E::LANES == 8 { 64 } else { 0 },
        }
    }

    /// Shared address of vector number `i`.
    #[inline(always)]
    fn to(&self, i: u32) -> u32 {
        (self.first ^ (i & 1) * self.odd) + STEP * i
    }
}

/// Shared address of the lane's vector number `i` of a step.
#[inline(always)]
pub(super) fn raw_of<E: Rotated, const N: usize>(place: &TokenLane, step: u32, i: u32) -> u32 {
    let lane = tid_x_again() % 32;
    let token = (lane & !(place.lanes() - 1)) * (16 * (N / E::LANES) as u32);
    // Opaque: what is exchanged of each vector would be in a register across the loop.
    let exchanged = if N / E::LANES == 8 { lane % 8 ^ i << opaque(place.log_lanes) } else { lane / 2 % 4 ^ i };
    of_warp() + step * (STEP * (N / E::LANES) as u32) + token + 16 * exchanged
}
