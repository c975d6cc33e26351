//! Q and K: rotated, one scale a token (arXiv 2409.16997, section 3.2: token-level quantization of Q and K), or of K, where it is asked for, one a
//! block whose tokens are about as large.
//!
//! A token is shared by as many lanes as it has 32 dims (`crate::rotation`). Its codes leave through shared memory, in the order of the output,
//! so that all stores are 16 bytes a lane and neighbours.

use super::launch::THREAD_VECTORS;
use super::offset::{Source, Tables, prepare};
use super::pack::{clamp, codes4};
use super::reduce::over_warp;
use super::scale::{BEYOND_10_BITS, reciprocal, round_up, token_scale};
use super::tile::{STEP, Tile, behind_raw, in_shared, of_warp, padded, wait};
use crate::element::{Element, Rows, Vector, load, load_elements};
use crate::layout::{K_SCALE_RATIO, KV_BLOCK, MAX_SCALE, k_offset};
use crate::ptx::barrier::{bar_sync, warp_sync};
use crate::ptx::cp_async::{commit_group, cp_async_16, cp_async_16_zfill};
use crate::ptx::global::{st_global_f32, st_global_v4_u32};
use crate::ptx::math::{add_rn_f32, fma_rn_f32, max_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::shuffle::vote_any;
use crate::ptx::special::tid_x_again;
use crate::rotation::{DIMS, Place};

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
    /// Whether the tokens of the block share a scale where they are about as large.
    pub shares: bool,
}

/// Quantizes the tiles from `tile` to before number `end`: of K (without its offset, packed, padded) where `KEYS`, else of Q (row-major). `dims` of the packed `head_dim` are in the tensor. `offset` is where K's goes, or null; `out` says
/// where the tile does, as often as it is asked, so that its addresses take no registers meanwhile.
///
/// Each warp goes its own way, a tile ahead with its loads: its tokens' codes are its own, and no barrier holds it but that of a block of K. Where a
/// scale is shared, tokens wait for it in registers. A lane has `N` dims of a token: of halves twice as many as of floats, which leaves a stage of the
/// rotation less between lanes and does once what is done for each token, at half as many warps.
///
/// # Safety
/// Every thread of the CTA calls it; tile, source and output are in their tensors and arrays.
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, const KEYS: bool, const N: usize>(
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
        let lane = Lane::new::<E, N>(head_dim, dims);
        let copied = Copied::new::<E, KEYS, N>(&lane.place);
        if in_shared::<E>() {
            lane.request::<E, N>(&rows, tile);
        }
        prepare::<E, N>(dims, source, offset);
        let mut tile = tile;
        loop {
            let to = out(tile);
            // Floats are in registers, so that there are none for this.
            let anew = Lane::new::<E, N>(opaque(head_dim), dims);
            one::<E, KEYS, N>(if in_shared::<E>() { &lane } else { &anew }, &copied, rotates, &rows, tile, end, &to);
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

/// What a lane needs in every tile, worked out once.
struct Lane {
    place: Place,
    /// Dims of a token in the tensor.
    dims: u32,
    /// Its row of a tile, the first of two where it has two tokens.
    row: u32,
}

/// What a lane copies of its warp's codes: 16 of them at a time.
struct Copied {
    /// Where the first ones go, from the start of a tile's bytes; and how much further the second ones, and the third ones.
    to: [u32; 3],
    /// How many there are: of a head of 96 dims that is worked on as of 128, not all.
    units: u32,
}

impl Copied {
    #[inline(always)]
    fn new<E: Element, const KEYS: bool, const N: usize>(place: &Place) -> Self {
        let (warp, lane, head_dim) = (tid_x_again() / 32, tid_x_again() % 32, place.head_dim());
        let at = |n: u32| {
            let (token, dim) = place.staged_unit(n, E::LANES);
            let row = (warp * place.tokens() + token) as usize;
            let at = if KEYS { k_offset(row, dim as usize) as u32 } else { row as u32 * head_dim + dim };
            (at, dim)
        };
        // Of halves all lanes' are as far: these are no lane's registers.
        let any = if in_shared::<E>() { 0 } else { lane };
        let further = |i: u32| at(any + 32 * i).0.wrapping_sub(at(any).0);
        let mut units = 0;
        unroll!(0..N / 16, |i| {
            units += u32::from(at(any + 32 * i as u32).1 < head_dim);
        });
        Self { to: [at(lane).0, further(1), further(2)], units }
    }
}

impl Lane {
    #[inline(always)]
    fn new<E: Element, const N: usize>(head_dim: u32, dims: u32) -> Self {
        let place = Place::of_lanes_with::<N>(head_dim, padded::<E>());
        Self { place, dims, row: tid_x_again() / 32 * place.tokens() + place.token }
    }

    /// Starts loading the warp's tokens of a tile to shared memory.
    #[inline(always)]
    unsafe fn request<E: Element, const N: usize>(&self, rows: &Rows, tile: Tile) {
        unsafe {
            let (brought, rows) = (Brought::new(&self.place), rows.skip(tile.first()));
            if rows.aligned & self.place.is_whole(self.dims) & (tile.count() == KV_BLOCK as u32) {
                let mut at = rows.at((brought.row, brought.vector));
                unroll!(0..N / E::LANES, |i| {
                    cp_async_16(brought.to(i as u32), at);
                    at = at.wrapping_offset(rows.stride.wrapping_mul(i64::from(brought.further)) as isize);
                });
            } else {
                // A compiler that knew how many there are would unroll this, and have them all in registers that the token has.
                let count = padded::<E>() * self.place.tokens() / (32 * E::LANES as u32);
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

    /// The lane's vectors of a tile: those that it was asked for before, or, of floats, that are loaded now.
    #[inline(always)]
    unsafe fn vectors<E: Element, const N: usize>(&self, rows: &Rows, tile: Tile) -> [Vector; THREAD_VECTORS] {
        unsafe {
            if in_shared::<E>() {
                wait::<E, 0>();
                let mut vectors = [[0; 4]; THREAD_VECTORS];
                unroll!(0..N / E::LANES, |i| {
                    vectors[i] = ld_shared_v4_u32(raw_of(&self.place, i as u32));
                });
                return vectors;
            }
            let row = self.row.min(tile.count() - 1);
            let vectors =
                load::<E, THREAD_VECTORS>(&rows.skip(tile.first()), |i| (row, self.place.vector_of::<E>(i, self.dims)));
            let mut i = 0;
            vectors.map(|vector| {
                let is = self.place.is_of::<E>(i, self.dims);
                i += 1;
                vector.map(|word| selp_b32(is, word, 0))
            })
        }
    }
}

/// What a lane brings of a warp's tokens of halves: each time one of 32 vectors that are neighbours in memory, so that a copy is of whole rows.
/// Which lane brings a vector is not which works on it ([`Place`]): those lie one behind the other, but for the three lowest bits of a vector's number,
/// which are exchanged so that eight lanes that read at a time have other banks each.
struct Brought {
    /// Its first row of the tile; the next ones are `further` rows behind.
    row: u32,
    further: u32,
    /// Vector of the row.
    vector: u32,
    /// Where the first one goes.
    first: u32,
}

impl Brought {
    #[inline(always)]
    fn new(place: &Place) -> Self {
        let (warp, lane) = (tid_x_again() / 32, tid_x_again() % 32);
        // Logarithm of the vectors of a row, of which the warp has 256.
        let log = 8 - place.tokens().trailing_zeros();
        let exchanged = lane ^ (lane >> 3 & !(place.lanes() - 1));
        Self {
            row: warp * place.tokens() + (lane >> log),
            further: 32 >> log,
            vector: lane & ((1 << log) - 1),
            first: of_warp() + 16 * exchanged,
        }
    }

    /// Shared address of vector number `i`.
    #[inline(always)]
    fn to(&self, i: u32) -> u32 {
        (self.first ^ (i & 1) << 6) + STEP * i
    }
}

/// Shared address of the lane's vector number `i` of halves.
#[inline(always)]
fn raw_of(place: &Place, i: u32) -> u32 {
    let lane = tid_x_again() % 32;
    of_warp() + 128 * (lane & !(place.lanes() - 1)) + 16 * (lane % 8 ^ i << place.log_lanes)
}

/// The lane's dims before the rotation's transforms, K without its offset; and of Q the sums of the products with K's offset, of either half of
/// the dims: a lane may have two tokens.
#[inline(always)]
unsafe fn signed<E: Element, const KEYS: bool, const N: usize>(
    place: &Place,
    raw: &[Vector; THREAD_VECTORS],
) -> ([f32; N], [f32; 2]) {
    unsafe {
        let tables = Tables::new::<E>();
        let mut x = [0.0; N];
        let mut bias = [[0.0; 4]; 2];
        unroll!(0..N / E::LANES, |i| {
            let mut vector = raw[i];
            let signs = ld_shared_v4_u32(tables.signs::<E, N>(place.lane, i as u32));
            unroll!(0..4, |word| {
                vector[word] ^= signs[word];
            });
            unroll!(0..E::LANES / 4, |quad| {
                let at = tables.offsets::<E, N>(place.lane, i as u32) + 16 * quad as u32;
                let offset = ld_shared_v4_u32(at).map(f32::from_bits);
                unroll!(0..4, |j| {
                    let (value, dim) = (E::get(&vector, 4 * quad + j), i * E::LANES + 4 * quad + j);
                    if KEYS {
                        x[dim] = value - offset[j];
                    } else {
                        x[dim] = value;
                        let sum = &mut bias[dim / DIMS][j];
                        *sum = fma_rn_f32(value, offset[j], *sum);
                    }
                });
            });
        });
        (x, bias.map(|sums| (sums[0] + sums[1]) + (sums[2] + sums[3])))
    }
}

/// A tile of the warp: a token of each few lanes, or two of each lane.
#[inline(always)]
unsafe fn one<E: Element, const KEYS: bool, const N: usize>(
    lane: &Lane,
    copied: &Copied,
    rotates: bool,
    rows: &Rows,
    tile: Tile,
    end: u32,
    out: &Output,
) {
    unsafe {
        let place = &lane.place;
        let raw = lane.vectors::<E, N>(rows, tile);
        let next = Tile { index: tile.index + 1, ..tile };
        if in_shared::<E>() && next.index < end {
            // The warp has read what was there.
            warp_sync();
            lane.request::<E, N>(rows, next);
        }
        let (mut x, bias) = signed::<E, KEYS, N>(place, &raw);
        let token = Token { row: lane.row, count: tile.count(), first_lane: place.lane == 0 };
        let second = Token { row: lane.row + u32::from(place.pairs), ..token };
        if !KEYS && !out.bias.is_null() {
            if place.pairs {
                token.store(out.bias, bias[0], token.inside());
                second.store(out.bias, bias[1], second.inside());
            } else {
                token.store(out.bias, place.over_lanes(bias[0] + bias[1], add_rn_f32), token.inside());
            }
        }
        if rotates {
            place.butterflies_of::<E, N>(&mut x);
        }

        let beyond = if !KEYS && rotates { BEYOND_10_BITS } else { 0 };
        let own = |amax| round_up(token_scale(amax, fma_rn_f32), beyond);
        let halves = [largest(&x, 0), if N > DIMS { largest(&x, DIMS) } else { 0.0 }];
        let (amax, mut scale) = if place.pairs {
            (halves, halves.map(own))
        } else {
            let amax = place.over_lanes(max_nan_f32(halves[0], halves[1]), max_nan_f32);
            ([amax; 2], [own(amax); 2])
        };
        if KEYS && out.shares {
            token.store_own::<E>(tile, amax[0], scale[0]);
            if place.pairs {
                second.store_own::<E>(tile, amax[1], scale[1]);
            }
            bar_sync();
            let shared = block_scale::<E>(tile, out.block_scale);
            scale = scale.map(|own| f32::from_bits(selp_b32(shared > 0.0, shared.to_bits(), own.to_bits())));
        }
        let number = amax.map(|amax| amax < f32::INFINITY);
        let inverse = scale.map(|scale| reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32));
        unroll!(0..N, |i| {
            x[i] = mul_rn_f32(x[i], inverse[i / DIMS]);
        });
        if E::CLAMPS && vote_any((scale[0] >= MAX_SCALE) | (scale[1] >= MAX_SCALE)) {
            unroll!(0..N, |i| {
                x[i] = clamp::<E>(x[i]);
            });
        }
        let mut words = [0; MOST / 4];
        unroll!(0..N / 4, |i| {
            words[i] = codes4([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
        });
        let coded = [number[0] & (!KEYS | token.inside()), number[1] & (!KEYS | second.inside())];
        if vote_any(!(coded[0] & coded[1])) {
            // Opaque: else the masks would be put on always.
            let masks = coded.map(|coded| opaque(selp_b32(coded, u32::MAX, 0)));
            unroll!(0..N / 4, |i| {
                words[i] &= masks[4 * i / DIMS];
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
        token.store_scale::<E, KEYS>(tile, out, number[0], scale[0]);
        if place.pairs {
            second.store_scale::<E, KEYS>(tile, out, number[1], scale[1]);
        }
        warp_sync();
        // Floats leave no registers for it before.
        let anew = Copied::new::<E, KEYS, N>(place);
        let copied = if in_shared::<E>() { copied } else { &anew };
        let wanted = tile.count() * place.head_dim();
        unroll!(0..N / 16, |i| {
            let codes = ld_shared_v4_u32(codes + 16 * (tid_x_again() % 32) + i as u32 * 512);
            let further = |bit: usize| if i >> bit & 1 == 1 { copied.to[1 + bit] } else { 0 };
            let to = copied.to[0].wrapping_add(further(0)).wrapping_add(further(1));
            let is = ((i as u32) < copied.units) & (KEYS | (to < wanted));
            st_global_v4_u32(is, out.bytes.wrapping_add(to as usize), codes);
        });
    }
}

/// A token of a lane.
#[derive(Clone, Copy)]
struct Token {
    /// Its row of the tile.
    row: u32,
    /// Rows of the tile.
    count: u32,
    /// Whether the lane is the first of those that share it.
    first_lane: bool,
}

impl Token {
    /// Whether the tile has it.
    #[inline(always)]
    fn inside(&self) -> bool {
        self.row < self.count
    }

    /// A number of it to an array of the tile's, where `is`.
    #[inline(always)]
    unsafe fn store(&self, to: *mut f32, number: f32, is: bool) {
        unsafe { st_global_f32(self.first_lane & is, to.wrapping_add(self.row as usize), [number]) }
    }

    /// Its own scale to shared memory: NaN of one that is not finite, zero of padding.
    #[inline(always)]
    unsafe fn store_own<E: Element>(&self, tile: Tile, amax: f32, scale: f32) {
        let scale = selp_b32(amax < f32::INFINITY, scale.to_bits(), f32::NAN.to_bits());
        let scale = selp_b32(self.inside(), scale, 0);
        unsafe { st_shared_u32(self.first_lane, Tables::new::<E>().scales::<E>(tile.index) + 4 * self.row, scale) }
    }

    /// The scale of its codes to where it goes. Padding has scales of zero; a tile of Q ends with its last token.
    #[inline(always)]
    unsafe fn store_scale<E: Element, const KEYS: bool>(&self, tile: Tile, out: &Output, number: bool, scale: f32) {
        unsafe {
            let scale = selp_b32(number, scale.to_bits(), f32::NAN.to_bits());
            let scale = selp_b32(self.inside(), scale, 0);
            self.store(out.scale, f32::from_bits(scale), KEYS | self.inside());
            if KEYS {
                let to = Tables::new::<E>().scales::<E>(tile.index) + 4 * self.row;
                st_shared_u32(self.first_lane & !out.shares, to, scale);
            }
        }
    }
}

/// The scale that `scale` gives to the token's largest magnitude, and whether all its elements are numbers; `x` over the scale. Codes may be
/// beyond their range, and are brought back, where the scale is `most`, the largest there is.
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
pub(crate) unsafe fn quotients<E: Element>(
    place: &Place,
    x: &mut [f32; DIMS],
    scale: impl Fn(f32) -> f32,
    most: f32,
) -> (f32, bool) {
    unsafe {
        let amax = place.over_lanes(largest(x, 0), max_nan_f32);
        let scale = scale(amax);
        let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
        unroll!(0..DIMS, |i| {
            x[i] = mul_rn_f32(x[i], inverse);
        });
        if E::CLAMPS && vote_any(scale >= most) {
            unroll!(0..DIMS, |i| {
                x[i] = clamp::<E>(x[i]);
            });
        }
        (scale, amax < f32::INFINITY)
    }
}

/// The largest magnitude of [`DIMS`] floats from `from` on, not finite where one is not.
#[inline(always)]
fn largest<const N: usize>(x: &[f32; N], from: usize) -> f32 {
    // As a tree: the tokens of other warps do not hide 32 steps.
    let mut amax = [x[from].abs(), x[from + 1].abs(), x[from + 2].abs(), x[from + 3].abs()];
    unroll!(4..DIMS, |i| {
        amax[i % 4] = max_nan_f32(amax[i % 4], x[from + i].abs());
    });
    max_nan_f32(max_nan_f32(amax[0], amax[1]), max_nan_f32(amax[2], amax[3]))
}

/// Stores the largest of the scales of a block of K, of which all warps have written theirs. Where all are numbers and near it, tokens may share
/// it: then that, else zero. Padding is not near.
///
/// # Safety
/// All 32 lanes of a converged warp call it, the first warp's among others.
#[inline(always)]
unsafe fn block_scale<E: Element>(tile: Tile, to: *mut f32) -> f32 {
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
