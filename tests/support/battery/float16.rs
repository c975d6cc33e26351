//! The float16 yardstick.

use super::{Check, TensorCheck, What, masks, padded, windows};
use crate::case::Case;
use crate::sim::Places;
use int_flash_attention::AttentionProblem;

/// The checks of a kernel.
pub(super) fn of(head_dim: usize) -> Vec<Check> {
    // Each case with one mask, in turn: the yardstick does not ship, and its products are what the machine is slowest at.
    let all = cases_of(head_dim).into_iter().enumerate();
    let mut cases: Vec<_> = all
        .map(|(i, (case, places))| {
            let [full, causal] = masks(case);
            (if i % 2 == 0 { full } else { causal }, places)
        })
        .collect();
    for (i, window) in windows().enumerate() {
        let [rows, keys] = [[70, 150], [66, 140], [150, 20], [5, 70]][i % 4];
        let problem = AttentionProblem::new(1, 1, 1, rows, keys + i, head_dim).with_window(window);
        cases.push((Case::plain(problem, i as u64), Places::Usual));
    }
    let check = |(case, places): (Case, Places)| {
        Check::Tensors(Box::new(TensorCheck { places, ..TensorCheck::new(What::Float16, case) }))
    };
    cases.into_iter().map(check).collect()
}

fn cases_of(head_dim: usize) -> Vec<(Case, Places)> {
    let sizes = [(67, 203), (1, 1), (130, 64), (70, 300), (300, 20), (65, 127)];
    let mut cases = Vec::new();
    for (seed, (seqlen_q, seqlen_kv)) in sizes.into_iter().enumerate() {
        let problem = AttentionProblem::new(1, 2, 1, seqlen_q, seqlen_kv, head_dim);
        cases.push((Case { placement: padded(8, 16, 0), ..Case::plain(problem, seed as u64) }, Places::Usual));
    }
    // Scores that grow from block to block, so that sums are rescaled; tails in each eight keys, with queries' ends.
    for eighth in 0..16 {
        let (tail, blocks) = (8 * eighth + 1 + 2 * (eighth % 4), eighth % 4);
        let rows = 5 + 8 * (eighth % 4) + if eighth % 2 == 0 { 0 } else { 64 * blocks + tail };
        let problem = AttentionProblem::new(1, 1, 1, rows, 64 * blocks + tail, head_dim);
        let problem = problem.with_softmax_scale([0.25, 0.5, 1.0, -0.5][eighth / 4]);
        cases.push((Case::plain(problem, eighth as u64), Places::Usual));
    }
    // Of every tensor more than one head, so that each of its strides is walked.
    let small = Case::plain(AttentionProblem::new(2, 4, 2, 70, 150, head_dim), 7);
    for (dimension, (token, head, batch)) in [(0, 0, 8), (0, 8, 0), (8, 0, 0)].into_iter().enumerate() {
        cases.push((Case { placement: padded(token, head, batch), ..small.clone() }, Places::Far(dimension)));
    }
    // Rows of the output are aligned to four bytes.
    for (token, head, batch) in [(2, 0, 0), (0, 6, 0), (0, 0, 10)] {
        let mut case = small.clone();
        case.placement[3] = padded(token, head, batch)[3];
        cases.push((case, Places::Usual));
    }
    cases
}
