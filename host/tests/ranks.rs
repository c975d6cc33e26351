//! Attention over simulated ranks on the CPU, against one device and against float64.

use int_flash_attention::ranks::{
    Communicator, Host, Message, RanksDecode, RanksError, RingProblem, Simulated, UlyssesProblem,
};
use int_flash_attention::reference::{self, Int8, exact_bounds, first_excess, int8, quantize};
use int_flash_attention::{
    AttentionProblem, CacheShape, DType, DecodeHeads, DecodeProblem, Error, HostCache, HostTables, HostTensor, Result,
    ScoreMod, Shape, TensorLayout, Window,
};
use std::ops::Range;
use std::sync::Mutex;

/// Runs every rank in a thread of its own.
fn on_ranks<T: Send>(count: usize, body: impl Fn(Simulated) -> T + Sync) -> Vec<T> {
    let body = &body;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Simulated::ranks(count).into_iter().map(|rank| scope.spawn(move || body(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Values with a channel that stands out; V has blocks that share a scale and mixed ones.
fn tensor(shape: Shape, seed: usize) -> HostTensor {
    let value = move |b: usize, h: usize, n: usize, d: usize| {
        let x =
            (b * 7919 + h * 104_729 + n * 1_299_709 + d * 15_485_863 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let loud = if seed == 3 && n.is_multiple_of(200) { 4.0 } else { 1.0 };
        let channel = if seed == 2 && d == 3 { 4.0 } else { 0.0 };
        loud * (x as f32 / (1 << 23) as f32 - 1.0) + channel
    };
    HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap()
}

/// These tokens of a tensor, one behind the other.
fn tokens(x: &HostTensor, ranges: &[Range<usize>]) -> HostTensor {
    let numbers: Vec<usize> = ranges.iter().cloned().flatten().collect();
    let shape = Shape { seqlen: numbers.len(), ..x.shape() };
    HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), |b, h, n, d| x.get(b, h, numbers[n], d)).unwrap()
}

/// Ranks' rows where they are in the whole.
fn whole(shape: Shape, ranks: &[(Vec<Range<usize>>, Int8)]) -> Int8 {
    let d = shape.head_dim;
    let mut all = Int8 { o: vec![f64::NAN; shape.elements()], lse: vec![f64::NAN; shape.rows()] };
    for (ranges, own) in ranks {
        let numbers: Vec<usize> = ranges.iter().cloned().flatten().collect();
        for head in 0..shape.batch * shape.heads {
            for (row, token) in numbers.iter().enumerate() {
                let (from, to) = (head * numbers.len() + row, head * shape.seqlen + token);
                all.lse[to] = own.lse[from];
                all.o[to * d..][..d].copy_from_slice(&own.o[from * d..][..d]);
            }
        }
    }
    all
}

/// How far a merged row may be from the sums of one pass. Each state's output is rounded to float32, by `2^-24` of the largest value; its log-sum-exp
/// too, by `2^-24 |lse|`, which is a relative error of its weight, and moves the mean of the states by at most twice that share of the largest value.
fn merged_bounds(one: &Int8, states: usize, largest: f64, d: usize) -> [Vec<f64>; 2] {
    let unit = states as f64 * (-24_f64).exp2();
    let of_row = |lse: &f64| unit * (2.0 + 4.0 * lse.abs()) * largest;
    let o = one.lse.iter().flat_map(|lse| std::iter::repeat_n(of_row(lse), d)).collect();
    [o, one.lse.iter().map(|lse| unit * (2.0 + 2.0 * lse.abs())).collect()]
}

const SHAPES: [(usize, usize); 5] = [(2, 300), (2, 1000), (3, 900), (4, 1100), (8, 2100)];

const WINDOWS: [Window; 6] = [
    Window::CAUSAL,
    Window::FULL,
    Window { left: Some(150), right: Some(0) },
    Window { left: Some(400), right: Some(90) },
    Window { left: None, right: Some(70) },
    Window { left: Some(30), right: None },
];

fn largest(v: &HostTensor) -> f64 {
    // A step of a code more, as the codes of V have.
    1.01 * v.dense_f64().iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))
}

fn ring_agrees(attention: AttentionProblem, ranks: usize) {
    let ring = RingProblem { attention, ranks };
    let (q, k, v) = (tensor(attention.q_shape(), 1), tensor(attention.kv_shape(), 2), tensor(attention.v_shape(), 3));
    let parts = on_ranks(ranks, |rank| {
        let chunks = ring.chunks(rank.rank());
        let [q, k, v] = [&q, &k, &v].map(|x| tokens(x, &chunks));
        (chunks, ring.on_cpu(&rank, &q, &k, &v).unwrap())
    });
    let got = whole(attention.o_shape(), &parts);
    let one = int8(&attention, &quantize(&attention, &q, &k, &v).unwrap()).unwrap();
    let states = (0..ranks).map(|rank| ring.steps(rank).iter().map(|step| step.pairs.len()).sum()).max().unwrap();
    let [o, lse] = merged_bounds(&one, states, largest(&v), attention.value_dim());
    assert_eq!(first_excess(&got.o, &one.o, &o), None, "{ring:?}");
    assert_eq!(first_excess(&got.lse, &one.lse, &lse), None, "{ring:?}");
    if attention.seqlen_kv > 1000 {
        return;
    }
    let (exact, bounds) = exact_bounds(&attention, &q, &k, &v, DType::F32).unwrap();
    let sum = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    assert_eq!(first_excess(&got.o, &exact.o, &sum(&bounds.o, &o)), None, "float64: {ring:?}");
    assert_eq!(first_excess(&got.lse, &exact.lse, &sum(&bounds.lse, &lse)), None, "float64: {ring:?}");
}

/// 2, 3, 4 and 8 ranks, lengths that divide by nothing, windows that end in the middle of chunks, grouped heads.
#[test]
fn ring_attention_is_one_devices_but_for_the_merge() {
    for (i, (ranks, tokens)) in SHAPES.into_iter().enumerate() {
        for (j, window) in WINDOWS.into_iter().enumerate().filter(|(j, _)| *j == 0 || (i + j) % 2 == 1) {
            let (batch, heads_kv) = if (i + j) % 3 == 0 { (2, 1) } else { (1, 1 + j % 2) };
            ring_agrees(AttentionProblem::new(batch, 2, heads_kv, tokens, tokens, 32).with_window(window), ranks);
        }
    }
}

#[test]
fn ring_attention_has_a_softcap_and_wider_heads_of_v() {
    let causal = AttentionProblem::new(1, 2, 1, 700, 700, 64).with_causal(true);
    ring_agrees(causal.with_score_mod(ScoreMod { softcap: Some(5.0), ..ScoreMod::NONE }), 2);
    ring_agrees(AttentionProblem { head_dim: 192, ..causal }.with_head_dim_v(128), 2);
    ring_agrees(AttentionProblem { head_dim: 56, ..causal }.with_head_dim_v(64).with_softmax_scale(0.3), 3);
}

/// Nothing is merged: the bits are one device's.
#[test]
fn ulysses_is_one_devices_bit_for_bit() {
    for (ranks, tokens_of_all, heads_q, heads_kv) in [(2, 300, 4, 2), (3, 1000, 6, 3), (4, 700, 8, 2), (8, 1100, 8, 1)]
    {
        for (i, window) in WINDOWS.into_iter().enumerate().filter(|(i, _)| (i + ranks) % 2 == 0) {
            let batch = 1 + i % 2;
            let attention = AttentionProblem::new(batch, heads_q, heads_kv, tokens_of_all, tokens_of_all, 32);
            let ulysses = UlyssesProblem { attention: attention.with_window(window), ranks };
            let attention = ulysses.attention;
            let (q, k, v) =
                (tensor(attention.q_shape(), 1), tensor(attention.kv_shape(), 2), tensor(attention.v_shape(), 3));
            let parts = on_ranks(ranks, |rank| {
                let own = vec![ulysses.tokens(rank.rank())];
                let [q, k, v] = [&q, &k, &v].map(|x| tokens(x, &own));
                let result = ulysses.on_cpu(&rank, &q, &k, &v).unwrap();
                (own, result)
            });
            let one = int8(&attention, &quantize(&attention, &q, &k, &v).unwrap()).unwrap();
            assert_eq!(whole(attention.o_shape(), &parts), one, "{ulysses:?}");
        }
    }
}

/// Chunks are quantized to the bytes that the whole has there, where first tokens are unlike the others in everything that they decide.
#[test]
fn chunks_have_the_bytes_of_the_whole() {
    let shape = Shape::new(2, 2, 700, 32).unwrap();
    let k = tensor(shape, 2);
    let value = |b: usize, h: usize, n: usize, d: usize| {
        // A unit that is not 1; first tokens of a later block that would make a first block mixed.
        let loud = if n.is_multiple_of(128) { 1.0 } else { 5.0 };
        1e9 * loud * ((b + 2 * h + 3 * n + 5 * d) as f32).sin()
    };
    let v = HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap();
    let scheme = int_flash_attention::Scheme::Default;
    let (of_k, of_v) = (reference::quantize_k(scheme, &k).unwrap(), reference::quantize_v(scheme, &v).unwrap());
    assert!(of_v.unit.iter().all(|&unit| unit != 1.0), "{:?}", of_v.unit);
    for range in [128..700, 256..512, 640..700] {
        let chunk = [range.clone()];
        let on_k = reference::quantize_k_on(&tokens(&k, &chunk), &of_k.offset).unwrap();
        let on_v = reference::quantize_v_on(&tokens(&v, &chunk), &of_v.unit).unwrap();
        let (first, count) = (range.start / 128, range.len().div_ceil(128));
        for head in 0..4 {
            let (part, whole) = (head * count..(head + 1) * count, head * 6 + first..head * 6 + first + count);
            let times = |blocks: &Range<usize>, size: usize| blocks.start * size..blocks.end * size;
            let bits = |x: &[f32], blocks: &Range<usize>, size| -> Vec<u32> {
                x[times(blocks, size)].iter().map(|x| x.to_bits()).collect()
            };
            assert_eq!(on_k.data[times(&part, 4096)], of_k.data[times(&whole, 4096)]);
            assert_eq!(on_v.data[times(&part, 4096)], of_v.data[times(&whole, 4096)]);
            for (on, of, size) in [
                (&on_k.scale, &of_k.scale, 128),
                (&on_k.block_scale, &of_k.block_scale, 1),
                (&on_v.scale, &of_v.scale, 128),
                (&on_v.block_scale, &of_v.block_scale, 1),
            ] {
                assert_eq!(bits(on, &part, size), bits(of, &whole, size));
            }
        }
        assert_eq!((on_k.offset, on_v.unit), (of_k.offset.clone(), of_v.unit.clone()));
    }
    let short = reference::quantize_k_on(&k, &of_k.offset[1..]);
    assert!(matches!(short, Err(Error::Length { name: "k_offset", .. })));
}

/// A cache of these tokens of each sequence, which begin with whole pages.
fn cache(k: &HostTensor, v: &HostTensor, ranges: &[Range<usize>]) -> (HostCache, HostTables) {
    let Shape { heads, head_dim, .. } = k.shape();
    let most = ranges.iter().map(|range| range.len().div_ceil(128)).max().unwrap().max(1);
    let mut tables = HostTables::contiguous(ranges.len(), most);
    let mut cache = HostCache::alloc(CacheShape::new(ranges.len() * most, heads, head_dim).unwrap()).unwrap();
    for (sequence, range) in ranges.iter().enumerate().filter(|(_, range)| !range.is_empty()) {
        let mut new = vec![0; ranges.len()];
        new[sequence] = range.len();
        let slots = tables.extend(&new).unwrap();
        let of_sequence = |x: &HostTensor| {
            let shape = Shape { batch: 1, seqlen: range.len(), ..x.shape() };
            let value = |_, h, n, d| x.get(sequence, h, range.start + n, d);
            HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap()
        };
        cache.append(&of_sequence(k), &of_sequence(v), &slots).unwrap();
    }
    (cache, tables)
}

/// Caches in parts of whole pages, the last with a tail; ranks that have nothing of a sequence; several new tokens; sinks.
#[test]
fn decode_over_ranks_is_one_devices_but_for_the_merge() {
    for (ranks, new, sinks) in [(2, 1, false), (3, 3, true), (4, 1, true), (8, 2, false)] {
        let lengths = [1100, 300];
        let problem = DecodeProblem {
            seqlen_q: new,
            sinks,
            softcap: sinks.then_some(8.0),
            ..DecodeProblem::new(2, 4, 2, 1152, 64)
        };
        let shape = |seqlen, heads| Shape::new(2, heads, seqlen, 64).unwrap();
        let (q, k, v) = (tensor(shape(new, 4), 1), tensor(shape(1100, 2), 2), tensor(shape(1100, 2), 3));
        let logits = [0.5, -3.0, 2.0, f32::NEG_INFINITY];
        let logits = sinks.then_some(&logits[..]);
        let (all, tables) = cache(&k, &v, &lengths.map(|length| 0..length));
        let of_all = all.quantize_q(&q).unwrap();
        let heads = DecodeHeads { alibi_slopes: None, sinks: logits };
        let one = problem.on_cpu(&of_all, &all.sequences(&tables).unwrap(), &heads).unwrap();
        let plan = RanksDecode { decode: problem, ranks };
        let results = on_ranks(ranks, |rank| {
            // Parts that grow: the last rank has the tail, of the short sequence nothing but that and perhaps a page.
            let own = lengths.map(|length: usize| {
                let pages = (length - new) / 128;
                let at = |rank: usize| if rank == ranks { length } else { pages * rank / ranks * 128 };
                at(rank.rank())..at(rank.rank() + 1)
            });
            let (cache, tables) = cache(&k, &v, &own);
            let q = cache.quantize_q(&q).unwrap();
            let view = cache.sequences(&tables).unwrap();
            let own =
                RanksDecode { decode: DecodeProblem { max_seqlen_kv: tables.max_blocks * 128, ..problem }, ..plan };
            own.on_cpu(&rank, &q, &view, logits).unwrap()
        });
        let [o, lse] = merged_bounds(&one, ranks, largest(&v), 64);
        for result in &results {
            assert_eq!(first_excess(&result.o, &one.o, &o), None, "{plan:?}");
            assert_eq!(first_excess(&result.lse, &one.lse, &lse), None, "{plan:?}");
            assert_eq!(result, &results[0], "all ranks have the same bits");
        }
    }
}

#[test]
fn what_ranks_cannot_do_is_refused() {
    let decode = |problem, ranks| RanksDecode { decode: problem, ranks }.check().unwrap_err().to_string();
    let problem = DecodeProblem::new(1, 2, 1, 500, 64);
    assert!(decode(problem, 0).contains("at least one"));
    assert!(decode(DecodeProblem { alibi: true, ..problem }, 2).contains("ALiBi"));
    assert!(
        decode(DecodeProblem { window: Window { left: Some(9), right: Some(0) }, ..problem }, 2).contains("window")
    );
    // Tensors of another rank, and communicators of other numbers of ranks, before anything is sent.
    let attention = AttentionProblem::new(1, 2, 1, 700, 700, 32).with_causal(true);
    let ring = RingProblem { attention, ranks: 2 };
    let x = |rank| (tensor(ring.q_shape(rank), 1), tensor(ring.kv_shape(rank), 2));
    let [first, _second] = <[_; 2]>::try_from(Simulated::ranks(2)).unwrap();
    let ((q, _), (_, kv)) = (x(0), x(1));
    assert!(matches!(ring.on_cpu(&first, &q, &kv, &kv), Err(Error::ShapeMismatch { name: "k", .. })));
    let alone = Simulated::ranks(1);
    let given = RingProblem { ranks: 2, ..ring }.on_cpu(&alone[0], &q, &kv, &kv);
    assert_eq!(given, Err(RanksError::Ranks { given: 1, planned: 2 }.into()));
}

/// Fields are public, and ranks are numbers that anyone may name: what there is not has nothing.
#[test]
fn ranks_and_problems_built_by_hand_do_not_panic() {
    for (tokens, ranks) in
        [(0, 0), (0, 3), (700, 0), (700, 2), (700, usize::MAX), (usize::MAX, 2), (usize::MAX, usize::MAX)]
    {
        for window in [Window::CAUSAL, Window::FULL, Window { left: Some(usize::MAX), right: Some(3) }] {
            let attention = AttentionProblem::new(1, 4, 2, tokens, tokens, 32).with_window(window);
            let (ring, ulysses) = (RingProblem { attention, ranks }, UlyssesProblem { attention, ranks });
            let decode = RanksDecode { decode: DecodeProblem::new(1, 4, 2, tokens, 32), ranks };
            let fine = (tokens, ranks) == (700, 2);
            let check = [ring.check(), ulysses.check()];
            assert!(check.iter().all(|check| check.is_ok() == fine), "{tokens} {ranks} {window}: {check:?}");
            for rank in [0, 1, 2, ranks.wrapping_sub(1), ranks, usize::MAX] {
                let there = fine && rank < 2;
                if ranks <= 3 {
                    assert_eq!(ring.parts(rank).is_empty(), !there && (rank >= ranks || tokens == 0), "{rank}");
                    let _ = ring.steps(rank);
                }
                let chunks = ring.chunks(rank);
                assert!(chunks.iter().all(|chunk| chunk.start < chunk.end && chunk.end <= tokens), "{chunks:?}");
                assert!(rank < ranks || chunks.is_empty() && ulysses.tokens(rank).is_empty(), "{rank} of {ranks}");
                assert!(rank < ranks || ulysses.heads_q(rank).is_empty() && ulysses.heads_kv(rank).is_empty());
                let _ = (ring.q_shape(rank), ring.o_shape(rank), ulysses.o_shape(rank), decode.of_rank(rank));
                let _ = (ulysses.of_heads(rank), ulysses.of_tokens(rank));
            }
        }
    }
}

/// A communicator that says that it is a rank that there is not.
#[test]
fn a_rank_that_there_is_not_is_refused() {
    struct Says(usize);
    impl Communicator<Host> for Says {
        fn rank(&self) -> usize {
            self.0
        }
        fn ranks(&self) -> usize {
            2
        }
        fn exchange(&self, _: (), _: &[Message<&[u8]>], _: &mut [Message<&mut [u8]>]) -> Result<()> {
            Ok(())
        }
    }
    let attention = AttentionProblem::new(1, 2, 1, 700, 700, 32);
    let (ring, ulysses) = (RingProblem { attention, ranks: 2 }, UlyssesProblem { attention, ranks: 2 });
    let (q, kv) = (tensor(ring.q_shape(0), 1), tensor(ring.kv_shape(0), 2));
    let cache = HostCache::alloc(CacheShape::new(1, 1, 32).unwrap()).unwrap();
    let tables = HostTables::contiguous(1, 1);
    let decode = RanksDecode { decode: DecodeProblem::new(1, 2, 1, 128, 32), ranks: 2 };
    let of_decode = cache.quantize_q(&tensor(decode.decode.q_shape(), 1)).unwrap();
    for given in [2, 5, usize::MAX] {
        let refused = Err(RanksError::NoRank { given, ranks: 2 }.into());
        assert_eq!(ring.on_cpu(&Says(given), &q, &kv, &kv), refused);
        assert_eq!(ulysses.on_cpu(&Says(given), &q, &kv, &kv), refused);
        let pages = cache.sequences(&tables).unwrap();
        assert_eq!(decode.on_cpu(&Says(given), &of_decode, &pages, None), refused);
    }
}

/// A rank that ends early is an error of the others, and not a wait without end.
#[test]
fn messages_are_matched_and_checked() {
    let results: Mutex<Vec<Result<()>>> = Mutex::default();
    on_ranks(2, |rank| {
        let mut room = [0; 3];
        let (own, other) = (rank.rank(), 1 - rank.rank());
        let sends = [Message { peer: other, bytes: &[1, 2, 3][..] }, Message { peer: own, bytes: &[7][..] }];
        let mut to_self = [0];
        let mut receives =
            [Message { peer: own, bytes: &mut to_self[..] }, Message { peer: other, bytes: &mut room[..] }];
        rank.exchange((), &sends, &mut receives).unwrap();
        assert_eq!((room, to_self), ([1, 2, 3], [7]));
        let stray = rank.exchange((), &[Message { peer: 2, bytes: &[][..] }], &mut []);
        assert_eq!(stray, Err(RanksError::Peer { given: 2, ranks: 2 }.into()));
        if own == 0 {
            rank.exchange((), &[Message { peer: 1, bytes: &[1][..] }], &mut []).unwrap();
            return;
        }
        for _ in 0..2 {
            let result = rank.exchange((), &[], &mut [Message { peer: 0, bytes: &mut room[..] }]);
            results.lock().unwrap().push(result);
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results[0], Err(RanksError::Unlike { from: 0, given: 1, expected: 3 }.into()));
    assert_eq!(results[1], Err(RanksError::Gone { rank: 0 }.into()));
}
