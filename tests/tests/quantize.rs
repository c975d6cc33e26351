//! The quantization kernels on the PTX machine: bit for bit the CPU reference, and what a token's codes may depend on.

use anyhow::{Result, ensure};
use int_flash_attention::{
    AttentionProblem, DType, HostQuantized, HostTensor, Operand, Scheme, Scored, Shape, TensorLayout, reference,
};
use int_flash_attention_kernels::config::Family;
use int_flash_attention_kernels::layout::{HEAD_DIMS, KV_BLOCK, OFFSET_TOKENS, block_bytes, kv_blocks, packed_dim};
use int_flash_attention_tests::case::{Case, PADDED_DIMS, Placement, any_case};
use int_flash_attention_tests::properties::{self, Kernels};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::{Noise, Values};
use int_flash_attention_tests::{cases, check_cases};
use proptest::prelude::*;

const OPERANDS: [Operand; 3] = [Operand::Q, Operand::K, Operand::V];
const DTYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// Quantized and dequantized as the reference does it.
fn as_reference(simulator: &Simulator, case: &Case, [q, k, v]: [&HostTensor; 3]) -> Result<HostQuantized> {
    let shared = Scored::from(&case.problem).with_narrow(simulator.shares_k(&case.problem));
    let want = reference::quantize(shared, q, k, v)?;
    let got = simulator.quantize(&case.problem, q, k, v)?;
    properties::same_operands(&case.problem, &got, &want, q)?;
    for operand in OPERANDS {
        properties::dequantize(simulator, case, &want, operand)?;
    }
    Ok(got)
}

/// Cases whose rows are aligned to nothing but their elements as well, and of both schemes where they have the head dim.
fn conversions(longest: usize) -> impl Strategy<Value = Case> {
    let odd = prop::array::uniform4(prop::option::weighted(0.3, 1..8_usize));
    (any_case(longest), odd, any::<bool>()).prop_map(|(mut case, odd, paper)| {
        for (placement, gap) in case.placement.iter_mut().zip(odd) {
            if let Some(token) = gap {
                *placement = Placement::Padded { token, head: 3, batch: 1 };
            }
        }
        let scheme = if paper { Scheme::Paper } else { Scheme::Default };
        if case.problem.with_scheme(scheme).check().is_ok() {
            case.problem.scheme = scheme;
        }
        case
    })
}

#[test]
fn generated_cases_are_quantized_as_the_reference_does() {
    let simulator = Simulator::new();
    check_cases(cases(150), &conversions(300), |case| {
        let [q, k, v] = case.tensors()?;
        as_reference(&simulator, case, [&q, &k, &v])?;
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn each_head_dim_and_type_is_quantized_as_the_reference_does() {
    let simulator = Simulator::new();
    let head_dims = HEAD_DIMS.into_iter().chain(PADDED_DIMS);
    for (seed, (head_dim, dtype)) in head_dims.flat_map(|d| DTYPES.map(|dtype| (d, dtype))).enumerate() {
        for scheme in Scheme::ALL {
            let problem = AttentionProblem::new(1, 2, 1, 131, 290, head_dim).with_scheme(scheme);
            if problem.check().is_err() {
                assert!(head_dim > 128 && scheme == Scheme::Paper);
                continue;
            }
            let mut case = Case { dtype, out_dtype: dtype, ..Case::plain(problem, seed as u64) };
            case.values = [Values::Normal, Values::OutlierChannels, Values::LoudTokens];
            if seed % 2 == 1 {
                case.placement = [Placement::Padded { token: 1, head: 0, batch: 0 }; 4];
            }
            let [q, k, v] = case.tensors().unwrap();
            as_reference(&simulator, &case, [&q, &k, &v])
                .unwrap_or_else(|error| panic!("{head_dim} {dtype} {scheme}: {error:#}"));
        }
    }
}

/// The tensor, with some elements replaced.
fn with(tensor: &HostTensor, mut value: impl FnMut([usize; 4], f32) -> f32) -> HostTensor {
    HostTensor::from_fn(tensor.dtype(), tensor.layout(), |b, h, n, d| value([b, h, n, d], tensor.get(b, h, n, d)))
        .unwrap()
}

/// Of a token of K or V: its scale and its codes.
fn token(
    data: &[i8],
    scale: &[f32],
    head: usize,
    token: usize,
    blocks: usize,
    at: impl Fn(usize) -> usize,
    d: usize,
) -> (u32, Vec<i8>) {
    let block = head * blocks + token / KV_BLOCK;
    let codes = (0..d).map(|dim| data[block * block_bytes(d) + at(dim)]).collect();
    (scale[block * KV_BLOCK + token % KV_BLOCK].to_bits(), codes)
}

/// A token that is no number, or louder than all others, changes none of another block, and of K not even one of its own.
#[test]
fn no_token_touches_another() {
    untouched(&Simulator::new(), [32, 64, 96, 128]);
}

/// The same of blocks, where K's tokens share scales.
#[test]
fn no_block_touches_another() {
    untouched(&Simulator::of(Family::Sm90a, 1), [64, 96, 128, 256]);
}

fn untouched(simulator: &Simulator, head_dims: [usize; 4]) {
    use int_flash_attention_kernels::layout::{k_offset, v_offset};
    for (seed, (dtype, bad)) in DTYPES
        .into_iter()
        .flat_map(|dtype| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 6e4].map(|bad| (dtype, bad)))
        .enumerate()
    {
        let problem = AttentionProblem::new(1, 1, 1, 150, 400, head_dims[seed % 4]);
        let shares = simulator.shares_k(&problem);
        let case = Case { dtype, out_dtype: DType::F32, ..Case::plain(problem, seed as u64) };
        let [q, k, v] = case.tensors().unwrap();
        let d = problem.head_dim;
        let mut noise = Noise::new(seed as u64, [0; 4]);
        // Not one of those that K's offset is made of.
        let lost = OFFSET_TOKENS + noise.word() as usize % 80;
        let dim = noise.word() as usize % d;
        let spoilt = [&q, &k, &v].map(|x| with(x, |[_, _, n, i], x| if n == lost && i == dim { bad } else { x }));
        let before = as_reference(simulator, &case, [&q, &k, &v]).unwrap();
        let after = as_reference(simulator, &case, spoilt.each_ref())
            .unwrap_or_else(|error| panic!("{dtype} {bad}: {error:#}"));
        for row in (0..150).filter(|&row| row != lost) {
            assert_eq!(before.q.data[row * d..][..d], after.q.data[row * d..][..d]);
            assert_eq!(before.q.scale[row], after.q.scale[row]);
        }
        let blocks = kv_blocks(400);
        let of_k = |all: &HostQuantized, n: usize| {
            token(&all.k.data, &all.k.scale, 0, n, blocks, |i| k_offset(n % KV_BLOCK, i), d)
        };
        let of_v = |all: &HostQuantized, n: usize| {
            token(&all.v.data, &all.v.scale, 0, n, blocks, |i| v_offset(n % KV_BLOCK, i, d), d)
        };
        // Blocks 1 and 2 are whole and not the first.
        let one_scale = |all: &HostQuantized, block: usize| {
            let scales = &all.k.scale[block * KV_BLOCK..][..KV_BLOCK];
            scales.iter().all(|scale| scale == &scales[0])
        };
        assert_eq!([0, 1, 2, 3].map(|block| one_scale(&before, block)), [false, shares, shares, false]);
        assert!(!one_scale(&after, lost / KV_BLOCK));
        for n in (0..400).filter(|&n| n != lost) {
            let other = n / KV_BLOCK != lost / KV_BLOCK;
            if other || !shares {
                assert_eq!(of_k(&before, n), of_k(&after, n), "{dtype} {bad}: {lost} moves K {n}");
            }
            if other {
                assert_eq!(of_v(&before, n), of_v(&after, n), "{dtype} {bad}: {lost} moves V {n}");
            }
        }
        if !bad.is_finite() {
            assert!(
                after.q.scale[lost.min(149)].is_nan() == (lost < 150) && f32::from_bits(of_k(&after, lost).0).is_nan()
            );
            assert!(f32::from_bits(of_v(&after, lost).0).is_nan() && after.v.block_scale[lost / KV_BLOCK].is_nan());
            let (_, codes) = of_k(&after, lost);
            assert!(codes.iter().all(|&code| code == 0));
        }
    }
}

/// Where the first tokens are no numbers, K has no offset in their channels, or one of the other tokens.
#[test]
fn first_tokens_that_are_no_numbers() {
    let simulator = Simulator::new();
    for (seed, dtype) in DTYPES.into_iter().enumerate() {
        let problem = AttentionProblem::new(1, 1, 1, 20, 140, 64);
        let case = Case { dtype, out_dtype: DType::F32, ..Case::plain(problem, seed as u64) };
        let shifted = |x: &HostTensor| {
            with(x, |[_, _, n, d], x| match (n, d % 5) {
                (3, 0) => f32::NAN,
                (_, 1) if n < 100 => f32::NAN,
                (70, 2) => f32::INFINITY,
                (5, 3) => f32::INFINITY,
                _ => x + 8.0,
            })
        };
        let [q, k, v] = case.tensors().unwrap();
        let got = as_reference(&simulator, &case, [&q, &shifted(&k), &shifted(&v)]).unwrap();
        assert!(got.k.offset[0] > 4.0 && got.k.offset[1] == 0.0 && got.k.offset[3] == 0.0);
    }
}

/// Tokens that come later change nothing of what is there.
fn prefix(simulator: &Simulator, case: &Case, shorter: usize) -> Result<()> {
    let [q, k, v] = case.tensors()?;
    let all = simulator.quantize(&case.problem, &q, &k, &v)?;
    let problem = AttentionProblem { seqlen_kv: shorter, ..case.problem };
    let cut = |x: &HostTensor| {
        let layout = Placement::Bnhd.layout(Shape { head_dim: x.shape().head_dim, ..problem.kv_shape() })?;
        Ok::<_, anyhow::Error>(HostTensor::from_fn(x.dtype(), layout, |b, h, n, d| x.get(b, h, n, d))?)
    };
    let part = simulator.quantize(&problem, &q, &cut(&k)?, &cut(&v)?)?;
    ensure!(part.k.offset == all.k.offset && part.q == all.q, "the offset of K, or Q");
    let (heads, d) = (problem.batch * problem.heads_kv, packed_dim(problem.head_dim));
    let dims_v = packed_dim(problem.value_dim());
    let (blocks, all_blocks) = (kv_blocks(shorter), kv_blocks(case.problem.seqlen_kv));
    for head in 0..heads {
        // A block that is full stays.
        for block in 0..shorter / KV_BLOCK {
            let (here, there) = (head * blocks + block, head * all_blocks + block);
            let bytes = |data: &[i8], block: usize, d: usize| data[block * block_bytes(d)..][..block_bytes(d)].to_vec();
            let scales = |scale: &[f32], block: usize| -> Vec<u32> {
                scale[block * KV_BLOCK..][..KV_BLOCK].iter().map(|scale| scale.to_bits()).collect()
            };
            ensure!(bytes(&part.k.data, here, d) == bytes(&all.k.data, there, d), "K of head {head}, block {block}");
            ensure!(scales(&part.k.scale, here) == scales(&all.k.scale, there), "K's scales of {head}, {block}");
            ensure!(
                bytes(&part.v.data, here, dims_v) == bytes(&all.v.data, there, dims_v),
                "V of head {head}, block {block}"
            );
            ensure!(scales(&part.v.scale, here) == scales(&all.v.scale, there), "V's scales of {head}, {block}");
            let block_scales =
                |all: &HostQuantized, at: usize| [all.k.block_scale[at], all.v.block_scale[at]].map(f32::to_bits);
            ensure!(block_scales(&part, here) == block_scales(&all, there), "block scales of {head}, {block}");
        }
        // Of the one that is not, the tokens of K that have their own scales.
        let own = if simulator.shares_k(&problem) { shorter } else { shorter / KV_BLOCK * KV_BLOCK };
        for n in own..shorter {
            let at = |i| int_flash_attention_kernels::layout::k_offset(n % KV_BLOCK, i);
            let of = |all: &HostQuantized, blocks| token(&all.k.data, &all.k.scale, head, n, blocks, at, d);
            ensure!(of(&part, blocks) == of(&all, all_blocks), "K of head {head}, token {n}");
        }
    }
    Ok(())
}

#[test]
fn a_prefix_has_the_prefixs_codes() {
    let simulator = Simulator::new();
    let appended = (any_case(60), OFFSET_TOKENS..300, 1..200_usize).prop_map(|(mut case, shorter, more)| {
        case.problem.seqlen_kv = shorter + more;
        case.problem.scheme = Scheme::Default;
        (case, shorter)
    });
    check_cases(cases(40), &appended, |(case, shorter)| prefix(&simulator, case, *shorter))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The same of whole blocks, where K's tokens share scales.
#[test]
fn a_prefix_has_the_prefixs_blocks() {
    let simulator = Simulator::of(Family::Sm90a, 1);
    let appended = (any_case(60), 2 * KV_BLOCK..300, 1..200_usize, any::<bool>());
    let appended = appended.prop_map(|(mut case, shorter, more, large)| {
        let head_dim = if large { 128 } else { 64 };
        case.problem =
            AttentionProblem { seqlen_kv: shorter + more, ..AttentionProblem::new(1, 1, 1, 20, 1, head_dim) };
        (case, shorter)
    });
    check_cases(cases(12), &appended, |(case, shorter)| {
        ensure!(simulator.shares_k(&case.problem), "no shared scales");
        prefix(&simulator, case, *shorter)
    })
    .unwrap_or_else(|error| panic!("{error}"));
}

/// From where on tokens do not share a scale, and where they do: in blocks that are whole, not the head's first, and without what is no number;
/// the first one of heads that go on is not the first.
#[test]
fn tokens_share_scales_up_to_a_ratio() {
    let simulator = Simulator::of(Family::Sm90a, 1);
    for (dtype, head_dim) in [(DType::F16, 64), (DType::BF16, 128), (DType::F32, 64)] {
        let problem = AttentionProblem::new(1, 1, 1, 1, 1000, head_dim);
        // A token along one dim has the same magnitude in all dims once it is rotated.
        let k = HostTensor::from_fn(dtype, TensorLayout::bhnd(problem.kv_shape()), |_, _, n, d| match (n, d) {
            (n, 0) if n % KV_BLOCK == 77 => [8.0, 4.0, 4.125, 0.25, 0.2421875, f32::NAN, 2.0, 1.0][n / KV_BLOCK],
            (_, 0) => {
                if n % 2 == 0 {
                    1.0
                } else {
                    -1.0
                }
            }
            _ => 0.0,
        })
        .unwrap();
        let case = Case { dtype, out_dtype: dtype, ..Case::plain(problem, 1) };
        let [q, _, v] = case.tensors().unwrap();
        let got = as_reference(&simulator, &case, [&q, &k, &v]).unwrap();
        let shared = |k: &[f32]| -> Vec<bool> {
            k.chunks(KV_BLOCK).map(|scales| scales.iter().all(|scale| scale == &scales[0])).collect()
        };
        assert_eq!(shared(&got.k.scale), [false, true, false, true, false, false, true, false], "{dtype}");

        let part = |x: &HostTensor, from: usize| {
            let shape = Shape { seqlen: x.shape().seqlen - from, ..x.shape() };
            HostTensor::from_fn(dtype, TensorLayout::bhnd(shape), |b, h, n, d| x.get(b, h, from + n, d)).unwrap()
        };
        let rest = AttentionProblem { seqlen_kv: 1000 - KV_BLOCK, ..problem };
        let (k, v) = (part(&k, KV_BLOCK), part(&v, KV_BLOCK));
        let scored = Scored::from(&rest).with_narrow(true);
        let (later, _) = simulator.quantize_later(scored, [&k, &v], &got.k.offset, &got.v.unit).unwrap();
        assert_eq!(later.data, got.k.data[block_bytes(head_dim)..], "{dtype}");
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&later.scale), bits(&got.k.scale[KV_BLOCK..]), "{dtype}");
    }
}

/// So many tiles that a CTA converts several, some of them a head's last.
#[test]
fn runs_of_tiles_are_quantized_as_the_reference_does() {
    let problem = AttentionProblem::new(2, 350, 350, 150, 650, 32);
    let case =
        Case { values: [Values::Normal, Values::OutlierChannels, Values::LoudTokens], ..Case::plain(problem, 1) };
    let [q, k, v] = case.tensors().unwrap();
    let want = reference::quantize(&problem, &q, &k, &v).unwrap();
    let got = Simulator::new().quantize(&problem, &q, &k, &v).unwrap();
    properties::same_operands(&problem, &got, &want, &q).unwrap();
}
