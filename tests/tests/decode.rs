//! Decode on a paged cache and the merge of states, on the PTX machine, against the CPU reference.

use int_flash_attention::{DType, DecodeProblem, Shape, Split, Window};
use int_flash_attention_kernels::config::decode::DECODE;
use int_flash_attention_tests::continuation::decode_is_prefill;
use int_flash_attention_tests::decode::{
    DecodeCase, DecodeKernels, MergeCase, bits, cases_for, hostile_case, many_sequences, matches_the_reference,
    merges_as_the_reference, tails,
};
use int_flash_attention_tests::quickstart::decode_loop;
use int_flash_attention_tests::sequences::Lengths;
use int_flash_attention_tests::sim::Simulator;

/// Groups of 1 to 16 heads, 1 to 8 new tokens, windows, softcap, ALiBi, sinks, splits; lengths of 0, 1, 127 to 129 and beyond the table.
#[test]
fn each_kernel_matches_the_reference() {
    let simulator = Simulator::new();
    for variant in DECODE {
        for (case, dtype) in cases_for(variant) {
            matches_the_reference(&simulator, &case, dtype)
                .unwrap_or_else(|error| panic!("{}: {error:#}", variant.name));
        }
    }
}

/// The loop that docs/quickstart.md shows, on the machine and beside the CPU.
#[test]
fn the_quickstarts_decode_loop_runs_on_the_machine() {
    decode_loop().unwrap();
}

const PROBLEM: DecodeProblem = DecodeProblem::new(4, 4, 1, 900, 64);

/// Softcap, ALiBi, sinks and windows over sequences of unlike lengths mean the same in both.
#[test]
fn a_decode_gives_what_a_prefill_of_the_same_tokens_gives() {
    let prefill = |lengths: &Lengths| Simulator::new().with_lengths(lengths);
    for head_dim in [32, 256] {
        decode_is_prefill(&Simulator::new(), prefill, head_dim).unwrap_or_else(|error| panic!("{head_dim}: {error:#}"));
    }
}

/// Sequences that share pages, entries outside the pool in the middle and at the end, lengths beyond the table.
#[test]
fn hostile_tables_stay_in_the_pool_and_hide_keys() {
    let simulator = Simulator::new();
    for workers in [1, 3, 9, 30] {
        matches_the_reference(&simulator, &hostile_case(64, workers), DType::F32).unwrap();
    }
    matches_the_reference(&simulator, &hostile_case(64, 5).with_v4(1), DType::F32).unwrap();
    let case = hostile_case(64, 7);
    // A sequence without any page sees nothing.
    let (o, lse) = simulator.decode(&case, DType::F32).unwrap();
    let of_sequence = 2 * PROBLEM.heads_q;
    assert!(lse[of_sequence..of_sequence + 4].iter().all(|&lse| lse == f32::NEG_INFINITY));
    assert!(o.dense_f64()[of_sequence * 64..][..4 * 64].iter().all(|&o| o == 0.0));
}

/// Lengths and windows that end in each pair of a block's keys.
#[test]
fn masks_end_at_every_key() {
    matches_the_reference(&Simulator::new(), &tails(32), DType::F32).unwrap();
    matches_the_reference(&Simulator::new(), &tails(128), DType::F32).unwrap();
}

/// A window that hides no key of the longest sequence hides some of a longer one, which counts as cut behind them.
#[test]
fn windows_end_in_sequences_longer_than_the_longest() {
    for left in [298, 299, 300, 382] {
        let window = Window { left: Some(left), right: Some(0) };
        let problem = DecodeProblem { window, ..DecodeProblem::new(4, 2, 1, 300, 64) };
        let case = DecodeCase::new(problem, &[299, 301, 384, 10_000], 1);
        matches_the_reference(&Simulator::new(), &case, DType::F32).unwrap_or_else(|error| panic!("{left}: {error:#}"));
    }
}

/// A sequence's bits are the same alone and in a batch, and for any number of workers.
#[test]
fn fixed_splits_give_a_sequence_the_same_bits_in_every_batch() {
    let simulator = Simulator::new();
    let problem =
        DecodeProblem { split: Split::Fixed(256), window: Window { left: Some(500), right: Some(0) }, ..PROBLEM };
    let all = DecodeCase::new(problem, &[900, 130, 0, 777], 5);
    let run = |case: &DecodeCase, workers| {
        let case = DecodeCase { workers: Some((workers, 1)), ..case.clone() };
        let (o, lse) = simulator.decode(&case, DType::F32).unwrap();
        (bits(&o), lse.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let together = run(&all, 3);
    assert_eq!(together, run(&all, 17));
    for sequence in 0..4 {
        let mut alone = all.clone();
        alone.problem.batch = 1;
        alone.lengths = vec![all.lengths[sequence]];
        alone.table = all.table[sequence * all.stride..][..all.stride].to_vec();
        alone.q.shape.batch = 1;
        let rows = problem.heads_q;
        alone.q.data = all.q.data[sequence * rows * 64..][..rows * 64].to_vec();
        alone.q.scale = all.q.scale[sequence * rows..][..rows].to_vec();
        alone.q.bias = all.q.bias.as_ref().map(|bias| bias[sequence * rows..][..rows].to_vec());
        let (o, lse) = run(&alone, 5);
        assert_eq!(o, together.0[sequence * rows * 64..][..rows * 64]);
        assert_eq!(lse, together.1[sequence * rows..][..rows]);
    }
}

/// Scales that are no numbers: of K and of Q they spoil the row, of V its output; of keys that a row does not see, nothing.
#[test]
fn what_is_no_number_spoils_the_rows_that_see_it() {
    use int_flash_attention_kernels::layout::page::{page_head_offset, page_k_scale_offset, page_v_scale_offset};
    let simulator = Simulator::new();
    let problem = DecodeProblem { seqlen_q: 2, window: Window { left: Some(200), right: Some(0) }, ..PROBLEM };
    let mut case = DecodeCase::new(problem, &[400, 400, 400, 400], 7);
    let mut spoil = |sequence: usize, key: usize, offset: usize| {
        let page = case.table[sequence * case.stride + key / 128] as usize;
        let at = page_head_offset(page, 0, 1, 64) + offset + 4 * (key % 128);
        case.pages[at..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    // Seen by both tokens, by the last one alone, by the first one alone, by none.
    spoil(0, 300, page_k_scale_offset(64));
    spoil(1, 399, page_v_scale_offset(64));
    spoil(2, 198, page_k_scale_offset(64));
    spoil(3, 150, page_v_scale_offset(64));
    case.workers = Some((4, 1));
    matches_the_reference(&simulator, &case, DType::F32).unwrap();
    let (o, lse) = simulator.decode(&case, DType::F32).unwrap();
    let spoiled = |sequence: usize, token: usize| {
        let row = sequence * 8 + token;
        (o.dense_f64()[row * 64].is_nan(), lse[row].is_nan())
    };
    assert_eq!([spoiled(0, 0), spoiled(0, 1)], [(true, true); 2]);
    assert_eq!([spoiled(1, 0), spoiled(1, 1)], [(false, false), (true, false)]);
    assert_eq!([spoiled(2, 0), spoiled(2, 1)], [(true, true), (false, false)]);
    assert_eq!([spoiled(3, 0), spoiled(3, 1)], [(false, false); 2]);
    case.q.scale[0] = f32::NAN;
    matches_the_reference(&simulator, &case, DType::F32).unwrap();
}

/// More sequences than a warp has lanes, most of them empty.
#[test]
fn many_sequences_are_found() {
    let simulator = Simulator::new();
    let splits = [(4, 1, Split::Even), (300, 1, Split::Even), (9, 4, Split::Even), (7, 1, Split::Fixed(128))];
    for (workers, min_blocks, split) in splits {
        let case = DecodeCase { workers: Some((workers, min_blocks)), ..many_sequences(split, workers) };
        matches_the_reference(&simulator, &case, DType::F16).unwrap();
    }
}

/// One state to many, in place and into every type, with rows at minus infinity in some states and in all.
#[test]
fn states_are_merged_as_in_the_reference() {
    let simulator = Simulator::new();
    for (i, states) in [1, 2, 3, 9, 40, 70].into_iter().enumerate() {
        for (j, head_dim) in [32, 64, 96, 128, 256].into_iter().enumerate() {
            let shape = Shape::new(2, 2, 2, head_dim).unwrap();
            let mut case = MergeCase::new(shape, states, (7 * i + j) as u64);
            if j % 2 == 0 {
                case.sinks = Some(vec![1.5, f32::NEG_INFINITY]);
            }
            let dtype = [DType::F32, DType::F16, DType::BF16][(i + j) % 3];
            merges_as_the_reference(&simulator, &case, dtype).unwrap();
            case.in_place = true;
            merges_as_the_reference(&simulator, &case, DType::F32).unwrap();
        }
    }
}
