//! How far [`int8`](super::int8) may be from float64, derived from the roundings of the scheme.
//!
//! With exact weights `w` (they add to one), output `o` and scores `S`, the INT8 algorithm has
//!
//! ```text
//! A_j = w_j exp(ε_j) + δ_j U / R          o' = Σ A_j v_j / Σ A_j,   so   o' - o = Σ (A_j - w_j) (v_j - o) / Σ A_j
//! ```
//!
//! because `Σ w_j (v_j - o) = 0`: errors of the weights matter only as far as the values differ. `U` is the weight of a key
//! at the block's maximum (paper: at the running maximum) and `R` the largest code. Bounded are, per key:
//!
//! * `|ε_j|`, the error of a score. Q and K are off by half a step in each channel:
//!   `|scale| (sq/2 |k_j|₁ + sk_j/2 (|q|₁ + d sq/2))`, with K less its mean. The default scheme adds, with `S` less the mean's
//!   share: `2^-11 |S_j|` for `t` (and 2^-20 for the 22 bits of `kf` and float32's roundings), what the row's scale lost in
//!   float16, and `2^-11` of the distance to the block's maximum for `x`.
//! * `|δ_j|`, the error of a code: half a step, and in the default scheme `255 * 2^-12` for the exponential's float16.
//!
//! Then `|o' - o| <= Σ (w_j (exp |ε_j| - 1) + |δ_j| U/R) |v_j - o| / Σ max(0, w_j exp -|ε_j| - |δ_j| U/R)`, and half a step of V.
//! In the paper's scheme the row sum has the exponentials and not the codes, so the weights do not add to one and the part
//! of `δ` meets `|v_j|`. The log-sum-exp moves by the logarithm of `Σ A_j`.
//!
//! **What changes scores.** `S` is then the score as it is in the end. A softcap's slope is at most 1, so that it adds the roundings of its
//! own operations alone, `2^-20` of the cap, and sums those of what they come to. The general kernels have K's offset in their scores, with
//! the error of `q_bias`, and no float16 before `x`. A sink is one more key, with a value of zero and a weight that is off by the roundings of
//! its exponent; a hidden key is none.
//!
//! These are worst cases: all roundings in the worst direction at once. On random data the true error is smaller by about
//! the square root of the number of terms.

mod head;
mod row;

use super::Bounds;
use super::dequantize::{packed_k, packed_q, packed_v};
use super::exact::{Exact, HeadF64};
use super::packed::{packed, resized};
use super::quantize::quantize;
use super::rows::Rows;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::AttentionProblem;
use crate::quantized::HostQuantized;
use crate::scores::Scored;
use crate::tensor::HostTensor;
use head::Head;
use rayon::prelude::*;
use row::Row;

/// [`exact`](super::exact()), and how far [`int8`](super::int8()) on the quantized tensors, rounded to `dtype`, may be from it.
///
/// # Errors
/// As [`quantize`](super::quantize()).
pub fn exact_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    dtype: DType,
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    of_tensors(scored, [q, k, v], dtype, Rows::all(scored.problem))
}

/// [`exact_bounds`] for these query positions of every head.
///
/// # Errors
/// As there, and a position past the end.
pub fn exact_bounds_rows<'a>(
    problem: impl Into<Scored<'a>>,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    dtype: DType,
    rows: &[usize],
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    of_tensors(scored, [q, k, v], dtype, Rows::some(scored.problem, rows)?)
}

/// On tensors, with zeros behind what is padded: the codes are of those.
fn of_tensors(
    scored: Scored<'_>,
    [q, k, v]: [&HostTensor; 3],
    dtype: DType,
    rows: Rows<'_>,
) -> Result<(Exact, Bounds)> {
    let problem = scored.problem;
    scored.check()?;
    let mut operands = quantize(problem, q, k, v)?;
    let whole = packed(problem);
    let wide = |x: Vec<f64>| resized(x, problem.head_dim, whole.head_dim);
    operands.k.offset = resized(operands.k.offset, problem.head_dim, whole.head_dim);
    let halves = [q, k, v].iter().any(|x| x.dtype() == DType::F16);
    let head = |head| {
        let HeadF64 { q, k, v } = HeadF64::read(problem, q, k, v, head);
        Head::of_tensors(
            &whole,
            &operands,
            HeadF64 { q: wide(q), k: wide(k), v: resized(v, problem.value_dim(), whole.value_dim()) },
            head,
            halves,
        )
    };
    Ok(cut(problem, &whole, run(Scored { problem: &whole, ..scored }, dtype, rows, head)))
}

/// The true dims.
fn cut(p: &AttentionProblem, whole: &AttentionProblem, (mut exact, mut bounds): (Exact, Bounds)) -> (Exact, Bounds) {
    exact.o = resized(exact.o, whole.value_dim(), p.value_dim());
    bounds.o = resized(bounds.o, whole.value_dim(), p.value_dim());
    (exact, bounds)
}

/// Float64 attention on the dequantized operands, and how far [`int8`](super::int8()) on them, rounded to `dtype`, may be from
/// it: the share of P and of float16, without that of Q, K and V. Where a head is padded, what the codes say behind its dims counts in the
/// scores, as it does in the kernels. (That of V and of the scores is half a step each, which
/// dequantization shows.)
///
/// # Errors
/// As [`int8`](super::int8()).
pub fn dequantized_bounds<'a>(
    problem: impl Into<Scored<'a>>,
    operands: &HostQuantized,
    dtype: DType,
) -> Result<(Exact, Bounds)> {
    let scored = problem.into();
    let problem = scored.problem;
    problem.check()?;
    scored.check()?;
    problem.check_equal()?;
    super::int8::check_operands(problem, operands)?;
    let without = crate::HostK { offset: vec![0.0; operands.k.offset.len()], ..operands.k.clone() };
    let (q, k, v) = (packed_q(&operands.q)?, packed_k(&without)?, packed_v(&operands.v)?);
    let whole = packed(problem);
    let head = |head| Head::of_codes(&whole, operands, [&q, &k, &v], head);
    Ok(cut(problem, &whole, run(Scored { problem: &whole, ..scored }, dtype, Rows::all(problem), head)))
}

fn run(scored: Scored<'_>, dtype: DType, rows: Rows<'_>, head: impl Fn(usize) -> Head + Sync) -> (Exact, Bounds) {
    let p = scored.problem;
    let one_head = |index: usize| {
        let head = head(index);
        let row = |row| Row::new(&scored, &head, index, rows.at(row)).bound(p, &head, dtype);
        (0..rows.len()).into_par_iter().map(row).collect::<Vec<_>>()
    };
    let parts: Vec<_> = (0..p.batch * p.heads_q).into_par_iter().map(one_head).collect();
    let (mut exact, mut bounds) = (Exact { o: vec![], lse: vec![] }, Bounds::default());
    for row in parts.into_iter().flatten() {
        exact.o.extend(row.o);
        exact.lse.push(row.lse);
        bounds.o.extend(row.o_bound);
        bounds.lse.push(row.lse_bound);
    }
    (exact, bounds)
}

#[cfg(test)]
mod tests {
    use super::super::{compare, first_excess, int8};
    use super::*;
    use crate::problem::{Scheme, Window};
    use crate::shape::{Shape, TensorLayout};

    #[test]
    fn int8_is_within_both_bounds() {
        let local = Window { left: Some(140), right: Some(30) };
        for (scheme, n, n_kv, window, spread) in [
            (Scheme::Default, 40, 300, Window::CAUSAL, 1.0),
            (Scheme::Default, 5, 130, Window::FULL, 6.0),
            (Scheme::Default, 40, 300, local, 1.0),
            (Scheme::Paper, 40, 300, Window::CAUSAL, 1.0),
            (Scheme::Paper, 70, 20, Window::CAUSAL, 6.0),
            (Scheme::Paper, 40, 300, local, 1.0),
        ] {
            let p = AttentionProblem::new(1, 2, 1, n, n_kv, 64).with_window(window).with_scheme(scheme);
            let tensor = |shape: Shape, seed: usize, spread: f32| {
                let value = move |_, h: usize, n: usize, d: usize| {
                    let x = (h * 7919 + n * 104_729 + d * 1_299_709 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                    spread * (x as f32 / (1 << 23) as f32 - 1.0) + 0.3
                };
                HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap()
            };
            let (q, k, v) =
                (tensor(p.q_shape(), 1, spread), tensor(p.kv_shape(), 2, 1.0), tensor(p.kv_shape(), 3, 1.0));
            let operands = quantize(&p, &q, &k, &v).unwrap();
            let got = int8(&p, &operands).unwrap();
            for (name, (want, bounds)) in [
                ("tensors", exact_bounds(&p, &q, &k, &v, DType::F32).unwrap()),
                ("codes", dequantized_bounds(&p, &operands, DType::F32).unwrap()),
            ] {
                assert_eq!(first_excess(&got.o, &want.o, &bounds.o), None, "{name} {p:?}");
                assert_eq!(first_excess(&got.lse, &want.lse, &bounds.lse), None, "{name} {p:?}");
                let (error, allowed) = (compare(&got.o, &want.o).max_abs, bounds.o.iter().copied().fold(0.0, f64::max));
                println!("{name} {scheme} {n}x{n_kv} spread {spread}: {error:.2e} of {allowed:.2e}");
                assert!(allowed < 1.0, "a bound that allows anything: {allowed}");
            }
        }
    }
}
