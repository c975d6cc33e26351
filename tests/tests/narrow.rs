//! Narrow blocks (docs/kernel-abi.md) on the PTX machine: which ones a kernel takes in 16 bits, and what it makes of them.

use anyhow::{Context, Result, ensure};
use int_flash_attention::reference;
use int_flash_attention::{AttentionProblem, DType, HostTensor, Scored, TensorLayout, Window};
use int_flash_attention_kernels::config::Family;
use int_flash_attention_tests::properties::{Kernels, representable, within};
use int_flash_attention_tests::sim::Simulator;
use int_flash_attention_tests::values::Noise;

/// What is unusual about the values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Values {
    Normal,
    /// Row 70 of Q a hundred times as loud: its 64 rows have no narrow block.
    LoudRow,
    /// Row 70 of Q zero.
    ZeroRow,
    /// A key of block 2 five times as loud: its block has no scale that all keys share.
    LoudKey,
    /// A value of block 2 a hundred times as loud: its block is mixed.
    LoudValue,
    /// Keys of odd blocks three times as loud: a row's blocks have other units.
    UnlikeBlocks,
    /// One row of Q is no number.
    LostRow,
    /// Every code of every product as large as there is, all of one sign: keys behind the first 64 that are all queries, or the opposite of them.
    Aligned,
    Opposed,
}
use Values::{Aligned, LostRow, LoudKey, LoudRow, LoudValue, Normal, Opposed, UnlikeBlocks, ZeroRow};

/// Those of the kernels that take narrow blocks.
const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

fn takes_narrow(family: Family, head_dim: usize) -> bool {
    family == Family::Sm90a || [64, 128].contains(&head_dim)
}

const QUERIES: usize = 150;
const KEYS: usize = 600;

fn tensors(problem: &AttentionProblem, values: Values) -> Result<[HostTensor; 3]> {
    let tensor = |of: usize, shape| {
        let value = |_, head: usize, token: usize, dim: usize| {
            // A single dim: rotated, all are alike.
            match (values, of, token) {
                (Aligned | Opposed, 0, _) | (Aligned, 1, 64..) if dim == 0 => return 95.0,
                (Opposed, 1, 64..) if dim == 0 => return -95.0,
                (Aligned | Opposed, 0 | 1, _) => return 0.0,
                _ => {}
            }
            let sum: i32 =
                (0..4_usize).map(|i| Noise::new(3, [of, head * KEYS + token, dim, i]).word() as i32 >> 8).sum();
            let loud = match (values, of, token) {
                (LoudRow, 0, 70) | (LoudValue, 2, 300) => 100.0,
                (ZeroRow, 0, 70) => 0.0,
                (LoudKey, 1, 300) => 5.0,
                (UnlikeBlocks, 1, token) if token / 128 % 2 == 1 => 3.0,
                (LostRow, 0, 70) => f32::NAN,
                _ => 1.0,
            };
            sum as f32 / (1 << 23) as f32 * 0.866 * loud
        };
        HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), value)
    };
    Ok([tensor(0, problem.q_shape())?, tensor(1, problem.kv_shape())?, tensor(2, problem.v_shape())?])
}

/// Holds the kernels to the reference, and says for each row whether 16 bits made a difference.
fn check(problem: &AttentionProblem, values: Values) -> Result<Vec<bool>> {
    if takes_narrow(Family::Sm80, problem.head_dim) {
        kernel_of(Family::Sm80, problem, values, true).context("sm_80")?;
    }
    kernel_of(Family::Sm90a, problem, values, true)
}

/// The same of the kernel of a family, on K with shared scales or without.
fn kernel_of(family: Family, problem: &AttentionProblem, values: Values, shared: bool) -> Result<Vec<bool>> {
    let [q, k, v] = tensors(problem, values)?;
    let simulator = Simulator::of(family, 2);
    let scored = Scored::from(problem).with_narrow(simulator.narrow(problem));
    let takes = takes_narrow(family, problem.head_dim);
    ensure!(scored.narrow == takes, "the kernels that take narrow blocks are others");
    let operands = reference::quantize(scored.with_narrow(shared), &q, &k, &v)?;
    let (wide, _) = reference::ideal_bounds(problem, &operands, DType::F32)?;
    let (want, bounds) = reference::ideal_bounds(scored, &operands, DType::F32)?;
    let layout = TensorLayout::bhnd(problem.o_shape());
    let (o, lse) = simulator.attention(&scored, &operands, &layout, DType::F32, true)?;
    let both = |got: &[f64], want: &[f64]| -> [Vec<f64>; 2] {
        // NaN where NaN is wanted is as good as a number.
        let lost: Vec<bool> = got.iter().zip(want).map(|(got, want)| got.is_nan() && want.is_nan()).collect();
        [got, want].map(|of| of.iter().zip(&lost).map(|(&x, &lost)| if lost { 0.0 } else { x }).collect())
    };
    let [got, wanted] = both(&representable(&o, &want.o, &bounds.o), &want.o);
    within("o", &got, &wanted, &bounds.o, problem.head_dim)?;
    let lse: Vec<f64> = lse.context("no log-sum-exp")?.into_iter().map(f64::from).collect();
    let [got, wanted] = both(&lse, &want.lse);
    within("lse", &got, &wanted, &bounds.lse, 1)?;
    let rows = wide.o.chunks(problem.head_dim).zip(want.o.chunks(problem.head_dim));
    Ok(rows.map(|(wide, narrow)| wide != narrow && !narrow[0].is_nan()).collect())
}

fn problem(head_dim: usize) -> AttentionProblem {
    AttentionProblem::new(1, 2, 1, QUERIES, KEYS, head_dim)
}

/// Where units leave their range, on either side, there is none; between, every row that sees whole blocks but the first has some.
#[test]
fn units_decide() {
    for head_dim in HEAD_DIMS {
        let usual = problem(head_dim).scale();
        // Nearer to its ends, for some rows and blocks and not for others.
        let ends = [0.37, 0.42, 0.47, 0.52, 0.57, 11.0, 13.0, 16.0].map(|factor| (factor, None));
        let far = [(0.2, false), (1.0, true), (4.0, true), (40.0, false), (-1.0, false)];
        // The ends are the same arithmetic in every head dim.
        let ends = ends.into_iter().filter(|_| [64, 128].contains(&head_dim));
        for (factor, narrow) in far.map(|(factor, narrow)| (factor, Some(narrow))).into_iter().chain(ends) {
            let problem = problem(head_dim).with_softmax_scale(factor * usual);
            // Of the kernels for every GPU fewer, the same arithmetic: in each range and near both ends.
            let rows = if [0.2, 0.47, 1.0, 13.0].contains(&factor) {
                check(&problem, Normal)
            } else {
                kernel_of(Family::Sm90a, &problem, Normal, true)
            };
            let rows = rows.unwrap_or_else(|error| panic!("{factor}, d {head_dim}: {error:#}"));
            let as_said = |&row: &bool| narrow.is_none_or(|narrow| row == narrow);
            assert!(rows.iter().all(as_said), "{factor}, d {head_dim}: {rows:?}");
        }
    }
}

/// The largest scores that codes have, and the smallest, beside hidden keys: 16 bits hold them, and tell them from no key.
#[test]
fn extreme_scores_are_told_from_hidden_ones() {
    for head_dim in [128, 256] {
        for values in [Aligned, Opposed] {
            // From row 228 on, none sees the first block.
            let square = AttentionProblem { seqlen_q: 400, seqlen_kv: 400, ..problem(head_dim) };
            let problem = square.with_window(Window { left: Some(100), right: Some(0) });
            check(&problem, values).unwrap_or_else(|error| panic!("{values:?}, d {head_dim}: {error:#}"));
        }
    }
}

/// Every kernel is right on K with shared scales and without; 16 bits make a difference where the kernel and the scales are for them.
#[test]
fn kernels_take_both_kinds_of_scales() {
    for head_dim in HEAD_DIMS {
        let kinds = [(Family::Sm90a, true), (Family::Sm90a, false), (Family::Sm80, true), (Family::Sm80, false)];
        for (family, shared) in kinds {
            let rows = kernel_of(family, &problem(head_dim), Normal, shared)
                .unwrap_or_else(|error| panic!("{family}, shared {shared}, d {head_dim}: {error:#}"));
            let narrow = shared && takes_narrow(family, head_dim);
            assert!(rows.iter().all(|&row| row == narrow), "{family}, shared {shared}, d {head_dim}: {rows:?}");
        }
    }
}

/// 64 rows have a narrow block together or not at all.
#[test]
fn rows_decide_together() {
    for (values, of_group) in [(LoudRow, false), (ZeroRow, true)] {
        let rows = check(&problem(64), values).unwrap();
        for (row, &narrow) in rows.iter().enumerate() {
            let group = row % QUERIES / 64;
            assert_eq!(narrow, group != 1 || of_group, "{values:?}, row {row}");
        }
    }
}

/// Every kind of values under every mask, rows that see no key of a block among them.
#[test]
fn all_values_under_all_masks() {
    let windows = [
        Window::FULL,
        Window::CAUSAL,
        Window { left: Some(100), right: Some(3) },
        Window { left: Some(300), right: None },
        Window { left: Some(5), right: Some(140) },
    ];
    for (i, window) in windows.into_iter().enumerate() {
        for values in [LoudKey, LoudValue, UnlikeBlocks, LostRow] {
            let head_dim = HEAD_DIMS[(i + values as usize) % 4];
            // As many keys as queries, so that causal rows see few.
            let square = AttentionProblem { seqlen_q: 400, seqlen_kv: 400, heads_q: 1, ..problem(head_dim) };
            let problem = if i % 2 == 0 { problem(head_dim) } else { square }.with_window(window);
            let rows = check(&problem, values).unwrap_or_else(|error| panic!("{values:?}, {window:?}: {error:#}"));
            assert!(rows.iter().any(|&narrow| narrow), "{values:?}, {window:?}: no narrow block");
        }
    }
}
