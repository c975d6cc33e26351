//! What the library refuses, at the edge: each size, stride and length once as it must be, and once a step beyond.

use int_flash_attention::{
    AttentionProblem, CacheShape, DType, DecodeHeads, DecodeProblem, Device, Error, HostCache, HostPagedKv,
    HostQuantized, HostTensor, Options, PrefillProblem, Scheme, ScoreTensors, SeqLens, Sequences, Shape, TensorLayout,
    attention, reference,
};

fn shape(sizes: [usize; 4]) -> Shape {
    let [batch, heads, seqlen, head_dim] = sizes;
    Shape::new(batch, heads, seqlen, head_dim).unwrap()
}

fn is_disjoint(sizes: [usize; 4], strides: [i64; 3]) -> bool {
    match TensorLayout::strided(shape(sizes), strides).unwrap().check_disjoint() {
        Ok(()) => true,
        Err(Error::Overlap { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

/// The addresses themselves, counted.
fn counts_as_disjoint([batch, heads, seqlen, head_dim]: [usize; 4], strides: [i64; 3]) -> bool {
    let layout = TensorLayout::strided(shape([batch, heads, seqlen, head_dim]), strides).unwrap();
    let mut taken = vec![false; layout.span()];
    let rows = (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..seqlen).map(move |n| (b, h, n))));
    rows.into_iter().all(|(b, h, n)| {
        let start = layout.offset(b, h, n);
        taken[start..start + head_dim].iter_mut().all(|taken| !std::mem::replace(taken, true))
    })
}

/// What is too short is what the sentence speaks of, not the tensors that it goes with.
#[test]
fn short_lists_are_named() {
    let x = HostTensor::from_fn(DType::F16, TensorLayout::bhnd(shape([1, 2, 3, 64])), |_, _, n, _| n as f32).unwrap();
    let mut cache = HostCache::alloc(CacheShape::new(2, 2, 64).unwrap()).unwrap();
    let error = cache.append(&x, &x, &[0, 1]).unwrap_err();
    assert_eq!(error, Error::Length { name: "slots", given: 2, expected: 3 });
    for offsets in [&[][..], &[0]] {
        for (cu_seqlens_q, cu_seqlens_kv, name) in
            [(offsets, &[0, 3][..], "cu_seqlens_q"), (&[0, 3], offsets, "cu_seqlens_kv")]
        {
            let lengths = SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv };
            let options = Options { lengths, ..Options::default() };
            let error = attention(Device::Cpu, &x, &x, &x, &options).unwrap_err();
            assert_eq!(error, Error::Length { name, given: offsets.len(), expected: 2 });
        }
    }
}

#[test]
fn outputs_have_an_address_for_each_element() {
    // heads and tokens share their steps: only their reaches together show it
    assert!(!is_disjoint([2, 2, 2, 32], [64, 32, 32]));
    assert!(!is_disjoint([2, 2, 2, 32], [96, 32, 64]) && is_disjoint([2, 2, 2, 32], [128, 32, 64]));
    assert!(is_disjoint([1, 1, 1, 32], [0, 0, 0]) && !is_disjoint([1, 1, 2, 32], [0, 0, 31]));
    // what it accepts never overlaps, and nested strides are accepted
    for batch in [2, 4, 6, 8, 12, 16, 24, 32, 48] {
        for head in [2, 4, 6, 8, 12, 16, 24] {
            for token in [2, 3, 4, 6, 8, 12, 16] {
                let (sizes, strides) = ([2, 3, 2, 4], [batch, head, token]);
                let accepted = is_disjoint(sizes, strides);
                assert!(!accepted || counts_as_disjoint(sizes, strides), "{strides:?} overlap");
            }
        }
    }
}

#[test]
fn addresses_of_four_bytes_an_element_fit_63_bits() {
    let sizes = shape([2, 1, 1, 32]);
    let most = i64::MAX / 4;
    assert_eq!(TensorLayout::strided(sizes, [most - 32, 32, 32]).unwrap().span(), most as usize);
    for stride in [most - 31, i64::MAX / 2, i64::MAX] {
        assert!(matches!(TensorLayout::strided(sizes, [stride, 32, 32]), Err(Error::Overflow { .. })), "{stride}");
    }
    // the same of a shape's elements
    assert!(Shape::new(1 << 30, 1 << 30, 1, 1).is_ok());
    assert!(matches!(Shape::new(1 << 30, 1 << 31, 1, 1), Err(Error::Overflow { .. })));
}

#[test]
fn heads_and_batch_fit_the_grid() {
    let problem = |batch, heads| AttentionProblem::new(batch, heads, 1, 1, 1, 64).check();
    assert_eq!([problem(65_535, 1), problem(1, 65_535)], [Ok(()), Ok(())]);
    assert!(matches!(problem(1, 65_536), Err(Error::TooLarge { name: "heads_q", given: 65_536, max: 65_535, .. })));
    assert!(matches!(problem(65_536, 1), Err(Error::TooLarge { name: "batch", given: 65_536, max: 65_535, .. })));
}

/// Operands of a small problem.
fn operands(problem: &AttentionProblem) -> HostQuantized {
    let tensor = |shape| {
        let value = |_, h: usize, n: usize, d: usize| ((3 * h + 5 * n + 7 * d) % 11) as f32 - 5.0;
        HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value).unwrap()
    };
    let [q, kv] = [problem.q_shape(), problem.kv_shape()].map(tensor);
    reference::quantize(problem, &q, &kv, &kv).unwrap()
}

#[test]
fn every_array_of_the_operands_has_its_length() {
    type Array = (&'static str, fn(&mut HostQuantized, bool));
    fn resize<T: Copy>(values: &mut Vec<T>, longer: bool) {
        if longer { values.push(values[0]) } else { values.truncate(values.len() - 1) }
    }
    let arrays: [Array; 11] = [
        ("q", |o, longer| resize(&mut o.q.data, longer)),
        ("q_scale", |o, longer| resize(&mut o.q.scale, longer)),
        ("q_bias", |o, longer| resize(o.q.bias.as_mut().unwrap(), longer)),
        ("k", |o, longer| resize(&mut o.k.data, longer)),
        ("k_scale", |o, longer| resize(&mut o.k.scale, longer)),
        ("k_block_scale", |o, longer| resize(&mut o.k.block_scale, longer)),
        ("k_offset", |o, longer| resize(&mut o.k.offset, longer)),
        ("v", |o, longer| resize(&mut o.v.data, longer)),
        ("v_scale", |o, longer| resize(&mut o.v.scale, longer)),
        ("v_block_scale", |o, longer| resize(&mut o.v.block_scale, longer)),
        ("v_unit", |o, longer| resize(&mut o.v.unit, longer)),
    ];
    let problem = AttentionProblem::new(2, 4, 2, 5, 140, 32).with_scheme(Scheme::Default);
    let good = operands(&problem);
    let check = |o: &HostQuantized| o.q.check().and_then(|()| o.k.check()).and_then(|()| o.v.check());
    assert_eq!(check(&good), Ok(()));
    for (array, change) in arrays {
        for longer in [false, true] {
            let mut wrong = good.clone();
            change(&mut wrong, longer);
            assert!(matches!(check(&wrong), Err(Error::Length { name, .. }) if name == array), "{array} {longer}");
            let refused = reference::int8(&problem, &wrong);
            assert!(matches!(refused, Err(Error::Length { name, .. }) if name == array), "{array} {longer}");
        }
    }
}

/// What was quantized in one scheme means something else in the other: the CPU refuses it, as a GPU's plans do.
#[test]
fn operands_are_of_the_problems_scheme() {
    let scheme = |scheme| AttentionProblem::new(1, 2, 1, 5, 140, 32).with_scheme(scheme);
    for (problem, other) in [(Scheme::Default, Scheme::Paper), (Scheme::Paper, Scheme::Default)] {
        let (good, mixed) = (operands(&scheme(problem)), operands(&scheme(other)));
        let refused = |name, operands: HostQuantized| {
            let error = reference::int8(&scheme(problem), &operands).unwrap_err();
            assert_eq!(error, Error::OperandScheme { name, given: other, planned: problem });
        };
        refused("q", HostQuantized { q: mixed.q.clone(), ..good.clone() });
        refused("k", HostQuantized { k: mixed.k.clone(), ..good.clone() });
        refused("v", HostQuantized { v: mixed.v.clone(), ..good });
    }
}

/// As a GPU's plans do: the default scheme's queries have a bias, the paper's have none.
#[test]
fn queries_have_a_bias_where_their_scheme_has_one() {
    for scheme in [Scheme::Default, Scheme::Paper] {
        let problem = AttentionProblem::new(1, 2, 1, 5, 140, 32).with_scheme(scheme);
        let mut wrong = operands(&problem);
        wrong.q.bias = match scheme {
            Scheme::Default => None,
            Scheme::Paper => Some(vec![0.0; 10]),
        };
        let refused = reference::int8(&problem, &wrong).map(|_| ());
        assert!(matches!(refused, Err(Error::Optional { name: "q_bias", .. })), "{scheme}: {refused:?}");
    }
    let problem = DecodeProblem::new(1, 2, 1, 128, 32);
    let cache = HostCache::alloc(CacheShape::new(1, 1, 32).unwrap()).unwrap();
    let q = HostTensor::new(vec![1.0_f32; 64], TensorLayout::bhnd(problem.q_shape())).unwrap();
    let q = reference::quantize_q(Scheme::Default, &q, None).unwrap();
    let pages =
        HostPagedKv { pages: &*cache.pool, v4_pages: 0, block_table: &[0], table_stride: 1, seqlens_kv: &[100] };
    let prefill = PrefillProblem::new(1, 2, 1, 1, 128, 32);
    for refused in [
        problem.on_cpu(&q, &pages, &DecodeHeads::default()).map(|_| ()),
        prefill.on_cpu(&q, None, &pages, &ScoreTensors::default()).map(|_| ()),
    ] {
        assert!(matches!(refused, Err(Error::Optional { name: "q_bias", .. })), "{refused:?}");
    }
}

/// Whatever number of sequences operands say that they are packed of, and whether the problem's are packed or not.
#[test]
fn operands_are_packed_as_the_problem_is() {
    let dense = AttentionProblem::new(1, 2, 1, 5, 140, 32);
    let good = operands(&dense);
    for packed in [0, 1, 2, usize::MAX / 2, usize::MAX] {
        let (mut k, mut v) = (good.k.clone(), good.v.clone());
        (k.packed, v.packed) = (Some(packed), Some(packed));
        // As long as it says, where memory has that.
        let blocks = 140 / 128 + packed.min(2);
        k.data.resize(blocks * 128 * 32, 0);
        // Of V, the code 0.
        v.data.resize(blocks * 128 * 32, i8::MIN);
        for scales in [&mut k.scale, &mut v.scale] {
            scales.resize(blocks * 128, 0.0);
        }
        for scales in [&mut k.block_scale, &mut v.block_scale] {
            scales.resize(blocks, 0.0);
        }
        k.offset.resize(packed.min(2) * 32, 0.0);
        v.unit.resize(packed.min(2), 1.0);
        assert_eq!((k.check().is_ok(), v.check().is_ok()), (packed <= 2, packed <= 2), "{packed}");
        for wrong in [HostQuantized { k, ..good.clone() }, HostQuantized { v, ..good.clone() }] {
            assert!(reference::int8(&dense, &wrong).is_err(), "{packed}");
            assert!(reference::dequantized_bounds(&dense, &wrong, DType::F32).is_err(), "{packed}");
        }
    }
    let pack = dense.with_sequences(Sequences::Packed { total_q: 5, total_kv: 140 });
    let lengths = SeqLens::Packed { cu_seqlens_q: &[0, 5][..], cu_seqlens_kv: &[0, 140][..] };
    let refused = reference::sequences::int8(&pack, &lengths, &good).map(|_| ());
    assert!(matches!(refused, Err(Error::ShapeMismatch { name: "k", .. })), "{refused:?}");
}
