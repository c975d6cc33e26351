//! A token of Q or K in the registers of a few neighbouring lanes, and its rotation (docs/kernel-abi.md, "Quantization").
//!
//! A lane holds [`DIMS`] floats of a token, whole [`Vector`](crate::element::Vector)s of the caller's tensor: of a token's vectors, lane `l` of `n`
//! has those numbered `l`, `l + n`, `l + 2n`, so that the lanes of a load or store are neighbours in memory. Bits of a dim's number, from
//! the lowest: the element of a vector, the lane, the vector of the lane. So the butterflies of the contract, neighbours first, are some
//! in registers, some between lanes, some in registers again.
//!
//! 96 dims are held as 128 whose last quarter, the lanes' last vectors, is zeros.
//!
//! They are float32 here; what is quantized of a float16 tensor stays float16 (`crate::quantize::arithmetic`).

use crate::element::Element;
use crate::layout::{SIGN_WORDS, signs};
use crate::ptx::math::fma_rn_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shuffle::{shfl_bfly, shfl_sync_bfly_b32};
use crate::ptx::special::tid_x_again;

/// Floats that a lane holds.
pub(crate) const DIMS: usize = 32;

/// Floats that a lane holds where up to 32 lanes share a token.
pub(crate) const MANY_LANES_DIMS: usize = 8;

/// Vectors that a lane holds.
pub(crate) const fn vectors<E: Element>() -> usize {
    DIMS / E::LANES
}

/// `N` dims of a token.
pub(crate) trait Dims<const N: usize>: Copy {
    /// The butterflies whose halves are `H` dims apart.
    fn here<const H: usize>(&mut self);

    /// The butterflies whose other half is in lane `lane ^ mask`: the sum where this lane's is the first half, bit 0 of `second` clear, else the
    /// other's less this.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    unsafe fn across(&mut self, mask: u32, second: u32);
}

/// In float32.
impl<const N: usize> Dims<N> for [f32; N] {
    #[inline(always)]
    fn here<const H: usize>(&mut self) {
        unroll!(0..N / 2, |pair| {
            let i = pair / H * 2 * H + pair % H;
            let (a, b) = (self[i], self[i + H]);
            (self[i], self[i + H]) = (a + b, a - b);
        });
    }

    #[inline(always)]
    unsafe fn across(&mut self, mask: u32, second: u32) {
        let sign = f32::from_bits(1.0_f32.to_bits() | second << 31);
        unroll!(0..N, |i| {
            let other = f32::from_bits(unsafe { shfl_sync_bfly_b32(self[i].to_bits(), mask) });
            // One rounding of a sum: the product is exact.
            self[i] = fma_rn_f32(self[i], sign, other);
        });
    }
}

/// A lane's place among those of its warp.
#[derive(Clone, Copy)]
pub(crate) struct TokenLane {
    /// Dims of a token.
    head_dim: u32,
    /// Whether that is a power of two.
    whole: bool,
    /// Logarithm of the lanes that share a token: 0 to 4, or to 5 where a lane has few dims.
    pub log_lanes: u32,
    /// The lane's number among them.
    pub lane: u32,
    /// The lane's token among those that the warp holds.
    pub token: u32,
}

impl TokenLane {
    /// The place of the calling lane; `padded` is the head dim or the next power of two.
    #[inline(always)]
    pub fn new(head_dim: u32, padded: u32) -> Self {
        Self::of_lanes_with::<DIMS>(head_dim, padded)
    }

    /// The same where a lane holds `N` dims of a token, [`DIMS`], twice as many, or [`MANY_LANES_DIMS`].
    #[inline(always)]
    pub fn of_lanes_with<const N: usize>(head_dim: u32, padded: u32) -> Self {
        let log_lanes = (padded / N as u32).trailing_zeros();
        let lane = tid_x_again() % 32;
        let whole = head_dim == padded;
        Self { head_dim, whole, log_lanes, lane: lane & ((1 << log_lanes) - 1), token: lane >> log_lanes }
    }

    /// Dims of a token.
    #[inline(always)]
    pub fn head_dim(&self) -> u32 {
        self.head_dim
    }

    /// Whether a token of a tensor with `dims` has all the lanes' vectors.
    #[inline(always)]
    pub fn is_whole(&self, dims: u32) -> bool {
        self.whole & (dims == self.head_dim)
    }

    /// Lanes that share a token.
    #[inline(always)]
    pub fn lanes(&self) -> u32 {
        1 << self.log_lanes
    }

    /// Tokens that a warp holds.
    #[inline(always)]
    pub fn tokens(&self) -> u32 {
        32 >> self.log_lanes
    }

    /// The number in the token of the lane's vector number `i`.
    #[inline(always)]
    pub fn vector(&self, i: usize) -> u32 {
        self.lane + ((i as u32) << self.log_lanes)
    }

    /// The lane that has a vector of the token, and the vector's number there.
    #[inline(always)]
    pub fn lane_of(&self, vector: u32) -> (u32, u32) {
        (vector & (self.lanes() - 1), vector >> self.log_lanes)
    }

    /// Whether the token has the lanes' vectors number `i`; the same for all lanes.
    #[inline(always)]
    pub fn has<E: Element>(&self, i: usize) -> bool {
        i < vectors::<E>() / 4 * 3 || self.whole
    }

    /// Where the lane's vector number `i`, a code a dim, waits in the warp's 1024 codes, in an order that [`staged_unit`](Self::staged_unit)
    /// knows: the lanes' vectors of a number are neighbours, so that no two are in the same bank.
    #[inline(always)]
    pub fn staged(&self, i: usize, vector_dims: usize) -> u32 {
        let (lane, i, unit) = (tid_x_again() % 32, i as u32, vector_dims as u32);
        if unit == 8 {
            let alone = self.log_lanes == 0;
            let first = selp_b32(alone, (lane >> 4) * 512 + (lane & 15) * 16, (lane >> 1) * 16 + (lane & 1) * 8);
            let (low, high) = (selp_b32(alone, 8, 256), selp_b32(alone, 256, 512));
            return first + (i & 1) * low + (i >> 1 & 1) * high + (i >> 2) * 1024;
        }
        // 16 codes of a token are together: of two lanes with halves and four with floats, or of that many vectors of fewer lanes.
        let log = self.log_lanes.min(4 - unit.trailing_zeros());
        let own = 4 - unit.trailing_zeros() - log;
        (i >> own) * ((unit * 32) << own)
            + (((lane >> log) << 4)
                | (i & ((1 << own) - 1)) << (log + unit.trailing_zeros())
                | (lane & ((1 << log) - 1)) * unit)
    }

    /// The token of the warp, and the first dim of it, of the 16 codes number `n` in that order.
    #[inline(always)]
    pub fn staged_unit(&self, n: u32, vector_dims: usize) -> (u32, u32) {
        let unit = vector_dims as u32;
        if self.halves_alone(vector_dims) {
            return ((n >> 5 & 1) * 16 + (n & 15), (n >> 6) * 32 + (n >> 4 & 1) * 16);
        }
        let log = self.log_lanes.min(4 - unit.trailing_zeros());
        let own = 4 - unit.trailing_zeros() - log;
        let (i, lane) = ((n >> (5 - log)) << own, (n << log) & 31);
        (lane >> self.log_lanes, ((lane & (self.lanes() - 1)) + (i << self.log_lanes)) * unit)
    }

    /// Whether a lane has tokens of halves to itself: 512 codes that wait together are then 32 dims of 16 tokens, of which a store fills whole sectors.
    #[inline(always)]
    fn halves_alone(&self, vector_dims: usize) -> bool {
        vector_dims == 8 && self.log_lanes == 0
    }

    /// [`vector`](Self::vector), or the first of the lane where the token has no such.
    #[inline(always)]
    pub fn vector_or_first<E: Element>(&self, i: usize) -> u32 {
        if self.has::<E>(i) { self.vector(i) } else { self.lane }
    }

    /// The lane's vector number `i`, or the last of a tensor's rows of `dims` where they have no such.
    #[inline(always)]
    pub fn vector_of<E: Element>(&self, i: usize, dims: u32) -> u32 {
        self.vector(i).min(dims / E::LANES as u32 - 1)
    }

    /// Whether rows of `dims` have the lane's vector number `i`.
    #[inline(always)]
    pub fn is_of<E: Element>(&self, i: usize, dims: u32) -> bool {
        self.vector(i) < dims / E::LANES as u32
    }

    /// `join` of a value over the lanes that share a token, in all of them.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    #[inline(always)]
    pub unsafe fn over_lanes(&self, mut value: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
        unsafe {
            if self.log_lanes > 0 {
                value = join(value, f32::from_bits(shfl_bfly::<1>(value.to_bits())));
                if self.log_lanes > 1 {
                    value = join(value, f32::from_bits(shfl_bfly::<2>(value.to_bits())));
                    if self.log_lanes > 2 {
                        value = join(value, f32::from_bits(shfl_bfly::<4>(value.to_bits())));
                        if self.log_lanes > 3 {
                            value = join(value, f32::from_bits(shfl_bfly::<8>(value.to_bits())));
                        }
                    }
                }
            }
        }
        value
    }

    /// [`over_lanes`](Self::over_lanes) where up to 32 lanes share a token.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub unsafe fn over_many_lanes(&self, value: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
        unsafe {
            let mut value = self.over_lanes(value, &join);
            if self.log_lanes > 4 {
                value = join(value, f32::from_bits(shfl_bfly::<16>(value.to_bits())));
            }
            value
        }
    }

    /// The Hadamard transform of each [`rotation`](crate::layout::rotation) dims of the token, not normalised.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    #[inline(always)]
    pub unsafe fn butterflies<E: Element>(&self, x: &mut impl Dims<DIMS>) {
        unsafe { self.butterflies_of_lanes::<E, DIMS, 4>(x) }
    }

    /// The same of `N` dims a lane, in kernels where no more than eight lanes share a token.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    #[inline(always)]
    pub unsafe fn butterflies_of<E: Element, const N: usize>(&self, x: &mut impl Dims<N>) {
        unsafe { self.butterflies_of_lanes::<E, N, 3>(x) }
    }

    /// The same where the logarithm of the lanes that share a token is `MOST` at most, 3 or 4.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    #[inline(always)]
    unsafe fn butterflies_of_lanes<E: Element, const N: usize, const MOST: u32>(&self, x: &mut impl Dims<N>) {
        x.here::<1>();
        x.here::<2>();
        if E::LANES == 8 {
            x.here::<4>();
        }
        if N > DIMS {
            let mut mask = 1;
            // Opaque: a body for each number of lanes would be a third of the loop, and of the time that a driver takes to compile it.
            while mask < self.lanes() {
                unsafe { self.butterflies_between(x, mask) };
                mask = opaque(mask * 2);
            }
        } else if self.log_lanes > 0 {
            unsafe { self.butterflies_between(x, 1) };
            if self.log_lanes > 1 {
                unsafe { self.butterflies_between(x, 2) };
                if self.log_lanes > 2 {
                    unsafe { self.butterflies_between(x, 4) };
                    if MOST > 3 && self.log_lanes > 3 {
                        unsafe { self.butterflies_between(x, 8) };
                    }
                }
            }
        }
        // Between the lane's vectors: all of them, but for the 32 dims of 96 that go together, which are no more than two vectors of floats or one of
        // halves of each lane.
        if E::LANES == 4 {
            x.here::<4>();
        }
        // Of halves, two of the four lanes with half as many dims are vectors of the same lane.
        if N > DIMS {
            x.here::<8>();
        }
        if self.whole {
            if N == DIMS {
                x.here::<8>();
            }
            x.here::<16>();
            if N > DIMS {
                x.here::<32>();
            }
        }
    }

    /// The same where a lane has a vector of halves or two of floats, and up to 32 lanes share a token.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    #[inline(always)]
    pub unsafe fn butterflies_of_many_lanes<E: Element, const N: usize>(&self, x: &mut impl Dims<N>) {
        x.here::<1>();
        x.here::<2>();
        if E::LANES == 8 {
            x.here::<4>();
        }
        // Of 96 dims 32 go together.
        let lanes = if self.whole { self.lanes() } else { (DIMS / E::LANES) as u32 };
        let mut mask = 1;
        while mask < lanes {
            unsafe { self.butterflies_between(x, mask) };
            mask *= 2;
        }
        if E::LANES == 4 && self.whole {
            x.here::<4>();
        }
        // Of more dims a lane has more vectors; they are a power of two.
        if N > MANY_LANES_DIMS {
            x.here::<8>();
        }
    }

    /// Which of the lane's `N` dims change sign, a bit each from the lowest.
    #[inline(always)]
    pub fn signs<E: Element, const N: usize>(&self) -> u32 {
        let mut word = 0;
        unroll!(0..N / E::LANES, |i| {
            let of_vector = signs_from(self.vector(i) * E::LANES as u32) & ((1 << E::LANES) - 1);
            word |= of_vector << (i * E::LANES);
        });
        word
    }

    /// The butterflies whose other half is in lane `lane ^ mask`.
    #[inline(always)]
    pub unsafe fn butterflies_between<const N: usize>(&self, x: &mut impl Dims<N>, mask: u32) {
        unsafe { x.across(mask, self.lane >> mask.trailing_zeros()) }
    }
}

/// Words of the signs of the widest head that the module has.
const WORDS: usize = if cfg!(any(quantize_wide, kernels = "dequantize")) { SIGN_WORDS } else { SIGN_WORDS / 2 };

/// Which dims from `dim` to the next multiple of 32 change sign, a bit each from the lowest.
#[inline(always)]
pub(crate) fn signs_from(dim: u32) -> u32 {
    let mut word = 0;
    unroll!(0..WORDS, |i| {
        // No table: it would be a variable in memory.
        word = selp_b32(dim / 32 == i as u32, signs(32 * i), word);
    });
    word >> (dim % 32)
}
