//! Ulysses on the CPU: the arithmetic of the GPU's, rank by rank.

use super::communicator::check_ranks;
use super::ring_cpu::quantize_kv;
use super::ulysses::Spread;
use super::{Communicator, Host, Message, UlyssesProblem};
use crate::error::Result;
use crate::problem::AttentionProblem;
use crate::quantized::{HostK, HostQ, HostQuantized, HostV, PackedFormat};
use crate::reference::{self, Int8};
use crate::view::HostView;
use bytemuck::{cast_slice, pod_collect_to_vec};

/// An array to spread, and its bytes on this rank.
type Own<'a> = (Spread, &'a [u8]);

impl UlyssesProblem {
    /// A rank's part of Ulysses on the CPU: the output of its tokens `[batch][heads_q][tokens][head_dim]` and their log-sum-exps. Every
    /// rank calls it with its own tokens, of one element type.
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
        let (local, own) = (self.of_tokens(rank), self.of_heads(rank));
        AttentionProblem::check_shape("q", q.shape(), local.q_shape())?;
        AttentionProblem::check_shape("k", k.shape(), local.kv_shape())?;
        AttentionProblem::check_shape("v", v.shape(), local.v_shape())?;
        reference::start_threads()?;
        let tokens = 0..self.tokens(rank).len();
        let (kv, constants) = quantize_kv(ranks, &self.attention, std::iter::once(tokens), k, v)?;
        let (k, v) = &kv[0];
        let q = reference::quantize_q(self.attention.scheme, q, Some(&constants.offset))?;
        let bias = q.bias.as_deref().unwrap_or_default();
        let floats = [&q.scale[..], bias, &k.scale, &k.block_scale, &v.scale, &v.block_scale, &constants.unit];
        let [q_scale, q_bias, k_scale, k_block, v_scale, v_block, unit] = floats.map(cast_slice::<f32, u8>);
        let arrays = [
            cast_slice(&q.data),
            q_scale,
            q_bias,
            cast_slice(&k.data),
            k_scale,
            k_block,
            cast_slice(&v.data),
            v_scale,
            v_block,
            unit,
        ];
        let spread: Vec<Own<'_>> = self.operands().into_iter().zip(arrays).collect();
        let got = self.give_heads(ranks, &spread)?;
        let int8 = reference::int8(&own, &operands(&own, &got))?;
        self.back(ranks, &int8)
    }

    /// Pieces of all arrays to the ranks of their heads: this rank's arrays, of all tokens of its heads.
    fn give_heads(&self, ranks: &dyn Communicator<Host>, arrays: &[Own<'_>]) -> Result<Vec<Vec<u8>>> {
        let rank = ranks.rank();
        let mut sends = Vec::new();
        let mut receives = Vec::new();
        for peer in 0..self.ranks {
            for (number, (array, bytes)) in arrays.iter().enumerate() {
                let out = self.pieces(array, rank, peer).into_iter();
                sends.extend(out.map(|piece| Message { peer, bytes: &bytes[piece.from] }));
                let incoming = self.pieces(array, peer, rank).into_iter();
                receives.extend(incoming.map(|piece| (peer, number, piece.to)));
            }
        }
        let mut rooms: Vec<Vec<u8>> = receives.iter().map(|(_, _, to)| vec![0; to.len()]).collect();
        let messages = receives.iter().zip(&mut rooms);
        let mut messages: Vec<_> =
            messages.map(|((peer, ..), room)| Message { peer: *peer, bytes: &mut room[..] }).collect();
        ranks.exchange((), &sends, &mut messages)?;
        let mut whole = vec![Vec::new(); arrays.len()];
        for ((_, number, to), room) in receives.iter().zip(&rooms) {
            let array: &mut Vec<u8> = &mut whole[*number];
            array.resize(array.len().max(to.end), 0);
            array[to.clone()].copy_from_slice(room);
        }
        Ok(whole)
    }

    /// Outputs and log-sum-exps of all tokens of this rank's heads, to the ranks of the tokens.
    fn back(&self, ranks: &dyn Communicator<Host>, result: &Int8) -> Result<Int8> {
        let rank = ranks.rank();
        let shape = self.o_shape(rank);
        let mut back = Int8 { o: vec![0.0; shape.elements()], lse: vec![0.0; shape.rows()] };
        let double = size_of::<f64>();
        let of_lse = self.output(double).of_row(double);
        for (array, from, to) in [(self.output(double), &result.o, &mut back.o), (of_lse, &result.lse, &mut back.lse)] {
            let bytes: &[u8] = cast_slice(from);
            let mut sends = Vec::new();
            let mut receives = Vec::new();
            for peer in 0..self.ranks {
                let out = self.pieces(&array, peer, rank).into_iter();
                sends.extend(out.map(|piece| Message { peer, bytes: &bytes[piece.to] }));
                receives.extend(self.pieces(&array, rank, peer).into_iter().map(|piece| (peer, piece.from)));
            }
            let mut rooms: Vec<Vec<u8>> = receives.iter().map(|(_, from)| vec![0; from.len()]).collect();
            let messages = receives.iter().zip(&mut rooms);
            let mut messages: Vec<_> =
                messages.map(|((peer, _), room)| Message { peer: *peer, bytes: &mut room[..] }).collect();
            ranks.exchange((), &sends, &mut messages)?;
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            for ((_, from), room) in receives.into_iter().zip(&rooms) {
                to[from].copy_from_slice(room);
            }
        }
        Ok(back)
    }
}

/// Operands of arrays in the order of [`UlyssesProblem::operands`].
fn operands(problem: &AttentionProblem, arrays: &[Vec<u8>]) -> HostQuantized {
    let codes = |number: usize| -> Vec<i8> { pod_collect_to_vec(&arrays[number]) };
    let floats = |number: usize| -> Vec<f32> { pod_collect_to_vec(&arrays[number]) };
    let (scheme, packed, format) = (problem.scheme, None, PackedFormat::CURRENT);
    let q = HostQ { shape: problem.q_shape(), scheme, data: codes(0), scale: floats(1), bias: Some(floats(2)) };
    // K's offset has done its work.
    let offset = vec![0.0; problem.batch * problem.heads_kv * problem.head_dim];
    let k = HostK {
        shape: problem.kv_shape(),
        packed,
        scheme,
        format,
        data: codes(3),
        scale: floats(4),
        block_scale: floats(5),
        offset,
    };
    let v = HostV {
        shape: problem.v_shape(),
        packed,
        scheme,
        format,
        data: codes(6),
        scale: floats(7),
        block_scale: floats(8),
        unit: floats(9),
    };
    HostQuantized { q, k, v }
}
