//! Q and K: rotated, one scale a token (arXiv 2409.16997, section 3.2: token-level quantization of Q and K), or of K, where it is asked for, one a
//! block whose tokens are about as large.
//!
//! A token is shared by as many lanes as it has 32 dims (`crate::rotation`); of halves, where heads are longer than that, 64: a stage of the rotation
//! less goes between lanes, a tile is one step of a warp, and where K shares a scale its tokens wait for it in registers and are rotated once. Such heads
//! and those of 32 dims have code of their own: one for both, with two short tokens a lane, was 3 % slower on an H200 (docs/kernel-log/quantizer.md).
//! Codes leave through shared memory, in the order of the output, so that all stores are 16 bytes a lane and neighbours.

use super::launch::THREAD_VECTORS;
use super::offset::{Source, Tables, prepare};
use super::reduce::over_warp;
use super::scale::{BEYOND_10_BITS, round_up, token_scale};
use super::tile::{STEP, Tile, Vectors, behind_raw, in_shared, of_warp, padded, request_none, wait};
use crate::element::{Element, Rows, Vector, load_elements};
use crate::layout::{K_SCALE_RATIO, KV_BLOCK, MAX_SCALE, ROW_BYTES, k_offset, loud};
use crate::ptx::barrier::{bar_sync, warp_sync};
use crate::ptx::cp_async::{commit_group, cp_async_16, cp_async_16_zfill};
use crate::ptx::global::{st_global_f32, st_global_v4_u32};
use crate::ptx::math::{add_rn_f32, fma_rn_f32, max_f32, max_nan_f32, mul_rn_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::tid_x_again;
use crate::quantize::arithmetic::{Rotated, Token, Unit};
use crate::rotation::{DIMS, Place};

/// Where a tile goes.
pub(crate) struct Output {
    /// The tile's bytes.
    pub bytes: *mut u8,
    /// The tile's scales.
    pub scale: *mut f32,
    /// The tile's `q_bias`, or null; of no meaning of K.
    pub bias: *mut f32,
    /// The block's `k_block_scale`; of no meaning of Q.
    pub block_scale: *mut f32,
    /// Whether the tokens of the block share a scale where they are about as large.
    pub shares: bool,
}

/// Tokens that a lane converts of a tile, one after the other.
const fn steps<E: Rotated, const N: usize>() -> u32 {
    (THREAD_VECTORS * E::LANES / N) as u32
}

/// The number of the step after `step`. The compiler learns it of a single step alone, which then is no loop, whose counter and addresses took the registers
/// that spilled on sm_80 to sm_89; of two it would unroll them.
#[inline(always)]
fn after<E: Rotated, const N: usize>(step: u32) -> u32 {
    if steps::<E, N>() > 1 { opaque(step + 1) } else { step + 1 }
}

/// Quantizes the tiles from `tile` to before number `end`: of K (without its offset, packed, padded) where they are `keys`, else of Q (row-major). `dims` of
/// the packed `head_dim` are in the tensor. `offset` is where K's goes, or null; `out` says where the tile does, as often as it is asked, so that its
/// addresses take no registers meanwhile.
///
/// Each warp goes its own way, a step ahead with its loads: its tokens' codes are its own, and no barrier holds it but that of a block of K. Where a
/// scale is shared, all tokens' are made before the first code. Of several steps they are rotated once for each: to keep them would take their registers.
///
/// The loops of K and Q are apart, which is faster; what comes before them is there once, as a driver takes as long to compile a module as that is.
///
/// # Safety
/// Every thread of the CTA calls it; tile, source and output are in their tensors and arrays.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn quantize<E: Rotated, const N: usize>(
    keys: bool,
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
        let mut lane = Lane::new::<E, N>(head_dim, dims);
        if in_shared::<E>() {
            let mut step = 0;
            while step < steps::<E, N>() {
                lane.request::<E, N>(&rows, tile, step);
                step = after::<E, N>(step);
            }
        }
        prepare::<E, N>(dims, source, offset);
        if keys {
            lane.listen::<E, N>();
            tiles::<E, true, N>(&lane, head_dim, rotates, &rows, tile, end, &out);
        } else {
            tiles::<E, false, N>(&lane, head_dim, rotates, &rows, tile, end, &out);
        }
    }
}

/// The tiles of K or of Q, of which halves of the first are on their way.
#[inline(always)]
unsafe fn tiles<E: Rotated, const KEYS: bool, const N: usize>(
    lane: &Lane,
    head_dim: u32,
    rotates: bool,
    rows: &Rows,
    tile: Tile,
    end: u32,
    out: &impl Fn(Tile) -> Output,
) {
    unsafe {
        let copied = Copied::new::<E, KEYS, N>(&lane.place);
        let mut tile = tile;
        loop {
            let to = out(tile);
            if KEYS && to.shares && steps::<E, N>() > 1 {
                wait::<E, 0>();
                let mut step = 0;
                while step < steps::<E, N>() {
                    let anew = Lane::new::<E, N>(opaque(head_dim), lane.dims);
                    own_scale::<E, N>(if in_shared::<E>() { lane } else { &anew }, rotates, rows, tile, step);
                    step = after::<E, N>(step);
                }
                bar_sync();
            }
            let mut step = 0;
            // Rolled: two steps of K, and of Q, are more instructions than a multiprocessor holds near.
            while step < steps::<E, N>() {
                // Floats are in registers, so that there are none for this.
                let anew = Lane::new::<E, N>(opaque(head_dim), lane.dims);
                let lane = if in_shared::<E>() { lane } else { &anew };
                one::<E, KEYS, N>(lane, &copied, rotates, rows, tile, step, end, &to);
                step = after::<E, N>(step);
            }
            if KEYS && !to.shares {
                bar_sync();
                // All lanes say the same; the vote lets the compiler know.
                if vote_any(tid_x_again() < 32) {
                    block_scale::<E>(tile, to.block_scale);
                }
            }
            tile.index += 1;
            if tile.index >= end {
                break;
            }
        }
    }
}

/// What a lane needs in every step, worked out once.
struct Lane {
    place: Place,
    /// Dims of a token in the tensor.
    dims: u32,
    /// Its first row of a tile.
    row: u32,
    /// Whether K's offset has a dim of the lane's that is loud.
    loud: bool,
}

/// What a lane copies of its warp's codes: 16 of them at a time.
struct Copied {
    /// Where the first ones go, from the start of a tile's bytes; and how much further the second ones, and the third ones.
    to: [u32; 3],
    /// How many there are: of a head of 96 dims that is worked on as of 128, not all.
    units: u32,
    /// Bytes from a step's place in a tile's to the next one's.
    step_bytes: u32,
}

impl Copied {
    #[inline(always)]
    fn new<E: Rotated, const KEYS: bool, const N: usize>(place: &Place) -> Self {
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

impl Lane {
    #[inline(always)]
    fn new<E: Rotated, const N: usize>(head_dim: u32, dims: u32) -> Self {
        let place = Place::of_lanes_with::<N>(head_dim, padded::<E>());
        Self { place, dims, row: tid_x_again() / 32 * steps::<E, N>() * place.tokens() + place.token, loud: false }
    }

    /// Looks at K's offset.
    #[inline(always)]
    unsafe fn listen<E: Rotated, const N: usize>(&mut self) {
        if E::HALF {
            let mut offset = E::Token::<N>::none();
            unroll!(0..N / E::LANES, |i| {
                let at = Tables::new::<E>().offsets::<E, N>(self.place.lane, i as u32);
                unsafe { E::put_offsets(&mut offset, i, at) };
            });
            self.loud = offset.largest() >= loud(self.place.head_dim() as usize);
        }
    }

    /// The lane's token of step `step` of a tile, where the tile has as many: else its last.
    #[inline(always)]
    fn token(&self, tile: Tile, step: u32) -> u32 {
        (self.row + step * self.place.tokens()).min(tile.count() - 1)
    }

    /// Starts loading the warp's tokens of step `step` of a tile to shared memory.
    #[inline(always)]
    unsafe fn request<E: Rotated, const N: usize>(&self, rows: &Rows, tile: Tile, step: u32) {
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

    /// The lane's token of a tile, in registers.
    #[inline(always)]
    unsafe fn load<E: Rotated>(&self, rows: &Rows, tile: Tile, step: u32) -> Vectors {
        let (mut raw, row) = (Vectors::none(), self.token(tile, step));
        let vector = |i: usize| (row, self.place.vector_of::<E>(i, self.dims));
        let has = |i: usize| self.place.is_of::<E>(i, self.dims);
        unsafe { raw.request::<E, THREAD_VECTORS>(0, &rows.skip(tile.first()), has, vector) };
        raw
    }
}

/// What a lane brings of a warp's tokens: of 32 vectors that are neighbours in memory, each, so that a copy is of whole rows. Which lane brings a
/// vector is not which works on it ([`Place`]): those lie one behind the other, but for the three lowest bits of a vector's number, which are exchanged so
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
    fn new<E: Rotated, const N: usize>(place: &Place, step: u32) -> Self {
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
fn raw_of<E: Rotated, const N: usize>(place: &Place, step: u32, i: u32) -> u32 {
    let lane = tid_x_again() % 32;
    let token = (lane & !(place.lanes() - 1)) * (16 * (N / E::LANES) as u32);
    // Opaque: what is exchanged of each vector would be in a register across the loop.
    let exchanged = if N / E::LANES == 8 { lane % 8 ^ i << opaque(place.log_lanes) } else { lane / 2 % 4 ^ i };
    of_warp() + step * (STEP * (N / E::LANES) as u32) + token + 16 * exchanged
}

/// The lane's vectors of a step.
#[inline(always)]
unsafe fn vectors<E: Rotated, const N: usize>(
    lane: &Lane,
    rows: &Rows,
    tile: Tile,
    step: u32,
) -> [Vector; THREAD_VECTORS] {
    unsafe {
        let raw = if in_shared::<E>() { Vectors::none() } else { lane.load::<E>(rows, tile, step) };
        if steps::<E, N>() == 2 {
            wait::<E, 1>();
        } else {
            wait::<E, 0>();
        }
        let mut vectors = [[0; 4]; THREAD_VECTORS];
        unroll!(0..N / E::LANES, |i| {
            vectors[i] = raw.get::<E>(i, raw_of::<E, N>(&lane.place, step, i as u32));
        });
        vectors
    }
}

/// The lane's part of a token before the rotation's transforms, K without its offset, and in what unit; and of Q, if it is wanted, the sums of its product with K's
/// offset: apart for the vectors that two lanes of [`DIMS`] would have, so that the rounded sum is the same in the kernels for short K and V.
#[inline(always)]
unsafe fn signed<E: Rotated, const KEYS: bool, const N: usize>(
    lane: &Lane,
    rotates: bool,
    raw: &[Vector; THREAD_VECTORS],
    biased: bool,
) -> (E::Token<N>, Unit, [[f32; 4]; 2]) {
    unsafe {
        let (place, tables) = (&lane.place, Tables::new::<E>());
        let mut x = E::Token::<N>::none();
        let mut bias = [[0.0; 4]; 2];
        unroll!(0..N / E::LANES, |i| {
            let mut vector = raw[i];
            let signs = ld_shared_v4_u32(tables.signs::<E, N>(place.lane, i as u32));
            unroll!(0..4, |word| {
                vector[word] ^= signs[word];
            });
            E::put(&mut x, i, &vector);
        });
        let offsets = |i: usize| tables.offsets::<E, N>(place.lane, i as u32);
        if !KEYS && (biased || !E::HALF) {
            unroll!(0..N / E::LANES, |i| {
                unroll!(0..E::LANES / 4, |quad| {
                    let four = E::offsets4(offsets(i), quad);
                    unroll!(0..4, |j| {
                        let sum = &mut bias[i % (N / DIMS)][j];
                        *sum = fma_rn_f32(x.get(i * E::LANES + 4 * quad + j), four[j], *sum);
                    });
                });
            });
        }
        let limit = if rotates { loud(place.head_dim() as usize) } else { f32::INFINITY };
        let unit = x.quieten(place, limit, KEYS & lane.loud);
        if KEYS {
            let mut offset = E::Token::<N>::none();
            unroll!(0..N / E::LANES, |i| {
                E::put_offsets(&mut offset, i, offsets(i));
            });
            x.take_out(&offset, unit);
        }
        (x, unit, bias)
    }
}

/// The scale that each token of K of the warp's step would have alone, to shared memory.
#[inline(always)]
unsafe fn own_scale<E: Rotated, const N: usize>(lane: &Lane, rotates: bool, rows: &Rows, tile: Tile, step: u32) {
    unsafe {
        let (mut x, unit, _) = signed::<E, true, N>(lane, rotates, &vectors::<E, N>(lane, rows, tile, step), false);
        if rotates {
            lane.place.butterflies_of::<E, N>(&mut x);
        }
        let amax = lane.place.over_lanes(x.largest(), max_nan_f32) * unit.unit;
        store_own::<E>(lane, tile, step, amax, token_scale(amax, fma_rn_f32));
    }
}

/// A token's own scale to shared memory: NaN of one that is not finite, zero of padding.
#[inline(always)]
unsafe fn store_own<E: Rotated>(lane: &Lane, tile: Tile, step: u32, amax: f32, scale: f32) {
    unsafe {
        let row = lane.row + step * lane.place.tokens();
        let scale = selp_b32(amax < f32::INFINITY, scale.to_bits(), f32::NAN.to_bits());
        let scale = selp_b32(row < tile.count(), scale, 0);
        st_shared_u32(lane.place.lane == 0, Tables::new::<E>().scales::<E>(tile.index) + 4 * row, scale);
    }
}

/// A step of the warp: a token of each few lanes.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn one<E: Rotated, const KEYS: bool, const N: usize>(
    lane: &Lane,
    copied: &Copied,
    rotates: bool,
    rows: &Rows,
    tile: Tile,
    step: u32,
    end: u32,
    out: &Output,
) {
    unsafe {
        let place = &lane.place;
        let raw = vectors::<E, N>(lane, rows, tile, step);
        // The warp has read what was there.
        warp_sync();
        let next = Tile { index: tile.index + 1, ..tile };
        if in_shared::<E>() {
            if next.index < end {
                lane.request::<E, N>(rows, next, step);
            } else {
                request_none::<E>();
            }
        }
        let (mut x, unit, bias) = signed::<E, KEYS, N>(lane, rotates, &raw, !out.bias.is_null());
        let row = lane.row + step * place.tokens();
        let inside = row < tile.count();
        if !KEYS && !out.bias.is_null() {
            let sum = |bias: [f32; 4]| place.over_lanes((bias[0] + bias[1]) + (bias[2] + bias[3]), add_rn_f32);
            let bias = if N > DIMS { sum(bias[0]) + sum(bias[1]) } else { sum(bias[0]) };
            st_global_f32((place.lane == 0) & inside, out.bias.wrapping_add(row as usize), [bias]);
        }
        if rotates {
            place.butterflies_of::<E, N>(&mut x);
        }

        let beyond = if !KEYS && rotates { BEYOND_10_BITS } else { 0 };
        let of = |amax| {
            let own = round_up(token_scale(amax, fma_rn_f32), beyond);
            if !KEYS || !out.shares {
                return own;
            }
            if steps::<E, N>() == 1 {
                store_own::<E>(lane, tile, step, amax, own);
                bar_sync();
            }
            let shared = block_scale::<E>(tile, out.block_scale);
            f32::from_bits(selp_b32(shared > 0.0, shared.to_bits(), own.to_bits()))
        };
        let amax = place.over_lanes(x.largest(), max_nan_f32) * unit.unit;
        let (scale, number) = (of(amax), amax < f32::INFINITY);
        x.encode(scale, unit, MAX_SCALE);
        let mut words = [0; MOST / 4];
        unroll!(0..N / 4, |i| {
            words[i] = x.codes4(i);
        });
        let coded = number & (!KEYS | inside);
        if vote_any(!coded) {
            // Opaque: else the mask would be put on always.
            let mask = opaque(selp_b32(coded, u32::MAX, 0));
            unroll!(0..N / 4, |i| {
                words[i] &= mask;
            });
        }
        // The warp has copied what was there.
        warp_sync();
        let codes = behind_raw::<E>() + tid_x_again() / 32 * (32 * N as u32);
        unroll!(0..N / E::LANES, |i| {
            let to = codes + place.staged(i, E::LANES);
            if E::LANES == 8 {
                st_shared_v2_u32(true, to, [words[2 * i], words[2 * i + 1]]);
            } else {
                st_shared_u32(true, to, words[i]);
            }
        });
        let scale = f32::from_bits(selp_b32(number, scale.to_bits(), f32::NAN.to_bits()));
        // Padding has scales of zero; a tile of Q ends with its last token.
        let scale = f32::from_bits(selp_b32(inside, scale.to_bits(), 0));
        st_global_f32((place.lane == 0) & (KEYS | inside), out.scale.wrapping_add(row as usize), [scale]);
        if KEYS {
            let to = Tables::new::<E>().scales::<E>(tile.index) + 4 * row;
            st_shared_u32((place.lane == 0) & !out.shares, to, scale.to_bits());
        }
        warp_sync();
        // Floats leave no registers for it before.
        let anew = Copied::new::<E, KEYS, N>(place);
        let copied = if in_shared::<E>() { copied } else { &anew };
        let (wanted, bytes) = (tile.count() * place.head_dim(), step * copied.step_bytes);
        unroll!(0..N / 16, |i| {
            let codes = ld_shared_v4_u32(codes + 16 * (tid_x_again() % 32) + i as u32 * 512);
            let further = |bit: usize| if i >> bit & 1 == 1 { copied.to[1 + bit] } else { 0 };
            let to = copied.to[0].wrapping_add(further(0)).wrapping_add(further(1)).wrapping_add(bytes);
            let is = ((i as u32) < copied.units) & (KEYS | (to < wanted));
            st_global_v4_u32(is, out.bytes.wrapping_add(to as usize), codes);
        });
    }
}

/// Stores the largest of the scales of a block of K, of which all warps have written theirs. Where all are numbers and near it, tokens may share
/// it: then that, else zero. Padding is not near.
///
/// # Safety
/// All 32 lanes of a converged warp call it, the first warp's among others.
#[inline(always)]
unsafe fn block_scale<E: Rotated>(tile: Tile, to: *mut f32) -> f32 {
    unsafe {
        let thread = tid_x_again();
        let scales = Tables::new::<E>().scales::<E>(tile.index) + 16 * (thread % 32);
        let four = ld_shared_v4_u32(scales).map(f32::from_bits);
        // Of those that are numbers.
        let largest = max_f32(max_f32(four[0], four[1]), max_f32(four[2], four[3]));
        let largest = over_warp(max_f32(largest, 0.0), max_f32);
        st_global_f32(thread == 0, to, [largest]);
        let near = |scale: f32| largest <= mul_rn_f32(K_SCALE_RATIO, scale);
        let apart = vote_any(!(near(four[0]) & near(four[1]) & near(four[2]) & near(four[3])));
        f32::from_bits(selp_b32(apart, 0, largest.to_bits()))
    }
}

/// Dims of a token that a lane has, at most.
const MOST: usize = 2 * DIMS;
