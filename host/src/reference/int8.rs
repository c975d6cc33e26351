//! The INT8 attention of docs/kernel-abi.md: the same blocks, integers and roundings as the kernels.

mod row;

pub(super) use row::{Row, rotate_back};

use super::Bounds;
use super::head::{Head, Unpacked};
use super::packed::{packed, resized};
use super::rows::Rows;
use super::simd::{Kernel, Vectors, dispatch};
use super::softmax::{BlockMax, Codes, FloatMax, RunningMax, Softmax};
use crate::error::Result;
use crate::problem::{AttentionProblem, Scheme};
use crate::progress::{ProgressFn, Ticker};
use crate::quantized::{HostQuantized, check_packing, check_q, check_scheme};
use crate::scores::Scored;
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes};
use rayon::prelude::*;
use std::ops::Range;

/// Output and log-sum-exp of the INT8 algorithm, before the output is rounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Int8 {
    /// `[batch][heads_q][rows][head_dim]`; 0 for a row that sees no key.
    pub o: Vec<f64>,
    /// `[batch][heads_q][rows]`; `-inf` for a row that sees no key.
    pub lse: Vec<f64>,
}

/// The INT8 attention on quantized operands, in the problem's scheme.
///
/// Scores, P and everything before them are bit for bit what docs/kernel-abi.md says, with a correctly rounded exponential;
/// the sums over blocks, which the kernels keep in float32, are float64.
///
/// # Errors
/// A wrong problem, or operands of other shapes than it says.
pub fn int8<'a>(problem: impl Into<Scored<'a>>, operands: &HostQuantized) -> Result<Int8> {
    int8_with_progress(problem.into(), operands, None)
}

/// [`int8`] for these query positions of every head.
///
/// # Errors
/// As there, and a position past the end.
pub fn int8_rows<'a>(problem: impl Into<Scored<'a>>, operands: &HostQuantized, rows: &[usize]) -> Result<Int8> {
    let scored = problem.into();
    plain(scored, operands, Rows::some(scored.problem, rows)?, None)
}

pub(crate) fn int8_with_progress(
    scored: Scored<'_>,
    operands: &HostQuantized,
    progress: Option<ProgressFn<'_>>,
) -> Result<Int8> {
    plain(scored, operands, Rows::all(scored.problem), progress)
}

fn plain(scored: Scored<'_>, x: &HostQuantized, rows: Rows<'_>, progress: Option<ProgressFn<'_>>) -> Result<Int8> {
    Ok(run::<false>(scored, x, rows, progress)?.result)
}

/// Results, and with `BOUNDS` how far a GPU's float32 result may be from them.
#[derive(Default)]
pub(super) struct Output {
    pub(super) result: Int8,
    pub(super) bounds: Bounds,
    /// The bounds of a machine with the reference's exponentials.
    pub(super) ideal: Bounds,
}

/// Rows that share a pass over K and V, so that a block is used from the cache.
const TILE: usize = 16;
/// Rows of them that share what is loaded of a block.
const TOGETHER: usize = 4;

pub(super) fn run<const BOUNDS: bool>(
    scored: Scored<'_>,
    x: &HostQuantized,
    rows: Rows<'_>,
    progress: Option<ProgressFn<'_>>,
) -> Result<Output> {
    let problem = scored.problem;
    problem.check()?;
    scored.check()?;
    problem.check_equal()?;
    check_operands(problem, x)?;
    let whole = packed(problem);
    let scored = Scored { problem: &whole, ..scored };
    let mut out = match (problem.scheme, problem.score_mod.kind()) {
        (Scheme::Default, Kind::Plain) => heads::<BlockMax, BOUNDS>(scored, x, rows, progress),
        (Scheme::Default, Kind::General) => heads::<FloatMax, BOUNDS>(scored, x, rows, progress),
        (Scheme::Paper, _) => heads::<RunningMax, BOUNDS>(scored, x, rows, progress),
    };
    for o in [&mut out.result.o, &mut out.bounds.o, &mut out.ideal.o] {
        *o = resized(std::mem::take(o), whole.value_dim(), problem.value_dim());
    }
    Ok(out)
}

pub(super) fn check_operands(problem: &AttentionProblem, x: &HostQuantized) -> Result<()> {
    x.q.check()?;
    x.k.check()?;
    x.v.check()?;
    check_q(problem.scheme, &x.q)?;
    for (name, scheme, packed) in [("k", x.k.scheme, x.k.packed), ("v", x.v.scheme, x.v.packed)] {
        check_scheme(name, problem.scheme, scheme)?;
        check_packing(name, packed, problem.packed())?;
    }
    AttentionProblem::check_shape("q", x.q.shape, problem.q_shape())?;
    AttentionProblem::check_shape("k", x.k.shape, problem.kv_shape())?;
    AttentionProblem::check_shape("v", x.v.shape, problem.v_shape())
}

fn heads<S: Softmax + Send, const BOUNDS: bool>(
    scored: Scored<'_>,
    x: &HostQuantized,
    rows: Rows<'_>,
    progress: Option<ProgressFn<'_>>,
) -> Output {
    let problem = scored.problem;
    let (heads, group, dv) = (problem.batch * problem.heads_q, problem.group(), problem.value_dim());
    let (mut o, mut lse) = (vec![0.0; heads * rows.len() * dv], vec![0.0; heads * rows.len()]);
    let ticker = Ticker::new(progress, heads * rows.len());
    // Each tile writes where its rows are; the query heads of a head of K and V follow one another.
    let chunk = rows.len().max(1);
    let of_kv = o.par_chunks_mut(group * chunk * dv).zip(lse.par_chunks_mut(group * chunk)).enumerate();
    let of_kv = of_kv.map(|(kv, (o, lse))| {
        let unpacked = Unpacked::new::<BOUNDS>(problem, x, kv);
        let of_heads = o.par_chunks_mut(chunk * dv).zip(lse.par_chunks_mut(chunk)).enumerate();
        let of_heads = of_heads.map(|(head, (o, lse))| {
            let head = Head::new(scored, x, &unpacked, kv * group + head);
            let tiles = o.par_chunks_mut(TILE * dv).zip(lse.par_chunks_mut(TILE)).enumerate();
            let tiles = tiles.map(|(tile, (o, lse))| {
                let positions: Vec<usize> = (0..lse.len()).map(|row| rows.at(tile * TILE + row)).collect();
                let bounds = self::tile::<S, BOUNDS>(problem, &head, &positions, o, lse);
                ticker.add(positions.len());
                bounds
            });
            tiles.collect::<Vec<_>>()
        });
        of_heads.collect::<Vec<_>>()
    });
    let parts: Vec<_> = of_kv.collect();
    let [mut bounds, mut ideal] = <[Bounds; 2]>::default();
    for [part, part_ideal] in parts.into_iter().flatten().flatten() {
        for (all, part) in [(&mut bounds, part), (&mut ideal, part_ideal)] {
            all.o.extend(part.o);
            all.lse.extend(part.lse);
        }
    }
    Output { result: Int8 { o, lse }, bounds, ideal }
}

/// Writes the results of these rows, and gives their bounds, a GPU's and those of an ideal one.
fn tile<S: Softmax, const BOUNDS: bool>(
    problem: &AttentionProblem,
    head: &Head<'_>,
    rows: &[usize],
    o: &mut [f64],
    lse: &mut [f64],
) -> [Bounds; 2] {
    let mut states: Vec<Row<S>> = rows.iter().map(|&row| Row::new(head, row, problem.visible_keys(row))).collect();
    let mut bounds = <[Bounds; 2]>::default();
    dispatch(TileKernel::<S, BOUNDS> { head, rows: &mut states, o, lse, bounds: &mut bounds });
    bounds
}

/// The blocks of a tile of rows.
struct TileKernel<'a, S, const BOUNDS: bool> {
    head: &'a Head<'a>,
    rows: &'a mut [Row<S>],
    /// A row after the other.
    o: &'a mut [f64],
    lse: &'a mut [f64],
    bounds: &'a mut [Bounds; 2],
}

impl<S: Softmax, const BOUNDS: bool> Kernel for TileKernel<'_, S, BOUNDS> {
    #[inline(always)]
    fn run(self, vectors: impl Vectors) {
        let (head, Unpacked { k, v, v_magnitude, .. }) = (self.head, self.head.unpacked);
        let mut magnitudes = v_magnitude.chunks_exact(block_bytes(head.dv));
        let pairs = |d| block_bytes(d) / 2;
        let mut buffers = Buffers {
            scores: [[0; KV_BLOCK]; TOGETHER],
            codes: [const { Codes { p: [0; KV_BLOCK], slack: [0; KV_BLOCK] } }; TOGETHER],
            products: vec![0; TOGETHER * head.dv],
        };
        for (index, (k, v)) in k.chunks_exact(pairs(head.d)).zip(v.chunks_exact(pairs(head.dv))).enumerate() {
            let block = Block { head, index, k, v, magnitudes: magnitudes.next().unwrap_or_default() };
            let (fours, rest) = self.rows.as_chunks_mut::<TOGETHER>();
            for rows in fours {
                block.add_to::<S, TOGETHER, BOUNDS>(vectors, rows, &mut buffers);
            }
            for row in rest {
                block.add_to::<S, 1, BOUNDS>(vectors, std::array::from_mut(row), &mut buffers);
            }
        }
        let [bounds, ideal] = self.bounds;
        for ((row, o), lse) in self.rows.iter_mut().zip(self.o.chunks_exact_mut(head.dv)).zip(self.lse) {
            row.join_sink(head);
            *lse = row.finish(head, o);
            if BOUNDS {
                row.bounds::<false>(head, o, bounds);
                row.bounds::<true>(head, o, ideal);
            }
        }
    }
}

/// What rows need while a block is added to them.
struct Buffers {
    scores: [[i32; KV_BLOCK]; TOGETHER],
    codes: [Codes; TOGETHER],
    /// A sum for each dim of each row.
    products: Vec<i32>,
}

/// A block of K and V.
struct Block<'a> {
    head: &'a Head<'a>,
    index: usize,
    k: &'a [[i16; 2]],
    v: &'a [[i16; 2]],
    /// Of V, `[dim][key]`, for bounds.
    magnitudes: &'a [i8],
}

impl Block<'_> {
    /// Those of the block's keys that a row sees.
    fn seen<S>(&self, row: &Row<S>) -> Range<usize> {
        let in_block = |key: usize| key.saturating_sub(self.index * KV_BLOCK).min(KV_BLOCK);
        in_block(row.keys.start)..in_block(row.keys.end)
    }

    /// Adds the block to rows, at most [`TOGETHER`].
    #[inline(always)]
    fn add_to<S: Softmax, const ROWS: usize, const BOUNDS: bool>(
        &self,
        vectors: impl Vectors,
        rows: &mut [Row<S>; ROWS],
        buffers: &mut Buffers,
    ) {
        let seen = rows.each_ref().map(|row| self.seen(row));
        let Buffers { scores, codes, products } = buffers;
        let (Some(scores), Some(codes)) = (scores.first_chunk_mut::<ROWS>(), codes.first_chunk_mut::<ROWS>()) else {
            return;
        };
        if seen.iter().all(Range::is_empty) {
            return;
        }
        vectors.products(rows.each_ref().map(|row| &*row.q), self.k, scores.each_mut().map(|of_row| &mut of_row[..]));
        let mut sums = [const { None }; ROWS];
        // A loop, not closures of it: those would not be compiled for the machine's vectors.
        for (at, row) in rows.iter_mut().enumerate() {
            if !seen[at].is_empty() {
                let (scores, codes) = (&scores[at], &mut codes[at]);
                sums[at] = Some(row.softmax.block::<BOUNDS>(self.head, self.index, scores, seen[at].clone(), codes));
            }
        }
        // Rows that see nothing of the block have codes of another one, and their products are not added.
        let mut of_rows = products.chunks_exact_mut(self.head.dv);
        let mut products: [&mut [i32]; ROWS] = std::array::from_fn(|_| of_rows.next().unwrap_or_default());
        vectors.products(codes.each_ref().map(|codes| &codes.p[..]), self.v, products.each_mut().map(|of| &mut **of));
        for (((row, sums), codes), products) in rows.iter_mut().zip(sums).zip(&*codes).zip(products) {
            if let Some(sums) = sums {
                row.add::<BOUNDS>(&sums, codes, products, self.magnitudes);
            }
        }
    }
}
