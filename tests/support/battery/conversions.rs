//! Quantization and dequantization.

use super::{Check, TensorCheck, What, padded, unlike};
use crate::case::{Case, Placement};
use crate::sim::{Part, Places};
use crate::values::Values;
use int_flash_attention::{AttentionProblem, DType, Scheme};
use int_flash_attention_kernels::config::{self, Family};
use int_flash_attention_kernels::quantize::launch::NARROW_DIMS;

/// The heads that a kernel converts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heads {
    All,
    Narrow,
    Wide,
}

impl Heads {
    /// Their dims in a scheme, of which there may be none.
    fn dims(self, scheme: Scheme) -> Vec<usize> {
        let is = |dim: &usize| self == Self::All || (*dim > NARROW_DIMS) == (self == Self::Wide);
        config::head_dims(&Family::ALL, scheme).filter(is).collect()
    }

    /// The schemes that have them.
    fn schemes(self) -> impl Iterator<Item = Scheme> {
        [Scheme::Default, Scheme::Paper].into_iter().filter(move |&scheme| !self.dims(scheme).is_empty())
    }
}

/// Inputs of both schemes, all head dims, and every kind of layout and of values.
fn cases_of(heads: Heads, dtype: DType) -> Vec<(Case, Places)> {
    let layouts = [
        (padded(8, 16, 0), Places::Usual),
        (padded(1, 0, 0), Places::Usual),
        (padded(0, 3, 0), Places::Usual),
        (padded(0, 0, 5), Places::Usual),
        (padded(4, 4, 4), Places::Aligned(8)),
        ([Placement::Bnhd; 4], Places::Aligned(1)),
        (padded(0, 0, 0), Places::AllFar),
        (padded(1, 1, 1), Places::AllFar),
    ];
    let values =
        [Values::Normal, Values::OutlierChannels, Values::LoudTokens, Values::Huge, Values::Tiny, Values::Zeros];
    let mut cases = Vec::new();
    for (i, (placement, places)) in layouts.into_iter().enumerate() {
        for (j, scheme) in heads.schemes().enumerate() {
            let dims = heads.dims(scheme);
            let far = places == Places::AllFar;
            let lengths = [(67, 201), (130, 40), (3, 600), (200, 530)];
            let (seqlen_q, seqlen_kv) = if far { (70, 140) } else { lengths[(i + j) % lengths.len()] };
            let head_dim = dims[(2 * i + j) % dims.len()];
            // Longer heads, fewer of them.
            let (batch, heads_kv) = if heads == Heads::Wide { (1, 1) } else { (2, 2) };
            let problem = AttentionProblem::new(batch, 2 * heads_kv, heads_kv, seqlen_q, seqlen_kv, head_dim);
            let problem = problem.with_scheme(scheme);
            let plain = Case::plain(problem, (2 * i + j) as u64);
            let values = [values[(i + 3 * j) % values.len()]; 3];
            cases.push((Case { dtype, out_dtype: dtype, placement, values, ..plain }, places));
        }
    }
    // many blocks, and one token
    let head_dim = heads.dims(Scheme::Default)[0];
    for (seqlen_q, seqlen_kv) in [(1, 1), (1, if heads == Heads::Wide { 700 } else { 5200 })] {
        let plain = Case::plain(AttentionProblem::new(1, 1, 1, seqlen_q, seqlen_kv, head_dim), 5);
        cases.push((Case { dtype, out_dtype: dtype, ..plain }, Places::Usual));
    }
    cases
}

fn checks(heads: Heads, what: What, dtype: DType) -> Vec<Check> {
    let check = |(case, places): (Case, Places)| {
        Check::Tensors(Box::new(TensorCheck { places, ..TensorCheck::new(what, case) }))
    };
    let mut checks: Vec<_> = cases_of(heads, dtype).into_iter().map(check).collect();
    let unlike = 0..if heads == Heads::Wide { 2 } else { 8 };
    checks.extend(unlike.map(|which| Check::Tensors(Box::new(unlike_lengths(heads, what, dtype, which)))));
    checks
}

/// Sequences of unlike lengths, packed and with key lengths, for all schemes.
fn unlike_lengths(heads: Heads, what: What, dtype: DType, which: usize) -> TensorCheck {
    let schemes: Vec<_> = heads.schemes().collect();
    let scheme = schemes[which / 2 % schemes.len()];
    let dims = heads.dims(scheme);
    let head_dim = dims[which / 2 % dims.len()];
    unlike_heads(what, dtype, which, scheme, head_dim)
}

fn unlike_heads(what: What, dtype: DType, which: usize, scheme: Scheme, head_dim: usize) -> TensorCheck {
    let problem = AttentionProblem::new(1, 4, 2, 1, 1, head_dim).with_scheme(scheme);
    let placement = [padded(0, 0, 0), padded(1, 0, 0), padded(8, 16, 0)][which % 3];
    let values = [[Values::Normal; 3], [Values::LoudTokens; 3]][which / 4];
    let plain = Case::plain(problem, which as u64);
    let (case, lengths) = unlike(Case { dtype, out_dtype: dtype, placement, values, ..plain }, which);
    TensorCheck { lengths, ..TensorCheck::new(what, case) }
}

/// Those of the kernel that quantizes this type.
pub(super) fn quantization(dtype: DType) -> Vec<Check> {
    let mut all = checks(Heads::Narrow, What::Quantization, dtype);
    all.extend(parts(Heads::Narrow, dtype, 64, 8));
    // For kernels that take narrow blocks: blocks of K whose tokens share a scale, and others.
    let kinds = [Values::Normal, Values::LoudTokens, Values::Zeros, Values::OutlierChannels];
    for (i, values) in kinds.into_iter().enumerate() {
        let head_dim = [64, 128, 112][i % 3];
        let plain = Case::plain(AttentionProblem::new(1, 2, 2, 35, 520 + i, head_dim), i as u64);
        let case = Case { dtype, out_dtype: dtype, values: [values; 3], placement: padded(i % 2, 0, 0), ..plain };
        let lengths = unlike_heads(What::Quantization, dtype, i, Scheme::Default, [64, 128][i % 2]);
        let shared = |check| Check::Tensors(Box::new(TensorCheck { family: Family::Sm90a, ..check }));
        all.extend([TensorCheck::new(What::QuantizationOf(Part::Kv), case), lengths].map(shared));
    }
    all
}

/// Those of the kernel that quantizes wide heads of this type.
pub(super) fn wide_quantization(dtype: DType) -> Vec<Check> {
    let mut all = checks(Heads::Wide, What::Quantization, dtype);
    all.extend(parts(Heads::Wide, dtype, 328, 2));
    all
}

/// Parts: of tensors alone, with this head dim, and with lengths.
fn parts(heads: Heads, dtype: DType, head_dim: usize, count: usize) -> impl Iterator<Item = Check> {
    [Part::Q, Part::Kv].into_iter().cycle().take(count).enumerate().flat_map(move |(which, part)| {
        let what = What::QuantizationOf(part);
        let lengths = unlike_lengths(heads, what, dtype, which / 2);
        let problem = AttentionProblem::new(2, 4, 2, 35, 140, head_dim).with_scheme(lengths.case.problem.scheme);
        let equal = Case { problem, ..lengths.case.clone() };
        [lengths, TensorCheck::new(what, equal)].map(|check| Check::Tensors(Box::new(check)))
    })
}

/// Those of the kernel that gives this type.
pub(super) fn dequantization(dtype: DType) -> Vec<Check> {
    checks(Heads::All, What::Dequantization, dtype)
}
