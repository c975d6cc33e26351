//! Ranks on the GPUs of one process: what is copied where, what is refused, and that nothing is left.

use crate::{is_other_context, nothing_is_left};
use half::f16;
use int_flash_attention::ranks::{
    Communicator, Message, OnGpu, Peers, RanksDecode, RanksError, RingProblem, UlyssesProblem,
};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, DecodeProblem, DecodeResult, DeviceQ, DeviceRows, DeviceSlice,
    DeviceSliceMut, Error, Gpu, QuantizeLayouts, Result, StreamRef, TensorLayout, ViewPagedKv, Window,
};
use int_flash_attention_kernels::layout::page::page_bytes;
use pretended_driver::{PretendedGpu, Session, begin};

fn gpus(count: usize) -> Vec<Gpu> {
    (0..count).map(|number| Gpu::new(number).unwrap()).collect()
}

/// Runs every rank in a thread of its own.
fn on_ranks<T: Send>(gpus: &[Gpu], body: impl Fn(Peers) -> Result<T> + Sync) -> Vec<Result<T>> {
    let body = &body;
    let ranks = Peers::ranks(gpus).unwrap();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || body(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// An all-to-all between three GPUs: bytes come where they belong, a rank's own too.
#[test]
fn messages_come_where_they_belong() {
    let session = begin(&[PretendedGpu::H200; 3]);
    let gpus = gpus(3);
    let got = on_ranks(&gpus, |rank| {
        let (gpu, own) = (rank.gpu(), rank.rank() as u8);
        let stream = gpu.stream()?;
        let from = gpu.upload(&[10 * own, 10 * own + 1, 10 * own + 2])?;
        let mut to = gpu.alloc::<u8>(3)?;
        for _ in 0..2 {
            let sends: Vec<_> = (0..3)
                .map(|peer| Ok(Message { peer, bytes: from.slice().range(peer, peer + 1)?.into() }))
                .collect::<Result<_>>()?;
            let mut receives = Vec::new();
            for (peer, byte) in [to.slice_mut()].into_iter().flat_map(split) {
                receives.push(Message { peer, bytes: byte.into() });
            }
            rank.exchange((&stream).into(), &sends, &mut receives)?;
        }
        stream.synchronize()?;
        to.to_vec()
    });
    assert_eq!(got, [Ok(vec![0, 10, 20]), Ok(vec![1, 11, 21]), Ok(vec![2, 12, 22])]);
    assert_eq!(session.calls("cuMemcpyPeerAsync"), 2 * 9);
    drop(gpus);
    nothing_is_left(&session);
}

/// The single bytes of three.
fn split(
    bytes: int_flash_attention::DeviceSliceMut<'_, u8>,
) -> Vec<(usize, int_flash_attention::DeviceSliceMut<'_, u8>)> {
    // SAFETY: each byte is in one of them alone.
    (0..3).map(|i| (i, unsafe { int_flash_attention::DeviceSliceMut::from_raw(bytes.ptr() + i as u64, 1) })).collect()
}

/// Memory and streams of another GPU, rooms of another length, ranks that end: errors, of all who took part, and no access.
#[test]
fn what_does_not_belong_together_is_refused() {
    let session = begin(&[PretendedGpu::H200; 2]);
    let gpus = gpus(2);
    let results = on_ranks(&gpus, |rank| {
        let (gpu, other) = (rank.gpu(), &gpus[1 - rank.rank()]);
        let (stream, foreign) = (gpu.stream()?, other.stream()?);
        let (own, theirs) = (gpu.alloc::<u8>(4)?, other.alloc::<u8>(4)?);
        let mut room = gpu.alloc::<u8>(4)?;
        let peer = 1 - rank.rank();
        fn send(peer: usize, bytes: DeviceSlice<'_, u8>) -> [Message<DeviceRows<DeviceSlice<'_, u8>>>; 1] {
            [Message { peer, bytes: bytes.into() }]
        }
        is_other_context(rank.exchange((&foreign).into(), &send(peer, own.slice()), &mut []), "the stream");
        is_other_context(rank.exchange((&stream).into(), &send(peer, theirs.slice()), &mut []), "bytes to be sent");
        let stray = rank.exchange((&stream).into(), &[Message { peer: 2, bytes: own.slice().into() }], &mut []);
        assert_eq!(stray, Err(RanksError::Peer { given: 2, ranks: 2 }.into()));
        gpu.capture(&stream, || {
            let recorded = rank.exchange((&stream).into(), &send(peer, own.slice()), &mut []);
            assert!(matches!(recorded, Err(Error::Recording { .. })), "{recorded:?}");
            Ok(())
        })?;
        // Rank 0 has room for half of what comes.
        let len = if rank.rank() == 0 { 2 } else { 4 };
        let mut receives = [Message { peer, bytes: room.slice_mut().range(0, len)?.into() }];
        let unlike = rank.exchange((&stream).into(), &send(peer, own.slice()), &mut receives);
        if rank.rank() == 0 {
            assert_eq!(unlike, Err(RanksError::Unlike { from: 1, given: 4, expected: 2 }.into()));
            return Ok(());
        }
        // Rank 0 ends, and what it had sent is not there any more, or has come.
        let mut receives = [Message { peer, bytes: room.slice_mut().into() }];
        rank.exchange((&stream).into(), &send(peer, own.slice()), &mut receives)
    });
    assert_eq!(results, [Ok(()), Err(RanksError::Gone { rank: 0 }.into())]);
    drop(gpus);
    nothing_is_left(&session);
}

fn layouts(problem: &RingProblem, rank: usize) -> (QuantizeLayouts, AttentionOutput) {
    let [q, k, v] = [problem.q_shape(rank), problem.kv_shape(rank), problem.v_shape(rank)].map(TensorLayout::bnhd);
    let output = AttentionOutput { layout: TensorLayout::bnhd(problem.o_shape(rank)), dtype: DType::F16, lse: false };
    (QuantizeLayouts { q, k, v, dtype: DType::F16 }, output)
}

/// How often a kernel was launched.
fn launches(session: &Session, kernel: &str) -> usize {
    session.launched().iter().filter(|name| name.contains(kernel)).count()
}

/// Three GPUs launch a ring twice: what the steps say is computed, merged and copied, nothing is allocated, everything is of the GPU it is
/// used on.
#[test]
fn a_ring_does_what_its_steps_say() {
    for window in [Window::CAUSAL, Window { left: Some(200), right: Some(30) }] {
        let session = begin(&[PretendedGpu::H200; 3]);
        let attention = AttentionProblem::new(2, 2, 1, 1000, 1000, 64).with_window(window);
        let ring = RingProblem { attention, ranks: 3 };
        let gpus = gpus(3);
        let made = on_ranks(&gpus, |rank| {
            let (gpu, number) = (rank.gpu().clone(), rank.rank());
            let (layouts, output) = layouts(&ring, number);
            let plan = gpu.plan_ring(&ring, &rank, &layouts, &output)?;
            let [q, k, v] = [layouts.q, layouts.k, layouts.v].map(|layout| gpu.alloc::<f16>(layout.span()).unwrap());
            Ok((plan, [q, k, v], gpu.alloc::<f16>(output.layout.span())?, gpu.stream()?, rank))
        });
        let mut made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
        let allocations = session.calls("cuMemAlloc_v2");
        // The plan of rank 0 with the communicator of rank 2.
        let [first, _, last] = &mut made[..] else { panic!("three ranks") };
        let (plan, [q, k, v], o, stream, _) = first;
        let wrong = plan.launch(stream, &last.4, [(&*q).into(), (&*k).into(), (&*v).into()], o.into());
        assert_eq!(wrong, Err(RanksError::Rank { given: 2, planned: 0 }.into()));
        std::thread::scope(|scope| {
            let threads = made.iter_mut().map(|(plan, [q, k, v], o, stream, rank)| {
                let (q, k, v, rank) = (&*q, &*k, &*v, &*rank);
                scope.spawn(move || {
                    for _ in 0..2 {
                        plan.launch(stream, rank, [q.into(), k.into(), v.into()], (&mut *o).into())?;
                    }
                    stream.synchronize()
                })
            });
            threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        assert_eq!(session.calls("cuMemAlloc_v2"), allocations, "a launch allocates");
        drop(made);
        let all: Vec<_> = (0..3).flat_map(|rank| ring.steps(rank)).collect();
        let pairs: usize = all.iter().map(|step| step.pairs.len()).sum();
        let parts: usize = (0..3).map(|rank| ring.parts(rank).len()).sum();
        let chunks: usize = (0..3).map(|rank| ring.chunks(rank).len()).sum();
        let travels = all.iter().filter(|step| step.receives).count();
        assert_eq!(launches(&session, "attention"), 2 * pairs);
        assert_eq!(launches(&session, "merge_states"), 2 * (pairs - parts));
        // Once more the first block, which the others wait for.
        assert_eq!(launches(&session, "quantize"), 2 * (chunks + parts + 1));
        // The constants of the first chunk to the others, two messages each, and the keys.
        assert_eq!(session.calls("cuMemcpyPeerAsync"), 2 * (2 * (chunks - 1) + travels));
        drop(gpus);
        nothing_is_left(&session);
    }
}

/// A buffer of another GPU ends the launch with an error, and the other ranks' with one too.
#[test]
fn a_ring_refuses_memory_of_another_gpu() {
    let session = begin(&[PretendedGpu::H200; 2]);
    let ring = RingProblem { attention: AttentionProblem::new(1, 2, 1, 300, 300, 64), ranks: 2 };
    let gpus = gpus(2);
    let results = on_ranks(&gpus, |rank| {
        let (gpu, number) = (rank.gpu(), rank.rank());
        let (layouts, output) = layouts(&ring, number);
        let mut plan = gpu.plan_ring(&ring, &rank, &layouts, &output)?;
        // Both have rank 0's keys.
        let [q, k, v] = [(gpu, layouts.q), (&gpus[0], layouts.k), (gpu, layouts.v)]
            .map(|(gpu, layout)| gpu.alloc::<f16>(layout.span()).unwrap());
        let mut o = gpu.alloc::<f16>(output.layout.span())?;
        let stream = gpu.stream()?;
        plan.launch(&stream, &rank, [(&q).into(), (&k).into(), (&v).into()], (&mut o).into())
    });
    assert!(matches!(&results[1], Err(Error::OtherContext { name: "k", .. })), "{results:?}");
    assert_eq!(results[0], Err(RanksError::Gone { rank: 1 }.into()));
    drop(gpus);
    nothing_is_left(&session);
}

#[test]
fn ulysses_and_decode_launch_on_every_gpu() {
    let session = begin(&[PretendedGpu::H200; 2]);
    let gpus = gpus(2);
    let ulysses = UlyssesProblem { attention: AttentionProblem::new(2, 8, 4, 300, 300, 64), ranks: 2 };
    let decode = RanksDecode { decode: DecodeProblem::new(1, 4, 2, 512, 64), ranks: 2 };
    let results = on_ranks(&gpus, |rank| {
        let (gpu, number) = (rank.gpu(), rank.rank());
        let stream = gpu.stream()?;
        let local = ulysses.of_tokens(number);
        let [q, kv, out] = [local.q_shape(), local.kv_shape(), local.o_shape()].map(TensorLayout::bhnd);
        let layouts = QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 };
        let output = AttentionOutput { layout: out, dtype: DType::F16, lse: false };
        let other = AttentionOutput { layout: TensorLayout::bnhd(out.shape()), ..output };
        let refused = gpu.plan_ulysses(&ulysses, &rank, &layouts, &other).map(|_| ());
        assert!(matches!(refused, Err(Error::Ranks(RanksError::Layout { .. }))), "{refused:?}");
        let mut plan = gpu.plan_ulysses(&ulysses, &rank, &layouts, &output)?;
        let [q, k, v] = [q, kv, kv].map(|layout| gpu.alloc::<f16>(layout.span()).unwrap());
        let mut o = gpu.upload(&vec![f16::ONE; out.span()])?;
        plan.launch(&stream, &rank, [(&q).into(), (&k).into(), (&v).into()], (&mut o).into())?;
        // Kernels write nothing here: each element has come from some rank's heads, whose memory is clear.
        assert!(o.to_vec_on(&stream)?.iter().all(|&o| o == f16::ZERO));

        let shape = decode.decode.q_shape();
        let output = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F16, lse: true };
        let mut plan = gpu.plan_decode_over_ranks(&decode, &rank, &output)?;
        let q = DeviceQ::alloc(gpu, &AttentionProblem::new(1, 4, 2, 1, 512, 64))?;
        let (pages, table, lengths) =
            (gpu.alloc::<u8>(4 * page_bytes(2, 64))?, gpu.upload(&[0_u32, 1, 2, 3])?, gpu.upload(&[300_u32])?);
        let cache = ViewPagedKv {
            pages: pages.slice(),
            v4_pages: 0,
            block_table: table.slice(),
            table_stride: 4,
            seqlens_kv: lengths.slice(),
        };
        let (mut o, mut lse) = (gpu.alloc::<f16>(shape.elements())?, gpu.alloc::<f32>(shape.rows())?);
        let result = DecodeResult { o: (&mut o).into(), lse: Some((&mut lse).into()) };
        plan.launch(&stream, &rank, &q.view(), &cache, None, result)?;
        stream.synchronize()
    });
    assert_eq!(results, [Ok(()), Ok(())]);
    // Two groups of heads on each.
    assert_eq!((launches(&session, "attention"), launches(&session, "decode")), (4, 2));
    assert_eq!((launches(&session, "merge_splits"), launches(&session, "merge_states")), (2, 2));
    // Constants; nine arrays of two sequences and two groups on each rank, and the units from the first, to the other rank and to its own heads;
    // outputs back; decode's states. Rows of one head are one piece.
    let (constants, operands, outputs, states) = (2, 2 * (2 * 2 * 2 * 9 + 2 * 2), 2 * (2 * 2 * 2), 2);
    let copies = session.calls("cuMemcpyPeerAsync") + session.calls("cuMemcpy3DPeerAsync");
    assert_eq!(copies, constants + operands + outputs + states);
    // Q's arrays and outputs are of two heads.
    assert_eq!(session.calls("cuMemcpy3DPeerAsync"), 2 * (2 * 2 * 2 * 3) + outputs);
    drop(gpus);
    nothing_is_left(&session);
}

/// Anyone can write a communicator, and it can say anything: a rank that there is not has no place in a plan's memory.
#[test]
fn a_rank_that_there_is_not_is_refused() {
    #[derive(Debug)]
    struct Says(usize);
    impl Communicator<OnGpu> for Says {
        fn rank(&self) -> usize {
            self.0
        }
        fn ranks(&self) -> usize {
            2
        }
        fn exchange(
            &self,
            _: StreamRef<'_>,
            _: &[Message<DeviceRows<DeviceSlice<'_, u8>>>],
            _: &mut [Message<DeviceRows<DeviceSliceMut<'_, u8>>>],
        ) -> Result<()> {
            Ok(())
        }
    }
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let decode = RanksDecode { decode: DecodeProblem::new(1, 4, 2, 512, 64), ranks: 2 };
        let ring = RingProblem { attention: AttentionProblem::new(1, 2, 1, 300, 300, 64), ranks: 2 };
        let ulysses = UlyssesProblem { attention: AttentionProblem::new(1, 4, 2, 300, 300, 64), ranks: 2 };
        let output = |shape| AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F16, lse: false };
        let inputs = layouts(&ring, 0);
        for given in [2, 3, 1 << 20, usize::MAX] {
            let rank = Says(given);
            for refused in [
                gpu.plan_decode_over_ranks(&decode, &rank, &output(decode.decode.q_shape())).map(|_| ()),
                gpu.plan_ring(&ring, &rank, &inputs.0, &inputs.1).map(|_| ()),
                gpu.plan_ulysses(&ulysses, &rank, &inputs.0, &inputs.1).map(|_| ()),
            ] {
                assert_eq!(refused, Err(RanksError::NoRank { given, ranks: 2 }.into()));
            }
        }
        // It may say something else later.
        let mut plan = gpu.plan_decode_over_ranks(&decode, &Says(1), &output(decode.decode.q_shape())).unwrap();
        let q = DeviceQ::alloc(&gpu, &AttentionProblem::new(1, 4, 2, 1, 512, 64)).unwrap();
        let (pages, table) = (gpu.alloc::<u8>(4 * page_bytes(2, 64)).unwrap(), gpu.alloc::<u32>(4).unwrap());
        let mut o = gpu.alloc::<f16>(decode.decode.q_shape().elements()).unwrap();
        let cache = ViewPagedKv {
            pages: pages.slice(),
            v4_pages: 0,
            block_table: table.slice(),
            table_stride: 4,
            seqlens_kv: table.slice(),
        };
        let stream = gpu.stream().unwrap();
        let result = DecodeResult { o: (&mut o).into(), lse: None };
        let refused = plan.launch(&stream, &Says(0), &q.view(), &cache, None, result);
        assert_eq!(refused, Err(RanksError::Rank { given: 0, planned: 1 }.into()));
    }
    nothing_is_left(&session);
}
