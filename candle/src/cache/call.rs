//! What is asked of a cache, read from candle's layouts.

use super::{PackedQueries, PagedTables};
use crate::FlashAttn;
use crate::call::{NAME, Place, beside, check_heads, float, mismatch, refused};
use candle_core::{DType as Type, Layout, Result, Tensor, bail};
use int_flash_attention::{
    Alibi, AttentionProblem, CacheShape, DType, DecodeProblem, GatherProblem, PrefillProblem, ScoreMod, Sequences,
    Shape, TensorLayout,
};

/// An append.
#[derive(Clone, Copy, Debug)]
// On the CPU candle's tensors are copied by what they say themselves.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct AppendCall {
    /// New tokens, those of all sequences together.
    pub tokens: usize,
    /// Where their queries lie, where those are quantized as well.
    pub q: Option<TensorLayout>,
    /// Where K and V lie.
    pub layouts: [TensorLayout; 2],
    /// Their type.
    pub dtype: DType,
}

/// The new tokens of a tensor as one sequence: `(tokens, heads, head_dim)`, or `(batch, seqlen, heads, head_dim)` where a token lies as far from
/// the next in all places; else its sizes alone.
fn tokens(name: &str, layout: &Layout) -> Result<(Shape, Option<Place>)> {
    if layout.shape().rank() == 3 {
        let place = Place::of(name, layout, true)?;
        return Ok((place.shape, Some(place)));
    }
    let (batch, seqlen, heads, head_dim) = layout.shape().dims4()?;
    let shape = Shape { batch: 1, heads, seqlen: batch * seqlen, head_dim };
    let strides = layout.stride();
    let even = batch == 1 || seqlen == 1 || strides[0] == seqlen * strides[1];
    if !even {
        return Ok((shape, None));
    }
    let token = if seqlen == 1 { strides[0] } else { strides[1] };
    let merged = Layout::new((batch * seqlen, heads, head_dim).into(), vec![token, strides[2], strides[3]], 0);
    Ok((shape, Some(Place::of(name, &merged, true)?)))
}

impl AppendCall {
    /// The append of `k` and `v`, and of the queries of an attention on pages where they can be quantized with them.
    pub fn new(
        cache: &CacheShape,
        attend: Option<&AttendCall>,
        k: &Tensor,
        v: &Tensor,
        slot_mapping: &Tensor,
    ) -> Result<Self> {
        let dtype = crate::call::dtype_of([k.dtype(), v.dtype(), v.dtype()])?;
        let mut layouts = Vec::with_capacity(2);
        for (name, tensor) in [("k", k), ("v", v)] {
            let (shape, place) = tokens(name, tensor.layout())?;
            if (shape.heads, shape.head_dim) != (cache.heads_kv, cache.head_dim) {
                bail!(
                    "{NAME}: {name} has the shape {:?}; (tokens, {}, {}), the cache's heads and head dim, is expected",
                    tensor.dims(),
                    cache.heads_kv,
                    cache.head_dim
                )
            }
            let Some(place) = place else {
                bail!(
                    "{NAME}: the tokens of {name} lie unevenly, its strides are {:?}: `contiguous` puts one behind the other",
                    tensor.stride()
                )
            };
            layouts.push(place);
        }
        let tokens = layouts[0].shape.seqlen;
        if layouts[1].shape != layouts[0].shape {
            return mismatch(k.layout(), v.layout());
        }
        let slots = beside("slot_mapping", slot_mapping, &[Type::I64, Type::U32])?.dims1()?;
        if slots != tokens {
            bail!(
                "{NAME}: slot_mapping has {slots} slots for {tokens} new tokens; each has one, -1 where it is left out"
            )
        }
        let q = match attend {
            Some(AttendCall { attended: Attended::Pages(_), new_q: Some(q), dtype: of_q, .. })
                if q.shape().seqlen == tokens && *of_q == dtype =>
            {
                Some(*q)
            }
            _ => None,
        };
        let layouts = if tokens == 0 {
            // Nothing lies anywhere.
            [TensorLayout::bnhd(layouts[0].shape); 2]
        } else {
            [layouts[0].layout()?, layouts[1].layout()?]
        };
        Ok(Self { tokens, q, layouts, dtype })
    }
}

/// An attention on a cache: all that a plan depends on, and where the tables' rows begin.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub struct AttendCall {
    pub attended: Attended,
    /// Where Q lies, `[batch, heads_q, seqlen_q, head_dim]`; packed queries are of one batch.
    pub q: TensorLayout,
    /// The same as new tokens of one sequence, where they lie evenly.
    pub new_q: Option<TensorLayout>,
    /// The type of Q and of the output.
    pub dtype: DType,
    /// From one sequence to the next in the block tables.
    pub table_stride: usize,
}

/// The two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attended {
    /// On the pages, where they are.
    Pages(OnPages),
    /// On operands that are made of the pages: many queries, and a cache that has pages with V in 4 bits, which a prefill does not read.
    Gathered(GatherProblem, AttentionProblem),
}

/// Attention that reads pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnPages {
    /// Of a few queries of each sequence.
    Decode(DecodeProblem),
    /// Of many, or of another number of each.
    Prefill(PrefillProblem),
}

impl AttendCall {
    /// Attention of queries of as many tokens of each sequence, or of `packed` ones.
    pub fn new(
        cache: &CacheShape,
        q: &Tensor,
        packed: Option<&PackedQueries>,
        tables: &PagedTables,
        attention: &FlashAttn,
    ) -> Result<Self> {
        let dtype = float(q.dtype())?;
        let place = match (packed, q.rank()) {
            (Some(_), _) => Place::of("q", q.layout(), true)?,
            // A token of each sequence.
            (None, 3) => Place::of("q", q.unsqueeze(1)?.layout(), false)?,
            (None, _) => Place::of("q", q.layout(), false)?,
        };
        let Shape { batch, heads, seqlen, head_dim } = place.shape;
        let (batch, max_seqlen_q) = match packed {
            Some(packed) => packed.check(seqlen)?,
            None => (batch, seqlen),
        };
        check_heads(heads, cache.heads_kv)?;
        if head_dim != cache.head_dim {
            bail!("{NAME}: q has the head dim {head_dim}, the cache {}", cache.head_dim)
        }
        let (table_stride, max_blocks) = block_tables(&tables.block_tables, batch)?;
        let lengths = beside("context_lens", &tables.context_lens, &[Type::U32])?.dims1()?;
        if lengths != batch {
            bail!("{NAME}: context_lens has {lengths} elements; it has one for each of the {batch} sequences of q")
        }
        if attention.bias.is_some() || attention.mask.is_some() {
            bail!(
                "{NAME}: a bias or a mask was given for attention on a cache, which has windows, softcap, ALiBi and sinks; with a bias or \
                 a mask attend on plain tensors (`FlashAttn::forward`)"
            )
        }
        let max_seqlen_kv = max_blocks.saturating_mul(CacheShape::PAGE_TOKENS);
        let problem = AttentionProblem::new(batch, heads, cache.heads_kv, max_seqlen_q, max_seqlen_kv, head_dim)
            .with_window(attention.window)
            .with_softmax_scale(attention.softmax_scale);
        let score_mod = attention.score_mod(&problem)?;
        let attended = match packed {
            None if seqlen <= DecodeProblem::MAX_NEW_TOKENS => Self::decode(problem, score_mod, cache.v4_pages)?,
            None if cache.v4_pages > 0 => {
                let problem = problem.with_score_mod(score_mod).with_sequences(Sequences::KeyLengths);
                problem.check().map_err(refused)?;
                Attended::Gathered(GatherProblem { cache: *cache, batch, seqlen_kv: max_seqlen_kv }, problem)
            }
            Some(_) if cache.v4_pages > 0 => bail!(
                "{NAME}: packed queries were given for a cache that has pages with V in 4 bits; on such a one attend with as many queries of \
                 each sequence (`attend`), those of unlike lengths in a call each"
            ),
            _ => {
                let problem =
                    PrefillProblem { attention: problem.with_score_mod(score_mod), packed_q: packed.map(|_| seqlen) };
                problem.check().map_err(refused)?;
                Attended::Pages(OnPages::Prefill(problem))
            }
        };
        let new_q = tokens("q", q.layout())?.1.map(|place| place.layout()).transpose()?;
        Ok(Self { attended, q: place.layout()?, new_q, dtype, table_stride })
    }

    fn decode(problem: AttentionProblem, score_mod: ScoreMod, v4_pages: usize) -> Result<Attended> {
        let AttentionProblem { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim, .. } = problem;
        if score_mod.alibi == Some(Alibi::PerSequence) {
            bail!(
                "{NAME}: alibi_slopes has slopes for each sequence; attention of up to {} queries on a cache has ({heads_q}), one a query head: \
                 attend on the sequences one at a time",
                DecodeProblem::MAX_NEW_TOKENS
            )
        }
        let problem = DecodeProblem {
            seqlen_q,
            window: problem.window,
            softmax_scale: problem.softmax_scale,
            softcap: score_mod.softcap,
            alibi: score_mod.alibi.is_some(),
            sinks: score_mod.sinks,
            v4_pages,
            ..DecodeProblem::new(batch, heads_q, heads_kv, seqlen_kv, head_dim)
        };
        problem.check().map_err(refused)?;
        Ok(Attended::Pages(OnPages::Decode(problem)))
    }

    /// Where the output lies: contiguous in candle's order.
    pub fn o(&self) -> TensorLayout {
        TensorLayout::bnhd(self.q.shape())
    }
}

impl PackedQueries {
    /// How many sequences there are, and the most queries of one, where all have so many together.
    fn check(&self, total: usize) -> Result<(usize, usize)> {
        let ends = beside("seqlens_q", &self.seqlens_q, &[Type::U32])?.dims1()?;
        if ends < 2 {
            bail!(
                "{NAME}: seqlens_q has {ends} elements; it has the beginning of each sequence's queries and the end of the last, one more than \
                 there are sequences"
            )
        }
        // None has more than all together.
        Ok((ends - 1, self.max_seqlen_q.min(total)))
    }
}

/// The stride of block tables and their width.
fn block_tables(tables: &Tensor, batch: usize) -> Result<(usize, usize)> {
    if tables.dtype() != Type::U32 {
        bail!("{NAME}: block_tables holds {:?}; U32 is taken: `to_dtype` converts it, best once", tables.dtype())
    }
    let (given, max_blocks) = tables.dims2()?;
    if given != batch {
        bail!("{NAME}: block_tables has rows for {given} sequences, q is of {batch}")
    }
    let strides = tables.stride();
    if strides[1] != 1 && max_blocks > 1 {
        bail!("{NAME}: the last dim of block_tables must be contiguous, its strides are {strides:?}")
    }
    // Of one sequence, or of a row that is repeated, nothing is behind it.
    let stride = if batch == 1 { max_blocks } else { strides[0] };
    if stride < max_blocks {
        bail!("{NAME}: the rows of block_tables overlap, its strides are {strides:?}: `contiguous` gives each its own")
    }
    Ok((stride, max_blocks))
}
