//! Attention over ranks: inputs, and how far results may be from one device's.

use anyhow::Result;
use int_flash_attention::ranks::RingProblem;
use int_flash_attention::reference::{self, Bounds, Int8, sequences};
use int_flash_attention::{DType, HostQuantized, HostTensor, Scheme, Scored, SeqLens, Sequences, Shape, TensorLayout};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks, packed_dim};
use std::ops::Range;

/// These tokens of a tensor, one range behind the other.
///
/// # Panics
/// Where there are none.
#[must_use]
pub fn tokens(x: &HostTensor, ranges: &[Range<usize>]) -> HostTensor {
    let numbers: Vec<usize> = ranges.iter().cloned().flatten().collect();
    let shape = Shape { seqlen: numbers.len(), ..x.shape() };
    let value = |b, h, n: usize, d| x.get(b, h, numbers[n], d);
    HostTensor::from_fn(x.dtype(), TensorLayout::bhnd(shape), value).expect("there are tokens")
}

/// The operands of a pair: a part of the queries, a chunk of the keys, with the constants of the whole and its blocks of K, whose keys may share scales.
///
/// # Errors
/// What the references say.
pub fn operands(
    whole: &HostQuantized,
    [q, k, v]: [&HostTensor; 3],
    rows: &Range<usize>,
    keys: &Range<usize>,
) -> Result<HostQuantized> {
    let part = |x, range: &Range<usize>| tokens(x, std::slice::from_ref(range));
    let mut of_k = reference::quantize_k_on(&part(k, keys), &whole.k.offset)?;
    let (all, blocks) = (kv_blocks(k.shape().seqlen), kv_blocks(keys.len()));
    let bytes = block_bytes(packed_dim(k.shape().head_dim));
    for head in 0..k.shape().batch * k.shape().heads {
        let (from, to) = (head * all + keys.start / KV_BLOCK, head * blocks);
        let range = |block: usize, each: usize| block * each..(block + blocks) * each;
        of_k.data[range(to, bytes)].copy_from_slice(&whole.k.data[range(from, bytes)]);
        of_k.scale[range(to, KV_BLOCK)].copy_from_slice(&whole.k.scale[range(from, KV_BLOCK)]);
        of_k.block_scale[range(to, 1)].copy_from_slice(&whole.k.block_scale[range(from, 1)]);
    }
    Ok(HostQuantized {
        q: reference::quantize_q(Scheme::Default, &part(q, rows), Some(&whole.k.offset))?,
        k: of_k,
        v: reference::quantize_v_on(&part(v, keys), &whole.v.unit)?,
    })
}

/// What one device has of a ring's problem, and how far the ring may be from it in float32.
///
/// A state is off by its own bounds; what its log-sum-exp is off by is a relative error of its weight, and moves the mean of the states by at most twice
/// that share of the largest value. A merge adds `γ = 2^-16 + 2^-22` (docs of `reference::merge`) of the weights and of the sum of magnitudes, and
/// the rounding of the log-sum-exp. `narrow`: the kernels take narrow blocks, and keys share scales for them.
///
/// # Errors
/// What the references say.
pub fn ring_bounds(ring: &RingProblem, inputs: [&HostTensor; 3], ideal: bool, narrow: bool) -> Result<(Int8, Bounds)> {
    let (attention, [q, k, v]) = (&ring.attention, inputs);
    let scored = Scored::from(attention).with_narrow(narrow);
    let whole = reference::quantize(scored, q, k, v)?;
    let one = reference::int8(scored, &whole)?;
    let largest = 1.01 * v.dense_f64().iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let (d, n) = (attention.value_dim(), attention.seqlen_q);
    let gamma = (-16_f64).exp2() + (-22_f64).exp2();
    let mut bounds = Bounds { o: vec![0.0; one.o.len()], lse: vec![0.0; one.lse.len()] };
    for rank in 0..ring.ranks {
        let parts = ring.parts(rank);
        for step in ring.steps(rank) {
            for pair in step.pairs {
                let (rows, p) = (&parts[pair.part], pair.problem);
                let operands = operands(&whole, inputs, rows, &ring.chunks(step.source)[pair.chunk])?;
                let lengths = vec![pair.keys as u32; p.batch];
                let lengths = match p.sequences {
                    Sequences::KeyLengths => SeqLens::KeyLengths { seqlens_kv: &lengths[..] },
                    _ => SeqLens::Equal,
                };
                let scored = Scored::from(&p).with_narrow(narrow);
                let (state, of_state) = sequences::gpu_bounds(scored, &lengths, &operands, DType::F32, ideal)?;
                for head in 0..p.batch * p.heads_q {
                    for (row, token) in rows.clone().enumerate() {
                        let (from, to) = (head * rows.len() + row, head * n + token);
                        if state.lse[from] == f64::NEG_INFINITY {
                            continue;
                        }
                        let of_merge = gamma + (-21_f64).exp2() * (1.0 + state.lse[from].abs().max(one.lse[to].abs()));
                        let lse = of_state.lse[from] + of_merge;
                        bounds.lse[to] += lse;
                        for dim in 0..d {
                            bounds.o[to * d + dim] += of_state.o[from * d + dim] + 2.0 * (gamma + lse) * largest;
                        }
                    }
                }
            }
        }
    }
    Ok((one, bounds))
}
