//! Inputs of a benchmark: random float16 values, made from a seed and an index so that any part can be made again.

use half::f16;
use int_flash_attention::{AttentionProblem, HostTensor, TensorLayout};
use rayon::prelude::*;
use std::sync::LazyLock;

/// Standard normal values, drawn from by index.
static NORMAL: LazyLock<Vec<f16>> = LazyLock::new(|| {
    let uniform = |i: u64| (mix(i) >> 40) as f64 / (1_u64 << 24) as f64;
    let normal =
        |i: u64| (-2.0 * (1.0 - uniform(2 * i)).ln()).sqrt() * (std::f64::consts::TAU * uniform(2 * i + 1)).cos();
    (0..1 << 16).map(|i| f16::from_f64(normal(i))).collect()
});

/// splitmix64's finalizer.
fn mix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Elements `start..start + len` of the tensor of this seed.
pub fn values(seed: u64, start: usize, len: usize) -> Vec<f16> {
    let mut out = vec![f16::ZERO; len];
    let base = mix(seed);
    out.par_chunks_mut(1 << 14).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            let index = (start + (chunk << 14) + i) as u64;
            *value = NORMAL[(mix(base ^ index) >> 48) as usize];
        }
    });
    out
}

/// The seeds of Q, K and V of a copy of the inputs.
pub fn seeds(run: u64, copy: usize) -> [u64; 3] {
    [0, 1, 2].map(|operand| mix(run).wrapping_add(16 * copy as u64 + operand))
}

/// One head of Q, K and V as a problem of its own. `head` counts over all batches.
pub fn one_head(
    problem: &AttentionProblem,
    seeds: [u64; 3],
    head: usize,
) -> int_flash_attention::Result<(AttentionProblem, [HostTensor; 3])> {
    let one = AttentionProblem { batch: 1, heads_q: 1, heads_kv: 1, ..*problem };
    // Groups of heads of Q follow one another as their heads of K and V do.
    let head_kv = head / problem.group();
    let tensor = |operand: usize, head: usize, shape: int_flash_attention::Shape| {
        HostTensor::new(values(seeds[operand], head * shape.elements(), shape.elements()), TensorLayout::bhnd(shape))
    };
    let [q, kv] = [one.q_shape(), one.kv_shape()];
    Ok((one, [tensor(0, head, q)?, tensor(1, head_kv, kv)?, tensor(2, head_kv, kv)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_same_part_of_the_whole_and_values_are_normal() {
        let whole = values(7, 0, 40_000);
        assert_eq!(values(7, 20_000, 5_000), whole[20_000..25_000]);
        let mean = whole.iter().map(|x| x.to_f64()).sum::<f64>() / 4e4;
        let variance = whole.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / 4e4;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        assert_ne!(values(8, 0, 100), whole[..100]);
    }
}
