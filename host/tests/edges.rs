//! What decode, the cache and the tensors that change scores are refused for, at the edge: each size and length once as it must be, and
//! once a step beyond.

use int_flash_attention::{
    Alibi, AttentionProblem, BiasLayout, CacheShape, DType, DecodeHeads, DecodeProblem, Error, HostCache, HostData,
    HostPagedKv, HostTables, HostTensor, MaskKind, MaskLayout, PrefillProblem, Scheme, ScoreMod, ScoreTensors, Scored,
    Shape, TensorLayout, reference,
};

fn tensor(dtype: DType, sizes: [usize; 4]) -> HostTensor {
    let [batch, heads, seqlen, head_dim] = sizes;
    let layout = TensorLayout::bhnd(Shape::new(batch, heads, seqlen, head_dim).unwrap());
    HostTensor::from_fn(dtype, layout, |_, h, n, d| ((h * 7 + n * 3 + d) % 5) as f32 - 2.0).unwrap()
}

#[test]
fn a_decode_has_up_to_eight_new_tokens_and_2_to_the_31_units() {
    let good = DecodeProblem::new(1, 1, 1, 128, 32);
    assert_eq!(DecodeProblem { seqlen_q: 8, ..good }.check(), Ok(()));
    assert!(matches!(DecodeProblem { seqlen_q: 9, ..good }.check(), Err(Error::TooLarge { name: "seqlen_q", .. })));
    // Sequences times heads times blocks of keys.
    let units = |batch, heads, blocks: usize| DecodeProblem::new(batch, heads, heads, 128 * blocks, 32).check();
    assert_eq!(units(32_768, 32_767, 2), Ok(()));
    assert!(matches!(units(32_768, 32_768, 2), Err(Error::TooLarge { name: "the work of a decode", .. })));
    // As attention of more tokens has it: beyond, a score is less than what its kernels lose of the cap.
    for softcap in [1.0 / 16384.0, 16384.0] {
        assert_eq!(DecodeProblem { softcap: Some(softcap), ..good }.check(), Ok(()));
    }
    for softcap in [-1.0, 0.0, f32::MIN_POSITIVE, 16385.0, f32::MAX, f32::INFINITY, f32::NAN] {
        let refused = DecodeProblem { softcap: Some(softcap), ..good }.check();
        assert!(matches!(refused, Err(Error::Softcap { .. })), "{softcap}");
    }
}

/// Kernels have strides of tables in 32 bits.
#[test]
fn rows_of_tables_are_counted_with_32_bits() {
    let cache = HostCache::alloc(CacheShape::new(1, 1, 32).unwrap()).unwrap();
    let q = cache.quantize_q(&tensor(DType::F32, [1, 1, 1, 32])).unwrap();
    let of = |table_stride| HostPagedKv {
        pages: &*cache.pool,
        v4_pages: 0,
        block_table: &[0],
        table_stride,
        seqlens_kv: &[0],
    };
    let (decode, prefill) = (DecodeProblem::new(1, 1, 1, 128, 32), PrefillProblem::new(1, 1, 1, 1, 128, 32));
    let most = u32::MAX as usize;
    for (stride, fits) in [(1, true), (most, true), (most + 1, false), (usize::MAX, false)] {
        let results = [
            decode.on_cpu(&q, &of(stride), &DecodeHeads::default()).map(|_| ()),
            prefill.on_cpu(&q, None, &of(stride), &ScoreTensors::default()).map(|_| ()),
        ];
        for result in results {
            let refused = matches!(result, Err(Error::TooLarge { name: "a row of block_table", .. }));
            assert_eq!((result.is_ok(), refused), (fits, !fits), "{stride}: {result:?}");
        }
    }
}

/// Tensors that pose as more than memory holds.
#[test]
fn what_a_cache_has_no_memory_for_is_an_error() {
    let cache = HostCache::alloc(CacheShape::new(1, 1, 32).unwrap()).unwrap();
    let shape = Shape::new(1 << 24, 1 << 10, 1 << 20, 32).unwrap();
    let posed = HostTensor::new(vec![1.0_f32; 32], TensorLayout::strided(shape, [0; 3]).unwrap()).unwrap();
    let refused = cache.quantize_q(&posed).map(|_| ());
    assert!(matches!(refused, Err(Error::Memory { .. })), "{refused:?}");
    for refused in [
        reference::quantize_q(Scheme::Default, &posed, None).map(|_| ()),
        reference::quantize_k(Scheme::Default, &posed).map(|_| ()),
        reference::quantize_v(Scheme::Default, &posed).map(|_| ()),
        reference::quantize_v(Scheme::Paper, &posed).map(|_| ()),
    ] {
        assert!(matches!(refused, Err(Error::Memory { .. })), "{refused:?}");
    }
}

#[test]
fn sequences_longer_than_32_bits_count_are_refused() {
    let tables = |max_blocks: usize, length| HostTables {
        batch: 1,
        max_blocks,
        block_table: (0..max_blocks as u32).collect(),
        seqlens_kv: vec![length],
    };
    for (new, length) in [(usize::MAX, 0), (1 << 32, 0), (1, u32::MAX)] {
        let refused = tables(1 << 25, length).extend(&[new]);
        assert!(matches!(refused, Err(Error::SequenceLength { sequence: 0, .. })), "{new}");
    }
    assert!(matches!(tables(1, 128).extend(&[1]), Err(Error::SequenceLength { given: 129, max: 128, .. })));
}

#[test]
fn arrays_of_a_decode_have_their_lengths() {
    let problem = DecodeProblem { alibi: true, sinks: true, ..DecodeProblem::new(2, 2, 1, 200, 32) };
    let shape = CacheShape::new(3, 1, 32).unwrap();
    let cache = HostCache::alloc(shape).unwrap();
    let q = cache.quantize_q(&tensor(DType::F32, [2, 2, 1, 32])).unwrap();
    let (table, lengths, of_heads) = ([0, 1, 9, 2, 0], [200, 130], [0.5_f32, 0.25]);
    let run = |table: &[u32], table_stride, lengths: &[u32], heads: [Option<&[f32]>; 2]| {
        let cache =
            HostPagedKv { pages: &*cache.pool, v4_pages: 0, block_table: table, table_stride, seqlens_kv: lengths };
        problem.on_cpu(&q, &cache, &DecodeHeads { alibi_slopes: heads[0], sinks: heads[1] }).map(|_| ())
    };
    let both = [Some(&of_heads[..]); 2];
    // Behind the last sequence's blocks there need be nothing.
    assert_eq!(run(&table, 3, &lengths, both), Ok(()));
    let length = |refused: Result<(), Error>, of: &str| {
        assert!(matches!(refused, Err(Error::Length { name, .. }) if name == of), "{refused:?}");
    };
    length(run(&table[..4], 3, &lengths, both), "block_table");
    length(run(&table, 1, &lengths, both), "a row of block_table");
    length(run(&table, 3, &lengths[..1], both), "seqlens_kv");
    length(run(&table, 3, &lengths, [Some(&of_heads[..1]), both[1]]), "alibi_slopes");
    length(run(&table, 3, &lengths, [both[0], Some(&of_heads[..1])]), "sinks");
    for (name, heads) in [("alibi_slopes", [None, both[1]]), ("sinks", [both[0], None])] {
        let refused = run(&table, 3, &lengths, heads);
        assert!(matches!(refused, Err(Error::Optional { name: of, .. }) if of == name), "{refused:?}");
    }
}

#[test]
fn a_cache_has_up_to_2_to_the_25_pages_less_one_and_as_many_heads_as_fit() {
    assert!(CacheShape::new((1 << 25) - 1, 1, 32).is_ok());
    assert!(matches!(CacheShape::new(1 << 25, 1, 32), Err(Error::TooLarge { name: "the number of pages", .. })));
    assert!(CacheShape::new(1, (1 << 24) - 1, 32).is_ok());
    assert!(matches!(CacheShape::new(1, 1 << 24, 32), Err(Error::TooLarge { name: "heads_kv", .. })));
    let shape = CacheShape::new(4, 1, 32).unwrap();
    assert_eq!((shape.check_slots(&[511, -1, 0, -1]), shape.slots()), (Ok(()), 512));
    assert!(matches!(shape.check_slots(&[512]), Err(Error::Slot { token: 0, given: 512, slots: 512 })));
    assert!(matches!(shape.check_slots(&[-2]), Err(Error::Slot { .. })));
    let twice = shape.check_slots(&[5, 7, 5]);
    assert!(matches!(twice, Err(Error::SlotTwice { slot: 5, first: 0, second: 2 })), "{twice:?}");
}

#[test]
fn arrays_of_a_cache_have_their_lengths_and_tokens_its_heads_and_one_type() {
    let shape = CacheShape::new(2, 2, 32).unwrap();
    let good = HostCache { k_offset: Some(vec![0.0; 64]), ..HostCache::alloc(shape).unwrap() };
    assert_eq!(good.check(), Ok(()));
    for channels in [63, 65] {
        let wrong = HostCache { k_offset: Some(vec![0.0; channels]), ..good.clone() };
        assert!(matches!(wrong.check(), Err(Error::Length { name: "k_offset", expected: 64, .. })), "{channels}");
    }
    let mut longer = good.clone();
    longer.pool.push(0);
    assert!(matches!(longer.check(), Err(Error::Length { name: "the pool", .. })));
    let [k, v] = [DType::F16, DType::BF16].map(|dtype| tensor(dtype, [1, 2, 3, 32]));
    let refused = good.clone().append(&k, &v, &[0, 1, 2]);
    assert!(matches!(refused, Err(Error::DTypeMismatch { name: "v", .. })), "{refused:?}");
    assert!(good.clone().append(&k, &k, &[0, 1, 2]).is_ok());
    assert!(matches!(good.quantize_q(&tensor(DType::F32, [1, 3, 1, 32])), Err(Error::HeadGroups { .. })));
    assert!(matches!(good.quantize_q(&tensor(DType::F32, [1, 4, 1, 64])), Err(Error::ShapeMismatch { name: "q", .. })));
    assert!(good.quantize_q(&tensor(DType::F32, [1, 4, 1, 32])).is_ok());
}

#[test]
fn sequences_and_softcaps_end_where_they_should() {
    const LONGEST: usize = (1 << 31) - 256;
    let problem = |queries, keys| AttentionProblem::new(1, 1, 1, queries, keys, 32);
    for (given, name) in [(problem(LONGEST, 1), "seqlen_q"), (problem(1, LONGEST), "seqlen_kv")] {
        assert_eq!(given.check(), Ok(()));
        let beyond = if name == "seqlen_q" { problem(LONGEST + 1, 1) } else { problem(1, LONGEST + 1) };
        assert!(matches!(beyond.check(), Err(Error::TooLarge { name: of, .. }) if of == name));
    }
    let softcap = |cap: f32| problem(1, 1).with_score_mod(ScoreMod { softcap: Some(cap), ..ScoreMod::NONE }).check();
    let least = 1.0 / 16384.0;
    assert_eq!([softcap(least), softcap(16384.0)], [Ok(()), Ok(())]);
    for cap in [f32::from_bits(least.to_bits() - 1), f32::from_bits(16384_f32.to_bits() + 1), f32::NAN, -1.0] {
        assert!(matches!(softcap(cap), Err(Error::Softcap { .. })), "{cap}");
    }
    // The distances of ALiBi are those between any query and any key.
    let alibi = ScoreMod { alibi: Some(Alibi::PerHead), ..ScoreMod::NONE };
    assert_eq!(problem(LONGEST - 5, 5).with_score_mod(alibi).check(), Ok(()));
    let beyond = problem(LONGEST - 5, 6).with_score_mod(alibi).check();
    assert!(matches!(beyond, Err(Error::TooLarge { name: "seqlen_q + seqlen_kv", .. })), "{beyond:?}");
}

#[test]
fn tensors_that_change_scores_are_those_of_the_problem() {
    let problem = AttentionProblem::new(2, 4, 2, 3, 9, 32);
    let dims = [2, 1, 3, 9];
    let bias = BiasLayout::broadcast(DType::F32, dims, &problem).unwrap();
    let mask = MaskLayout::broadcast(MaskKind::Bits, dims, &problem).unwrap();
    let alibi = Some(Alibi::PerSequence);
    let all = ScoreMod { softcap: None, alibi, bias: Some(bias), mask: Some(mask), sinks: true };
    let problem = problem.with_score_mod(all);
    let [q, kv] = [problem.q_shape(), problem.kv_shape()]
        .map(|shape| tensor(DType::F32, [shape.batch, shape.heads, shape.seqlen, shape.head_dim]));
    let operands = reference::quantize(&problem, &q, &kv, &kv).unwrap();
    let (biases, bits) = (HostData::F32(vec![0.0; 54]), [255_u8; 12]);
    let (slopes, sinks) = ([0.5_f32; 8], [0.0_f32; 4]);
    let good = ScoreTensors {
        alibi_slopes: Some(&slopes),
        bias: Some(biases.as_slice()),
        mask: Some(&bits),
        sinks: Some(&sinks),
    };
    let run = |tensors: ScoreTensors<'_>| reference::int8(Scored::new(&problem, tensors), &operands).map(|_| ());
    assert_eq!(run(good), Ok(()));
    let short = HostData::F32(vec![0.0; 53]);
    for (name, tensors) in [
        ("alibi_slopes", ScoreTensors { alibi_slopes: Some(&slopes[..7]), ..good }),
        ("bias", ScoreTensors { bias: Some(short.as_slice()), ..good }),
        ("mask", ScoreTensors { mask: Some(&bits[..11]), ..good }),
        ("sinks", ScoreTensors { sinks: Some(&sinks[..3]), ..good }),
    ] {
        let refused = run(tensors);
        assert!(matches!(refused, Err(Error::Length { name: of, .. }) if of == name), "{refused:?}");
    }
    for (name, tensors) in [
        ("alibi_slopes", ScoreTensors { alibi_slopes: None, ..good }),
        ("bias", ScoreTensors { bias: None, ..good }),
        ("mask", ScoreTensors { mask: None, ..good }),
        ("sinks", ScoreTensors { sinks: None, ..good }),
    ] {
        let refused = run(tensors);
        assert!(matches!(refused, Err(Error::ScoreTensor { name: of, .. }) if of == name), "{refused:?}");
    }
    let plain = problem.with_score_mod(ScoreMod::NONE);
    let unasked = ScoreTensors { sinks: Some(&sinks), ..ScoreTensors::default() };
    let refused = reference::int8(Scored::new(&plain, unasked), &operands);
    assert!(matches!(refused, Err(Error::ScoreTensor { name: "sinks", .. })));
    let other = HostData::F16(vec![half::f16::ZERO; 54]);
    assert!(matches!(
        run(ScoreTensors { bias: Some(other.as_slice()), ..good }),
        Err(Error::DTypeMismatch { name: "bias", .. })
    ));
    for (at, value) in [(0, f32::NAN), (7, f32::INFINITY)] {
        let mut wrong = slopes;
        wrong[at] = value;
        let tensors = ScoreTensors { alibi_slopes: Some(&wrong), ..good };
        let refused = reference::int8(Scored::new(&problem, tensors), &operands);
        assert!(matches!(refused, Err(Error::HeadValue { name: "alibi_slopes", at: of, .. }) if of == at));
    }
}
