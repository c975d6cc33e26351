//! A token of Q or K in the registers of a few lanes (`crate::rotation`) to codes.

use super::shared::Shared;
use super::{Kernel, warps};
use crate::element::{Element, Rows, load};
use crate::layout::MAX_SCALE;
use crate::ptx::math::{fma_rn_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v2_u32};
use crate::ptx::shuffle::vote_any;
use crate::quantize::pack::codes4;
use crate::quantize::scale::{BEYOND_10_BITS, reciprocal, round_up, token_scale};
use crate::rotation::{DIMS, Place, vectors};

/// Most vectors of a token that a lane has.
pub(crate) const VECTORS: usize = 8;

/// What becomes of a lane's part of a token.
pub(crate) struct Coded {
    /// Four codes a word.
    words: [u32; DIMS / 4],
    /// The token's scale, NaN where it is not finite.
    pub scale: f32,
}

/// Loads the lane's part of a token: as many vectors as it has of its type.
///
/// # Safety
/// The token is in the tensor.
#[inline(always)]
pub(crate) unsafe fn load_token<E: Element>(rows: &Rows, place: &Place, token: u32) -> [[u32; 4]; VECTORS] {
    let mut raw = [[0; 4]; VECTORS];
    // By four: their number depends on the type.
    unroll!(0..vectors::<E>() / 4, |four| {
        let loaded = unsafe { load::<E, 4>(rows, |i| (token, place.vector(4 * four + i))) };
        unroll!(0..4, |i| {
            raw[4 * four + i] = loaded[i];
        });
    });
    raw
}

/// The tokens of a head that a warp goes through, a few at a time, the next of them on their way.
pub(crate) struct Tokens<'a> {
    rows: &'a Rows,
    count: u32,
    /// The warp's first token of this round, and how many further the next round's is.
    first: u32,
    step: u32,
    next: [[u32; 4]; VECTORS],
}

impl<'a> Tokens<'a> {
    /// # Safety
    /// They are in the tensor.
    #[inline(always)]
    pub(crate) unsafe fn new<E: Element, K: Kernel<MT>, const MT: usize>(
        rows: &'a Rows,
        count: u32,
        warp: u32,
    ) -> Self {
        let place = Self::place::<K, MT>();
        let first = warp * place.tokens();
        let next = unsafe { load_token::<E>(rows, &place, (first + place.token).min(count - 1)) };
        Self { rows, count, first, step: warps() * place.tokens(), next }
    }

    #[inline(always)]
    pub(crate) fn place<K: Kernel<MT>, const MT: usize>() -> Place {
        Place::new(K::HEAD_DIM as u32, K::HEAD_DIM as u32)
    }

    /// Calls `take` with the lane's part of each token, the token, and whether there is one: behind the last, to a whole panel, it is the last
    /// once more.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn each<E: Element, K: Kernel<MT>, const MT: usize>(
        mut self,
        shared: &Shared<K, MT>,
        take: impl Fn(&Place, [[u32; 4]; VECTORS], u32, bool),
    ) {
        let place = Self::place::<K, MT>();
        while self.first < shared.keys {
            let (token, raw) = (self.first + place.token, self.next);
            self.next = unsafe { load_token::<E>(self.rows, &place, (token + self.step).min(self.count - 1)) };
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
pub(crate) unsafe fn signed<E: Element>(place: &Place, raw: &[[u32; 4]; VECTORS], signs: u32) -> [f32; DIMS] {
    let mut x = [0.0; DIMS];
    unroll!(0..vectors::<E>(), |i| {
        let mut vector = raw[i];
        let signs = unsafe { ld_shared_v4_u32(signs + 16 * place.vector(i)) };
        unroll!(0..4, |word| {
            vector[word] ^= signs[word];
        });
        unroll!(0..E::LANES, |j| {
            x[i * E::LANES + j] = E::get(&vector, j);
        });
    });
    x
}

/// The offsets of the lane's dims of vector `i`, four from `4 * quad` on.
///
/// # Safety
/// `offsets` is the shared address of those of all dims.
#[inline(always)]
pub(crate) unsafe fn offsets<E: Element>(place: &Place, offsets: u32, i: usize, quad: usize) -> [f32; 4] {
    let at = (4 * E::LANES) as u32 * place.vector(i) + 16 * quad as u32;
    unsafe { ld_shared_v4_u32(offsets + at) }.map(f32::from_bits)
}

/// Rotates and quantizes a token: codes of zero where `kept` is false or it is not finite.
///
/// # Safety
/// In whole warps.
#[inline(always)]
pub(crate) unsafe fn encode<E: Element, const QUERY: bool>(place: &Place, mut x: [f32; DIMS], kept: bool) -> Coded {
    unsafe {
        place.butterflies::<E>(&mut x);
        let mut amax = [x[0].abs(), x[1].abs(), x[2].abs(), x[3].abs()];
        unroll!(4..DIMS, |i| {
            amax[i % 4] = max_nan_f32(amax[i % 4], x[i].abs());
        });
        let amax = max_nan_f32(max_nan_f32(amax[0], amax[1]), max_nan_f32(amax[2], amax[3]));
        let amax = place.over_lanes(amax, max_nan_f32);
        let number = amax < f32::INFINITY;
        let scale = round_up(token_scale(amax, fma_rn_f32), if QUERY { BEYOND_10_BITS } else { 0 });
        let inverse = reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32);
        unroll!(0..DIMS, |i| {
            x[i] = mul_rn_f32(x[i], inverse);
        });
        if E::CLAMPS && vote_any(scale >= MAX_SCALE) {
            unroll!(0..DIMS, |i| {
                x[i] = crate::quantize::pack::clamp::<E>(x[i]);
            });
        }
        let mask = selp_b32(number & kept, u32::MAX, 0);
        let mut words = [0; DIMS / 4];
        unroll!(0..DIMS / 4, |i| {
            words[i] = codes4([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]) & mask;
        });
        Coded { words, scale: f32::from_bits(selp_b32(number, scale.to_bits(), f32::NAN.to_bits())) }
    }
}

impl Coded {
    /// Stores the codes where `to` says for the first dim of each vector, if `predicate`.
    ///
    /// # Safety
    /// Where the predicate holds, the bytes are this thread's.
    #[inline(always)]
    pub(crate) unsafe fn store<E: Element>(&self, predicate: bool, place: &Place, to: impl Fn(u32) -> u32) {
        unroll!(0..vectors::<E>(), |i| {
            let to = to(place.vector(i) * E::LANES as u32);
            unsafe {
                if E::LANES == 8 {
                    st_shared_v2_u32(predicate, to, [self.words[2 * i], self.words[2 * i + 1]]);
                } else {
                    st_shared_u32(predicate, to, self.words[i]);
                }
            }
        });
    }
}
