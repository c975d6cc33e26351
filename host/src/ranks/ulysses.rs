//! Ulysses (arXiv 2309.14509): some tokens of all heads, to all tokens of some heads, and back.

use super::RanksError;
use super::chunks::chunk;
use super::ring::{check, short};
use crate::error::Result;
use crate::problem::AttentionProblem;
use crate::shape::Shape;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks, packed_dim};
use std::ops::Range;

/// Attention of sequences whose tokens are spread over ranks, in order, which each rank computes for some heads. What is quantized goes to the
/// ranks of its heads, and the outputs go back; nothing is merged, so that the results are bit for bit those of one GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UlyssesProblem {
    /// The whole: as many queries as keys, of all ranks.
    pub attention: AttentionProblem,
    /// Ranks.
    pub ranks: usize,
}

/// An array of a rank's operands or output, whose heads are spread over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Whether its heads are those of Q.
    of_q: bool,
    /// What a head has in a row.
    unit: Unit,
    /// Bytes of a unit.
    bytes: usize,
}

impl Spread {
    /// The same with so many bytes a unit.
    pub(super) const fn of_row(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Token,
    Block,
    /// One number of a head, which its first tokens' rank has.
    Head,
}

/// Heads of a rank: those of Q, and those of K and V that they use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) q: Range<usize>,
    pub(crate) kv: Range<usize>,
}

/// Rows of an array on their way, one a head: where they lie in the array of a rank's tokens, one behind the other, and in that of a rank's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Where the rows begin in the array of all heads.
    pub(crate) of_tokens: usize,
    /// Where they begin in the array of all tokens, and the bytes from a row to the next.
    pub(crate) of_heads: usize,
    pub(crate) pitch: usize,
    pub(crate) rows: usize,
    /// Bytes of a row.
    pub(crate) bytes: usize,
}

impl Rows {
    /// Bytes of all rows.
    pub(crate) const fn len(&self) -> usize {
        self.rows * self.bytes
    }

    /// Bytes from the first row's first to the last row's last, where all tokens are.
    pub(crate) const fn span(&self) -> usize {
        (self.rows - 1) * self.pitch + self.bytes
    }
}

/// A piece of an array on its way: bytes of the sender's array, and where they begin in the receiver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) from: Range<usize>,
    pub(crate) to: Range<usize>,
}

impl UlyssesProblem {
    /// Whether there are kernels for it, and tokens and heads for all ranks.
    ///
    /// # Errors
    /// As of [`RingProblem::check`](super::RingProblem::check), but that every head dim is possible; heads of Q that are not a multiple of the
    /// ranks; heads of K and V of which the ranks are neither a multiple nor a divisor.
    pub fn check(&self) -> Result<()> {
        check(&self.attention, self.ranks)?;
        let AttentionProblem { heads_q, heads_kv, .. } = self.attention;
        let shared = heads_kv.is_multiple_of(self.ranks) || self.ranks.is_multiple_of(heads_kv);
        if !heads_q.is_multiple_of(self.ranks) || !shared {
            return Err(RanksError::Heads { heads_q, heads_kv, ranks: self.ranks }.into());
        }
        if (0..self.ranks).any(|rank| self.tokens(rank).is_empty()) {
            return Err(short(&self.attention, self.ranks));
        }
        Ok(())
    }

    /// The tokens of a rank, of those of the whole sequence.
    #[must_use]
    pub fn tokens(&self, rank: usize) -> Range<usize> {
        chunk(self.attention.seqlen_kv, self.ranks, rank)
    }

    /// The heads of Q that a rank computes.
    #[must_use]
    pub fn heads_q(&self, rank: usize) -> Range<usize> {
        let each = self.attention.heads_q.checked_div(self.ranks).filter(|_| rank < self.ranks).unwrap_or(0);
        rank * each..rank * each + each
    }

    /// The heads of K and V that these use: where there are fewer than ranks, several ranks have one.
    #[must_use]
    pub fn heads_kv(&self, rank: usize) -> Range<usize> {
        let Range { start, end } = self.heads_q(rank);
        // Where there are no heads, or none of K and V, there are none of these.
        let group = self.attention.group().max(1);
        start / group..end.div_ceil(group)
    }

    /// What a rank computes: all tokens of its heads.
    #[must_use]
    pub fn of_heads(&self, rank: usize) -> AttentionProblem {
        self.of_group(&Heads { q: self.heads_q(rank), kv: self.heads_kv(rank) })
    }

    /// What a rank quantizes: its tokens of all heads.
    #[must_use]
    pub fn of_tokens(&self, rank: usize) -> AttentionProblem {
        let tokens = self.tokens(rank).len();
        AttentionProblem { seqlen_q: tokens, seqlen_kv: tokens, ..self.attention.with_causal(false) }
    }

    /// Shape of a rank's output.
    #[must_use]
    pub fn o_shape(&self, rank: usize) -> Shape {
        Shape { seqlen: self.tokens(rank).len(), ..self.attention.o_shape() }
    }

    /// The arrays of the operands: of Q codes, scales and biases; of K codes, scales and those of blocks; of V likewise, and the units.
    pub(crate) fn operands(&self) -> [Spread; 10] {
        let [d, dv] = [self.attention.head_dim, self.attention.value_dim()].map(packed_dim);
        let float = size_of::<f32>();
        let q = |bytes| Spread { of_q: true, unit: Unit::Token, bytes };
        let kv = |unit, bytes| Spread { of_q: false, unit, bytes };
        let of_block = |d| [kv(Unit::Block, block_bytes(d)), kv(Unit::Block, KV_BLOCK * float), kv(Unit::Block, float)];
        let ([k, k_scale, k_block], [v, v_scale, v_block]) = (of_block(d), of_block(dv));
        [q(d), q(float), q(float), k, k_scale, k_block, v, v_scale, v_block, kv(Unit::Head, float)]
    }

    /// The output, of elements of so many bytes.
    pub(crate) fn output(&self, element: usize) -> Spread {
        Spread { of_q: true, unit: Unit::Token, bytes: element * self.attention.value_dim() }
    }

    /// A rank's heads in up to two groups, as many on every rank: the second's operands travel while the first's are attended to, and the first's
    /// outputs while the second's are.
    pub(crate) fn groups(&self, rank: usize) -> Vec<Heads> {
        /// More hide little more, and their tiles fill the GPU less well.
        const GROUPS: usize = 2;
        let (q, kv) = (self.heads_q(rank), self.heads_kv(rank));
        let count = kv.len().min(GROUPS);
        if count < 2 {
            return vec![Heads { q, kv }];
        }
        let (start, group) = (|number| kv.start + kv.len() * number / count, self.attention.group());
        let of = |kv: Range<usize>| Heads { q: kv.start * group..kv.end * group, kv };
        (0..count).map(|number| of(start(number)..start(number + 1))).collect()
    }

    /// The attention of some heads, on all tokens.
    pub(crate) fn of_group(&self, heads: &Heads) -> AttentionProblem {
        let (heads_q, heads_kv) = (heads.q.len(), heads.kv.len());
        AttentionProblem { heads_q, heads_kv, softmax_scale: self.attention.softmax_scale, ..self.attention }
    }

    /// The rows of an array that lie on rank `source` in the array of its tokens, and in that of these heads on the rank that attends to them; one entry a sequence.
    pub(crate) fn rows(&self, array: &Spread, source: usize, heads: &Heads) -> Vec<Rows> {
        let (all_heads, own) = match array.of_q {
            true => (self.attention.heads_q, &heads.q),
            false => (self.attention.heads_kv, &heads.kv),
        };
        let (tokens, all) = (self.tokens(source), self.attention.seqlen_kv);
        let (first, count, of_head) = match array.unit {
            Unit::Token => (tokens.start, tokens.len(), all),
            Unit::Block => (tokens.start / KV_BLOCK, kv_blocks(tokens.len()), kv_blocks(all)),
            Unit::Head => (0, usize::from(source == 0), 1),
        };
        // A number of each head is on every rank; it goes from the first.
        let in_source = if array.unit == Unit::Head { 1 } else { count };
        let of_sequence = |batch: usize| Rows {
            of_tokens: (batch * all_heads + own.start) * in_source * array.bytes,
            of_heads: (batch * own.len() * of_head + first) * array.bytes,
            pitch: of_head * array.bytes,
            rows: own.len(),
            bytes: count * array.bytes,
        };
        (0..self.attention.batch).map(of_sequence).filter(|rows| rows.len() > 0).collect()
    }

    /// The pieces of an array that go from rank `source`, which has its tokens of all heads, to rank `target`, which has all tokens of its heads;
    /// `to` and `from` of each exchanged they are the way back.
    pub(crate) fn pieces(&self, array: &Spread, source: usize, target: usize) -> Vec<Piece> {
        let heads = Heads { q: self.heads_q(target), kv: self.heads_kv(target) };
        let piece = |rows: &Rows, row: usize| {
            let (from, to) = (rows.of_tokens + row * rows.bytes, rows.of_heads + row * rows.pitch);
            Piece { from: from..from + rows.bytes, to: to..to + rows.bytes }
        };
        let all = self.rows(array, source, &heads);
        all.iter().flat_map(|rows| (0..rows.rows).map(move |row| piece(rows, row))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte of a rank's arrays comes once, from one place.
    #[test]
    fn pieces_fill_the_arrays() {
        for (heads_q, heads_kv, ranks) in [(4, 4, 2), (8, 2, 4), (8, 8, 4), (6, 3, 3), (8, 1, 8)] {
            let ulysses =
                UlyssesProblem { attention: AttentionProblem::new(2, heads_q, heads_kv, 1100, 1100, 32), ranks };
            ulysses.check().unwrap();
            for target in 0..ranks {
                let own = ulysses.of_heads(target);
                for array in ulysses.operands().iter().chain([&ulysses.output(2)]) {
                    let heads = if array.of_q { own.heads_q } else { own.heads_kv };
                    let each = match array.unit {
                        Unit::Token => 1100,
                        Unit::Block => 9,
                        Unit::Head => 1,
                    };
                    let mut pieces: Vec<_> =
                        (0..ranks).flat_map(|source| ulysses.pieces(array, source, target)).collect();
                    assert!(pieces.iter().all(|piece| piece.from.len() == piece.to.len()));
                    pieces.sort_by_key(|piece| piece.to.start);
                    assert_eq!(pieces[0].to.start, 0);
                    assert!(pieces.windows(2).all(|two| two[0].to.end == two[1].to.start));
                    assert_eq!(pieces[pieces.len() - 1].to.end, 2 * heads * each * array.bytes);
                }
            }
        }
    }

    #[test]
    fn heads_that_do_not_go_round_are_refused() {
        let sentence = |heads_q, heads_kv, ranks| {
            let attention = AttentionProblem::new(1, heads_q, heads_kv, 2000, 2000, 64);
            UlyssesProblem { attention, ranks }.check().unwrap_err().to_string()
        };
        assert!(sentence(4, 4, 3).contains("4 heads of Q"));
        assert!(sentence(12, 3, 2).contains("3 of K and V"));
    }
}
