//! Decode of caches that are spread over ranks.

use super::communicator::check_ranks;
use super::{Communicator, Host, Message, RanksError};
use crate::decode::{DecodeHeads, DecodeProblem, HostPagedKv};
use crate::error::Result;
use crate::problem::Window;
use crate::quantized::HostQ;
use crate::reference::{self, HostState, Int8};
use bytemuck::{cast_slice, cast_slice_mut};

/// A decode of sequences of which each rank has a part in its own paged cache, in order: the last rank has the new tokens, and whatever
/// number of the tokens before them. Every rank has the queries, quantized with its own cache's `k_offset`, and the whole result.
///
/// A rank's cache counts its own tokens alone. A rank that has none of a sequence has a length of 0 for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RanksDecode {
    /// The whole, but that `max_seqlen_kv` is of a rank's own part: causal, or without a window.
    pub decode: DecodeProblem,
    /// Ranks.
    pub ranks: usize,
}

impl RanksDecode {
    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// A wrong problem; no ranks; a window with a left side, or ALiBi.
    pub fn check(&self) -> Result<()> {
        if self.ranks == 0 {
            return Err(RanksError::Ranks { given: 0, planned: 0 }.into());
        }
        self.decode.check()?;
        if ![Window::CAUSAL, Window::FULL].contains(&self.decode.window) {
            let way = "a window reads few keys, which are the last rank's; a decode there alone does it";
            return Err(RanksError::Refused { what: "a window is", way }.into());
        }
        if self.decode.alibi {
            let way = "it goes by the distance of keys that other ranks have; a softcap and sinks are possible";
            return Err(RanksError::Refused { what: "ALiBi is", way }.into());
        }
        Ok(())
    }

    /// What a rank computes on its own part: all of it is before the new tokens, but on the last rank. Sinks are the merge's.
    #[must_use]
    pub fn of_rank(&self, rank: usize) -> DecodeProblem {
        let window = if rank.checked_add(1) == Some(self.ranks) { self.decode.window } else { Window::FULL };
        DecodeProblem { window, sinks: false, ..self.decode }
    }

    /// A rank's part on the CPU; the result is of the whole sequences, on every rank. `sinks` are where the problem says so.
    ///
    /// # Errors
    /// As of [`check`](Self::check) and of [`DecodeProblem::on_cpu`]; a communicator of another number of ranks; what it says.
    pub fn on_cpu(
        &self,
        ranks: &dyn Communicator<Host>,
        q: &HostQ,
        cache: &HostPagedKv<'_>,
        sinks: Option<&[f32]>,
    ) -> Result<Int8> {
        self.check()?;
        let rank = check_ranks(ranks, self.ranks)?;
        self.decode.check_heads(&DecodeHeads { alibi_slopes: None, sinks })?;
        let own = self.of_rank(rank).on_cpu(q, cache, &DecodeHeads::default())?;
        let shape = self.decode.q_shape();
        let mine: Vec<f32> = own.o.iter().chain(&own.lse).map(|&x| x as f32).collect();
        let mut all = vec![0.0_f32; self.ranks * mine.len()];
        let sends: Vec<_> = (0..self.ranks).map(|peer| Message { peer, bytes: cast_slice(&mine) }).collect();
        let rooms = all.chunks_exact_mut(mine.len()).enumerate();
        let mut receives: Vec<_> = rooms.map(|(peer, room)| Message { peer, bytes: cast_slice_mut(room) }).collect();
        ranks.exchange((), &sends, &mut receives)?;
        let states = all.chunks_exact(mine.len()).map(|state| state.split_at(shape.elements()));
        let states: Vec<_> = states.map(|(o, lse)| HostState { o, lse }).collect();
        reference::merge(shape, &states, sinks)
    }
}
