//! How far the float16 kernel may be from float64, derived from its arithmetic (docs/kernel-abi.md).

use int_flash_attention::{AttentionProblem, DType, HostTensor};

/// Output and bounds of some query positions of every head, `[batch][heads_q][rows][head_dim]`.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Float64 attention.
    pub o: Vec<f64>,
    /// `|gpu - o|` at most.
    pub bound: Vec<f64>,
    /// The log-sum-exp in float64, `[batch][heads_q][rows]`; `-inf` for a row that sees no key.
    pub lse: Vec<f64>,
    /// `|gpu - lse|` at most.
    pub lse_bound: Vec<f64>,
}

/// Float64 attention on `rows`, and the bounds.
///
/// * A score is a float32 sum of `d` exact products, so it errs by `(d+2) 2^-24` of the sum of their magnitudes, and its
///   product with `c` and the subtraction of `r` by two roundings of numbers up to the score and `r`.
/// * `ex2.approx` errs by `2^-22` relative, the rounding of P to float16 by `2^-11`, or by `2^-25` where P is subnormal
///   (P is at least 1 at the row's maximum, so that the row sum is at least 1).
/// * The sums are of float32, one rounding a key; the end is a reciprocal, a product and the output's rounding.
/// * In the log-sum-exp the score's error counts once; the row sum is from 1 to 2^8 a key, so that `lg2.approx` errs by
///   `2^-22` of at most `8 + log2(keys)`; the sum with `r` and the product with `ln 2` round.
#[must_use]
pub fn expected(
    problem: &AttentionProblem,
    q: &HostTensor,
    k: &HostTensor,
    v: &HostTensor,
    rows: &[usize],
) -> Expected {
    let mut out = Expected::default();
    for b in 0..problem.batch {
        for h in 0..problem.heads_q {
            for &n in rows {
                row(problem, [q, k, v], [b, h, n], &mut out);
            }
        }
    }
    out
}

fn row(problem: &AttentionProblem, [q, k, v]: [&HostTensor; 3], [b, h, n]: [usize; 3], out: &mut Expected) {
    let (d, visible, head) = (problem.head_dim, problem.visible_keys(n), h / problem.group());
    let keys = visible.len();
    let scale = f64::from(problem.scale());
    let unit = (-24_f64).exp2();
    let mut scores = Vec::with_capacity(keys);
    let mut worst = 0.0_f64;
    for key in visible.clone() {
        let products = || (0..d).map(|i| f64::from(q.get(b, h, n, i)) * f64::from(k.get(b, head, key, i)));
        scores.push(products().sum::<f64>() * scale);
        worst = worst.max(products().map(f64::abs).sum::<f64>() * scale.abs());
    }
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // the score's error, twice: in the element's exponent and in the row sum's
    let score_error = worst * (d + 2) as f64 * unit + 4.0 * unit * (worst + 8.0);
    let relative =
        (2.0 * score_error).exp_m1() + (-11_f64).exp2() + 2.0 * (-22_f64).exp2() + (2 * keys + 8) as f64 * unit;
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let lse = top + sum.ln();
    let logarithm = (-22_f64).exp2() * (9.0 + (keys.max(1) as f64).log2());
    out.lse.push(lse);
    // A row without keys is minus infinity exactly.
    let rounding = 4.0 * unit * if keys == 0 { 0.0 } else { lse.abs() };
    out.lse_bound.push(score_error + (-22_f64).exp2() + (keys + 8) as f64 * unit + logarithm + rounding);
    for i in 0..d {
        let values = || visible.clone().map(|key| f64::from(v.get(b, head, key, i)));
        let o = if keys == 0 { 0.0 } else { weights.iter().zip(values()).map(|(w, v)| w * v).sum::<f64>() / sum };
        let magnitude = weights.iter().zip(values()).map(|(w, v)| w * v.abs()).sum::<f64>() / sum.max(1.0);
        let lost = values().map(f64::abs).sum::<f64>() * (-25_f64).exp2();
        let bound = 2.0 * relative * magnitude + lost;
        out.o.push(o);
        out.bound.push(bound + DType::F16.half_step(o.abs() + bound));
    }
}
