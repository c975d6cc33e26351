//! What is taken out of K, and which dims change sign, in shared memory.
//!
//! The offset is that of the head's first tokens. Every CTA of K, and of Q where K is there, makes it of these again: their loads are under way at the
//! same time as those of the tile.

use super::launch::{THREAD_VECTORS, table_bytes};
use super::middle::middle;
use super::tile::{behind_raw, in_shared, padded};
use crate::element::{Rows, Vector, load};
use crate::layout::{KV_BLOCK, OFFSET_TOKENS};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_nc_f32, st_global_f32};
use crate::ptx::math::{cvt_f32_f16_high, cvt_f32_f16_low, cvt_rn_f16x2_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_u32, st_shared_u32, st_shared_v4_u32};
use crate::ptx::special::tid_x_again;
use crate::quantize::arithmetic::Rotated;
use crate::rotation::{TokenLane, signs_from};

/// Rows that the CTA loads at a time: it has eight vectors a thread of 128 rows.
const ROWS: u32 = (KV_BLOCK / THREAD_VECTORS) as u32;
/// Vectors of the first tokens that a thread loads.
const LOADS: usize = OFFSET_TOKENS / ROWS as usize;

const _: () = assert!(LOADS == 4);

/// Lanes that share a token, at most, where each has `N` dims of it.
const fn max_lanes<const N: usize>() -> u32 {
    256 / N as u32
}

/// Where the offset comes from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// There is none, and no rotation.
    None,
    /// It is zero, as that of no tokens.
    Zero,
    /// Of the head's rows, the first so many.
    Rows(Rows, u32),
    /// It is there already.
    Array(*const f32),
}

/// What there is for each dim in shared memory, behind the tile's codes: of a lane's vectors (`crate::rotation`), each behind those of the
/// [`max_lanes`] that a token has at most, so that they are at constant distances.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    base: u32,
}

impl Tables {
    #[inline(always)]
    pub fn new<E: Rotated>() -> Self {
        Self { base: behind_raw::<E>() + KV_BLOCK as u32 * padded::<E>() }
    }

    /// Shared address of the sign masks of vector `i` of lane `lane`: of each element, its sign bit where its dim changes sign.
    #[inline(always)]
    pub fn signs<E: Rotated, const N: usize>(&self, lane: u32, i: u32) -> u32 {
        self.base + (16 + 4 * E::LANES as u32) * (lane + max_lanes::<N>() * i)
    }

    /// Shared address of the offsets of the vector, negative where its dim changes sign: they are taken out after. Float32, or float16 where tokens are rotated in it.
    #[inline(always)]
    pub fn offsets<E: Rotated, const N: usize>(&self, lane: u32, i: u32) -> u32 {
        self.signs::<E, N>(lane, i) + 16
    }

    /// Shared address of the scales of the tokens of tile `tile`: two have places, so that one's are read while the next one's come.
    #[inline(always)]
    pub fn scales<E: Rotated>(&self, tile: u32) -> u32 {
        self.base + table_bytes(E::BYTES) as u32 + tile % 2 * (4 * KV_BLOCK as u32)
    }
}

/// Fills both arrays, and `out` (null: no array) with the head's offset, which has the dims of the tensor.
///
/// # Safety
/// Every thread of the CTA calls it; the source is in its tensor or array.
#[inline(always)]
pub(crate) unsafe fn prepare<E: Rotated, const N: usize>(dims: u32, source: Source, out: *mut f32) {
    unsafe {
        let row_bytes = padded::<E>() * E::BYTES as u32;
        if let Source::Rows(rows, count) = source {
            let vectors = row_bytes / 16;
            let thread = tid_x_again();
            let (row, vector) = (thread >> vectors.trailing_zeros(), thread & (vectors - 1));
            let last = (dims / E::LANES as u32 - 1, count - 1);
            let at = |i: usize| ((row + ROWS * i as u32).min(last.1), vector.min(last.0));
            let (mut low, mut high) = ([0; 4], [0; 4]);
            let mut add = |first: bool, a: &Vector, b: &Vector| {
                unroll!(0..4, |word| {
                    let (a, b) = (a[word], b[word]);
                    let before = if first { (a, a) } else { (low[word], high[word]) };
                    low[word] = E::min(before.0, E::min(a, b));
                    high[word] = E::max(before.1, E::max(a, b));
                });
            };
            if in_shared::<E>() {
                let four = load::<E, LOADS>(&rows, at);
                add(true, &four[0], &four[1]);
                add(false, &four[2], &four[3]);
            } else {
                // Two at a time: the tile is in registers, or about to be.
                unroll!(0..LOADS / 2, |half| {
                    let two = load::<E, 2>(&rows, |i| at(2 * half + i));
                    add(half == 0, &two[0], &two[1]);
                });
            }
            let to = behind_raw::<E>() + row * 2 * row_bytes + 16 * vector;
            st_shared_v4_u32(true, to, low);
            st_shared_v4_u32(true, to + row_bytes, high);
            bar_sync();
        }
        // A thread for each word of a row.
        let thread = tid_x_again();
        let dim = thread * E::IN_WORD as u32;
        let tables = Tables::new::<E>();
        if dim < padded::<E>() {
            let mut offset = [0.0; 2];
            match source {
                Source::None | Source::Zero => {}
                Source::Rows(..) => {
                    let from = behind_raw::<E>() + 4 * thread;
                    let (mut low, mut high) = (ld_shared_u32(from), ld_shared_u32(from + row_bytes));
                    // Four rows at a time: the tile is in registers, or about to be.
                    let mut row = 0;
                    while row < ROWS {
                        unroll!(0..4, |i| {
                            let at = from + (row + i as u32) * 2 * row_bytes;
                            low = E::min(low, ld_shared_u32(at));
                            high = E::max(high, ld_shared_u32(at + row_bytes));
                        });
                        row = opaque(row + 4);
                    }
                    unroll!(0..E::IN_WORD, |i| {
                        offset[i] = middle(E::get(&[low; 4], i), E::get(&[high; 4], i));
                    });
                }
                Source::Array(array) => {
                    unroll!(0..E::IN_WORD, |i| {
                        offset[i] = ld_global_nc_f32(array.wrapping_add((dim as usize + i).min(dims as usize - 1)));
                    });
                }
            }
            let inside = dim < dims;
            let (vector, element) = (dim / E::LANES as u32, dim % E::LANES as u32);
            let (lane, place) = TokenLane::of_lanes_with::<N>(padded::<E>(), padded::<E>()).lane_of(vector);
            let rotates = !matches!(source, Source::None);
            let signs = selp_b32(rotates, signs_from(dim), 0);
            let mut mask = 0;
            if E::HALF {
                let word = cvt_rn_f16x2_f32(offset[1], offset[0]);
                offset = [cvt_f32_f16_low(word), cvt_f32_f16_high(word)];
            }
            unroll!(0..E::IN_WORD, |j| {
                let sign = (signs >> j) << 31;
                mask |= sign >> (32 - 8 * E::BYTES * (j + 1));
                let offset = selp_b32(inside, offset[j].to_bits(), 0);
                if !E::HALF {
                    st_shared_u32(true, tables.offsets::<E, N>(lane, place) + 4 * (element + j as u32), offset ^ sign);
                }
                let to = out.wrapping_add(dim as usize + j);
                st_global_f32(inside & !out.is_null(), to, [f32::from_bits(offset)]);
            });
            let of_words = 4 * (element / E::IN_WORD as u32);
            st_shared_u32(true, tables.signs::<E, N>(lane, place) + of_words, mask);
            if E::HALF {
                // Exactly: they have been rounded.
                let word = selp_b32(inside, cvt_rn_f16x2_f32(offset[1], offset[0]), 0);
                st_shared_u32(true, tables.offsets::<E, N>(lane, place) + of_words, word ^ mask);
            }
        }
        bar_sync();
    }
}
