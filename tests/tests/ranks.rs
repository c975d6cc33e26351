//! Attention over ranks with the shipped kernels, on the PTX machine.

use anyhow::{Result, ensure};
use int_flash_attention::ranks::{Communicator, RingProblem, Simulated};
use int_flash_attention::{
    AttentionProblem, DType, HostTensor, Scheme, Scored, SeqLens, Sequences, Shape, TensorLayout, Window, reference,
};
use int_flash_attention_tests::decode::{DecodeKernels, MergeCase};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::ranks::{operands, ring_bounds, tokens};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Values;

fn tensor(shape: Shape, dtype: DType, values: Values, seed: u64) -> HostTensor {
    values.tensor(dtype, TensorLayout::bhnd(shape), seed).unwrap()
}

/// Later tokens are quantized by the first ones' constants, which stay as they are: the bytes of the reference, which are those of the whole.
#[test]
fn later_tokens_are_quantized_as_in_the_reference() {
    let simulator = Simulator::new();
    for (dtype, heads_kv, d, values) in [
        (DType::F16, 2, 64, Values::LoudTokens),
        (DType::F32, 1, 56, Values::LoudTokens),
        (DType::BF16, 1, 96, Values::LoudTokens),
    ] {
        let whole = Shape::new(2, heads_kv, 400, d).unwrap();
        let (k, v) = (tensor(whole, dtype, values, 1), tensor(whole, dtype, values, 2));
        let offset = reference::quantize_k(Scheme::Default, &k).unwrap().offset;
        // Another unit than values have by themselves: it is the first tokens' part to choose it.
        let unit = vec![0.25; 2 * heads_kv];
        let later = [128..256, 256..400];
        let (k, v) = (tokens(&k, &later), tokens(&v, &later));
        let problem = AttentionProblem::new(2, heads_kv, heads_kv, 272, 272, d);
        let (on_k, on_v) = simulator.quantize_later(&problem, [&k, &v], &offset, &unit).unwrap();
        let want = (reference::quantize_k_on(&k, &offset).unwrap(), reference::quantize_v_on(&v, &unit).unwrap());
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!((on_k.data, on_v.data), (want.0.data, want.1.data), "{dtype} {d}");
        for (on, want) in [
            (&on_k.scale, &want.0.scale),
            (&on_k.block_scale, &want.0.block_scale),
            (&on_k.offset, &want.0.offset),
            (&on_v.scale, &want.1.scale),
            (&on_v.unit, &want.1.unit),
        ] {
            assert_eq!(bits(on), bits(want), "{dtype} {d}");
        }
        let mixed = |x: &[f32]| x.iter().map(|x| if x.is_nan() { 0 } else { x.to_bits() }).collect::<Vec<_>>();
        assert_eq!(mixed(&on_v.block_scale), mixed(&want.1.block_scale));
    }
}

/// What each pair of a ring's steps gives, merged: within the bounds of the kernels and of the merge of what one device has.
fn ring_of_kernels(attention: AttentionProblem, ranks: usize) -> Result<()> {
    let ring = RingProblem { attention, ranks };
    let shapes = [attention.q_shape(), attention.kv_shape(), attention.v_shape()];
    let [q, k, v] = [0, 1, 2].map(|i| tensor(shapes[i], DType::F32, Values::LoudTokens, 7 + i as u64));
    let (one, bounds) = ring_bounds(&ring, [&q, &k, &v], true, false)?;
    let whole = reference::quantize(&attention, &q, &k, &v)?;
    let d = attention.head_dim;
    for rank in 0..ranks {
        let parts = ring.parts(rank);
        let mut states: Vec<(Vec<f32>, Vec<f32>, usize)> = vec![(vec![], vec![], 0); parts.len()];
        for step in ring.steps(rank) {
            for pair in step.pairs {
                let (rows, p) = (&parts[pair.part], pair.problem);
                let operands = operands(&whole, [&q, &k, &v], rows, &ring.chunks(step.source)[pair.chunk])?;
                let lengths = match p.sequences {
                    Sequences::KeyLengths => SeqLens::KeyLengths { seqlens_kv: vec![pair.keys as u32; p.batch] },
                    _ => SeqLens::Equal,
                };
                let machine = Simulator::new().with_lengths(&lengths);
                let layout = TensorLayout::bhnd(p.o_shape());
                let (o, lse) = machine.attention(&Scored::from(&p), &operands, &layout, DType::F32, true)?;
                let (all_o, all_lse, count) = &mut states[pair.part];
                all_o.extend(o.as_slice::<f32>().unwrap_or_default());
                all_lse.extend(lse.unwrap_or_default());
                *count += 1;
            }
        }
        for (rows, (o, lse, states)) in parts.iter().zip(states) {
            let shape = Shape { seqlen: rows.len(), ..attention.o_shape() };
            let case = MergeCase { shape, o, lse, states, sinks: None, in_place: false };
            let (o, lse) = Simulator::new().merge(&case, DType::F32)?;
            let o = o.dense_f64();
            for head in 0..shape.batch * shape.heads {
                for (row, token) in rows.clone().enumerate() {
                    let (at, of) = (head * rows.len() + row, head * attention.seqlen_q + token);
                    let off = (f64::from(lse[at]) - one.lse[of]).abs();
                    ensure!(off <= bounds.lse[of], "log-sum-exp of query {token} is off by {off:e}");
                    for dim in 0..d {
                        let (off, allowed) = ((o[at * d + dim] - one.o[of * d + dim]).abs(), bounds.o[of * d + dim]);
                        ensure!(off <= allowed, "query {token}, dim {dim} is off by {off:e}, allowed {allowed:e}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_ring_of_kernels_is_one_device_but_for_the_merge() {
    let problem = AttentionProblem::new(1, 2, 1, 520, 520, 32);
    ring_of_kernels(problem.with_causal(true), 2).unwrap();
    // A window that ends in the middle of chunks on both sides.
    let problem = AttentionProblem { seqlen_q: 300, seqlen_kv: 300, ..problem };
    ring_of_kernels(problem.with_window(Window { left: Some(150), right: Some(20) }), 3).unwrap();
}

/// The ranks' threads end where one of them fails, each with an error.
#[test]
fn a_rank_that_fails_ends_the_others() {
    let attention = AttentionProblem::new(1, 2, 1, 300, 300, 32);
    let ring = RingProblem { attention, ranks: 2 };
    let results: Vec<bool> = std::thread::scope(|scope| {
        let ranks = Simulated::ranks(2).into_iter().map(|rank| {
            scope.spawn(move || {
                // Rank 1 has the tensors of rank 0.
                let shapes = [ring.q_shape(0), ring.kv_shape(0)];
                let [q, kv] = shapes.map(|shape| tensor(shape, DType::F32, Values::LoudTokens, 1));
                ring.on_cpu(&rank as &dyn Communicator<_>, &q, &kv, &kv).is_err()
            })
        });
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_eq!(results, [true, true]);
}
