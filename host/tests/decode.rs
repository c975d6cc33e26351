//! The decode on the CPU: K and V as attention quantizes them, in pages, against float64 and against attention.

use int_flash_attention::reference::{self, HostState, compare, exact, int8, quantize};
use int_flash_attention::{
    AttentionProblem, DType, DecodeHeads, DecodeProblem, Error, HostPagedKv, HostQ, HostQuantized, HostTensor, Scheme,
    Shape, TensorLayout, Window,
};
use int_flash_attention_kernels::layout::page::{page_bytes, page_head_bytes};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks};

const HEADS: [usize; 2] = [4, 2];

fn tensor(shape: Shape, seed: usize) -> HostTensor {
    let value = |b: usize, h: usize, n: usize, d: usize| {
        let x = (seed + 1) * (b * 7919 + h * 104_729 + n * 1_299_709 + d * 15_485_863);
        ((x % 65_537) as f32 / 32_768.0 - 1.0) * 1.5 + if seed == 1 && d == 3 { 4.0 } else { 0.0 }
    };
    HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap()
}

/// The blocks of K and V as pages, the last page of the pool first.
fn pages(problem: &AttentionProblem, operands: &HostQuantized) -> (Vec<u8>, Vec<u32>) {
    let (d, heads, blocks) = (problem.head_dim, problem.heads_kv, kv_blocks(problem.seqlen_kv));
    let (page, count) = (page_bytes(heads, d), problem.batch * blocks);
    let mut pool = vec![0; count * page];
    let table: Vec<u32> = (0..count).map(|i| (count - 1 - i) as u32).collect();
    for (i, &number) in table.iter().enumerate() {
        for head in 0..heads {
            let block = (i / blocks * heads + head) * blocks + i % blocks;
            let to = &mut pool[number as usize * page + head * page_head_bytes(d)..][..page_head_bytes(d)];
            let codes =
                [&operands.k.data, &operands.v.data].map(|data| &data[block * block_bytes(d)..][..block_bytes(d)]);
            let scales = [&operands.k.scale, &operands.v.scale].map(|scale| &scale[block * KV_BLOCK..][..KV_BLOCK]);
            let codes = codes.into_iter().flatten().map(|&code| code as u8);
            let scales = scales.into_iter().flatten().flat_map(|scale| scale.to_le_bytes());
            to.iter_mut().zip(codes.chain(scales)).for_each(|(to, byte)| *to = byte);
        }
    }
    (pool, table)
}

#[test]
fn pages_of_attentions_blocks_give_what_attention_gives() {
    for (seqlen_q, seqlen_kv, head_dim, window) in [
        (1, 300, 64, Window::CAUSAL),
        (8, 128, 128, Window::CAUSAL),
        (3, 517, 32, Window { left: Some(200), right: Some(0) }),
        (2, 5, 96, Window::FULL),
        (4, 300, 256, Window { left: None, right: Some(1) }),
    ] {
        let [heads_q, heads_kv] = HEADS;
        let problem = AttentionProblem::new(2, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim).with_window(window);
        let (q, k, v) = (tensor(problem.q_shape(), 0), tensor(problem.kv_shape(), 1), tensor(problem.kv_shape(), 2));
        let operands = quantize(&problem, &q, &k, &v).unwrap();
        let (pages, block_table) = pages(&problem, &operands);
        let table_stride = kv_blocks(seqlen_kv);
        let seqlens_kv = [seqlen_kv as u32; 2];
        let cache = HostPagedKv {
            pages: &*pages,
            v4_pages: 0,
            block_table: &*block_table,
            table_stride,
            seqlens_kv: &seqlens_kv,
        };
        let decode =
            DecodeProblem { seqlen_q, window, ..DecodeProblem::new(2, heads_q, heads_kv, seqlen_kv, head_dim) };
        let got = decode.on_cpu(&operands.q, &cache, &DecodeHeads::default()).unwrap();
        let (float64, attention) = (exact(&problem, &q, &k, &v).unwrap(), int8(&problem, &operands).unwrap());
        let error = |of: &[f64]| compare(of, &float64.o).relative_l2;
        // float32 scores: no worse than attention's, whose exponents are float16.
        assert!(error(&got.o) < 1.1 * error(&attention.o) && error(&got.o) < 2e-2, "{decode:?}: {}", error(&got.o));
        let off = got.lse.iter().zip(&float64.lse).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 2e-2, "{decode:?}: {off}");

        // A sink of the size of all keys together halves the output.
        let sinks: Vec<f32> = vec![got.lse[0] as f32; heads_q];
        let sunk = DecodeProblem { sinks: true, ..decode };
        let heads = DecodeHeads { sinks: Some(&*sinks), ..DecodeHeads::default() };
        let sunk = sunk.on_cpu(&operands.q, &cache, &heads).unwrap();
        assert!((sunk.o[0] - got.o[0] / 2.0).abs() < 1e-5 && (sunk.lse[0] - got.lse[0] - 2_f64.ln()).abs() < 1e-5);
    }
}

/// Softcap and ALiBi by their definitions, on keys and values whose codes are exact.
#[test]
fn softcap_and_alibi_are_as_defined() {
    let (d, n) = (32, 200);
    let problem = AttentionProblem::new(1, 2, 1, 2, n, d).with_causal(true);
    let (q, k, v) = (tensor(problem.q_shape(), 0), tensor(problem.kv_shape(), 1), tensor(problem.kv_shape(), 2));
    let operands = quantize(&problem, &q, &k, &v).unwrap();
    let (pages, block_table) = pages(&problem, &operands);
    let cache = HostPagedKv {
        pages: &*pages,
        v4_pages: 0,
        block_table: &*block_table,
        table_stride: 2,
        seqlens_kv: &[n as u32],
    };
    // K's offset meets Q as it was before it was quantized (`q_bias`); what is left of K meets the codes.
    let (queries, offset) = (q.dense_f64(), &operands.k.offset);
    let (q, k, v) = (
        reference::dequantize_q(&operands.q).unwrap(),
        reference::dequantize_k(&operands.k).unwrap(),
        reference::dequantize_v(&operands.v).unwrap(),
    );
    let (cap, slopes) = (3.0_f32, [0.05_f32, 0.4]);
    let decode = DecodeProblem { seqlen_q: 2, softcap: Some(cap), alibi: true, ..DecodeProblem::new(1, 2, 1, n, d) };
    let heads = DecodeHeads { alibi_slopes: Some(&slopes[..]), sinks: None };
    let got = decode.on_cpu(&operands.q, &cache, &heads).unwrap();
    for (head, token) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let beside = n - 2 + token;
        let row = head * 2 + token;
        let score = |j: usize| {
            let product = |i: usize| {
                let [q, k, offset] = [q[row * d + i], k[j * d + i], offset[i]].map(f64::from);
                q * (k - offset) + queries[row * d + i] * offset
            };
            let z = (0..d).map(product).sum::<f64>() / (d as f64).sqrt();
            let cap = f64::from(cap);
            cap * (z / cap).tanh() - f64::from(slopes[head]) * (beside - j) as f64
        };
        let weights: Vec<f64> = (0..=beside).map(|j| score(j).exp()).collect();
        let sum: f64 = weights.iter().sum();
        assert!((got.lse[row] - sum.ln()).abs() < 1e-4, "{} {}", got.lse[row], sum.ln());
        for i in 0..d {
            let o: f64 = weights.iter().enumerate().map(|(j, w)| w * f64::from(v[j * d + i])).sum::<f64>() / sum;
            assert!((got.o[row * d + i] - o).abs() < 1e-2, "{} {o}", got.o[row * d + i]);
        }
    }
}

#[test]
fn merged_parts_are_the_whole() {
    let problem = AttentionProblem::new(1, 2, 2, 3, 256, 32);
    let (q, k, v) = (tensor(problem.q_shape(), 0), tensor(problem.kv_shape(), 1), tensor(problem.kv_shape(), 2));
    let whole = exact(&problem, &q, &k, &v).unwrap();
    let part = |range: std::ops::Range<usize>| {
        let part = AttentionProblem { seqlen_kv: range.len(), ..problem };
        let cut = |x: &HostTensor| {
            let layout = TensorLayout::bhnd(part.kv_shape());
            HostTensor::from_fn(DType::F32, layout, |b, h, n, d| x.get(b, h, n + range.start, d)).unwrap()
        };
        let exact = exact(&part, &q, &cut(&k), &cut(&v)).unwrap();
        let floats = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<_>>();
        (floats(exact.o), floats(exact.lse))
    };
    let parts = [part(0..100), part(100..101), part(101..256)];
    let empty = (vec![f32::NAN; parts[0].0.len()], vec![f32::NEG_INFINITY; parts[0].1.len()]);
    let states: Vec<HostState<'_>> = parts.iter().chain([&empty]).map(|(o, lse)| HostState { o, lse }).collect();
    let merged = reference::merge(problem.q_shape(), &states, None).unwrap();
    assert!(compare(&merged.o, &whole.o).max_abs < 1e-6);
    assert!(merged.lse.iter().zip(&whole.lse).all(|(a, b)| (a - b).abs() < 1e-6));
    assert!(reference::merge(problem.q_shape(), &[], None).is_err());
    assert!(reference::merge(problem.q_shape(), &[HostState { o: &[], lse: &[] }], None).is_err());
}

/// Slopes and scales of a page that no model has, at the ends of what a float32 holds, and queries of another scheme: numbers of some kind, or a sentence.
#[test]
fn what_no_model_has_gives_no_panic() {
    let (d, n) = (32, 200);
    let problem = AttentionProblem::new(1, 2, 1, 2, n, d).with_causal(true);
    let (q, k, v) = (tensor(problem.q_shape(), 0), tensor(problem.kv_shape(), 1), tensor(problem.kv_shape(), 2));
    let operands = quantize(&problem, &q, &k, &v).unwrap();
    let (good, block_table) = pages(&problem, &operands);
    let decode = DecodeProblem { seqlen_q: 2, alibi: true, ..DecodeProblem::new(1, 2, 1, n, d) };
    let run = |pages: &[u8], q: &HostQ, slope: f32| {
        let seqlens_kv: &[u32] = &[n as u32];
        let cache = HostPagedKv { pages, v4_pages: 0, block_table: &*block_table, table_stride: 2, seqlens_kv };
        decode.on_cpu(q, &cache, &DecodeHeads { alibi_slopes: Some(&[slope, -slope][..]), sinks: None })
    };
    for slope in [1e38, f32::MAX, f32::INFINITY, f32::NAN] {
        assert_eq!(run(&good, &operands.q, slope).unwrap().o.len(), 4 * d);
    }
    for byte in [0, 0x7f, 0x80, 0xff] {
        assert_eq!(run(&vec![byte; good.len()], &operands.q, 0.5).unwrap().lse.len(), 4);
    }
    let paper = reference::quantize_q(Scheme::Paper, &q, None).unwrap();
    let refused = run(&good, &paper, 0.5).unwrap_err();
    assert_eq!(refused, Error::OperandScheme { name: "q", given: Scheme::Paper, planned: Scheme::Default });
}
