//! States of attention over parts of the keys, merged.
//!
//! With the states' log-sum-exps `L_k`, `M` the largest of them: `w_k = e^(L_k - M)`, `o = Σ w_k o_k / Σ w_k`, `L = M + ln Σ w_k`. What a GPU may be off
//! by: `w_k` by the rounding of `L_k - M` and of its product with `log2(e)`, at most `2^-23 |L_k - M| < 2^-23 * 104` where it is not next to
//! nothing, and by `ex2.approx` (`2^-22`); the sums over `n` states by `n 2^-24`; the division by `2^-22`. In all less than
//! `γ = 2^-16 + n 2^-23`, relative to `Σ w_k |o_k| / Σ w_k` and to the sum of the weights.

use super::Bounds;
use super::decode::log_sum;
use super::int8::Int8;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::Shape;

/// A state: the output `[batch][heads][seqlen][head_dim]` and the log-sum-exp `[batch][heads][seqlen]`.
#[derive(Clone, Copy, Debug)]
pub struct HostState<'a> {
    /// The output. Of a row whose log-sum-exp is minus infinity it is not looked at.
    pub o: &'a [f32],
    /// The log-sum-exp, a natural logarithm; minus infinity in rows that see no key.
    pub lse: &'a [f32],
}

/// The states of a shape merged, and how far a GPU's output in `dtype` and its log-sum-exp may be from it. A sink a head is a logit without a value.
///
/// # Errors
/// No state; arrays of other lengths than the shape's.
pub fn merge_bounds(
    shape: Shape,
    states: &[HostState<'_>],
    sinks: Option<&[f32]>,
    dtype: DType,
) -> Result<(Int8, Bounds)> {
    let check = |name, given, expected| {
        if given == expected { Ok(()) } else { Err(Error::Length { name, given, expected }) }
    };
    if states.is_empty() {
        return Err(Error::ZeroSize { name: "the number of states" });
    }
    for state in states {
        check("a state's output", state.o.len(), shape.elements())?;
        check("a state's log-sum-exp", state.lse.len(), shape.rows())?;
    }
    check("sinks", sinks.map_or(shape.heads, <[f32]>::len), shape.heads)?;
    let (d, tiny) = (shape.head_dim, (-21_f64).exp2());
    let gamma = (-16_f64).exp2() + states.len() as f64 * (-23_f64).exp2();
    let (mut out, mut bounds) = (Int8::default(), Bounds::default());
    for row in 0..shape.rows() {
        let lses = states.iter().map(|state| f64::from(state.lse[row]));
        let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[row / shape.seqlen % shape.heads].into());
        let all = lses.clone().fold(sink, log_sum);
        let unseen = lses.clone().all(|lse| lse == f64::NEG_INFINITY);
        for dim in 0..d {
            let terms = states.iter().zip(lses.clone()).map(|(state, lse)| {
                let weight = if lse == f64::NEG_INFINITY { 0.0 } else { (lse - all).exp() };
                if weight == 0.0 { 0.0 } else { weight * f64::from(state.o[row * d + dim]) }
            });
            let (o, magnitude) = terms.fold((0.0, 0.0), |(o, magnitude), term| (o + term, magnitude + term.abs()));
            let o = if unseen { 0.0 } else { o };
            let bound = gamma * (magnitude + o.abs()) + (-120_f64).exp2();
            out.o.push(o);
            bounds.o.push(bound + dtype.half_step(o.abs() + bound));
        }
        out.lse.push(all);
        bounds.lse.push(if all == f64::NEG_INFINITY { 0.0 } else { gamma + tiny * (1.0 + all.abs()) });
    }
    Ok((out, bounds))
}

/// The states of a shape merged.
///
/// # Errors
/// As [`merge_bounds`].
pub fn merge(shape: Shape, states: &[HostState<'_>], sinks: Option<&[f32]>) -> Result<Int8> {
    Ok(merge_bounds(shape, states, sinks, DType::F32)?.0)
}
