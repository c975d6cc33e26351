//! What changes scores, for a problem that is run.

use arbitrary::{Arbitrary, Result, Unstructured};
use int_flash_attention::{AttentionProblem, HostBias, HostData, HostMask, HostScores, HostSeqLens, MaskKind, SeqLens};

/// A dense tensor `[batch][head][query][key]`, of which dimensions are 1.
struct Tensor<T> {
    dims: [usize; 4],
    data: T,
}

/// Each of them now and then.
#[derive(Default)]
pub struct Scores {
    softcap: Option<f32>,
    slopes: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    bias: Option<Tensor<HostData>>,
    mask: Option<(MaskKind, Tensor<Vec<u8>>)>,
}

impl Scores {
    /// Of sequences of these lengths, which may be none.
    pub fn any(u: &mut Unstructured<'_>, problem: &AttentionProblem, lengths: &HostSeqLens<'_>) -> Result<Self> {
        if u.ratio(1, 2)? {
            return Ok(Self::default());
        }
        let longest = |offsets: &[u32]| offsets.windows(2).map(|ends| ends[1].saturating_sub(ends[0])).max();
        let longest = |offsets: &[u32]| longest(offsets).unwrap_or(0).max(1) as usize;
        let (batch, queries, keys) = match lengths {
            SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv } => {
                (cu_seqlens_q.len().saturating_sub(1).max(1), longest(cu_seqlens_q), longest(cu_seqlens_kv))
            }
            _ => (problem.batch, problem.seqlen_q, problem.seqlen_kv),
        };
        // Lengths that are none may be of very many tokens.
        if batch.saturating_mul(problem.heads_q).saturating_mul(queries).saturating_mul(keys) > 1 << 18 {
            return Ok(Self::default());
        }
        let heads = problem.heads_q;
        let dims = |u: &mut Unstructured<'_>| -> Result<[usize; 4]> {
            let mut own = |size| Ok(if bool::arbitrary(u)? { size } else { 1 });
            Ok([own(batch)?, own(heads)?, own(queries)?, keys])
        };
        let number = |u: &mut Unstructured<'_>| -> Result<f32> {
            Ok(if u.ratio(1, 32)? { f32::arbitrary(u)? } else { f32::from(i8::arbitrary(u)?) / 8.0 })
        };
        let numbers = |u: &mut Unstructured<'_>, len| (0..len).map(|_| number(u)).collect::<Result<Vec<_>>>();
        let mut scores = Self::default();
        if bool::arbitrary(u)? {
            scores.softcap = Some(if u.ratio(1, 4)? { f32::arbitrary(u)? } else { u.int_in_range(1..=50_u8)?.into() });
        }
        if bool::arbitrary(u)? {
            let len = if bool::arbitrary(u)? { heads } else { batch * heads };
            scores.slopes = Some(numbers(u, len)?);
        }
        if bool::arbitrary(u)? {
            scores.sinks = Some(numbers(u, heads)?);
        }
        if bool::arbitrary(u)? {
            let dims = dims(u)?;
            let few = numbers(u, 5)?;
            let data = (0..dims.iter().product::<usize>()).map(|at| few[at * 7 / 3 % 5]).collect();
            scores.bias = Some(Tensor { dims, data: HostData::F32(data) });
        }
        if bool::arbitrary(u)? {
            let (dims, kind) = (dims(u)?, *u.choose(&[MaskKind::Bytes, MaskKind::Bits])?);
            let few = <[u8; 5]>::arbitrary(u)?;
            let bytes = dims[..3].iter().product::<usize>() * kind.bytes(keys);
            scores.mask = Some((kind, Tensor { dims, data: (0..bytes).map(|at| few[at * 7 / 3 % 5]).collect() }));
        }
        Ok(scores)
    }

    pub fn host(&self) -> HostScores<'_> {
        HostScores {
            softcap: self.softcap,
            alibi_slopes: self.slopes.as_deref(),
            bias: self.bias.as_ref().map(|Tensor { dims, data }| HostBias { dims: *dims, data }),
            mask: self.mask.as_ref().map(|(kind, Tensor { dims, data })| HostMask { dims: *dims, kind: *kind, data }),
            sinks: self.sinks.as_deref(),
        }
    }

    /// Whether docs allow their numbers.
    pub fn allowed(&self) -> bool {
        let finite = |numbers: &Option<Vec<f32>>| numbers.iter().flatten().all(|x| x.is_finite());
        self.softcap.is_none_or(|cap| (1.0 / 16384.0..=16384.0).contains(&cap))
            && finite(&self.slopes)
            && finite(&self.sinks)
    }

    /// Whether they may hide all keys of a row.
    pub fn may_hide(&self) -> bool {
        self.bias.is_some() || self.mask.is_some()
    }
}
