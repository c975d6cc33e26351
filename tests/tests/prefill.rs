//! Attention of new tokens on the pages of a cache: bit for bit what the same kernels make of operands.

use int_flash_attention::{
    CacheShape, DType, Error, HostCache, HostQuantized, HostTables, HostTensor, PagedKv, PrefillProblem, ScoreTensors,
    Scored, Shape, TensorLayout, reference,
};
use int_flash_attention_kernels::config::Family;
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_tests::prefill::{
    CHANGES, LONG, PrefillCase, PrefillKernels, SHORT, as_contiguous, case, runs_as_contiguous,
};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Values;

fn holds(case: &PrefillCase, simulator: &Simulator, but: &[usize]) {
    let of = &case.problem.attention;
    let what = format!("{} {:?} {} {:?}", of.head_dim, of.score_mod, of.window, case.cu_seqlens_q);
    runs_as_contiguous(case, simulator, but).unwrap_or_else(|error| panic!("{what}: {error:#}"));
}

/// Both families, plain and general kernels, chunks of several tiles, single tokens, sequences without keys and without queries, in one launch.
#[test]
fn pages_are_read_as_operands() {
    let (sm80, sm90a) = (Simulator::new(), Simulator::of(Family::Sm90a, 3));
    for (i, (score_mod, window)) in CHANGES.into_iter().enumerate() {
        for (packed, lengths) in [(true, &LONG[..]), (false, &SHORT)] {
            let head_dim = if packed { 64 } else { 128 };
            let case = case(lengths, head_dim, packed, (score_mod, window), i as u64).unwrap();
            holds(&case, &sm80, &[]);
            if i < 3 {
                holds(&case, &sm90a, &[]);
            }
        }
    }
}

/// Pages more than 32 bits of bytes behind the first.
#[test]
fn pages_may_be_far() {
    for (head_dim, family) in [(32, Family::Sm80), (128, Family::Sm90a)] {
        let case = case(&SHORT, head_dim, true, CHANGES[0], 3).unwrap();
        holds(&PrefillCase { ahead: 1 << 19, ..case }, &Simulator::of(family, 3), &[]);
    }
}

/// Scales behind the last key of a page, which are no token's any more, have no say in whether a block is narrow.
#[test]
fn what_a_page_had_before_does_not_matter() {
    // The kernels for sm_80 take narrow blocks at one of these head dims.
    for (head_dim, differ) in [(96, true), (64, false)] {
        what_a_page_had(head_dim, differ);
    }
}

fn what_a_page_had(head_dim: usize, differ: bool) {
    let simulators = [Family::Sm80, Family::Sm90a].map(|family| Simulator::of(family, 1));
    let problem = PrefillProblem::new(1, 2, 1, 64, 256, head_dim);
    let mut cache = HostCache::alloc(CacheShape::new(2, 1, head_dim).unwrap()).unwrap();
    let mut tables = HostTables::contiguous(1, 2);
    let slots = tables.extend(&[256]).unwrap();
    // One channel each, so that all scales are the same.
    let layout = TensorLayout::bnhd(Shape::new(1, 1, 256, head_dim).unwrap());
    let channel = |n: usize| 5 * n % head_dim;
    let k = HostTensor::from_fn(DType::F32, layout, |_, _, n, d| if d == channel(n) { 40.0 } else { 0.0 }).unwrap();
    let v = Values::Normal.tensor(DType::F32, layout, 1).unwrap();
    cache.append(&k, &v, &slots).unwrap();
    let q = Values::Normal.tensor(DType::F32, TensorLayout::bhnd(problem.q_shape()), 2).unwrap();
    let mut case = PrefillCase::new(problem, cache.quantize_q(&q).unwrap(), None, cache, tables);
    let [sm80, sm90a] = simulators.each_ref().map(|simulator| simulator.prefill(&case, DType::F32).unwrap().0);
    let alike = sm80.dense_f64().into_iter().zip(sm90a.dense_f64()).all(|(a, b)| (a - b).abs() <= 1e-4);
    assert_eq!(!alike, differ, "the blocks are not narrow");
    for keys in [256, 255, 200, 129] {
        case.tables.seqlens_kv[0] = keys;
        for simulator in &simulators {
            holds(&case, simulator, &[]);
        }
    }
}

/// What a device may have in its tables and lengths. The machine would report what is read outside of the pool or the table, or was never written.
#[test]
fn hostile_tables_reach_nothing_outside() {
    for (family, change) in [(Family::Sm80, CHANGES[0]), (Family::Sm80, CHANGES[3]), (Family::Sm90a, CHANGES[0])] {
        let simulator = Simulator::of(family, 3);
        let mut case = case(&LONG, 64, true, change, 5).unwrap();
        let stride = case.tables.max_blocks;
        // A length beyond the table, over entries that are no pages; the other sequences are as they were.
        case.tables.seqlens_kv[1] = u32::MAX;
        case.tables.block_table[2 * stride] = 31;
        holds(&case, &simulator, &[1, 2]);
        // The keys of what is no page are hidden: a block without keys in front of the sequence changes nothing.
        let (o, lse) = simulator.prefill(&case, DType::F32).unwrap();
        let mut without = case.clone();
        without.tables.block_table[2 * stride] = case.tables.block_table[2 * stride + 1];
        without.tables.seqlens_kv[2] = 128;
        let (want, want_lse) = simulator.prefill(&without, DType::F32).unwrap();
        let offsets = case.cu_seqlens_q.as_ref().unwrap();
        for (head, row) in
            (0..4).flat_map(|head| (offsets[2] as usize..offsets[3] as usize).map(move |row| (head, row)))
        {
            let seqlen = case.problem.q_shape().seqlen;
            let of_row = |o: &HostTensor| (0..64).map(|d| o.get(0, head, row, d).to_bits()).collect::<Vec<_>>();
            assert_eq!(of_row(&o), of_row(&want), "{family:?} {head} {row}");
            assert_eq!(lse[head * seqlen + row].to_bits(), want_lse[head * seqlen + row].to_bits());
        }
        // Offsets that are none.
        for offsets in [[9, 3, 900, 2, u32::MAX, 0, 7], [u32::MAX; 7], [0, 0, 0, 0, 0, 0, u32::MAX]] {
            case.cu_seqlens_q = Some(offsets.to_vec());
            simulator.launch_prefill(&case).unwrap_or_else(|error| panic!("{offsets:?}: {error:#}"));
        }
    }
}

/// The CPU reads the pages as the operands that are gathered from them, in every head dim.
#[test]
fn the_cpu_reads_pages() {
    for (i, head_dim) in CACHE_HEAD_DIMS.into_iter().enumerate() {
        for packed in [true, false] {
            let case = case(&LONG, head_dim, packed, CHANGES[i % CHANGES.len()], i as u64).unwrap();
            let cache = case.cache.sequences(&case.tables).unwrap();
            let offsets = case.cu_seqlens_q.as_deref();
            let got = case.problem.on_cpu(&case.q, offsets, &cache, &case.tensors()).unwrap();
            let contiguous = |scored: &Scored<'_>, operands: &HostQuantized| {
                let reference::Int8 { o, lse } = reference::int8(*scored, operands)?;
                Ok((o, lse))
            };
            as_contiguous(&case, (&got.o, &got.lse), contiguous, &[])
                .unwrap_or_else(|error| panic!("{head_dim} {packed}: {error:#}"));
        }
    }
}

#[test]
fn the_cpu_names_the_sequence() {
    let case = case(&SHORT, 32, true, CHANGES[0], 0).unwrap();
    let run = |problem: &PrefillProblem, table: &[u32], lengths: &[u32], offsets: Option<&[u32]>| {
        let cache = PagedKv {
            pages: &case.cache.pool[..],
            v4_pages: 0,
            block_table: table,
            table_stride: case.tables.max_blocks,
            seqlens_kv: lengths,
        };
        problem.on_cpu(&case.q, offsets, &cache, &ScoreTensors::default())
    };
    let (table, lengths) = (&case.tables.block_table, &case.tables.seqlens_kv);
    let offsets = case.cu_seqlens_q.as_deref();
    run(&case.problem, table, lengths, offsets).unwrap();
    let mut wrong = table.clone();
    wrong[case.tables.max_blocks + 1] = 31;
    let error = run(&case.problem, &wrong, lengths, offsets).unwrap_err().to_string();
    assert_eq!(error, "block 1 of sequence 1 names page 31; the cache has the pages 0 to 30");
    let mut wrong = lengths.clone();
    wrong[2] = 4 * CacheShape::PAGE_TOKENS as u32;
    let error = run(&case.problem, table, &wrong, offsets).unwrap_err();
    assert!(matches!(error, Error::SequenceLength { sequence: 2, given: 512, max: 452 }), "{error}");
    assert!(matches!(run(&case.problem, table, lengths, None), Err(Error::Optional { name: "cu_seqlens_q", .. })));
    let decreasing = [0, 37, 30, 38, 41];
    let error = run(&case.problem, table, lengths, Some(&decreasing)).unwrap_err();
    assert!(matches!(error, Error::Offsets { sequence: 1, .. }), "{error}");
    assert!(matches!(run(&case.problem, &table[1..table.len() - 1], lengths, offsets), Err(Error::Length { .. })));
}
