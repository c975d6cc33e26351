//! The kernels for short K and V.

use super::{Check, TensorCheck, What, masks, padded, unlike, windows};
use crate::case::{Case, WINDOWS};
use crate::sim::Places;
use crate::values::Values;
use int_flash_attention::{AttentionProblem, DType, Window};
use int_flash_attention_kernels::config::short::ShortVariant;

/// Every panel that is the last, with tails inside of each eight of its keys; blocks before it; every type, layout and kind of values; one CTA for a
/// head, and several.
pub(super) fn of(variant: &ShortVariant) -> Vec<Check> {
    let types = [DType::F16, DType::BF16, DType::F32];
    let case = |(batch, heads_q), (seqlen_q, seqlen_kv), seed: usize| {
        let heads_kv = usize::div_ceil(heads_q, 2);
        let problem = AttentionProblem::new(batch, heads_q, heads_kv, seqlen_q, seqlen_kv, variant.head_dim);
        let (dtype, out_dtype) = (types[seed % 3], types[(seed + seed / 3) % 3]);
        Case { dtype, out_dtype, lse: !seed.is_multiple_of(4), ..Case::plain(problem, seed as u64) }
    };
    let mut cases = Vec::new();
    for eighth in 0..16 {
        let tail = 8 * eighth + 1 + 2 * (eighth % 4);
        for blocks in [0, 1 + eighth % 2] {
            let rows = 5 + 8 * (eighth % 4) + if blocks > 0 { 16 * eighth } else { 0 };
            let mut case = case((1, 1), (rows, 128 * blocks + tail), cases.len());
            // Each type behind each last panel, which four of these have, with blocks before it and without.
            case.out_dtype = types[(eighth + blocks) % 3];
            // What is taken out of K is not zero, and each of the first tokens is the least of some channel.
            case.values[1] = Values::OutlierChannels;
            cases.push((case, Places::Usual, 1));
        }
    }
    for (i, window) in windows().enumerate() {
        let [rows, keys] = [[40, 300], [70, 150], [300, 40], [5, 135]][i % 4];
        let (case, multiprocessors) = (case((1, 1), (rows, keys + i), i), [1, 2, 3][i % 3]);
        cases.push((Case { problem: case.problem.with_window(window), ..case }, Places::Usual, multiprocessors));
    }
    for (i, (rows, keys)) in [(1, 1), (65, 127), (64, 128), (130, 256), (300, 20)].into_iter().enumerate() {
        for case in masks(case((2, 4), (rows, keys), i)) {
            cases.push((case, Places::Usual, [1, 5][i % 2]));
        }
    }
    // Ends of windows at each key of each last panel, in each row of a warp.
    for (i, (blocks, panel)) in
        [0, 1].into_iter().flat_map(|blocks| (1..5).map(move |panel| (blocks, panel))).enumerate()
    {
        let keys = 128 * blocks + 32 * panel - i % 3;
        for window in [Window::CAUSAL, Window { left: Some(5), right: Some(3) }] {
            for values in [Values::Normal, Values::LoudTokens] {
                let case = Case { values: [values; 3], ..case((1, 1), (32 * panel + 3, keys), i) };
                cases.push((Case { problem: case.problem.with_window(window), ..case }, Places::Usual, 1));
            }
        }
    }
    // Every way to store rows behind every last panel, with strides of more than 32 bits.
    for (which, out_dtype) in (0..8).flat_map(|which| types.map(|out_dtype| (which, out_dtype))) {
        let (blocks, panel) = (which % 2, which / 2);
        let case = case((2, 2), (5, 128 * blocks + 32 * panel + 9), which);
        cases.push((Case { out_dtype, placement: padded(panel % 2, 0, 0), ..case.clone() }, Places::AllFar, 1));
    }
    for (i, out_dtype) in types.into_iter().enumerate() {
        cases.push((Case { out_dtype, placement: padded(1, 0, 0), ..case((2, 4), (5, 9), i) }, Places::AllFar, 1));
    }
    for dtype in types {
        for (placement, places) in [
            (padded(1, 0, 0), Places::Usual),
            (padded(0, 3, 0), Places::Usual),
            (padded(0, 0, 5), Places::Usual),
            (padded(4, 4, 4), Places::Aligned(8)),
            (padded(0, 0, 0), Places::AllFar),
            (padded(1, 1, 1), Places::AllFar),
        ] {
            cases.push((Case { dtype, out_dtype: dtype, placement, ..case((2, 4), (35, 70), 1) }, places, 2));
        }
        for values in [Values::LoudTokens, Values::Huge, Values::Zeros, Values::OutlierChannels, Values::Tiny] {
            let case = case((1, 2), (33, 270), cases.len());
            cases.push((Case { dtype, values: [values; 3], ..case }, Places::Usual, 1));
        }
    }
    for scale in [-0.3, 0.0, 2.0] {
        let case = case((1, 2), (33, 140), 2);
        let problem = case.problem.with_softmax_scale(scale);
        cases.push((Case { problem, values: [Values::Uniform; 3], ..case }, Places::Usual, 1));
    }
    // Sequences of unlike lengths: under each window in packs, and with key lengths.
    let mut with_lengths = Vec::new();
    for which in 0..8 {
        let case = case((1, 2), (1, 1), which);
        let case = Case { problem: case.problem.with_window(WINDOWS[which / 2]), ..case };
        let (case, lengths) = unlike(case, which);
        let check = TensorCheck::new(What::Short, case);
        with_lengths.push(TensorCheck { lengths, multiprocessors: 1 + 20 * (which as u32 % 3), ..check });
    }
    let check = |(case, places, multiprocessors): (Case, Places, u32)| {
        // Every other case as on a GPU that has room for one large CTA and not for two small ones.
        let large = variant.shared_bytes(variant.most_warps, case.problem.seqlen_kv);
        let shared_bytes = if case.seed.is_multiple_of(2) { large } else { 227 << 10 };
        let check = TensorCheck::new(What::Short, case);
        TensorCheck { places, multiprocessors, shared_bytes, ..check }
    };
    cases.into_iter().map(check).chain(with_lengths).map(|check| Check::Tensors(Box::new(check))).collect()
}
