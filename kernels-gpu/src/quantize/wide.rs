//! Heads of more than [`NARROW_DIMS`](super::launch::NARROW_DIMS) dims, of which a CTA has neither registers nor shared memory for a tile of 128 tokens: it takes the
//! tile in parts.
//!
//! A warp has a token of Q or K at a time, and a lane the same dims of each: what is taken out of K and which dims change sign are in its registers. V goes
//! through twice, for the scales of its tokens and, when L2 has it, for their codes.

use super::launch::{THREAD_VECTORS, WIDE_DIMS, WIDE_THREADS, wide_ends_bytes};
use super::middle::middle;
use super::offset::Source;
use super::scale::{BEYOND_10_BITS, round_up, token_scale};
use super::tile::Tile;
use super::tokens::Output;
use super::values;
use crate::element::{Rows, Vector, load, load_dims};
use crate::layout::{KV_BLOCK, MAX_SCALE, k_offset, loud};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_nc_f32, st_global_f32, st_global_u32, st_global_v2_u32};
use crate::ptx::math::{add_rn_f32, fma_rn_f32, max_f32, max_nan_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_f32, ld_shared_v4_u32, st_shared_u32, st_shared_v4_u32};
use crate::ptx::shuffle::first_lane;
use crate::ptx::special::tid_x_again;
use crate::quantize::arithmetic::{Rotated, Token, Values};
use crate::rotation::TokenLane;
use crate::smem;

/// Dims of a token that a lane has.
const DIMS: usize = WIDE_DIMS / 32;
const WARPS: u32 = (WIDE_THREADS / 32) as u32;

/// Quantizes the tiles from `tile` to before number `end`: of K (without its offset, packed, padded) where `KEYS`, else of Q (row-major). `dims` are in the
/// tensor. `offset` is where K's goes, or null; `out` says where the tile does.
///
/// # Safety
/// Every thread of the CTA calls it; tile, source and output are in their tensors and arrays.
#[inline(always)]
pub(crate) unsafe fn tokens<E: Rotated, const KEYS: bool>(
    dims: u32,
    rows: Rows,
    mut tile: Tile,
    end: u32,
    source: Source,
    offset: *mut f32,
    out: impl Fn(Tile) -> Output,
) {
    unsafe {
        let place = TokenLane::of_lanes_with::<DIMS>(WIDE_DIMS as u32, WIDE_DIMS as u32);
        let offset = offset_of::<E>(&place, dims, source, offset);
        let signs = place.signs::<E, DIMS>();
        loop {
            let to = out(tile);
            let rows = rows.skip(tile.first());
            let (mut row, count) = (first_lane(tid_x_again() / 32), tile.count());
            let all = if KEYS { KV_BLOCK as u32 } else { count };
            let fetch = |row: u32| load_dims::<E, DIMS>(&rows, |i| (row.min(count - 1), place.vector_of::<E>(i, dims)));
            let (mut largest, mut raw) = (0.0, fetch(row));
            while row < all {
                // On its way while this one is worked on.
                let next = fetch(row + WARPS);
                let scale = one::<E, KEYS>(&place, dims, &raw, row, count, &offset, signs, &to);
                // Of those that are numbers.
                largest = max_f32(largest, scale);
                raw = next;
                row += WARPS;
            }
            if KEYS {
                block_scale(tile, largest, to.block_scale);
            }
            tile.index += 1;
            if tile.index >= end {
                break;
            }
        }
    }
}

/// One token, whose vectors these are, of `count` tokens; its scale.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn one<E: Rotated, const KEYS: bool>(
    place: &TokenLane,
    dims: u32,
    raw: &Own,
    row: u32,
    count: u32,
    offset: &E::Token<DIMS>,
    signs: u32,
    out: &Output,
) -> f32 {
    unsafe {
        let inside = row < count;
        let mut x = E::Token::<DIMS>::none();
        unroll!(0..DIMS / E::LANES, |i| {
            E::put(&mut x, i, &raw[i].map(|word| selp_b32(place.is_of::<E>(i, dims), word, 0)));
        });
        if !KEYS && !out.bias.is_null() {
            let mut bias = 0.0;
            unroll!(0..DIMS, |i| {
                bias = fma_rn_f32(x.get(i), offset.get(i), bias);
            });
            let bias = place.over_many_lanes(bias, add_rn_f32);
            st_global_f32(place.lane == 0, out.bias.wrapping_add(row as usize), [bias]);
        }
        let limit = loud(WIDE_DIMS);
        let unit = x.quieten(place, limit, KEYS & (offset.largest() >= limit));
        if KEYS {
            x.take_out(offset, unit);
        }
        x.negate(signs);
        place.butterflies_of_many_lanes::<E, DIMS>(&mut x);

        let beyond = if KEYS { 0 } else { BEYOND_10_BITS };
        let amax = place.over_many_lanes(x.largest(), max_nan_f32) * unit.unit;
        let (scale, number) = (round_up(token_scale(amax, fma_rn_f32), beyond), amax < f32::INFINITY);
        x.encode(scale, unit, MAX_SCALE);
        let mask = selp_b32(number & inside, u32::MAX, 0);
        unroll!(0..DIMS / E::LANES, |i| {
            let dim = place.vector(i) as usize * E::LANES;
            let to = if KEYS { k_offset(row as usize, dim) } else { row as usize * WIDE_DIMS + dim };
            let to = out.bytes.wrapping_add(to);
            let four = |at: usize| x.codes4(at / 4) & mask;
            if E::LANES == 8 {
                st_global_v2_u32(true, to, [four(8 * i), four(8 * i + 4)]);
            } else {
                st_global_u32(true, to, [four(4 * i)]);
            }
        });
        let scale = selp_b32(number, scale.to_bits(), f32::NAN.to_bits());
        // Padding has scales of zero.
        let scale = f32::from_bits(selp_b32(inside, scale, 0));
        st_global_f32(place.lane == 0, out.scale.wrapping_add(row as usize), [scale]);
        scale
    }
}

/// Stores the largest of the warps' largest scales of a block of K.
///
/// # Safety
/// Every thread of the CTA calls it.
#[inline(always)]
unsafe fn block_scale(tile: Tile, largest: f32, to: *mut f32) {
    unsafe {
        // Two tiles have places, so that one's are read while the next one's come.
        let largest_of_warps = smem::base() + wide_ends_bytes(4) as u32 + tile.index % 2 * (4 * WARPS);
        let thread = tid_x_again();
        st_shared_u32(thread % 32 == 0, largest_of_warps + thread / 32 * 4, largest.to_bits());
        bar_sync();
        let mut largest = 0.0;
        unroll!(0..WARPS as usize / 4, |i| {
            let four = ld_shared_v4_f32(largest_of_warps + 16 * i as u32);
            unroll!(0..4, |j| {
                largest = max_f32(largest, four[j]);
            });
        });
        st_global_f32(thread == 0, to, [largest]);
    }
}

/// What is taken out of K, of the lane's dims, zero where the tensor has none; also to `out` (null: no array), which has the dims of the tensor.
///
/// # Safety
/// Every thread of the CTA calls it; the source is in its tensor or array.
#[inline(always)]
unsafe fn offset_of<E: Rotated>(place: &TokenLane, dims: u32, source: Source, out: *mut f32) -> E::Token<DIMS> {
    unsafe {
        let mut offset = [0.0; DIMS];
        let dim = |i: usize| place.vector(i / E::LANES) as usize * E::LANES + i % E::LANES;
        match source {
            Source::None | Source::Zero => {}
            Source::Array(array) => {
                unroll!(0..DIMS, |i| {
                    offset[i] = ld_global_nc_f32(array.wrapping_add(dim(i).min(dims as usize - 1)));
                });
            }
            Source::Rows(rows, count) => {
                let (low, high) = ends::<E>(place, dims, &rows, count);
                unroll!(0..DIMS, |i| {
                    let at = (i / E::LANES, i % E::LANES);
                    offset[i] = middle(E::get(&low[at.0], at.1), E::get(&high[at.0], at.1));
                });
            }
        }
        unroll!(0..DIMS, |i| {
            let inside = place.is_of::<E>(i / E::LANES, dims);
            offset[i] = f32::from_bits(selp_b32(inside, offset[i].to_bits(), 0));
        });
        let offset = E::Token::<DIMS>::of(&offset);
        unroll!(0..DIMS, |i| {
            let writes = place.is_of::<E>(i / E::LANES, dims) & (tid_x_again() < 32) & !out.is_null();
            st_global_f32(writes, out.wrapping_add(dim(i)), [offset.get(i)]);
        });
        offset
    }
}

/// The lane's vectors.
type Own = [Vector; 8];

/// The least and the largest elements of the first `count` rows, of the lane's dims: each warp's of some of them, to shared memory, then all.
///
/// # Safety
/// Every thread of the CTA calls it; the rows are in the tensor.
#[inline(always)]
unsafe fn ends<E: Rotated>(place: &TokenLane, dims: u32, rows: &Rows, count: u32) -> (Own, Own) {
    unsafe {
        let row_bytes = (WIDE_DIMS * E::BYTES) as u32;
        let mut row = tid_x_again() / 32;
        let of = |row: u32| load_dims::<E, DIMS>(rows, |i| (row.min(count - 1), place.vector_of::<E>(i, dims)));
        let join = |(low, high): (&mut Own, &mut Own), others: (&Own, &Own)| {
            unroll!(0..DIMS / E::LANES, |i| {
                unroll!(0..4, |word| {
                    low[i][word] = E::min(low[i][word], others.0[i][word]);
                    high[i][word] = E::max(high[i][word], others.1[i][word]);
                });
            });
        };
        let first = of(row);
        let (mut low, mut high) = (first, first);
        row += WARPS;
        while row < count {
            let next = of(row);
            join((&mut low, &mut high), (&next, &next));
            row += WARPS;
        }
        let at = |warp: u32, i: usize| smem::base() + warp * 2 * row_bytes + 16 * place.vector(i);
        unroll!(0..DIMS / E::LANES, |i| {
            let to = at(tid_x_again() / 32, i);
            st_shared_v4_u32(true, to, low[i]);
            st_shared_v4_u32(true, to + row_bytes, high[i]);
        });
        bar_sync();
        let mut warp = 0;
        while warp < WARPS {
            let (mut others_low, mut others_high): (Own, Own) = ([[0; 4]; 8], [[0; 4]; 8]);
            unroll!(0..DIMS / E::LANES, |i| {
                others_low[i] = ld_shared_v4_u32(at(warp, i));
                others_high[i] = ld_shared_v4_u32(at(warp, i) + row_bytes);
            });
            join((&mut low, &mut high), (&others_low, &others_high));
            warp = opaque(warp + 1);
        }
        (low, high)
    }
}

/// Rounds in which the threads go through a block of V, a vector of dims of eight keys each.
const fn rounds<E: Rotated>() -> u32 {
    (WIDE_DIMS * E::BYTES * KV_BLOCK / (16 * THREAD_VECTORS * WIDE_THREADS)) as u32
}

/// A lane's keys of a tile of V, rotated, and their largest magnitudes.
#[inline(always)]
unsafe fn rotated<E: Rotated>(
    rows: &Rows,
    tile: Tile,
    dims: u32,
    place: &values::VOctet,
) -> ([E::Values; THREAD_VECTORS], [f32; THREAD_VECTORS]) {
    let (first, count) = (tile.first(), tile.count());
    let inside = place.vector < dims / E::LANES as u32;
    let raw = unsafe { load::<E, THREAD_VECTORS>(rows, |i| place.at::<E>(first, count, dims, i)) };
    let (mut x, mut amax) = ([E::values(&[0; 4]); THREAD_VECTORS], [0.0; THREAD_VECTORS]);
    unroll!(0..THREAD_VECTORS, |key| {
        x[key] = E::values(&raw[key].map(|word| selp_b32(inside, word, 0)));
        amax[key] = x[key].rotate();
    });
    (x, amax)
}

/// Quantizes and packs the blocks of V from `tile` to before number `end`; `dims` are in the tensor. `rows` and `out` say where the head and the block are.
///
/// # Safety
/// Every thread of the CTA calls it; tile and output are in their tensor and arrays.
#[inline(always)]
pub(crate) unsafe fn values<E: Rotated>(
    dims: u32,
    scaling: values::Scaling,
    rows: impl Fn() -> Rows,
    mut tile: Tile,
    end: u32,
    out: impl Fn(Tile) -> values::Output,
) {
    let place = |round: u32| {
        let unit = opaque(round) * (WIDE_THREADS / 4) as u32 + tid_x_again() / 4;
        values::VOctet::of_unit::<E>(WIDE_DIMS as u32, tid_x_again() % 4, unit)
    };
    unsafe {
        loop {
            let mut round = 0;
            while round < rounds::<E>() {
                let place = place(round);
                values::largest_of_parts::<E>(tile.index, &place, &rotated::<E>(&rows(), tile, dims, &place).1);
                round = opaque(round + 1);
            }
            bar_sync();
            let parts = (WIDE_DIMS / (4 * E::LANES)) as u32;
            let largest = values::Largest { tile: tile.index, parts, least: scaling.head_amax };
            let scales = values::Scales::decide::<E>(&largest, tile.index == scaling.first_block, scaling.steps);
            let whole = scales.shared & (tile.count() == KV_BLOCK as u32);
            if !whole {
                values::each_scale::<E>(&largest, tile.count());
                bar_sync();
            }
            scales.write::<E>(whole, tile, scaling.rotates, &out(tile));
            let mut round = 0;
            while round < rounds::<E>() {
                let place = place(round);
                let x = rotated::<E>(&rows(), tile, dims, &place).0;
                let (mut inverse, mut masks) = (scales.inverse(), [u32::MAX; 2]);
                if !whole {
                    (inverse, masks) = scales.of_keys::<E>(&place);
                }
                values::store::<E>(&x, &inverse, masks, &place, WIDE_DIMS as u32, out(tile).bytes);
                round = opaque(round + 1);
            }
            tile.index = first_lane(tile.index + 1);
            if tile.index >= end {
                break;
            }
        }
    }
}
