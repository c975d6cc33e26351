//! Chunks of new tokens on the pages of a cache: what the kernels make of operands that are gathered from the same pages, bit for bit.

use crate::cache::any_cache;
use crate::properties::Kernels;
use crate::values::{Noise, Values};
use anyhow::{Context, Result, ensure};
use int_flash_attention::{
    Alibi, AttentionProblem, CacheShape, DType, HostCache, HostQ, HostQuantized, HostTables, HostTensor,
    PrefillProblem, ScoreMod, ScoreTensors, Scored, Shape, TensorLayout, Window,
};

/// A prefill.
#[derive(Clone)]
pub struct PrefillCase {
    /// What is computed.
    pub problem: PrefillProblem,
    /// The queries.
    pub q: HostQ,
    /// Where they begin, of packed ones.
    pub cu_seqlens_q: Option<Vec<u32>>,
    /// The cache.
    pub cache: HostCache,
    /// Its tables, of which a launch is given no more than it may read.
    pub tables: HostTables,
    /// Pages in front of the pool that are not there.
    pub ahead: usize,
    /// A slope a query head, for problems that have them.
    pub slopes: Vec<f32>,
    /// And a sink.
    pub sinks: Vec<f32>,
}

/// Kernels that prefill, on whatever they run. Rows of no sequence have `o = 0`, `lse = -inf`.
pub trait PrefillKernels {
    /// The output, token by token, and the log-sum-exp.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn prefill(&self, case: &PrefillCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)>;
}

impl PrefillCase {
    /// Of problems without tensors of the scores.
    #[must_use]
    pub const fn new(
        problem: PrefillProblem,
        q: HostQ,
        cu_seqlens_q: Option<Vec<u32>>,
        cache: HostCache,
        tables: HostTables,
    ) -> Self {
        Self { problem, q, cu_seqlens_q, cache, tables, ahead: 0, slopes: Vec::new(), sinks: Vec::new() }
    }

    /// What a launch may read of the block table.
    #[must_use]
    pub fn table(&self) -> &[u32] {
        &self.tables.block_table[..(self.tables.batch - 1) * self.tables.max_blocks + self.problem.max_blocks()]
    }

    /// The tensors of the scores.
    #[must_use]
    pub fn tensors(&self) -> ScoreTensors<'_> {
        let score = &self.problem.attention.score_mod;
        let (slopes, sinks) = (score.alibi.map(|_| &self.slopes[..]), score.sinks.then_some(&self.sinks[..]));
        ScoreTensors { alibi_slopes: slopes, sinks, ..ScoreTensors::default() }
    }

    /// The queries of a sequence.
    fn queries(&self, sequence: usize) -> std::ops::Range<usize> {
        match &self.cu_seqlens_q {
            Some(offsets) => offsets[sequence] as usize..offsets[sequence + 1] as usize,
            None => 0..self.problem.attention.seqlen_q,
        }
    }

    /// A row of a sequence among those of all, `[batch][head][token]`.
    fn row(&self, sequence: usize, head: usize, row: usize) -> usize {
        let Shape { heads, seqlen, .. } = self.problem.q_shape();
        let batch = if self.cu_seqlens_q.is_some() { 0 } else { sequence };
        (batch * heads + head) * seqlen + self.queries(sequence).start + row
    }

    /// The same of one sequence alone, on operands that are gathered.
    fn alone(&self, sequence: usize) -> Result<Option<(AttentionProblem, HostQuantized)>> {
        let (rows, keys) = (self.queries(sequence).len(), self.tables.seqlens_kv[sequence] as usize);
        if rows == 0 || keys == 0 {
            return Ok(None);
        }
        let problem = self.problem.attention.of_one(rows, keys);
        let row = &self.tables.block_table[sequence * self.tables.max_blocks..][..self.tables.max_blocks];
        let tables =
            HostTables { batch: 1, max_blocks: row.len(), block_table: row.to_vec(), seqlens_kv: vec![keys as u32] };
        let (k, v) = self.cache.gather(&tables, keys)?;
        let (heads, d) = (problem.heads_q, problem.head_dim);
        let mut q = HostQ {
            shape: problem.q_shape(),
            scheme: self.q.scheme,
            data: Vec::new(),
            scale: Vec::new(),
            bias: self.q.bias.as_ref().map(|_| Vec::new()),
        };
        for (head, row) in (0..heads).flat_map(|head| (0..rows).map(move |row| (head, row))) {
            let at = self.row(sequence, head, row);
            q.data.extend(&self.q.data[at * d..][..d]);
            q.scale.push(self.q.scale[at]);
            if let (Some(to), Some(bias)) = (&mut q.bias, &self.q.bias) {
                to.push(bias[at]);
            }
        }
        Ok(Some((problem, HostQuantized { q, k, v })))
    }
}

/// Tokens of each sequence in the cache, and how many of them are new: of several blocks, about the end of one, none; chunks of several tiles, single tokens,
/// none.
pub const LONG: [(u32, u32); 6] = [(391, 200), (129, 1), (256, 70), (128, 0), (2, 2), (0, 1)];
/// The same where little time is.
pub const SHORT: [(u32, u32); 4] = [(290, 37), (129, 1), (2, 2), (0, 1)];
/// New tokens of each sequence, where they are not packed.
const EACH: usize = 3;
/// More blocks than kernels fetch page numbers of ahead.
pub const LONGER: [(u32, u32); 2] = [(1290, 3), (2, 2)];

/// Changes of the scores and windows; the first ones are those of plain kernels.
pub const CHANGES: [(ScoreMod, Window); 5] = {
    let none = ScoreMod::NONE;
    let alibi = Some(Alibi::PerHead);
    [
        (none, Window::CAUSAL),
        (none, Window { left: Some(140), right: Some(0) }),
        (ScoreMod { sinks: true, ..none }, Window::FULL),
        (ScoreMod { softcap: Some(4.0), ..none }, Window::CAUSAL),
        (ScoreMod { softcap: Some(4.0), alibi, sinks: true, ..none }, Window { left: Some(20), right: Some(1) }),
    ]
};

/// A cache of sequences of all lengths, whose pages lie anywhere and hold anything behind their tokens: written at once, so that values of a block share a
/// scale, and token by token.
///
/// # Errors
///
/// When the library refuses it.
pub fn case(
    lengths: &[(u32, u32)],
    head_dim: usize,
    packed: bool,
    (score_mod, window): (ScoreMod, Window),
    seed: u64,
) -> Result<PrefillCase> {
    let (batch, heads_q, heads_kv) = (lengths.len(), 4, 2);
    let longest = lengths.iter().map(|&(length, _)| length as usize).max().unwrap_or(0);
    let max_blocks = longest.div_ceil(CacheShape::PAGE_TOKENS).max(4);
    // More than the table has entries, and a prime.
    let pages = if batch * (max_blocks + 1) < 31 { 31 } else { 61 };
    let mut tables = HostTables::contiguous(batch, max_blocks + 1);
    // A row has an entry that is not the problem's; it and what is behind a sequence is no page.
    for (i, page) in tables.block_table.iter_mut().enumerate() {
        let (sequence, block) = (i / (max_blocks + 1), i % (max_blocks + 1));
        let used = (block * CacheShape::PAGE_TOKENS) < lengths[sequence].0 as usize;
        *page = if used { (7 * i as u32 + 5) % pages } else { u32::MAX - i as u32 };
    }
    let mut cache = any_cache(CacheShape::new(pages as usize, heads_kv, head_dim)?, true, seed);
    let loud = if seed.is_multiple_of(2) { Values::Normal } else { Values::LoudTokens };
    let tensor = |heads: usize, tokens: usize, seed: u64| {
        loud.tensor(DType::F16, TensorLayout::bnhd(Shape::new(1, heads, tokens, head_dim)?), seed)
    };
    for (round, part) in [270_u32, u32::MAX].into_iter().enumerate() {
        let of_both = lengths.iter().zip(&tables.seqlens_kv);
        let more: Vec<usize> = of_both.map(|(&(length, _), &before)| (length.min(part) - before) as usize).collect();
        if more.iter().all(|&more| more == 0) {
            continue;
        }
        let slots = tables.extend(&more)?;
        let round = 10 * seed + 2 * round as u64;
        cache.append(&tensor(heads_kv, slots.len(), round)?, &tensor(heads_kv, slots.len(), round + 1)?, &slots)?;
    }
    let total: u32 = lengths.iter().map(|(_, new)| new).sum();
    let longest = lengths.iter().map(|&(_, new)| new).max().unwrap_or(1) as usize;
    // Room for more than there are.
    let each = if packed { longest } else { EACH };
    let mut problem = PrefillProblem::new(batch, heads_q, heads_kv, each, max_blocks * 128 - 60, head_dim)
        .with_window(window)
        .with_score_mod(score_mod);
    let mut cu_seqlens_q = None;
    if packed {
        problem = problem.with_packed_queries(total as usize + 9);
        let mut offsets = vec![0];
        offsets.extend(lengths.iter().scan(0, |sum, (_, new)| {
            *sum += new;
            Some(*sum)
        }));
        cu_seqlens_q = Some(offsets);
    }
    let q = Values::Normal.tensor(DType::F16, TensorLayout::bhnd(problem.q_shape()), 10 * seed + 9)?;
    let noise = |what, head| Noise::new(seed, [what, head, 3, 4]).normal();
    Ok(PrefillCase {
        slopes: (0..heads_q).map(|head| 0.25 * noise(1, head)).collect(),
        sinks: (0..heads_q).map(|head| noise(2, head)).collect(),
        ..PrefillCase::new(problem, cache.quantize_q(&q)?, cu_seqlens_q, cache, tables)
    })
}

/// Holds the results of a case, every sequence but those `but`, to what `contiguous` makes of it alone on gathered operands, bit for bit.
///
/// # Errors
///
/// Names the row.
pub fn as_contiguous(
    case: &PrefillCase,
    (o, lse): (&[f64], &[f64]),
    contiguous: impl Fn(&Scored<'_>, &HostQuantized) -> Result<(Vec<f64>, Vec<f64>)>,
    but: &[usize],
) -> Result<()> {
    let Shape { heads, head_dim: d, .. } = case.problem.q_shape();
    for sequence in (0..case.tables.batch).filter(|sequence| !but.contains(sequence)) {
        let alone = case.alone(sequence)?;
        let want = match &alone {
            Some((problem, operands)) => Some(contiguous(&Scored::new(problem, case.tensors()), operands)?),
            None => None,
        };
        let rows = case.queries(sequence).len();
        for (head, row) in (0..heads).flat_map(|head| (0..rows).map(move |row| (head, row))) {
            let (at, of) = (case.row(sequence, head, row), head * rows + row);
            let of_row = |o: &[f64], at: usize| o[at * d..][..d].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let none = f64::from(case.tensors().sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]));
            let (want, want_lse) =
                want.as_ref().map_or_else(|| (vec![0; d], none), |(o, lse)| (of_row(o, of), lse[of]));
            let what = || format!("row {row} of head {head} of sequence {sequence}");
            ensure!(of_row(o, at) == want, "{}", what());
            ensure!(lse[at].to_bits() == want_lse.to_bits(), "lse of {}: {} {want_lse}", what(), lse[at]);
        }
    }
    Ok(())
}

/// Runs a case, and holds it to the same kernels on operands.
///
/// # Errors
///
/// Names the row.
pub fn runs_as_contiguous<K: PrefillKernels + Kernels>(case: &PrefillCase, kernels: &K, but: &[usize]) -> Result<()> {
    let doubles = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
    let (o, lse) = kernels.prefill(case, DType::F32)?;
    let contiguous = |scored: &Scored<'_>, operands: &HostQuantized| {
        let layout = TensorLayout::bhnd(scored.problem.o_shape());
        let (o, lse) = kernels.attention(scored, operands, &layout, DType::F32, true)?;
        Ok((o.dense_f64(), doubles(&lse.context("no log-sum-exp")?)))
    };
    as_contiguous(case, (&o.dense_f64(), &doubles(&lse)), contiguous, but)
}
