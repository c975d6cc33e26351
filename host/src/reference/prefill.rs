//! Prefill on a paged cache: each sequence is a problem of its own, whose keys and values are read from its pages.

use super::Int8;
use super::sequences::{Whole, part_of_q};
use crate::cache::gather_sequence;
use crate::decode::HostPagedKv;
use crate::error::{Error, Result};
use crate::prefill::PrefillProblem;
use crate::problem::{AttentionProblem, Scheme, SeqLens, Span};
use crate::quantized::{HostQ, HostQuantized, check_q};
use crate::scores::{ScoreTensors, Scored};

/// The attention of a [`PrefillProblem`] on the host, before the output is rounded.
///
/// # Errors
/// As [`PrefillProblem::on_cpu`].
pub fn prefill(
    problem: &PrefillProblem,
    q: &HostQ,
    cu_seqlens_q: Option<&[u32]>,
    cache: &HostPagedKv<'_>,
    tensors: &ScoreTensors<'_>,
) -> Result<Int8> {
    problem.check()?;
    let whole = problem.whole();
    let scored = Scored::new(&whole, *tensors);
    scored.check()?;
    q.check()?;
    check_q(Scheme::Default, q)?;
    AttentionProblem::check_shape("q", q.shape, whole.q_shape())?;
    let spans = spans(problem, cu_seqlens_q, cache)?;
    let mut all = Whole::new(&scored, &spans);
    for span in spans {
        if let Some(one) = all.dense(&span) {
            let row = &cache.block_table[span.sequence * cache.table_stride..];
            let (k, v) = gather_sequence(cache.pages, &problem.attention, row, span.kv.len())?;
            let operands = HostQuantized { q: part_of_q(&whole, &span, q)?, k, v };
            let Int8 { o, lse } = super::int8(scored.of_sequence(&one, span.sequence), &operands)?;
            all.put(&span, &o, &lse);
        }
    }
    Ok(all.results())
}

/// Where the sequences' queries are, and how many keys they have, once all pages in use are known to be of the pool.
fn spans(problem: &PrefillProblem, cu_seqlens_q: Option<&[u32]>, cache: &HostPagedKv<'_>) -> Result<Vec<Span>> {
    let AttentionProblem { batch, seqlen_kv, .. } = problem.attention;
    problem.check_offsets(cu_seqlens_q.as_ref())?;
    let pages = problem.check_pages(cache.pages.len(), cache.v4_pages, cache.table_stride)?;
    for (name, given, expected) in [
        ("block_table", cache.block_table.len(), problem.table_len(cache.table_stride)),
        ("seqlens_kv", cache.seqlens_kv.len(), batch),
    ] {
        if given < expected {
            return Err(Error::Length { name, given, expected });
        }
    }
    let lengths = &cache.seqlens_kv[..batch];
    for (sequence, &length) in lengths.iter().enumerate() {
        if length as usize > seqlen_kv {
            return Err(Error::SequenceLength { sequence, given: length as usize, max: seqlen_kv });
        }
        let row = &cache.block_table[sequence * cache.table_stride..];
        let in_use = &row[..(length as usize).div_ceil(crate::CacheShape::PAGE_TOKENS)];
        if let Some((block, &given)) = in_use.iter().enumerate().find(|&(_, &page)| page as usize >= pages) {
            return Err(Error::NoPage { what: format!("block {block} of sequence {sequence}"), given, pages });
        }
    }
    let Some(cu_seqlens_q) = cu_seqlens_q else {
        return problem.whole().spans(&SeqLens::KeyLengths { seqlens_kv: lengths });
    };
    // Of K and V nothing is packed.
    let none = vec![0; batch + 1];
    let mut spans = problem.whole().spans(&SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv: &none })?;
    for (span, &length) in spans.iter_mut().zip(lengths) {
        span.kv = 0..length as usize;
    }
    Ok(spans)
}
