//! Ring attention on the CPU: the arithmetic of the GPU's, rank by rank.

use super::communicator::check_ranks;
use super::ring::Pair;
use super::{Communicator, Host, Message, RingProblem};
use crate::error::Result;
use crate::problem::{AttentionProblem, SeqLens, Sequences};
use crate::quantized::{HostK, HostQ, HostQuantized, HostV, Lengths, PackedFormat};
use crate::reference::{self, HostState, Int8, sequences};
use crate::shape::Shape;
use crate::view::HostView;
use bytemuck::{cast_slice, cast_slice_mut};
use std::ops::Range;

/// The two constants of a head that its first tokens give: `k_offset` and `v_unit` of all heads.
pub(super) struct Constants {
    pub(super) offset: Vec<f32>,
    pub(super) unit: Vec<f32>,
}

impl Constants {
    /// Those of the keys and values of the first rank, on every rank.
    pub(super) fn share(
        ranks: &dyn Communicator<Host>,
        problem: &AttentionProblem,
        first: Option<(&HostK, &HostV)>,
    ) -> Result<Self> {
        let (of_k, of_v) = (Lengths::of(problem.kv_shape())?.channels, Lengths::of(problem.v_shape())?.heads);
        let mut both = match first {
            Some((k, v)) => [&k.offset[..], &v.unit[..]].concat(),
            None => vec![0.0; of_k + of_v],
        };
        if ranks.rank() == 0 {
            let bytes = cast_slice(&both);
            let sends: Vec<_> = (1..ranks.ranks()).map(|peer| Message { peer, bytes }).collect();
            ranks.exchange((), &sends, &mut [])?;
        } else {
            ranks.exchange((), &[], &mut [Message { peer: 0, bytes: cast_slice_mut(&mut both) }])?;
        }
        let unit = both.split_off(of_k);
        Ok(Self { offset: both, unit })
    }
}

/// A chunk's keys and values.
type Chunk = (HostK, HostV);

/// Keys and values of a rank's chunks, quantized as the whole would be, and the constants. Chunks are places in the rank's own tensors.
pub(super) fn quantize_kv(
    ranks: &dyn Communicator<Host>,
    problem: &AttentionProblem,
    chunks: impl Iterator<Item = Range<usize>>,
    k: HostView<'_>,
    v: HostView<'_>,
) -> Result<(Vec<Chunk>, Constants)> {
    let mut rest = chunks;
    let mut done = Vec::new();
    if ranks.rank() == 0
        && let Some(chunk) = rest.next()
    {
        let scheme = problem.scheme;
        done.push((
            reference::quantize_k(scheme, k.of_tokens(chunk.clone())?)?,
            reference::quantize_v(scheme, v.of_tokens(chunk)?)?,
        ));
    }
    let constants = Constants::share(ranks, problem, done.first().map(|(k, v)| (k, v)))?;
    for chunk in rest {
        done.push((
            reference::quantize_k_on(k.of_tokens(chunk.clone())?, &constants.offset)?,
            reference::quantize_v_on(v.of_tokens(chunk)?, &constants.unit)?,
        ));
    }
    Ok((done, constants))
}

/// The arrays of chunks, one behind the other.
fn to_bytes(chunks: &[Chunk]) -> Vec<u8> {
    let arrays = |(k, v): &Chunk| -> Vec<u8> {
        let floats = [&k.scale, &k.block_scale, &k.offset, &v.scale, &v.block_scale, &v.unit];
        let codes = [cast_slice(&k.data), cast_slice(&v.data)];
        codes.into_iter().chain(floats.into_iter().map(|x| cast_slice(x))).flatten().copied().collect()
    };
    chunks.iter().flat_map(arrays).collect()
}

/// Room for the keys and values of these tokens.
fn room(problem: &AttentionProblem) -> Result<Chunk> {
    let (of_k, of_v) = (Lengths::of(problem.kv_shape())?, Lengths::of(problem.v_shape())?);
    let (scheme, packed, format) = (problem.scheme, None, PackedFormat::CURRENT);
    let [k_scale, k_block_scale, offset] = [of_k.kv_scale, of_k.blocks, of_k.channels].map(|len| vec![0.0; len]);
    let [v_scale, v_block_scale, unit] = [of_v.kv_scale, of_v.blocks, of_v.heads].map(|len| vec![0.0; len]);
    let k = HostK {
        shape: problem.kv_shape(),
        packed,
        scheme,
        format,
        data: vec![0; of_k.kv_data],
        scale: k_scale,
        block_scale: k_block_scale,
        offset,
    };
    let v = HostV {
        shape: problem.v_shape(),
        packed,
        scheme,
        format,
        data: vec![0; of_v.kv_data],
        scale: v_scale,
        block_scale: v_block_scale,
        unit,
    };
    Ok((k, v))
}

/// What [`to_bytes`] made.
fn fill(chunks: &mut [Chunk], mut bytes: &[u8]) {
    for (k, v) in chunks {
        let floats = [&mut k.scale, &mut k.block_scale, &mut k.offset, &mut v.scale, &mut v.block_scale, &mut v.unit];
        let codes = [cast_slice_mut(&mut k.data), cast_slice_mut(&mut v.data)];
        for array in codes.into_iter().chain(floats.into_iter().map(|x| cast_slice_mut(x))) {
            let (own, rest) = bytes.split_at(array.len());
            array.copy_from_slice(own);
            bytes = rest;
        }
    }
}

impl RingProblem {
    /// A rank's part of ring attention on the CPU: the output of its queries `[batch][heads_q][tokens][head_dim]` and their log-sum-exps.
    /// Every rank calls it with its own tokens, of one element type.
    ///
    /// # Errors
    /// As of [`check`](Self::check); tensors of other shapes than the rank's; a communicator of another number of ranks; what it says.
    pub fn on_cpu<'a>(
        &self,
        ranks: &dyn Communicator<Host>,
        q: impl Into<HostView<'a>>,
        k: impl Into<HostView<'a>>,
        v: impl Into<HostView<'a>>,
    ) -> Result<Int8> {
        self.check()?;
        let rank = check_ranks(ranks, self.ranks)?;
        let (q, k, v) = (q.into(), k.into(), v.into());
        AttentionProblem::check_shape("q", q.shape(), self.q_shape(rank))?;
        AttentionProblem::check_shape("k", k.shape(), self.kv_shape(rank))?;
        AttentionProblem::check_shape("v", v.shape(), self.v_shape(rank))?;
        reference::start_threads()?;
        let (chunks, parts) = (self.chunks(rank), self.parts(rank));
        let (own, constants) = quantize_kv(ranks, &self.attention, Self::starts(&chunks), k, v)?;
        let queries = Self::starts(&parts)
            .map(|rows| reference::quantize_q(self.attention.scheme, q.of_tokens(rows)?, Some(&constants.offset)));
        let queries = queries.collect::<Result<Vec<_>>>()?;
        let mut states: Vec<Option<State>> = parts.iter().map(|_| None).collect();
        let bytes = to_bytes(&own);
        for step in self.steps(rank) {
            let mut received = Vec::new();
            if step.receives {
                let of_source = self.chunks(step.source);
                received = of_source.iter().map(|tokens| room(&self.of_tokens(tokens))).collect::<Result<_>>()?;
            }
            let mut buffer = if step.receives { to_bytes(&received) } else { Vec::new() };
            let sends: Vec<_> = step.to.iter().map(|&peer| Message { peer, bytes: &bytes[..] }).collect();
            let mut receives: Vec<_> =
                step.receives.then_some(Message { peer: step.source, bytes: &mut buffer[..] }).into_iter().collect();
            ranks.exchange((), &sends, &mut receives)?;
            fill(&mut received, &buffer);
            let keys = if step.receives { &received } else { &own };
            for pair in &step.pairs {
                let state = &mut states[pair.part];
                let new = State::of(pair, &queries[pair.part], &keys[pair.chunk])?;
                *state = Some(match state.take() {
                    None => new,
                    Some(old) => old.merged(pair.problem.o_shape(), &new)?,
                });
            }
        }
        Ok(gather(self.o_shape(rank), Self::starts(&parts).zip(states.into_iter().flatten())))
    }
}

/// What a part of the queries has come to.
struct State {
    o: Vec<f32>,
    lse: Vec<f32>,
}

impl State {
    fn of_int8(result: &Int8) -> Self {
        let single = |x: &[f64]| x.iter().map(|&x| x as f32).collect();
        Self { o: single(&result.o), lse: single(&result.lse) }
    }

    /// On a chunk of keys.
    fn of(pair: &Pair, q: &HostQ, (k, v): &Chunk) -> Result<Self> {
        let operands = HostQuantized { q: q.clone(), k: k.clone(), v: v.clone() };
        let lengths = vec![pair.keys as u32; pair.problem.batch];
        let result = match pair.problem.sequences {
            Sequences::KeyLengths => {
                sequences::int8(&pair.problem, &SeqLens::KeyLengths { seqlens_kv: &lengths[..] }, &operands)
            }
            _ => reference::int8(&pair.problem, &operands),
        };
        Ok(Self::of_int8(&result?))
    }

    fn merged(&self, shape: Shape, other: &Self) -> Result<Self> {
        let states = [self, other].map(|state| HostState { o: &state.o, lse: &state.lse });
        Ok(Self::of_int8(&reference::merge(shape, &states, None)?))
    }
}

/// The parts' rows where they are among a rank's.
fn gather(shape: Shape, parts: impl Iterator<Item = (Range<usize>, State)>) -> Int8 {
    let d = shape.head_dim;
    let mut all = Int8 { o: vec![0.0; shape.elements()], lse: vec![f64::NEG_INFINITY; shape.rows()] };
    for (rows, state) in parts {
        let len = rows.len();
        for head in 0..shape.batch * shape.heads {
            for (row, from) in rows.clone().zip(head * len..) {
                let to = head * shape.seqlen + row;
                all.lse[to] = state.lse[from].into();
                for (to, &from) in all.o[to * d..][..d].iter_mut().zip(&state.o[from * d..][..d]) {
                    *to = from.into();
                }
            }
        }
    }
    all
}
