//! Attention on operands: plain and general kernels of every family.

use super::{Check, TensorCheck, What, masks, padded, unlike, windows};
use crate::case::{Case, WINDOWS, variant_on};
use crate::scores::some_score_mod;
use crate::sequences::packed;
use crate::sim::Places;
use crate::values::Values;
use int_flash_attention::{Alibi, AttentionProblem, BiasLayout, DType, MaskKind, MaskLayout, ScoreMod, Window};
use int_flash_attention_kernels::config::{AttentionVariant, Family, Kind, sm80};

/// The checks of a kernel.
///
/// # Panics
///
/// When a case is one that another kernel is for.
pub(super) fn of(variant: &AttentionVariant) -> Vec<Check> {
    let first = Case::of_variant(variant, 0);
    let problem = first.problem.with_window(Window::FULL).with_score_mod(ScoreMod::NONE);
    let first = Case { lse: true, problem, ..first };
    let sized = |batch, heads_q, seqlen_q, seqlen_kv| {
        let heads_kv = usize::div_ceil(heads_q, 2);
        let problem = AttentionProblem { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, ..first.problem };
        Case { problem, ..first.clone() }
    };
    let scaled = |scale| {
        let case = sized(1, 2, 33, 140);
        Case { problem: case.problem.with_softmax_scale(scale), values: [Values::Uniform; 3], ..case }
    };
    let out = |case: Case, out_dtype, placement| Case { out_dtype, placement, ..case };
    let small = || sized(2, 4, 35, 40);
    let usual = Places::Usual;
    let mut cases = vec![
        (first.clone(), usual, 3),
        (out(sized(1, 1, 70, 700), DType::F16, padded(0, 0, 0)), usual, 1),
        (Case { lse: false, ..out(small(), DType::F16, padded(1, 0, 0)) }, usual, 2),
        (out(small(), DType::BF16, padded(0, 3, 0)), usual, 2),
        (out(small(), DType::F16, padded(0, 0, 5)), usual, 2),
        (out(small(), DType::BF16, padded(0, 0, 0)), Places::Aligned(1), 2),
        (out(sized(1, 4, 30, 40), DType::F16, padded(0, 0, 0)), Places::Last, 1),
        (sized(1, 2, 300, 20), usual, 2),
        (out(sized(1, 2, 129, 257), DType::BF16, padded(8, 0, 0)), usual, 1),
        (out(small(), DType::F16, padded(4, 4, 4)), Places::Aligned(8), 2),
        (sized(1, 1, 1, 1), usual, 1),
        (sized(1, 1, 65, 127), usual, 1),
        (sized(1, 1, 130, 384), usual, 1),
        (sized(1, 1, 3, 129), usual, 1),
        (scaled(-0.3), usual, 1),
        (scaled(0.0), usual, 1),
        (scaled(2.0), usual, 1),
    ];
    for values in [Values::LoudTokens, Values::Huge, Values::Zeros, Values::OutlierChannels, Values::Tiny] {
        cases.push((Case { values: [values; 3], out_dtype: DType::F32, ..sized(1, 2, 33, 270) }, usual, 1));
    }
    // Every way to store rows.
    let stores = [
        (DType::F16, padded(0, 0, 0)),
        (DType::BF16, padded(0, 0, 0)),
        (DType::F16, padded(1, 0, 0)),
        (DType::BF16, padded(1, 0, 0)),
        (DType::F32, padded(0, 0, 0)),
        (DType::F32, padded(1, 0, 0)),
    ];
    let far = stores.map(|(out_dtype, placement)| (out(small(), out_dtype, placement), Places::AllFar, 2));
    cases.extend(far.clone());
    // A tail that ends inside the pair of keys of a lane, for each eight keys of a block; and an end of the queries in each eight
    // rows of a warp, for each way to store them.
    for eighth in 0..16 {
        let tail = 8 * eighth + 1 + 2 * (eighth % 4);
        for blocks in [0, 1 + eighth % 4] {
            let rows = 5 + 8 * (cases.len() % 4) + if blocks > 0 { tail } else { 0 };
            let (out_dtype, placement) = stores[cases.len() / 4 % stores.len()];
            let case = sized(1, 1, rows, 128 * blocks + tail);
            let case = Case { seed: eighth as u64, lse: blocks > 0, ..case };
            cases.push((out(case, out_dtype, placement), usual, 1));
        }
    }
    if variant.family == Family::Sm90a {
        cases.push((sized(2, 4, 200, 1000), usual, 1));
        cases.push((sized(2, 4, 500, 300), usual, 3));
        cases.push((sized(2, 4, 3, 800), usual, 5));
    }
    let mut cases: Vec<_> =
        cases.into_iter().flat_map(|(case, places, n)| masks(case).map(|c| (c, places, n))).collect();
    for (i, window) in windows().enumerate() {
        let [rows, keys] = [[40, 300], [70, 520], [300, 40], [5, 135]][i % 4];
        let case = Case { seed: i as u64, ..sized(1, 1, rows, keys + i) };
        cases.push((Case { problem: case.problem.with_window(window), ..case }, usual, 1));
    }
    // Both ends in one block, at each of its keys, and the same where values have scales of their own.
    let mut diagonal = Vec::new();
    for values in [Values::Normal, Values::LoudTokens] {
        for (left, right) in [(0, 0), (3, 5), (40, 0)] {
            let case = Case { values: [values; 3], ..sized(1, 1, 140, 256) };
            let window = Window { left: Some(left), right: Some(right) };
            diagonal.push((Case { problem: case.problem.with_window(window), ..case }, usual, 1));
        }
    }
    // More blocks than are fetched ahead, wherever the unrolled loop stands, and far away.
    diagonal.push((sized(1, 1, 5, 1300), usual, 1));
    diagonal.push((out(sized(1, 2, 5, 1100), DType::F16, padded(0, 0, 0)), Places::Last, 1));
    // Tiles of two and of three blocks, of the last of which a warpgroup sees nothing: it lets go of slots of the ring wherever these end.
    if variant.family == Family::Sm90a {
        for seqlen_kv in [192, 320] {
            let case = sized(1, 4, 128, seqlen_kv);
            diagonal.push((Case { problem: case.problem.with_window(Window::CAUSAL), ..case }, usual, 1));
        }
    }
    // A head whose values have another unit than 1.
    let tiny = Case { dtype: DType::F32, out_dtype: DType::F32, ..sized(1, 2, 33, 270) };
    let tiny = Case { values: [Values::Normal, Values::Normal, Values::TinyLoudTokens], ..tiny };
    diagonal.push((tiny, usual, 1));
    cases.extend(diagonal.clone());
    match variant.kind {
        // Every third with sinks.
        Kind::Plain => {
            for (case, ..) in cases.iter_mut().step_by(3) {
                case.problem.score_mod.sinks = true;
            }
        }
        // The loop is that of a plain kernel: some of the cases, and each change of the scores in many of them.
        Kind::General => {
            let loud = Case { values: [Values::LoudTokens; 3], ..sized(1, 2, 33, 270) };
            cases = cases.into_iter().step_by(3).chain(diagonal).chain([(loud, usual, 1)]).collect();
            for (i, (case, ..)) in cases.iter_mut().enumerate() {
                case.problem.score_mod = some_score_mod(&case.problem, i);
            }
            cases.extend(score_tensors(sized));
        }
    }
    // The loop is that of shorter heads, but for the pieces that a block comes in.
    let wide = sm80::pieces(variant.head_dim) > 1;
    if wide {
        cases = cases.into_iter().step_by(if variant.kind == Kind::Plain { 8 } else { 16 }).collect();
    }
    // Every way to store rows, and to read what changes scores, is code of its own.
    if wide && variant.kind == Kind::Plain {
        cases.extend(far.clone());
    }
    if variant.kind == Kind::General {
        let softcap = ScoreMod { softcap: Some(20.0), ..ScoreMod::NONE };
        let changed = |case: Case| Case { problem: case.problem.with_score_mod(softcap), ..case };
        cases.extend(far.map(|(case, places, n)| (changed(case), places, n)));
        cases.extend(far_score_tensors(sized));
    }
    let check = |(case, places, multiprocessors): (Case, Places, u32)| {
        let (family, shared_bytes) = (variant.family, variant.from_kib() << 10);
        let runs = variant_on(shared_bytes, family, &case.problem).map_or("none", |runs| runs.name);
        assert_eq!(runs, variant.name, "another kernel is for {case:?}");
        let check = TensorCheck::new(What::Attention, case);
        Check::Tensors(Box::new(TensorCheck { places, family, multiprocessors, shared_bytes, ..check }))
    };
    let mut checks: Vec<_> = cases.into_iter().map(check).collect();
    checks.extend(
        (0..if wide { 2 } else { 8 }).map(|which| Check::Tensors(Box::new(unlike_lengths(variant, &first, which)))),
    );
    // Of one head dim: the code is one, and a grid of hundreds of CTAs takes its time.
    if variant.head_dim == 64 {
        checks.push(Check::Tensors(Box::new(more_tiles_than_32_bits(variant, &first))));
    }
    checks
}

/// A pack whose sequences would have more tiles than 32 bits count if all were as long as the longest may be: there are as many as packed tokens have.
fn more_tiles_than_32_bits(variant: &AttentionVariant, first: &Case) -> TensorCheck {
    const SEQUENCES: usize = 400;
    let lengths: Vec<(u32, u32)> = (0..SEQUENCES).map(|i| if i % 80 == 79 { (3, 2) } else { (0, 0) }).collect();
    let problem = AttentionProblem { heads_q: 1, heads_kv: 1, ..first.problem };
    let (mut case, lengths) = packed(Case { problem, seed: 3, ..first.clone() }, &lengths, 5);
    // A little more than 2^32, so that what is left of it is less than there are.
    case.problem.seqlen_q = variant.tile_m * (1_usize << 32).div_ceil(SEQUENCES);
    if variant.kind == Kind::General {
        case.problem.score_mod.softcap = Some(20.0);
    }
    let (family, shared_bytes) = (variant.family, variant.from_kib() << 10);
    TensorCheck { lengths, family, multiprocessors: 2, shared_bytes, ..TensorCheck::new(What::Attention, case) }
}

/// Types of biases and masks that between them are all.
const SCORE_TYPES: [(DType, MaskKind); 3] =
    [(DType::F16, MaskKind::Bytes), (DType::BF16, MaskKind::Bits), (DType::F32, MaskKind::Bytes)];

/// A case with a bias, a mask and slopes that have each dimension.
fn with_score_tensors(case: Case, (dtype, kind): (DType, MaskKind)) -> Case {
    let AttentionProblem { batch, heads_q, seqlen_q, seqlen_kv, .. } = case.problem;
    let dims = [batch, heads_q, seqlen_q, seqlen_kv];
    let score_mod = ScoreMod {
        bias: BiasLayout::broadcast(dtype, dims, &case.problem).ok(),
        mask: MaskLayout::broadcast(kind, dims, &case.problem).ok(),
        alibi: Some(Alibi::PerSequence),
        ..ScoreMod::NONE
    };
    Case { problem: case.problem.with_score_mod(score_mod), ..case }
}

/// Biases and masks of every type, of one row that ends at each of a lane's keys, where it and the memory end together.
fn score_tensors(sized: impl Fn(usize, usize, usize, usize) -> Case) -> Vec<(Case, Places, u32)> {
    let mut cases = Vec::new();
    for (which, types) in SCORE_TYPES.into_iter().enumerate() {
        // Rows all of whose keys the bias hides, or the mask, beside others.
        cases.push((with_score_tensors(sized(1, 1, 130, 128), types), Places::Usual, 1));
        for tile in 0..16 {
            // Of bits, a byte is behind the end with the tile's first key; else each lane of four has some of the ends.
            let even = 8 * tile + if types.1 == MaskKind::Bits { 0 } else { 2 * ((tile + which) % 4) };
            for keys in [even.max(1), 8 * tile + 1 + 2 * ((tile + which + 1) % 4)] {
                let case = Case { seed: keys as u64, ..sized(1, 1, 1, keys) };
                cases.push((with_score_tensors(case, types), Places::Usual, 1));
            }
        }
    }
    cases
}

/// Biases and masks of every type with strides of more than 32 bits, for each of a lane's rows: with keys that are read one by one, and with whole
/// blocks, of which several are read at a time.
fn far_score_tensors(sized: impl Fn(usize, usize, usize, usize) -> Case) -> impl Iterator<Item = (Case, Places, u32)> {
    let all = SCORE_TYPES.into_iter().flat_map(|types| [9, 128].map(|keys| (types, keys)));
    all.map(move |(types, keys)| (with_score_tensors(sized(2, 2, 35, keys), types), Places::AllFar, 1))
}

/// Sequences of unlike lengths, under each window in packs and with key lengths.
fn unlike_lengths(variant: &AttentionVariant, first: &Case, which: usize) -> TensorCheck {
    let (out_dtype, placement) =
        [(DType::F16, padded(0, 0, 0)), (DType::BF16, padded(1, 0, 0)), (DType::F32, padded(0, 3, 0))][which % 3];
    let problem = first.problem.with_window(WINDOWS[which / 2]);
    let case = Case { problem, out_dtype, placement, lse: which % 4 < 3, seed: which as u64, ..first.clone() };
    let (mut case, lengths) = unlike(case, which);
    if variant.kind == Kind::General {
        case.problem.score_mod = some_score_mod(&case.problem, which + 2);
    }
    let (family, shared_bytes) = (variant.family, variant.from_kib() << 10);
    TensorCheck { lengths, family, multiprocessors: 2, shared_bytes, ..TensorCheck::new(What::Attention, case) }
}
