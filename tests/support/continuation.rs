//! New tokens of cached sequences, two ways: a decode on the pages, and a prefill on what is gathered from them.

use crate::decode::{DecodeCase, DecodeKernels};
use crate::properties::Kernels;
use crate::sequences::Lengths;
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::compare;
use int_flash_attention::{
    Alibi, AttentionProblem, CacheShape, DType, DecodeProblem, HostCache, HostQuantized, HostTables, HostTensor,
    ScoreMod, ScoreTensors, Scored, SeqLens, Sequences, Shape, TensorLayout, Window,
};

/// Keys of each sequence: of several blocks, about the end of one, fewer than there are new tokens, none.
const LENGTHS: [u32; 5] = [391, 129, 128, 2, 0];
/// New tokens of each.
const NEW: usize = 3;
const HEADS: [usize; 2] = [4, 2];
const SLOPES: [f32; 4] = [0.5, 0.25, 0.0625, -0.125];
const SINKS: [f32; 4] = [0.5, -1.0, 2.0, 4.0];

/// Changes of the scores and windows that both have.
const CHANGES: [(ScoreMod, Window); 5] = {
    let none = ScoreMod::NONE;
    let alibi = Some(Alibi::PerHead);
    // Few keys, so that one more or less shows; over the end of a block.
    let sliding = Window { left: Some(20), right: Some(0) };
    [
        (none, sliding),
        (ScoreMod { softcap: Some(4.0), ..none }, Window::CAUSAL),
        (ScoreMod { alibi, ..none }, Window::FULL),
        (ScoreMod { sinks: true, ..none }, Window { left: Some(3), right: Some(1) }),
        (ScoreMod { softcap: Some(4.0), alibi, sinks: true, ..none }, sliding),
    ]
};

/// Every change of the scores over sequences of unlike lengths: a decode gives what a prefill gives, to within what the 8 bits of P leave, which
/// each of them has in its own way. ALiBi or a window that is a token off is more than that in the log-sum-exp of some row.
///
/// # Errors
///
/// The first change of the scores by which they are not the same.
pub fn decode_is_prefill<P: Kernels>(
    decode: &impl DecodeKernels,
    prefill: impl Fn(&Lengths) -> P,
    head_dim: usize,
) -> Result<()> {
    let [heads_q, heads_kv] = HEADS;
    let (batch, longest) = (LENGTHS.len(), LENGTHS[0] as usize);
    let mut tables = HostTables::contiguous(batch, longest.div_ceil(CacheShape::PAGE_TOKENS));
    tables.block_table.reverse();
    let mut cache = HostCache::alloc(CacheShape::new(tables.block_table.len(), heads_kv, head_dim)?)?;
    // What a key has in common with all others, most of which is taken out of it.
    let channel = |d: usize| 0.5 * ((d % 7) as f32 - 3.0);
    cache.k_offset = Some((0..heads_kv * head_dim).map(|at| 0.75 * channel(at % head_dim)).collect());
    let tensor = |which: usize, batch: usize, heads: usize, tokens: usize| {
        let wave = |b: usize, h: usize, n: usize, d: usize| {
            (((which + 1) * (b * 7919 + h * 104_729 + n * 1_299_709 + d * 15_485_863)) % 65_537) as f32 / 32_768.0 - 1.0
        };
        let value = |b, h, n, d| 1.7 * wave(b, h, n, d) + if which == 1 { channel(d) } else { 0.0 };
        HostTensor::from_fn(DType::F32, TensorLayout::bhnd(Shape::new(batch, heads, tokens, head_dim)?), value)
    };
    let tokens = LENGTHS.iter().sum::<u32>() as usize;
    let slots = tables.extend(&LENGTHS.map(|length| length as usize))?;
    cache.append(&tensor(1, 1, heads_kv, tokens)?, &tensor(2, 1, heads_kv, tokens)?, &slots)?;
    let (k, v) = cache.gather(&tables, longest)?;
    let operands = HostQuantized { q: cache.quantize_q(&tensor(0, batch, heads_q, NEW)?)?, k, v };

    let lengths = SeqLens::KeyLengths { seqlens_kv: LENGTHS.to_vec() };
    for (score_mod, window) in CHANGES {
        let problem = AttentionProblem::new(batch, heads_q, heads_kv, NEW, longest, head_dim)
            .with_window(window)
            .with_sequences(Sequences::KeyLengths)
            .with_score_mod(score_mod);
        let alibi_slopes = score_mod.alibi.map(|_| &SLOPES[..]);
        let sinks = score_mod.sinks.then_some(&SINKS[..]);
        let scored = Scored::new(&problem, ScoreTensors { alibi_slopes, sinks, ..ScoreTensors::default() });
        let layout = TensorLayout::bhnd(problem.o_shape());
        let (want, want_lse) = prefill(&lengths).attention(&scored, &operands, &layout, DType::F32, true)?;
        let want_lse = want_lse.context("no log-sum-exp")?;

        let of_decode = DecodeProblem {
            seqlen_q: NEW,
            window,
            softcap: score_mod.softcap,
            alibi: score_mod.alibi.is_some(),
            sinks: score_mod.sinks,
            ..DecodeProblem::new(batch, heads_q, heads_kv, longest, head_dim)
        };
        let case = DecodeCase {
            table: tables.block_table.clone(),
            stride: tables.max_blocks,
            pages: cache.pool.clone(),
            q: operands.q.clone(),
            slopes: SLOPES.to_vec(),
            sinks: SINKS.to_vec(),
            workers: Some((5, 1)),
            ..DecodeCase::new(of_decode, &LENGTHS, 0)
        };
        let (got, lse) = decode.decode(&case, DType::F32)?;
        let figures = compare(&got.dense_f64(), &want.dense_f64());
        ensure!(figures.relative_l2 < 1e-2, "{score_mod:?} {window}: outputs are {figures:?} apart");
        for (row, (&got, &want)) in lse.iter().zip(&want_lse).enumerate() {
            let same = got == want || (got - want).abs() < 2e-2;
            ensure!(same, "{score_mod:?} {window}: the log-sum-exp of row {row} is {got}, of the prefill {want}");
        }
    }
    Ok(())
}
