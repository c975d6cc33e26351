//! How far a GPU may be from [`int8`](super::int8), derived from the arithmetic.
//!
//! Scores, `t`, `m` and `x` of docs/kernel-abi.md are single operations with defined rounding, the same on every machine.
//! What is left:
//!
//! 1. **The codes.** `ex2.approx.f16` is within a factor `1 ± 2^-9.9` of `2^x` (PTX ISA), the reference's exponential is the
//!    float16 next to `2^x`. From that a table has, for each `x`, the least and the most that a GPU's code `p` can be; it is
//!    off by 1 at most. (Paper: `ex2.approx.f32`, `1 ± 2^-22`; a code differs only where `127 e` is next to a tie.) With codes
//!    `p + δ`, weights `w` of the blocks and `o` in units of V's scale,
//!
//!    ```text
//!    o' - o = Σ w δ (v - o) / Σ w (p + δ)      so      |o' - o| <= (Σ w |δ| |v| + |o| Σ w |δ|) / Σ w p_low
//!    ```
//!
//!    and the log-sum-exp moves by at most the logarithm of `Σ w p_high / Σ w p` or of `Σ w p / Σ w p_low`. In the paper's
//!    scheme the row sum is taken before the codes, so that `|o' - o| <= Σ w |δ| |v| / (127 l)`.
//! 2. **float32 sums over blocks.** Each block enters through a product with `ex2.approx.ftz.f32` of a rounded difference
//!    (relative error `2^-22 + ln 2 * 2^-24 * |difference|`; blocks further than 150 below the largest have no weight) and an
//!    addition, and the row may be rescaled at each block. Over `n` blocks that is less than
//!    `γ = 2^-17 + (n + 8) 2^-21` relative to `Σ w p (v + 128)`, as V's bytes are unsigned, to the sum `Σ w 128 p` that is
//!    taken off in the end, and to the row sum.
//!    Where each lane of a quad adds up its own keys and the four sums meet at the end (the paper's scheme, and both on sm_90a),
//!    the sums are of terms that are not negative, so each has the same relative error; the two additions at the end are
//!    `2 * 2^-24` more, and the paper's 31 within a block `31 * 2^-24`, for which γ has its `8 * 2^-21 = 64 * 2^-24`.
//!    A weight or rescale below the smallest normal float is flushed to zero (`.ftz`), which moves the result by at most
//!    `2^-125` of V's largest magnitude.
//!    In the general kernels with a softcap, a score is off by at most `δ` (`score::gpu_error`), and a block's maximum too: the argument of
//!    an exponential by `2δ`, which its code's least and most are taken over, and the block's weight by `2^δ`, which is added to `γ`.
//! 3. **The sink.** Its exponent is rounded, so that its share of the row sum is off by some `ε`: the output by `ε` of itself, and the
//!    log-sum-exp by `ε`.
//! 4. **The end.** `rcp.approx`, products and sums: `2^-21` of both sums over the row sum, of the result and of V's mean; then
//!    half a step of the output's
//!    type. For the log-sum-exp: `lg2.approx` (`2^-22`), and roundings of each term.

use super::Bounds;
use super::head::Head;
use super::int8::{Int8, Output, Row, run};
use super::rows::Rows;
use super::softmax::Softmax;
use crate::dtype::DType;
use crate::error::Result;
use crate::quantized::HostQuantized;
use crate::scores::Scored;
use int_flash_attention_kernels::layout::{KV_BLOCK, V_ROTATION};

/// [`int8`](super::int8), and how far a GPU's output in `dtype` and its log-sum-exp may be from it.
///
/// # Errors
/// As [`int8`](super::int8).
pub fn gpu_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    operands: &HostQuantized,
    dtype: DType,
) -> Result<(Int8, Bounds)> {
    let scored = problem.into();
    bounded(scored, operands, Rows::all(scored.problem), dtype, |out| (out.result, out.bounds))
}

/// [`gpu_bounds`] for a machine whose `ex2` is the rounded exact value, so that its codes are those of [`int8`](super::int8):
/// points 2 to 4 alone.
///
/// # Errors
/// As there.
pub fn ideal_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    operands: &HostQuantized,
    dtype: DType,
) -> Result<(Int8, Bounds)> {
    let scored = problem.into();
    bounded(scored, operands, Rows::all(scored.problem), dtype, |out| (out.result, out.ideal))
}

/// [`gpu_bounds`] for these query positions of every head.
///
/// # Errors
/// As there, and a position past the end.
pub fn gpu_bounds_rows<'a>(
    problem: impl Into<Scored<'a>>,
    operands: &HostQuantized,
    dtype: DType,
    rows: &[usize],
) -> Result<(Int8, Bounds)> {
    let scored = problem.into();
    bounded(scored, operands, Rows::some(scored.problem, rows)?, dtype, |out| (out.result, out.bounds))
}

/// The result of some rows and one of its bounds, with the output's rounding.
fn bounded(
    scored: Scored<'_>,
    operands: &HostQuantized,
    rows: Rows<'_>,
    dtype: DType,
    of: fn(Output) -> (Int8, Bounds),
) -> Result<(Int8, Bounds)> {
    let (result, mut bounds) = of(run::<true>(scored, operands, rows, None)?);
    for (bound, &o) in bounds.o.iter_mut().zip(&result.o) {
        *bound += dtype.half_step(o.abs() + *bound);
    }
    Ok((result, bounds))
}

impl<S: Softmax> Row<S> {
    /// Appends the row's bounds, those of a machine with exact codes where `IDEAL`; `o` is its result. The
    /// output's rounding comes later.
    pub(super) fn bounds<const IDEAL: bool>(&self, head: &Head<'_>, o: &[f64], bounds: &mut Bounds) {
        if self.sum <= 0.0 || self.sum.is_nan() {
            bounds.o.extend(std::iter::repeat_n(0.0, head.dv));
            bounds.lse.push(0.0);
            return;
        }
        let tiny = (-21_f64).exp2();
        let blocks = (self.keys.end.div_ceil(KV_BLOCK) - self.keys.start / KV_BLOCK) as f64;
        let scores = if IDEAL { 0.0 } else { (self.slack.scores * std::f64::consts::LN_2).exp_m1() };
        let gamma = (-17_f64).exp2() + (blocks + 8.0) * tiny + scores;
        let sink = self.slack.sink;
        // Beside a sink that has all but nothing of the weight, the result is next to zero, in steps of 2^-149: each of the four elements
        // that are rotated back is rounded three times.
        let least = head.least + (-146_f64).exp2();
        let one = S::ONE.0;
        let slack = &self.slack;
        let (low, high) = if IDEAL { (self.sum, self.sum) } else { (slack.low, slack.high) };
        let mut rotated = vec![0.0; head.dv];
        for (dim, (bound, acc)) in rotated.iter_mut().zip(&self.acc).enumerate() {
            let o = (acc / (one * self.sum)).abs();
            let codes = if IDEAL { 0.0 } else { (slack.values[dim] + o * slack.codes) / (one * low) };
            let both = (slack.magnitude[dim] + slack.offset) / (one * low);
            let sums = gamma * (both + o);
            *bound = (codes + sums) * (1.0 + 2.0 * gamma) + tiny * (o + both) + sink * o + least;
        }
        if head.rotated {
            // Rotated back, an element is a quarter of the sum of four, each rounded three times on the way.
            for (bounds_of_four, o) in rotated.chunks_exact(V_ROTATION).zip(o.chunks_exact(V_ROTATION)) {
                let sum: f64 = bounds_of_four.iter().sum();
                let largest = o.iter().map(|o| o.abs()).sum::<f64>();
                bounds.o.extend(o.iter().map(|_| sum / V_ROTATION as f64 + tiny * largest));
            }
        } else {
            bounds.o.extend(rotated);
        }
        let codes = (high / self.sum).ln().max((self.sum / low).ln());
        let terms = 1.0 + self.reference.abs() + self.sum.log2().abs() + self.bias(head).abs();
        bounds.lse.push(codes + gamma + sink + tiny * terms);
    }
}
