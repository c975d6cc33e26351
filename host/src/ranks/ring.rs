//! Ring attention: what each rank has, computes, and gives to whom.

use super::RanksError;
use super::chunks::chunks;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, ScoreMod, Sequences, Window, check_cache_head_dim};
use crate::shape::Shape;
use int_flash_attention_kernels::layout::kv_blocks;
use std::ops::Range;

/// Attention of sequences whose tokens are spread over ranks. Queries, keys and values of a token are on one rank, where its output goes;
/// quantized keys and values travel.
///
/// A rank's tensors have the tokens of its [`chunks`](Self::chunks), one behind the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingProblem {
    /// The whole: as many queries as keys, of all ranks.
    pub attention: AttentionProblem,
    /// Ranks.
    pub ranks: usize,
}

/// What a rank does in one step of the ring.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The rank whose keys and values these are.
    pub source: usize,
    /// The rank that gets this rank's own keys and values in this step; in the first there is none.
    pub to: Option<usize>,
    /// Whether keys and values of `source` are received: there are none in the first step, whose keys are the rank's own, nor where no query
    /// of the rank sees any of them.
    pub receives: bool,
    /// What is computed on them.
    pub pairs: Vec<Pair>,
}

/// Attention of a part of a rank's queries on a chunk of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Which of the rank's [`parts`](RingProblem::parts).
    pub part: usize,
    /// Which of the source's [`chunks`](RingProblem::chunks).
    pub chunk: usize,
    /// How many of its keys, from the first on, some query sees: where not all, the problem is of sequences with key lengths.
    pub keys: usize,
    /// The attention, with the window as it is between these tokens.
    pub problem: AttentionProblem,
}

impl RingProblem {
    /// Whether there are kernels for it, and tokens for all ranks.
    ///
    /// # Errors
    /// A wrong problem; unlike numbers of queries and keys; the paper's scheme; sequences of unlike lengths; ALiBi, a bias, a mask or sinks; a
    /// head dim of V that the merge does not have; fewer blocks of tokens than go round.
    pub fn check(&self) -> Result<()> {
        check(&self.attention, self.ranks)?;
        check_cache_head_dim(self.attention.value_dim())?;
        if (0..self.ranks).any(|rank| self.chunks(rank).is_empty()) {
            return Err(short(&self.attention, self.ranks));
        }
        Ok(())
    }

    /// Whether ranks have two chunks each, in zigzag order: where a query sees all keys before it and not those behind, as in causal
    /// attention, and there are blocks for all. Else ranks have one chunk each, in order: all have the same work then, and a window reaches
    /// few ranks.
    #[must_use]
    pub fn zigzag(&self) -> bool {
        let Window { left, right } = self.attention.window.of_lengths(self.tokens(), self.tokens());
        left.is_none() && right.is_some() && kv_blocks(self.tokens()) / 2 >= self.ranks
    }

    /// The tokens of a rank, of those of the whole sequence: up to two chunks, in order and not neighbours.
    #[must_use]
    pub fn chunks(&self, rank: usize) -> Vec<Range<usize>> {
        chunks(self.tokens(), self.ranks, self.zigzag(), rank)
    }

    /// The tokens of a rank as its queries are worked on: its chunks, cut where a window leaves a chunk of keys. So either all queries of
    /// a part are in reach of a chunk's last key, or none is.
    #[must_use]
    pub fn parts(&self, rank: usize) -> Vec<Range<usize>> {
        let Some(left) = self.attention.window.left else { return self.chunks(rank) };
        let ends = (0..self.ranks).flat_map(|rank| self.chunks(rank)).map(|chunk| chunk.end.saturating_add(left));
        let mut cuts: Vec<usize> = ends.collect();
        cuts.sort_unstable();
        let mut parts = Vec::new();
        for Range { mut start, end } in self.chunks(rank) {
            for &cut in &cuts {
                if cut > start && cut < end {
                    parts.push(start..cut);
                    start = cut;
                }
            }
            parts.push(start..end);
        }
        parts
    }

    /// The steps of a rank, those in which it does nothing left out. Step `s` is of the keys of the rank `s` before it, round the ring; the
    /// rank's own keys go to the rank `s` behind it.
    #[must_use]
    pub fn steps(&self, rank: usize) -> Vec<Step> {
        let step = |shift: usize| {
            let (source, to) = ((rank + self.ranks - shift) % self.ranks, (rank + shift) % self.ranks);
            let pairs = self.pairs(rank, source);
            let to = (shift > 0 && !self.pairs(to, rank).is_empty()).then_some(to);
            Step { source, to, receives: shift > 0 && !pairs.is_empty(), pairs }
        };
        let all = (0..if rank < self.ranks { self.ranks } else { 0 }).map(step);
        all.filter(|step| step.to.is_some() || !step.pairs.is_empty()).collect()
    }

    /// Shape of a rank's Q.
    #[must_use]
    pub fn q_shape(&self, rank: usize) -> Shape {
        Shape { seqlen: self.tokens_of(rank), ..self.attention.q_shape() }
    }

    /// Shape of a rank's K.
    #[must_use]
    pub fn kv_shape(&self, rank: usize) -> Shape {
        Shape { seqlen: self.tokens_of(rank), ..self.attention.kv_shape() }
    }

    /// Shape of a rank's V.
    #[must_use]
    pub fn v_shape(&self, rank: usize) -> Shape {
        Shape { seqlen: self.tokens_of(rank), ..self.attention.v_shape() }
    }

    /// Shape of a rank's output.
    #[must_use]
    pub fn o_shape(&self, rank: usize) -> Shape {
        Shape { seqlen: self.tokens_of(rank), ..self.attention.o_shape() }
    }

    /// The problem of a part's or a chunk's own tokens alone, which says how their operands lie.
    pub(crate) fn of_tokens(&self, tokens: &Range<usize>) -> AttentionProblem {
        AttentionProblem { seqlen_q: tokens.len(), seqlen_kv: tokens.len(), window: Window::FULL, ..self.attention }
    }

    /// Where ranges of a rank's tokens begin in its own tensors.
    pub(crate) fn starts<'a>(ranges: &'a [Range<usize>]) -> impl Iterator<Item = Range<usize>> + 'a {
        ranges.iter().scan(0, |start, range| {
            let from = *start;
            *start += range.len();
            Some(from..*start)
        })
    }

    fn tokens(&self) -> usize {
        self.attention.seqlen_kv
    }

    fn tokens_of(&self, rank: usize) -> usize {
        self.chunks(rank).iter().map(Range::len).sum()
    }

    /// What a rank computes on another one's keys.
    fn pairs(&self, rank: usize, source: usize) -> Vec<Pair> {
        let chunks = self.chunks(source);
        let of_part = |(part, rows): (usize, Range<usize>)| {
            let on_chunk = |(chunk, keys): (usize, &Range<usize>)| self.pair((part, &rows), (chunk, keys));
            chunks.iter().enumerate().filter_map(on_chunk).collect::<Vec<_>>()
        };
        self.parts(rank).into_iter().enumerate().flat_map(of_part).collect()
    }

    /// A part of the queries on a chunk of keys, where any of them sees one.
    ///
    /// Between the part's last query, at `rows.end - 1`, and the last key that is left, at `end - 1`, lie `end - rows.end` tokens: by so much
    /// the left side is longer than in the whole, where a sequence's last query and key are one token, and the right side shorter. The left
    /// side is not negative, as parts are cut; for the right side the chunk is, by key lengths.
    fn pair(&self, (part, rows): (usize, &Range<usize>), (chunk, keys): (usize, &Range<usize>)) -> Option<Pair> {
        let Window { left, right } = self.attention.window;
        let reached = left.is_none_or(|left| rows.start < keys.end.saturating_add(left));
        let end = right.map_or(keys.end, |right| keys.end.min(rows.end.saturating_add(right)));
        if !reached || end <= keys.start {
            return None;
        }
        let window = Window {
            left: left.map(|left| left.saturating_add(end).saturating_sub(rows.end)),
            right: right.map(|right| right.saturating_add(rows.end).saturating_sub(end)),
        };
        let visible = end - keys.start;
        let sequences = if end < keys.end { Sequences::KeyLengths } else { Sequences::Equal };
        let (seqlen_q, seqlen_kv) = (rows.len(), keys.len());
        let problem = AttentionProblem { seqlen_q, seqlen_kv, window, sequences, ..self.attention };
        Some(Pair { part, chunk, keys: visible, problem })
    }
}

/// What is asked of a problem whose tokens are spread over ranks.
pub(super) fn check(attention: &AttentionProblem, ranks: usize) -> Result<()> {
    if ranks == 0 {
        return Err(RanksError::Ranks { given: 0, planned: 0 }.into());
    }
    attention.check()?;
    let refused = |what, way| Err(RanksError::Refused { what, way }.into());
    if attention.seqlen_q != attention.seqlen_kv {
        return refused("unlike numbers of queries and keys are", "each token has a query and a key, as in a prefill");
    }
    if attention.scheme != Scheme::Default {
        return refused(
            "the paper's scheme is",
            "its V has one scale for all tokens of a head; the default scheme's is local",
        );
    }
    if attention.sequences != Sequences::Equal {
        return refused("sequences of unlike lengths are", "make a plan for each length");
    }
    if (ScoreMod { softcap: None, ..attention.score_mod }) != ScoreMod::NONE {
        return refused("ALiBi, a bias, a mask or sinks are", "a softcap and a window are");
    }
    Ok(())
}

pub(super) fn short(attention: &AttentionProblem, ranks: usize) -> Error {
    let tokens = attention.seqlen_kv;
    RanksError::Short { tokens, blocks: kv_blocks(tokens), ranks }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of a query and a key that the whole problem has is in one pair of one rank, and no other is.
    #[test]
    fn pairs_are_what_the_window_shows_and_nothing_else() {
        let windows = [
            Window::FULL,
            Window::CAUSAL,
            Window { left: Some(100), right: Some(0) },
            Window { left: Some(300), right: Some(0) },
            Window { left: Some(384), right: Some(130) },
            Window { left: Some(0), right: Some(0) },
            Window { left: Some(7), right: None },
            Window { left: None, right: Some(200) },
        ];
        for (tokens, ranks) in [(600, 2), (1000, 3), (1031, 4), (1100, 8)] {
            for window in windows {
                let attention = AttentionProblem::new(1, 1, 1, tokens, tokens, 32).with_window(window);
                let ring = RingProblem { attention, ranks };
                ring.check().unwrap();
                let mut seen = vec![vec![0_u8; tokens]; tokens];
                for rank in 0..ranks {
                    let parts = ring.parts(rank);
                    for Step { source, pairs, .. } in ring.steps(rank) {
                        for Pair { part, chunk, keys, problem } in pairs {
                            let (rows, chunk) = (parts[part].clone(), ring.chunks(source)[chunk].clone());
                            let own = AttentionProblem { seqlen_kv: keys, ..problem };
                            assert!(keys > 0 && (keys == chunk.len()) == (problem.sequences == Sequences::Equal));
                            for (row, query) in rows.enumerate() {
                                own.visible_keys(row).for_each(|key| seen[query][chunk.start + key] += 1);
                            }
                        }
                    }
                }
                for (query, keys) in seen.iter().enumerate() {
                    let visible = attention.visible_keys(query);
                    let wrong = (0..tokens).find(|key| keys[*key] != u8::from(visible.contains(key)));
                    assert_eq!(wrong, None, "query {query} of {tokens} on {ranks}, {window}");
                }
            }
        }
    }

    /// What a rank sends in a step is what the other one receives in the same step, which has the same number in both.
    #[test]
    fn what_is_sent_is_received() {
        for window in [Window::FULL, Window::CAUSAL, Window { left: Some(200), right: Some(0) }] {
            let attention = AttentionProblem::new(1, 1, 1, 2000, 2000, 32).with_window(window);
            let ring = RingProblem { attention, ranks: 8 };
            let mut sent: Vec<(usize, usize)> = Vec::new();
            let mut received = Vec::new();
            for rank in 0..8 {
                for step in ring.steps(rank) {
                    sent.extend(step.to.map(|to| (rank, to)));
                    received.extend(step.receives.then_some((step.source, rank)));
                }
            }
            sent.sort_unstable();
            received.sort_unstable();
            assert_eq!(sent, received);
            // A window of two blocks reaches the rank before, and no further.
            let most = if window.left.is_some() { 7 } else { 8 * 7 };
            assert_eq!(sent.len(), most, "{window}");
        }
    }

    /// In zigzag order the causal pairs of all ranks differ by less than a block of queries on all keys.
    #[test]
    fn causal_work_is_even() {
        let attention = AttentionProblem::new(1, 1, 1, 4096, 4096, 32).with_causal(true);
        let ring = RingProblem { attention, ranks: 4 };
        let visible = |rank| ring.steps(rank).iter().flat_map(|s| &s.pairs).map(|p| p.problem.visible_pairs()).sum();
        let work: Vec<u64> = (0..4).map(visible).collect();
        let (least, most) = (work.iter().min().unwrap(), work.iter().max().unwrap());
        assert!(most - least < 128 * 4096, "{work:?}");
    }

    #[test]
    fn what_ranks_cannot_share_is_refused() {
        let causal = AttentionProblem::new(1, 2, 1, 1000, 1000, 64).with_causal(true);
        let sentence = |attention, ranks| RingProblem { attention, ranks }.check().unwrap_err().to_string();
        assert!(sentence(causal, 9).contains("1000 tokens are 8 blocks"));
        assert!(sentence(causal, 0).contains("at least one"));
        assert!(sentence(AttentionProblem { seqlen_q: 10, ..causal }, 2).contains("unlike numbers of queries"));
        assert!(sentence(causal.with_scheme(Scheme::Paper), 2).contains("paper's scheme"));
        assert!(sentence(causal.with_score_mod(ScoreMod { sinks: true, ..ScoreMod::NONE }), 2).contains("sinks"));
        let soft = causal.with_score_mod(ScoreMod { softcap: Some(30.0), ..ScoreMod::NONE });
        RingProblem { attention: soft, ranks: 8 }.check().unwrap();
    }
}
