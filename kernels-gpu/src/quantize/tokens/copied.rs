//! A warp's codes on their way out: from where they lie in its shared memory to the bytes of a tile.

use super::steps;
use crate::layout::{ROW_BYTES, k_offset};
use crate::ptx::special::tid_x_again;
use crate::quantize::arithmetic::Rotated;
use crate::rotation::TokenLane;

/// What a lane copies of its warp's codes: 16 of them at a time.
pub(super) struct Copied {
    /// Where the first ones go, from the start of a tile's bytes; and how much further the second ones, and the third ones.
    pub(super) to: [u32; 3],
    /// How many there are: of a head of 96 dims that is worked on as of 128, not all.
    pub(super) units: u32,
    /// Bytes from a step's place in a tile's to the next one's.
    pub(super) step_bytes: u32,
}

impl Copied {
    #[inline(always)]
    pub(super) fn new<E: Rotated, const KEYS: bool, const N: usize>(place: &TokenLane) -> Self {
        let (warp, lane, head_dim) = (tid_x_again() / 32, tid_x_again() % 32, place.head_dim());
        let first = warp * steps::<E, N>() * place.tokens();
        let at = |i: u32| {
            let (token, dim) = place.staged_unit(lane + 32 * i, E::LANES);
            let row = (first + token) as usize;
            let at = if KEYS { k_offset(row, dim as usize) as u32 } else { row as u32 * head_dim + dim };
            (at, dim)
        };
        let to = [at(0).0, at(1).0.wrapping_sub(at(0).0), at(2).0.wrapping_sub(at(0).0)];
        let mut units = 0;
        unroll!(0..N / 16, |i| {
            units += u32::from(at(i as u32).1 < head_dim);
        });
        let step_bytes = place.tokens() * if KEYS { ROW_BYTES as u32 } else { head_dim };
        Self { to, units, step_bytes }
    }
}
