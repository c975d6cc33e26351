//! Q and K: rotated, one scale a token (arXiv 2409.16997, section 3.2: token-level quantization of Q and K).
//!
//! A token is shared by as many lanes as it has 32 dims (`crate::rotation`). Its codes leave through shared memory, in the order of the output,
//! so that all stores are 16 bytes a lane and neighbours.

use super::launch::THREAD_VECTORS;
use super::offset::{Source, Tables, prepare};
use super::pack::{clamp, codes4};
use super::reduce::over_warp;
use super::scale::{BEYOND_10_BITS, reciprocal, round_up, token_scale};
use super::tile::{Tile, Vectors, padded};
use crate::element::{Element, Rows};
use crate::layout::{MAX_SCALE, block_bytes, k_offset};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{st_global_f32, st_global_v4_u32};
use crate::ptx::math::{add_rn_f32, fma_rn_f32, max_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v2_u32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::{ntid_x, tid_x_again};
use crate::rotation::{DIMS, Place, vectors};
use crate::smem;

/// Where a tile goes.
pub(crate) struct Output {
    /// The tile's bytes.
    pub bytes: *mut u8,
    /// The tile's scales.
    pub scale: *mut f32,
    /// The tile's `q_bias`, or null.
    pub bias: *mut f32,
    /// The block's `k_block_scale`.
    pub block_scale: *mut f32,
}

/// Quantizes the tiles from `tile` to before number `end`: of K (without its offset, packed, padded) where `KEYS`, else of Q (row-major). `dims` of the packed `head_dim` are in the tensor. `offset` is where K's goes, or null; `out` says
/// where the tile does, as often as it is asked, so that its addresses take no registers meanwhile.
///
/// # Safety
/// Every thread of the CTA calls it; tile, source and output are in their tensors and arrays.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, const KEYS: bool>(
    head_dim: u32,
    dims: u32,
    rotates: bool,
    rows: Rows,
    tile: Tile,
    end: u32,
    source: Source,
    offset: *mut f32,
    out: impl Fn(Tile) -> Output,
) {
    unsafe {
        prepare::<E>(dims, source, offset);
        let mut tile = tile;
        loop {
            one::<E, KEYS>(head_dim, dims, rotates, &rows, tile, &out);
            tile.index += 1;
            if tile.index >= end {
                break;
            }
            // All have copied what they do.
            bar_sync();
        }
    }
}

#[inline(always)]
unsafe fn one<E: Element, const KEYS: bool>(
    head_dim: u32,
    dims: u32,
    rotates: bool,
    rows: &Rows,
    tile: Tile,
    out: &impl Fn(Tile) -> Output,
) {
    unsafe {
        let place = Place::new(head_dim, padded::<E>());
        let row = |step: usize| first_row::<E>(&place) + step as u32 * place.tokens();
        let has = |i: usize| place.is_of::<E>(i % vectors::<E>(), dims);
        let (first, count) = (tile.first(), tile.count());
        let raw = Vectors::load::<E>(rows, has, |i| {
            let row = row(i / vectors::<E>()).min(count - 1);
            (first + row, place.vector_of::<E>(i % vectors::<E>(), dims))
        });
        raw.wait::<E>();

        unroll!(0..THREAD_VECTORS / vectors::<E>(), |step| {
            // Addresses are made anew here and below, so that they take no registers meanwhile.
            let (place, raw) = (Place::new(head_dim, padded::<E>()), raw.again::<E>());
            let tables = Tables::new::<E>();
            let mut x = [0.0; DIMS];
            let mut bias = [0.0; 4];
            unroll!(0..vectors::<E>(), |i| {
                let mut vector = raw.get::<E>(step * vectors::<E>() + i);
                let signs = ld_shared_v4_u32(tables.signs(place.vector(i)));
                unroll!(0..4, |word| {
                    vector[word] ^= signs[word];
                });
                unroll!(0..E::LANES / 4, |quad| {
                    let at = tables.offsets::<E>(place.vector(i)) + 16 * quad as u32;
                    let offset = ld_shared_v4_u32(at).map(f32::from_bits);
                    unroll!(0..4, |j| {
                        let value = E::get(&vector, 4 * quad + j);
                        if KEYS {
                            x[i * E::LANES + 4 * quad + j] = value - offset[j];
                        } else {
                            x[i * E::LANES + 4 * quad + j] = value;
                            bias[j] = fma_rn_f32(value, offset[j], bias[j]);
                        }
                    });
                });
            });
            if !KEYS {
                let (out, row) = (out(tile), first_row::<E>(&place) + step as u32 * place.tokens());
                if !out.bias.is_null() {
                    let bias = place.over_lanes((bias[0] + bias[1]) + (bias[2] + bias[3]), add_rn_f32);
                    let first_lane = (place.lane == 0) & (row < tile.count());
                    st_global_f32(first_lane, out.bias.wrapping_add(row as usize), [bias]);
                }
            }
            if rotates {
                place.butterflies::<E>(&mut x);
            }

            let beyond = if !KEYS && rotates { BEYOND_10_BITS } else { 0 };
            let of = |amax| round_up(token_scale(amax, fma_rn_f32), beyond);
            let (scale, number) = quotients::<E>(&place, &mut x, of, MAX_SCALE);

            let place = Place::new(head_dim, padded::<E>());
            let row = first_row::<E>(&place) + step as u32 * place.tokens();
            let inside = row < tile.count();
            let mask = selp_b32(number & (!KEYS | inside), u32::MAX, 0);
            unroll!(0..vectors::<E>(), |i| {
                let quad = |at: usize| codes4([x[at], x[at + 1], x[at + 2], x[at + 3]]) & mask;
                let dim = place.vector(i) * E::LANES as u32;
                let to = staged::<KEYS>(head_dim, &place, row, dim);
                if E::LANES == 8 {
                    st_shared_v2_u32(place.has::<E>(i), to, [quad(8 * i), quad(8 * i + 4)]);
                } else {
                    st_shared_u32(place.has::<E>(i), to, quad(4 * i));
                }
            });

            let out = out(tile);
            let scale = f32::from_bits(selp_b32(number, scale.to_bits(), f32::NAN.to_bits()));
            // Padding has scales of zero; a tile of Q ends with its last token.
            let scale = f32::from_bits(selp_b32(inside, scale.to_bits(), 0));
            st_global_f32((place.lane == 0) & (KEYS | inside), out.scale.wrapping_add(row as usize), [scale]);
            if KEYS {
                st_shared_u32(place.lane == 0, Tables::new::<E>().scales::<E>() + 4 * row, scale.to_bits());
            }
        });

        bar_sync();
        let (place, out) = (Place::new(head_dim, padded::<E>()), out(tile));
        copy_out::<E, KEYS>(head_dim, &place, tile.count(), out.bytes);
        let thread = tid_x_again();
        if KEYS && thread < 32 {
            let four = ld_shared_v4_u32(Tables::new::<E>().scales::<E>() + 16 * thread).map(f32::from_bits);
            // Of those that are numbers.
            let largest = max_f32(max_f32(four[0], four[1]), max_f32(four[2], four[3]));
            let largest = over_warp(max_f32(largest, 0.0), max_f32);
            st_global_f32(thread == 0, out.block_scale, [largest]);
        }
    }
}

/// The scale that `scale` gives to the token's largest magnitude, and whether all its elements are numbers; `x` over the scale. Codes may be
/// beyond their range, and are brought back, where the scale is `largest`, the largest there is.
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub(crate) unsafe fn quotients<E: Element>(
    place: &Place,
    x: &mut [f32; DIMS],
    scale: impl Fn(f32) -> f32,
    largest: f32,
) -> (f32, bool) {
    unsafe {
        // As a tree: the tokens of other warps do not hide 32 steps.
        let mut amax = [x[0].abs(), x[1].abs(), x[2].abs(), x[3].abs()];
        unroll!(4..DIMS, |i| {
            amax[i % 4] = max_nan_f32(amax[i % 4], x[i].abs());
        });
        let amax = max_nan_f32(max_nan_f32(amax[0], amax[1]), max_nan_f32(amax[2], amax[3]));
        let amax = place.over_lanes(amax, max_nan_f32);
        let scale = scale(amax);
        let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
        unroll!(0..DIMS, |i| {
            x[i] = mul_rn_f32(x[i], inverse);
        });
        if E::CLAMPS && vote_any(scale >= largest) {
            unroll!(0..DIMS, |i| {
                x[i] = clamp::<E>(x[i]);
            });
        }
        (scale, amax < f32::INFINITY)
    }
}

/// The lane's first row. Each warp has rows of its own that follow one another.
#[inline(always)]
fn first_row<E: Element>(place: &Place) -> u32 {
    let steps = (THREAD_VECTORS / vectors::<E>()) as u32;
    tid_x_again() / 32 * steps * place.tokens() + place.token
}

/// Shared address where the code of a dim of a row waits: of K its place in the packed block, of Q that in row-major order, but for
/// units of a row that are exchanged so that the rows of an instruction lie in different banks.
#[inline(always)]
fn staged<const KEYS: bool>(head_dim: u32, place: &Place, row: u32, dim: u32) -> u32 {
    if KEYS {
        smem::base() + k_offset(row as usize, dim as usize) as u32
    } else {
        smem::base() + row * head_dim + (dim ^ exchange(head_dim, place, row))
    }
}

/// Which bits of a byte's place in a row of Q are exchanged: whole units of what the lanes of a row write at a time, at least 16 bytes.
#[inline(always)]
fn exchange(head_dim: u32, place: &Place, row: u32) -> u32 {
    if head_dim.is_power_of_two() {
        // Rows in 128 bytes, which is all banks, are not in each other's way.
        let line = row * head_dim.min(128) / 128;
        let unit = (8 * place.lanes()).max(16);
        line * unit & (head_dim - 1)
    } else {
        0
    }
}

/// Copies the tile's codes from shared memory to where they belong.
#[inline(always)]
unsafe fn copy_out<E: Element, const KEYS: bool>(head_dim: u32, place: &Place, count: u32, to: *mut u8) {
    let tile_bytes = block_bytes(head_dim as usize) as u32;
    let thread = tid_x_again();
    let wanted = if KEYS { tile_bytes } else { count * head_dim };
    unroll!(0..8 / E::BYTES, |i| {
        let byte = 16 * (thread + i as u32 * ntid_x());
        let from = byte.min(tile_bytes - 16);
        // Where rows are no power of two of bytes, the row does not matter.
        let row = from >> padded::<E>().trailing_zeros();
        let exchanged = if KEYS { 0 } else { exchange(head_dim, place, row) };
        unsafe {
            let codes = ld_shared_v4_u32(smem::base() + (from ^ exchanged));
            st_global_v4_u32(byte < wanted, to.wrapping_add(byte as usize), codes);
        }
    });
}
