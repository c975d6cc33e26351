//! A tile of Q: codes, scales and biases to the warp's own shared memory, and from there to fragments.

use super::Kernel;
use super::shared::Shared;
use super::tokens::{VECTORS, encode, load_token, offsets, signed};
use crate::attention::sequence::Sequence;
use crate::config::short::queries_rounds;
use crate::element::{Element, Rows};
use crate::layout::{ROW_BYTES, swizzle};
use crate::params::ShortParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16, wait_group};
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::{add_rn_f32, fma_rn_f32};
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32};
use crate::ptx::special::tid_x;
use crate::rotation::{Place, vectors};

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
    const ROUNDS: usize = queries_rounds(K::HEAD_DIM, MT);

    #[inline(always)]
    fn place() -> Place {
        Place::new(K::HEAD_DIM as u32, K::HEAD_DIM as u32)
    }

    #[inline(always)]
    fn rows<E: Element>(&self) -> Rows {
        Rows::new::<E>(&self.params.q, self.sequence.batch, self.sequence.head_q)
    }

    /// The lane's row of the tile in a round. A tile may have fewer rows than a warp holds.
    #[inline(always)]
    fn of_tile(place: &Place, round: usize) -> u32 {
        round as u32 * place.tokens() + place.token
    }

    /// The row of the sequence; rows behind the last are as the last.
    #[inline(always)]
    fn token(&self, of_tile: u32) -> u32 {
        (self.row + of_tile).min(self.params.attention.seqlen_q - 1)
    }

    /// Where the lane's vector `i` of a round arrives. No other lane looks at it, but the codes of the first round and the scratch of special blocks
    /// take its place.
    #[inline(always)]
    fn arrival(&self, round: usize, i: usize) -> u32 {
        self.shared.warp(self.warp) + 16 * (tid_x() % 32) + (512 * (4 * round + i)) as u32
    }

    /// Whether the rows come ahead of their use: floats have no room, and rows that are not aligned come element by element.
    #[inline(always)]
    fn ahead<E: Element>(rows: &Rows) -> bool {
        E::BYTES == 2 && rows.aligned
    }

    /// Starts bringing the rows.
    ///
    /// # Safety
    /// The row is one of the sequence; the warp has the fragments of the tile before.
    #[inline(always)]
    pub(crate) unsafe fn request<E: Element>(&self) {
        let (rows, place) = (self.rows::<E>(), Self::place());
        if Self::ahead::<E>(&rows) {
            unroll!(0..Self::ROUNDS, |round| {
                let token = self.token(Self::of_tile(&place, round));
                unroll!(0..4, |i| {
                    unsafe { cp_async_16(self.arrival(round, i), rows.at((token, place.vector(i)))) };
                });
            });
            unsafe { commit_group() };
        }
    }

    /// Codes, scales and, where the log-sum-exp is wanted, biases of the rows; visible to the warp when it returns.
    ///
    /// # Safety
    /// In whole warps, a barrier after `offset::tables`, and with nothing else done in the warp's area since [`request`](Self::request).
    #[inline(always)]
    pub(crate) unsafe fn quantize<E: Element>(&self) {
        unsafe {
            let (rows, place, shared) = (self.rows::<E>(), Self::place(), &self.shared);
            let ahead = Self::ahead::<E>(&rows);
            let biased = !self.params.attention.lse.is_null();
            if ahead {
                wait_group::<0>();
            }
            unroll!(0..Self::ROUNDS, |round| {
                let of_tile = Self::of_tile(&place, round);
                let mut raw = [[0; 4]; VECTORS];
                if ahead {
                    unroll!(0..4, |i| {
                        raw[i] = ld_shared_v4_u32(self.arrival(round, i));
                    });
                } else {
                    raw = load_token::<E>(&rows, &place, self.token(of_tile));
                }
                // All lanes have their vectors, and have done with the tile before.
                warp_sync();
                let x = signed::<E>(&place, &raw, shared.signs());
                let has = of_tile < K::TILE_M;
                if biased {
                    let mut bias = [0.0; 4];
                    unroll!(0..vectors::<E>(), |i| {
                        unroll!(0..E::LANES / 4, |quad| {
                            let offsets = offsets::<E>(&place, shared.offsets(), i, quad);
                            unroll!(0..4, |j| {
                                bias[j] = fma_rn_f32(x[i * E::LANES + 4 * quad + j], offsets[j], bias[j]);
                            });
                        });
                    });
                    let bias = place.over_lanes((bias[0] + bias[1]) + (bias[2] + bias[3]), add_rn_f32);
                    let to = shared.rows(self.warp, true) + 4 * of_tile;
                    st_shared_u32(has & (place.lane == 0), to, bias.to_bits());
                }
                let coded = encode::<E, true>(&place, x, true);
                coded.store::<E>(has, &place, |dim| {
                    let panel = shared.warp(self.warp) + dim / ROW_BYTES as u32 * panel(MT);
                    panel + swizzle(of_tile as usize, dim as usize % ROW_BYTES) as u32
                });
                let to = shared.rows(self.warp, false) + 4 * of_tile;
                st_shared_u32(has & (place.lane == 0), to, coded.scale.to_bits());
            });
            warp_sync();
        }
    }
}

impl<const MT: usize> Query<MT> {
    /// # Safety
    /// In whole warps, after [`TileRows::quantize`].
    #[inline(always)]
    pub(crate) unsafe fn load<K: Kernel<MT>>(shared: &Shared<K, MT>, warp: u32) -> Self {
        let mut fragment = [[[0; 4]; MAX_STEPS]; MT];
        // Matrices in the order of A's registers: (rows 0-7, low half), (rows 8-15, low), (rows 0-7, high), (rows 8-15, high).
        let (matrix, row) = (tid_x() % 32 / 8, tid_x() % 8);
        let row = shared.warp(warp) + swizzle((8 * (matrix % 2) + row) as usize, 16 * (matrix / 2) as usize) as u32;
        unroll!(0..MT, |mt| {
            unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                let at = row + (16 * mt * ROW_BYTES) as u32 + step as u32 * panel(MT);
                fragment[mt][step] = unsafe { ldmatrix_x4(at) };
            });
        });
        Self { fragment }
    }
}
