//! A token of Q or K in the registers of a few lanes (`crate::rotation`) to codes: few dims a lane, and again and again. A launch runs all of
//! its code about once, and what it waits for most is that code.

use super::shared::Shared;
use super::{Kernel, Team};
use crate::config::rows::short_rows;
use crate::config::short::lane_dims;
use crate::element::{Rows, Vector, load};
use crate::layout::{MAX_SCALE, loud};
use crate::ptx::math::{fma_rn_f32, max_nan_f32};
use crate::ptx::opaque::{opaque, rolled};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v2_u32};
use crate::ptx::shuffle::{shfl_idx, shfl_sync_bfly_b32};
use crate::ptx::special::tid_x;
use crate::quantize::arithmetic::{Rotated, Token};
use crate::quantize::scale::{BEYOND_10_BITS, round_up, token_scale};
use crate::rotation::{DIMS, Dims, TokenLane};

/// Dims of a token that a lane holds, in the row that the module is built for; of several rows, or none, nothing is made.
pub(crate) const LANE_DIMS: usize = lane_dims(head_dim());

macro_rules! of_row {
    ($($name:ident { head_dim: $d:literal, $($rest:tt)* })*) => {
        const fn head_dim() -> usize {
            let mut head_dim = 64;
            $(
                if cfg!($name) {
                    head_dim = $d;
                }
            )*
            head_dim
        }
    };
}
short_rows!(of_row);

/// Vectors of a token that a lane has.
pub(crate) const fn vectors<E: Rotated>() -> usize {
    LANE_DIMS / E::LANES
}

/// Most of them.
pub(crate) const VECTORS: usize = LANE_DIMS / 4;

/// Of halves.
const HALVES: usize = LANE_DIMS / 8;

/// A lane's part of a token.
pub(crate) type Part = [Vector; VECTORS];

/// What becomes of a lane's part of a token.
pub(crate) struct Coded {
    /// Four codes a word.
    words: [u32; LANE_DIMS / 4],
    /// The token's scale, NaN where it is not finite.
    pub scale: f32,
}

/// The lane's place among those of a token.
#[inline(always)]
pub(crate) fn place<K: Kernel<MT>, const MT: usize>() -> TokenLane {
    TokenLane::of_lanes_with::<LANE_DIMS>(K::HEAD_DIM as u32, K::HEAD_DIM as u32)
}

/// Loads the lane's part of a token: as many vectors as it has of its type.
///
/// # Safety
/// The token is in the tensor.
#[inline(always)]
pub(crate) unsafe fn load_token<E: Rotated>(rows: &Rows, place: &TokenLane, token: u32) -> Part {
    let mut raw = [[0; 4]; VECTORS];
    // As many at once as there are of halves: their number depends on the type.
    unroll!(0..vectors::<E>() / HALVES, |some| {
        let loaded = unsafe { load::<E, HALVES>(rows, |i| (token, place.vector(HALVES * some + i))) };
        unroll!(0..HALVES, |i| {
            raw[HALVES * some + i] = loaded[i];
        });
    });
    raw
}

/// The tokens of a head of K or V that a warp of a team goes through, a few at a time, the next of them on their way.
pub(crate) struct Tokens<'a> {
    rows: &'a Rows,
    count: u32,
    /// The warp's first token of this round, and how many further the next round's is.
    first: u32,
    step: u32,
    next: Part,
}

impl<'a> Tokens<'a> {
    /// # Safety
    /// They are in the tensor.
    #[inline(always)]
    pub(crate) unsafe fn new<E: Rotated, K: Kernel<MT>, const MT: usize>(
        rows: &'a Rows,
        count: u32,
        team: Team,
    ) -> Self {
        let place = place::<K, MT>();
        let first = team.member() * place.tokens();
        let next = unsafe { load_token::<E>(rows, &place, (first + place.token).min(count - 1)) };
        Self { rows, count, first, step: team.size * place.tokens(), next }
    }

    /// Calls `take` with the lane's part of each token, the token, and whether there is one: behind the last, to a whole panel, it is the last
    /// once more.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn each<E: Rotated, K: Kernel<MT>, const MT: usize>(
        mut self,
        shared: &Shared<K, MT>,
        take: impl Fn(&TokenLane, Part, u32, bool),
    ) {
        let place = place::<K, MT>();
        while self.first < shared.keys {
            rolled();
            let (token, raw) = (self.first + place.token, self.next);
            let next = (token + self.step).min(self.count - 1);
            self.next = unsafe { load_token::<E>(self.rows, &place, next) };
            take(&place, raw, token, token < self.count);
            self.first += self.step;
        }
    }
}

/// The lane's dims with the signs changed that the rotation changes.
///
/// # Safety
/// `signs` is the shared address of the signs of all dims.
#[inline(always)]
pub(crate) unsafe fn signed<E: Rotated>(place: &TokenLane, raw: &Part, signs: u32) -> E::Token<LANE_DIMS> {
    let mut x = E::Token::<LANE_DIMS>::none();
    unroll!(0..vectors::<E>(), |i| {
        let mut vector = raw[i];
        let signs = unsafe { ld_shared_v4_u32(signs + 16 * place.vector(i)) };
        unroll!(0..4, |word| {
            vector[word] ^= signs[word];
        });
        E::put(&mut x, i, &vector);
    });
    x
}

/// Shared address of the offsets of the lane's vector number `i`; `offsets` is that of all dims.
#[inline(always)]
fn offsets_of<E: Rotated>(place: &TokenLane, offsets: u32, i: usize) -> u32 {
    offsets + (4 * E::LANES) as u32 * place.vector(i)
}

/// The offsets of the lane's dims.
///
/// # Safety
/// `offsets` is the shared address of those of all dims.
#[inline(always)]
pub(crate) unsafe fn offsets<E: Rotated>(place: &TokenLane, offsets: u32) -> E::Token<LANE_DIMS> {
    let mut x = E::Token::<LANE_DIMS>::none();
    unroll!(0..vectors::<E>(), |i| {
        unsafe { E::put_offsets(&mut x, i, offsets_of::<E>(place, offsets, i)) };
    });
    x
}

/// The lanes that a token has in the quantizer, where each has [`DIMS`] of its dims: of [`product`] those that have it are as many, the last ones.
#[inline(always)]
pub(crate) fn few_lanes(place: &TokenLane) -> u32 {
    place.lanes() * LANE_DIMS as u32 / DIMS as u32
}

/// The product of a token with the offsets, in the quantizer's order: a lane there goes on from one of its vectors to the next, which are of lanes
/// here in turn.
///
/// # Safety
/// In whole warps; `to` is the shared address of the offsets of all dims.
#[inline(always)]
pub(crate) unsafe fn product<E: Rotated>(place: &TokenLane, x: &E::Token<LANE_DIMS>, to: u32) -> f32 {
    let few = few_lanes(place);
    let from = tid_x() % 32 - place.lane + (place.lane.wrapping_sub(few) & (place.lanes() - 1));
    let mut sums = [0.0_f32; 4];
    unroll!(0..DIMS / E::LANES, |turn| {
        let i = turn / (DIMS / LANE_DIMS);
        if turn > 0 {
            sums = sums.map(|sum| f32::from_bits(unsafe { shfl_idx(sum.to_bits(), from) }));
        }
        unroll!(0..E::LANES / 4, |quad| {
            let offsets = unsafe { E::offsets4(offsets_of::<E>(place, to, i), quad) };
            unroll!(0..4, |j| {
                sums[j] = fma_rn_f32(x.get(i * E::LANES + 4 * quad + j), offsets[j], sums[j]);
            });
        });
    });
    let (mut sum, mut mask) = ((sums[0] + sums[1]) + (sums[2] + sums[3]), 1);
    while mask < few {
        rolled();
        sum += f32::from_bits(unsafe { shfl_sync_bfly_b32(sum.to_bits(), mask) });
        mask *= 2;
    }
    sum
}

/// The Hadamard transform of the token's dims, not normalised: `TokenLane::butterflies`, of tokens whose dims are a power of two, with one body for all
/// exchanges between lanes.
///
/// # Safety
/// In whole warps.
#[inline(always)]
unsafe fn rotate<E: Rotated>(place: &TokenLane, x: &mut E::Token<LANE_DIMS>) {
    x.here::<1>();
    x.here::<2>();
    if E::LANES == 8 {
        x.here::<4>();
    }
    // Opaque: a number that the compiler sees would unroll the loop.
    let (mut mask, mut second, lanes) = (1, place.lane, opaque(place.lanes()));
    while mask < lanes {
        rolled();
        unsafe { x.across(mask, second) };
        (mask, second) = (2 * mask, second / 2);
    }
    if E::LANES == 4 {
        x.here::<4>();
    }
    if LANE_DIMS > 16 {
        x.here::<8>();
    }
    if LANE_DIMS > 8 {
        x.here::<{ LANE_DIMS / 2 }>();
    }
}

/// Rotates and quantizes a token, less `offset` where it is of K: codes of zero where `kept` is false or it is not finite.
///
/// # Safety
/// In whole warps.
#[inline(always)]
pub(crate) unsafe fn encode<E: Rotated>(
    place: &TokenLane,
    head_dim: usize,
    mut x: E::Token<LANE_DIMS>,
    offset: Option<&E::Token<LANE_DIMS>>,
    kept: bool,
) -> Coded {
    unsafe {
        let limit = loud(head_dim);
        let unit = x.quieten(place, limit, offset.is_some_and(|offset| offset.largest() >= limit));
        if let Some(offset) = offset {
            x.take_out(offset, unit);
        }
        rotate::<E>(place, &mut x);
        let amax = place.over_lanes(x.largest(), max_nan_f32) * unit.unit;
        let number = amax < f32::INFINITY;
        let scale = round_up(token_scale(amax, fma_rn_f32), if offset.is_none() { BEYOND_10_BITS } else { 0 });
        x.encode(scale, unit, MAX_SCALE);
        let mask = selp_b32(number & kept, u32::MAX, 0);
        let mut words = [0; LANE_DIMS / 4];
        unroll!(0..LANE_DIMS / 4, |i| {
            words[i] = x.codes4(i) & mask;
        });
        Coded { words, scale: f32::from_bits(selp_b32(number, scale.to_bits(), f32::NAN.to_bits())) }
    }
}

impl Coded {
    /// Stores the codes where `to` says for the first dim of each vector.
    ///
    /// # Safety
    /// The bytes are this thread's.
    #[inline(always)]
    pub(crate) unsafe fn store<E: Rotated>(&self, place: &TokenLane, to: impl Fn(u32) -> u32) {
        unroll!(0..vectors::<E>(), |i| {
            let to = to(place.vector(i) * E::LANES as u32);
            unsafe {
                if E::LANES == 8 {
                    st_shared_v2_u32(true, to, [self.words[2 * i], self.words[2 * i + 1]]);
                } else {
                    st_shared_u32(true, to, self.words[i]);
                }
            }
        });
    }
}
