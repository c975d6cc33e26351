//! A tile of Q: codes, scales and biases to the warp's own shared memory, and from there to fragments.

use super::Kernel;
use super::shared::Shared;
use super::tokens::{Part, VECTORS, encode, few_lanes, load_token, place, product, signed, vectors};
use crate::attention::sequence::Sequence;
use crate::config::short::{arrivals_bytes, queries_rounds};
use crate::element::{F16, Rows};
use crate::layout::{ROW_BYTES, swizzle};
use crate::params::ShortParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::opaque::{opaque, rolled};
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32};
use crate::ptx::special::tid_x;
use crate::quantize::arithmetic::Rotated;
use crate::rotation::TokenLane;

/// k steps of the widest head.
const MAX_STEPS: usize = 4;

/// The tile as A fragments.
pub(crate) struct Query<const MT: usize> {
    pub fragment: [[[u32; 4]; MAX_STEPS]; MT],
}

/// Bytes of a panel of 32 dims of the tile's codes.
const fn panel(mt: usize) -> u32 {
    (16 * mt * ROW_BYTES) as u32
}

/// A warp's tile of query rows.
pub(crate) struct TileRows<'a, K, const MT: usize> {
    pub params: &'a ShortParams,
    pub shared: Shared<K, MT>,
    pub sequence: Sequence,
    /// First row.
    pub row: u32,
    pub warp: u32,
}

impl<K: Kernel<MT>, const MT: usize> TileRows<'_, K, MT> {
    const ROUNDS: u32 = queries_rounds(K::HEAD_DIM, MT) as u32;
    /// Vectors of halves of a lane.
    const HALVES: usize = vectors::<F16>();

    #[inline(always)]
    fn rows<E: Rotated>(&self) -> Rows {
        let Sequence { head_q, first_q, .. } = self.sequence;
        Rows::new::<E>(&self.params.q, self.sequence.batch_q(&self.params.attention), head_q).skip(first_q)
    }

    /// The lane's row of the tile in a round.
    #[inline(always)]
    fn of_tile(place: &TokenLane, round: u32) -> u32 {
        round * place.tokens() + place.token
    }

    /// The row of the sequence; rows behind the last are as the last.
    #[inline(always)]
    fn token(&self, of_tile: u32) -> u32 {
        (self.row + of_tile).min(self.sequence.seqlen_q - 1)
    }

    /// Where the lane's first vector of a round arrives, and each 512 bytes on another. No other lane looks at it.
    #[inline(always)]
    fn arrival(&self, round: u32) -> u32 {
        self.shared.warp(self.warp) + 16 * (tid_x() % 32) + 512 * Self::HALVES as u32 * round
    }

    /// The tile's codes.
    #[inline(always)]
    fn codes(&self) -> u32 {
        self.shared.warp(self.warp) + arrivals_bytes(K::HEAD_DIM, MT) as u32
    }

    /// Whether the rows come ahead of their use: floats have no room, and rows that are not aligned come element by element.
    #[inline(always)]
    fn ahead<E: Rotated>(rows: &Rows) -> bool {
        E::BYTES == 2 && rows.aligned
    }

    /// Starts bringing the rows.
    ///
    /// # Safety
    /// The row is one of the sequence; the warp has the fragments of the tile before.
    #[inline(always)]
    pub(crate) unsafe fn request<E: Rotated>(&self) {
        let (rows, place) = (self.rows::<E>(), place::<K, MT>());
        if Self::ahead::<E>(&rows) {
            // Opaque: a number that the compiler sees would unroll the loop.
            let (mut round, rounds) = (0, opaque(Self::ROUNDS));
            while round < rounds {
                rolled();
                let token = self.token(Self::of_tile(&place, round));
                unroll!(0..Self::HALVES, |i| {
                    let to = self.arrival(round) + (512 * i) as u32;
                    unsafe { cp_async_16(to, rows.at((token, place.vector(i)))) };
                });
                round += 1;
            }
            unsafe { commit_group() };
        }
    }

    /// Codes, scales and, where the log-sum-exp is wanted, biases of the rows; visible to the warp when it returns.
    ///
    /// # Safety
    /// In whole warps, a barrier after `offset::tables`, and with nothing else done in the warp's area since [`request`](Self::request).
    #[inline(always)]
    pub(crate) unsafe fn quantize<E: Rotated>(&self) {
        unsafe {
            let (rows, place, shared) = (self.rows::<E>(), place::<K, MT>(), &self.shared);
            let ahead = Self::ahead::<E>(&rows);
            let biased = !self.params.attention.lse.is_null();
            if ahead {
                wait_group::<0>();
            }
            // All lanes have done with the tile before.
            warp_sync();
            // Opaque: a number that the compiler sees would unroll the loop.
            let (mut round, rounds) = (0, opaque(Self::ROUNDS));
            while round < rounds {
                rolled();
                let of_tile = Self::of_tile(&place, round);
                let mut raw: Part = [[0; 4]; VECTORS];
                if ahead {
                    unroll!(0..Self::HALVES, |i| {
                        raw[i] = ld_shared_v4_u32(self.arrival(round) + (512 * i) as u32);
                    });
                } else {
                    raw = load_token::<E>(&rows, &place, self.token(of_tile));
                }
                let x = signed::<E>(&place, &raw, shared.signs());
                if biased {
                    let bias = product::<E>(&place, &x, shared.offsets());
                    let to = shared.rows(self.warp, true) + 4 * of_tile;
                    st_shared_u32(place.lane == place.lanes() - few_lanes(&place), to, bias.to_bits());
                }
                let coded = encode::<E>(&place, K::HEAD_DIM, x, None, true);
                coded.store::<E>(&place, |dim| {
                    let panel = self.codes() + dim / ROW_BYTES as u32 * panel(MT);
                    panel + swizzle(of_tile as usize, dim as usize % ROW_BYTES) as u32
                });
                let to = shared.rows(self.warp, false) + 4 * of_tile;
                st_shared_u32(place.lane == 0, to, coded.scale.to_bits());
                round += 1;
            }
            warp_sync();
        }
    }
}

impl<const MT: usize> Query<MT> {
    /// # Safety
    /// In whole warps, after [`TileRows::quantize`].
    #[inline(always)]
    pub(crate) unsafe fn load<K: Kernel<MT>>(tile: &TileRows<K, MT>) -> Self {
        let mut fragment = [[[0; 4]; MAX_STEPS]; MT];
        // Matrices in the order of A's registers: (rows 0-7, low half), (rows 8-15, low), (rows 0-7, high), (rows 8-15, high).
        let (matrix, row) = (tid_x() % 32 / 8, tid_x() % 8);
        let row = tile.codes() + swizzle((8 * (matrix % 2) + row) as usize, 16 * (matrix / 2) as usize) as u32;
        unroll!(0..MT, |mt| {
            unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                let at = row + (16 * mt * ROW_BYTES) as u32 + step as u32 * panel(MT);
                fragment[mt][step] = unsafe { ldmatrix_x4(at) };
            });
        });
        Self { fragment }
    }
}
