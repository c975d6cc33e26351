//! The error table: both INT8 schemes and float8, as the paper's authors emulate it, against float64 attention.

use super::{HEAD_DIM, percent};
use anyhow::Result;
use int_flash_attention::reference::{self, compare};
use int_flash_attention::{
    AttentionProblem, DType, Device, HostTensor, Options, Scheme, Shape, TensorLayout, attention,
};
use int_flash_attention_tests::values::Noise;
use rayon::prelude::*;

/// Heads, and query positions of each, that are compared.
const HEADS: usize = 2;
const ROWS: usize = 64;
/// Keys of a block of the float8 kernel, whose row maximum runs from block to block.
const BLOCK: usize = 64;
/// How much smaller the paper's full INT8 is said to be than float8, in mean relative error.
const PUBLISHED: [(Values, f64); 2] = [(Values::Normal, 0.46), (Values::Uniform, 0.82)];

#[derive(Clone, Copy, PartialEq)]
enum Values {
    Normal,
    Uniform,
}

impl Values {
    const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal (0, 1)",
            Self::Uniform => "uniform 0..1",
        }
    }

    fn tensor(self, shape: Shape, seed: u64) -> int_flash_attention::Result<HostTensor> {
        let value = |b, h, n, d| {
            let mut noise = Noise::new(seed, [b, h, n, d]);
            match self {
                Self::Normal => noise.normal(),
                Self::Uniform => noise.uniform(),
            }
        };
        HostTensor::from_fn(DType::F16, TensorLayout::bhnd(shape), value)
    }
}

/// Relative error in the 2-norm, and the authors' mean relative error.
#[derive(Clone, Copy)]
struct Figures {
    l2: f64,
    mean: f64,
}

impl Figures {
    fn of(got: &[f64], want: &[f64]) -> Self {
        let relative = got.iter().zip(want).map(|(got, want)| (got - want).abs() / (want.abs() + 1e-5));
        Self { l2: compare(got, want).relative_l2, mean: relative.sum::<f64>() / want.len() as f64 }
    }
}

/// Prints the table.
pub fn table(device: Device, seqlens: &[usize]) -> Result<()> {
    println!(
        "error against float64: INT8 on {device}, float8 emulated; head_dim {HEAD_DIM}, {HEADS} heads, {ROWS} rows of each"
    );
    println!(
        "{:14} {:>7}  {:>9} {:>9} {:>9}   {:>9} {:>9} {:>9}   {:>14} {:>14}",
        "", "", "relative", "L2", "", "mean", "relative", "", "full INT8", "default"
    );
    println!(
        "{:14} {:>7}  {:>9} {:>9} {:>9}   {:>9} {:>9} {:>9}   {:>14} {:>14}",
        "inputs",
        "seqlen",
        "float8",
        "full INT8",
        "default",
        "float8",
        "full INT8",
        "default",
        "below float8",
        "below float8"
    );
    for (values, published) in PUBLISHED {
        for &seqlen in seqlens {
            let [fp8, paper, default] = measure(device, values, seqlen)?;
            let below = |x: Figures| percent(1.0 - x.mean / fp8.mean);
            println!(
                "{:14} {seqlen:7}  {:9.2e} {:9.2e} {:9.2e}   {:9.2e} {:9.2e} {:9.2e}   {:>14} {:>14}",
                values.name(),
                fp8.l2,
                paper.l2,
                default.l2,
                fp8.mean,
                paper.mean,
                default.mean,
                below(paper),
                below(default)
            );
        }
        println!("{:14} published: full INT8 {} below float8", values.name(), percent(published));
    }
    println!("mean relative: the authors' measure, the mean of |error| / (|o| + 1e-5); \"below float8\" is of it");
    println!("float8: e5m2 without scales for Q, K, V and P, as in the authors' test");
    Ok(())
}

/// Of float8, the paper's scheme, the default scheme.
fn measure(device: Device, values: Values, seqlen: usize) -> Result<[Figures; 3]> {
    let problem = AttentionProblem::new(1, HEADS, HEADS, seqlen, seqlen, HEAD_DIM);
    let [q, k, v] = [1, 2, 3].map(|seed| values.tensor(problem.q_shape(), seed));
    let [q, k, v] = [q?, k?, v?];
    // an odd step, so that the rows are not all first rows of tiles
    let count = ROWS.min(seqlen);
    let rows: Vec<usize> = (0..count).map(|i| (i * seqlen / count + i) % seqlen).collect();
    let want = reference::exact_rows(&problem, &q, &k, &v, &rows)?.o;
    let int8 = |scheme| -> Result<Figures> {
        Ok(Figures::of(&int8(device, problem.with_scheme(scheme), [&q, &k, &v], &rows)?, &want))
    };
    let fp8 = Figures::of(&float8(&problem, [&q, &k, &v], &rows), &want);
    Ok([fp8, int8(Scheme::Paper)?, int8(Scheme::Default)?])
}

/// The rows of every head. On the CPU they alone are computed.
fn int8(device: Device, problem: AttentionProblem, [q, k, v]: [&HostTensor; 3], rows: &[usize]) -> Result<Vec<f64>> {
    if device == Device::Cpu {
        let operands = reference::quantize(&problem, q, k, v)?;
        return Ok(reference::int8_rows(&problem, &operands, rows)?.o);
    }
    let options = Options { scheme: problem.scheme, output_dtype: Some(DType::F32), ..Options::default() };
    let o = attention(device, q, k, v, &options)?.o;
    let row = |head: usize, n: usize| (0..problem.head_dim).map(move |d| (head, n, d));
    let all = (0..problem.heads_q).flat_map(|head| rows.iter().flat_map(move |&n| row(head, n)));
    Ok(all.map(|(head, n, d)| f64::from(o.get(0, head, n, d))).collect())
}

/// FlashAttention on inputs in float8, with P in float8 too and everything else exact.
fn float8(problem: &AttentionProblem, [q, k, v]: [&HostTensor; 3], rows: &[usize]) -> Vec<f64> {
    let d = problem.head_dim;
    let cells: Vec<(usize, usize)> =
        (0..problem.heads_q).flat_map(|head| rows.iter().map(move |&n| (head, n))).collect();
    let [q, k, v] = [q, k, v].map(|x| x.dense_f64().into_iter().map(e5m2).collect::<Vec<f64>>());
    let row = |&(head, n): &(usize, usize)| {
        let head_of = |x: &[f64]| x[head * problem.seqlen_kv * d..][..problem.seqlen_kv * d].to_vec();
        let (k, v) = (head_of(&k), head_of(&v));
        let q = &q[(head * problem.seqlen_q + n) * d..][..d];
        let (mut max, mut sum, mut acc) = (f64::NEG_INFINITY, 0.0, vec![0.0; d]);
        for (k, v) in k.chunks(BLOCK * d).zip(v.chunks(BLOCK * d)) {
            let score = |k: &[f64]| f64::from(problem.scale()) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            let scores: Vec<f64> = k.chunks_exact(d).map(score).collect();
            let new = scores.iter().copied().fold(max, f64::max);
            let old = (max - new).exp();
            sum *= old;
            acc.iter_mut().for_each(|acc| *acc *= old);
            for (score, v) in scores.iter().zip(v.chunks_exact(d)) {
                let p = (score - new).exp();
                sum += p;
                let p = e5m2(p);
                acc.iter_mut().zip(v).for_each(|(acc, v)| *acc += p * v);
            }
            max = new;
        }
        acc.into_iter().map(move |acc| acc / sum).collect::<Vec<f64>>()
    };
    cells.par_iter().flat_map(row).collect()
}

/// `value` in float8 with 5 bits of exponent and 2 of fraction, to nearest even; values here are far below its largest.
fn e5m2(value: f64) -> f64 {
    let exponent = ((value.to_bits() >> 52) as i32 & 0x7ff) - 1023;
    let step = f64::from(exponent.max(-14) - 2).exp2();
    (value / step).round_ties_even() * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float8_has_three_bits() {
        let cases = [(0.0, 0.0), (1.0, 1.0), (-1.1, -1.0), (1.125, 1.0), (1.375, 1.5), (1.9, 2.0), (3.3, 3.5)];
        for (value, rounded) in cases {
            assert_eq!(e5m2(value), rounded, "{value}");
        }
        // a subnormal: multiples of 2^-16
        assert_eq!(e5m2(1e-5), (-16_f64).exp2());
    }

    /// The claim, at a length that is quick.
    #[test]
    fn int8_errs_less_than_float8() {
        for (values, _) in PUBLISHED {
            let [fp8, paper, default] = measure(Device::Cpu, values, 256).unwrap();
            // Uniform values suit a scale for all of V; the default scheme's are for what models have.
            let uniform = values.name().starts_with("uniform");
            assert!(
                paper.l2 < fp8.l2 && default.l2 < fp8.l2 && (uniform || default.l2 < paper.l2),
                "{}: {} {} {}",
                values.name(),
                fp8.l2,
                paper.l2,
                default.l2
            );
        }
    }
}
