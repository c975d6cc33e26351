//! What is done with a lane's part of a token, in the arithmetic of its type (docs/kernel-abi.md, "Quantization").

mod float16;
mod float32;

use crate::element::{Element, Vector};
use crate::params::QuantizeParams;
use crate::rotation::{Dims, TokenLane};

/// An element type, and what its tokens are rotated in.
pub(crate) trait Rotated: Element {
    /// Whether that is float16.
    const HALF: bool;

    /// Whether these tensors are rotated.
    fn rotates(params: &QuantizeParams) -> bool;

    /// What a lane has of a token of Q or K.
    type Token<const N: usize>: Token<N>;
    /// What it has of one of V.
    type Values: Values;

    /// Puts vector number `i` in its place.
    fn put<const N: usize>(x: &mut Self::Token<N>, i: usize, vector: &Vector);

    /// A vector of V.
    fn values(vector: &Vector) -> Self::Values;

    /// Puts the offsets of a vector's dims, which are at this shared address, in the place of vector number `i`.
    ///
    /// # Safety
    /// They are there.
    unsafe fn put_offsets<const N: usize>(x: &mut Self::Token<N>, i: usize, at: u32);

    /// Four of them, from `4 * quad` on, in float32.
    ///
    /// # Safety
    /// They are there.
    unsafe fn offsets4(at: u32, quad: usize) -> [f32; 4];
}

/// `N` dims of a token of Q or K.
pub(crate) trait Token<const N: usize>: Dims<N> {
    /// Zeros.
    fn none() -> Self;

    /// These dims, rounded to the type.
    fn of(x: &[f32; N]) -> Self;

    /// Dim `i`, in float32.
    fn get(&self, i: usize) -> f32;

    /// Takes out as many others, which are not in the unit.
    fn take_out(&mut self, others: &Self, unit: Unit);

    /// Changes signs: of the dims whose bits are set, the first one's lowest. No more than 32 of them.
    fn negate(&mut self, signs: u32);

    /// The rotation of V in place of that of Q and K, four dims at a time.
    fn rotate_v(&mut self) -> Unit;

    /// The largest magnitude, not finite where one of the dims is not.
    fn largest(&self) -> f32;

    /// Brings the token into a unit in which sums of its dims stay within the type: that is asked for where one of them, or what will be taken out (`loud`), is
    /// `limit` or more.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    unsafe fn quieten(&mut self, place: &TokenLane, limit: f32, loud: bool) -> Unit;

    /// Makes codes of the dims, whose scale this is. Quotients may be beyond the range of codes, and are brought
    /// back, where the scale is `largest`, the largest there is.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    unsafe fn encode(&mut self, scale: f32, unit: Unit, largest: f32);

    /// The codes of dims `4 * quad` on, after [`encode`](Self::encode).
    fn codes4(&self, quad: usize) -> u32;
}

/// The unit of a token's dims: 1, [`LOUD_UNIT`](crate::layout::LOUD_UNIT) or [`V_UNIT_16`](crate::layout::V_UNIT_16).
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    /// The negative reciprocal, twice in float16.
    pub minus_reciprocal: u32,
    pub unit: f32,
    pub reciprocal: f32,
}

impl Unit {
    pub(crate) const ONE: Self = Self { minus_reciprocal: 0xbc00_bc00, unit: 1.0, reciprocal: 1.0 };
}

/// The dims of a vector of V, of one key.
pub(crate) trait Values: Copy {
    /// Rotates them, four at a time; their largest magnitude, not finite where one's is not.
    fn rotate(&mut self) -> f32;

    /// The largest magnitude that they would have.
    fn largest_rotated(&self) -> f32;

    /// The codes of four keys, a word for each dim, given the reciprocals of their scales.
    ///
    /// # Safety
    /// All 32 lanes of a converged warp call it.
    unsafe fn encode(keys: [&Self; 4], inverse: [f32; 4]) -> [u32; 8];
}
