//! Sequences of unlike lengths: packed one behind the other, or a dense batch of which each has its own number of keys.

use super::AttentionProblem;
use crate::error::{Error, Result};
use crate::quantized::packed_blocks;
use int_flash_attention_kernels::layout::kv_blocks;
use std::ops::Range;

/// How the sequences of a problem lie in its tensors. Lengths themselves come with each launch: a plan is made for the most tokens of
/// any sequence, [`seqlen_q`](AttentionProblem::seqlen_q) and [`seqlen_kv`](AttentionProblem::seqlen_kv), and is not made again when
/// they change below that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sequences {
    /// A dense batch: all have as many queries and as many keys.
    #[default]
    Equal,
    /// One behind the other without gaps, each with its own lengths ("varlen"): the tensors have one batch of so many tokens, or of
    /// room for them.
    Packed {
        /// Query tokens of all sequences together.
        total_q: usize,
        /// Key and value tokens of all sequences together.
        total_kv: usize,
    },
    /// A dense batch, of which each sequence has its own number of keys: those behind are hidden, whatever they are.
    KeyLengths,
}

/// The lengths that a launch is given, in arrays on the host (`&[u32]`) or on the GPU
/// ([`DeviceSlice<u32>`](crate::DeviceSlice); `cast` makes one of `i32`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SeqLens<A> {
    /// All sequences have the problem's.
    #[default]
    Equal,
    /// Of [`Sequences::Packed`]: where each sequence's tokens begin, and behind the last one where they end. The first is 0, none is
    /// less than the one before.
    Packed {
        /// Of queries, `batch + 1`.
        cu_seqlens_q: A,
        /// Of keys and values, `batch + 1`.
        cu_seqlens_kv: A,
    },
    /// Of [`Sequences::KeyLengths`].
    KeyLengths {
        /// Keys of each sequence, `batch`; 0 is possible.
        seqlens_kv: A,
    },
}

impl<A> SeqLens<A> {
    /// With every array made into another one.
    ///
    /// # Errors
    /// The first that `f` returns.
    pub fn try_map<'a, B, E>(
        &'a self,
        mut f: impl FnMut(&'a A) -> std::result::Result<B, E>,
    ) -> std::result::Result<SeqLens<B>, E> {
        Ok(match self {
            Self::Equal => SeqLens::Equal,
            Self::Packed { cu_seqlens_q, cu_seqlens_kv } => {
                SeqLens::Packed { cu_seqlens_q: f(cu_seqlens_q)?, cu_seqlens_kv: f(cu_seqlens_kv)? }
            }
            Self::KeyLengths { seqlens_kv } => SeqLens::KeyLengths { seqlens_kv: f(seqlens_kv)? },
        })
    }

    /// With every array made into another one.
    pub fn map<'a, B>(&'a self, mut f: impl FnMut(&'a A) -> B) -> SeqLens<B> {
        match self.try_map(|array| Ok::<_, std::convert::Infallible>(f(array))) {
            Ok(mapped) => mapped,
            Err(never) => match never {},
        }
    }
}

/// Lengths on the host.
pub type HostSeqLens<'a> = SeqLens<&'a [u32]>;

/// One sequence: which part of the tensors it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its number.
    pub sequence: usize,
    /// The batch of the tensors that it is in.
    pub batch: usize,
    /// Its query tokens there.
    pub q: Range<usize>,
    /// Its keys and values there.
    pub kv: Range<usize>,
}

impl Span {
    /// The rows of query head `head` among those of all heads, in Q's arrays, the output and the log-sum-exp.
    #[must_use]
    pub const fn rows(&self, problem: &AttentionProblem, head: usize) -> Range<usize> {
        let first = place(self.batch, problem.heads_q, head).saturating_mul(problem.q_shape().seqlen);
        first.saturating_add(self.q.start)..first.saturating_add(self.q.end)
    }

    /// The blocks of a head of K or V among those of all heads.
    #[must_use]
    pub const fn blocks(&self, problem: &AttentionProblem, head: usize) -> Range<usize> {
        let tokens = problem.kv_shape().seqlen;
        let (of_head, before) = match problem.packed() {
            Some(sequences) => (packed_blocks(tokens, sequences), packed_blocks(self.kv.start, self.sequence)),
            None => (kv_blocks(tokens), 0),
        };
        let first = place(self.batch, problem.heads_kv, head).saturating_mul(of_head).saturating_add(before);
        first..first.saturating_add(kv_blocks(self.kv.end.saturating_sub(self.kv.start)))
    }

    /// The head of K and V among those of all sequences, in the arrays that have a number or a token a head.
    #[must_use]
    pub const fn head(&self, problem: &AttentionProblem, head: usize) -> usize {
        place(self.sequence, problem.heads_kv, head)
    }
}

/// A head among those of all batches. Fields are public: numbers that no problem has end at `usize::MAX`.
const fn place(batch: usize, heads: usize, head: usize) -> usize {
    batch.saturating_mul(heads).saturating_add(head)
}

impl AttentionProblem {
    /// With sequences of unlike lengths: `batch` of them, of which the longest have `seqlen_q` and `seqlen_kv` tokens.
    ///
    /// ```
    /// use int_flash_attention::{AttentionProblem, Sequences};
    /// // up to 16 sentences of up to 512 tokens, 4096 in all
    /// let problem = AttentionProblem::new(16, 12, 12, 512, 512, 64)
    ///     .with_sequences(Sequences::Packed { total_q: 4096, total_kv: 4096 });
    /// assert_eq!((problem.q_shape().batch, problem.q_shape().seqlen), (1, 4096));
    /// # problem.check()?;
    /// # Ok::<(), int_flash_attention::Error>(())
    /// ```
    #[must_use]
    pub const fn with_sequences(self, sequences: Sequences) -> Self {
        Self { sequences, ..self }
    }

    /// The dense problem of one sequence with these lengths, which are not 0.
    #[must_use]
    pub const fn of_one(&self, seqlen_q: usize, seqlen_kv: usize) -> Self {
        Self { batch: 1, seqlen_q, seqlen_kv, sequences: Sequences::Equal, ..*self }
    }

    /// With sequences of these lengths, in tensors of the problem's shapes: the lengths' longest, and all tokens.
    ///
    /// # Errors
    /// Packed sequences in more batches than one, or which do not end where the tokens do.
    pub(crate) fn of_lengths(self, lengths: &HostSeqLens<'_>) -> Result<Self> {
        let SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv } = lengths else {
            let keys = matches!(lengths, SeqLens::KeyLengths { .. });
            return Ok(self.with_sequences(if keys { Sequences::KeyLengths } else { Sequences::Equal }));
        };
        // One more than sequences.
        for (name, offsets) in [("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_kv", cu_seqlens_kv)] {
            if offsets.len() < 2 {
                return Err(Error::Length { name, given: offsets.len(), expected: 2 });
            }
        }
        let (total_q, total_kv) = (self.seqlen_q, self.seqlen_kv);
        for (name, shape, offsets) in [("q", self.q_shape(), cu_seqlens_q), ("k", self.kv_shape(), cu_seqlens_kv)] {
            let end = offsets.last().map_or(0, |&end| end as usize);
            if shape.batch != 1 || shape.seqlen != end {
                let expected = format!("one batch of {end} tokens, where the last of cu_seqlens ends,");
                return Err(Error::ShapeMismatch { name, given: shape.to_string(), expected });
            }
        }
        let longest = |offsets: &[u32]| offsets.windows(2).map(|ends| ends[1].saturating_sub(ends[0])).max();
        let longest = |offsets: &[u32]| longest(offsets).unwrap_or(0).max(1) as usize;
        Ok(Self {
            batch: cu_seqlens_q.len().saturating_sub(1),
            seqlen_q: longest(cu_seqlens_q),
            seqlen_kv: longest(cu_seqlens_kv),
            sequences: Sequences::Packed { total_q, total_kv },
            ..self
        })
    }

    /// How many sequences are packed in one batch, where they are.
    pub(crate) const fn packed(&self) -> Option<usize> {
        match self.sequences {
            Sequences::Packed { .. } => Some(self.batch),
            _ => None,
        }
    }

    /// Where each sequence lies.
    ///
    /// # Errors
    /// As [`check_sizes`](Self::check_sizes); lengths of another kind than the problem's; offsets that do not begin at 0, that decrease, or that go beyond the tokens that there
    /// are; a sequence longer than the problem's; another number of sequences.
    pub fn spans(&self, lengths: &HostSeqLens<'_>) -> Result<Vec<Span>> {
        self.check_sizes()?;
        self.check_kind(lengths)?;
        match (self.sequences, lengths) {
            (Sequences::Packed { total_q, total_kv }, SeqLens::Packed { cu_seqlens_q, cu_seqlens_kv }) => {
                let q = ranges("cu_seqlens_q", cu_seqlens_q, self.batch, total_q, self.seqlen_q)?;
                let kv = ranges("cu_seqlens_kv", cu_seqlens_kv, self.batch, total_kv, self.seqlen_kv)?;
                let both = q.into_iter().zip(kv).enumerate();
                Ok(both.map(|(sequence, (q, kv))| Span { sequence, batch: 0, q, kv }).collect())
            }
            (_, SeqLens::KeyLengths { seqlens_kv }) => {
                let name = "seqlens_kv";
                if seqlens_kv.len() != self.batch {
                    return Err(Error::Length { name, given: seqlens_kv.len(), expected: self.batch });
                }
                let span = |(sequence, &keys): (usize, &u32)| {
                    let keys = checked(name, sequence, keys as usize, self.seqlen_kv)?;
                    Ok(Span { sequence, batch: sequence, q: 0..self.seqlen_q, kv: 0..keys })
                };
                seqlens_kv.iter().enumerate().map(span).collect()
            }
            _ => {
                let span = |sequence| Span { sequence, batch: sequence, q: 0..self.seqlen_q, kv: 0..self.seqlen_kv };
                Ok((0..self.batch).map(span).collect())
            }
        }
    }

    /// Whether lengths are of the kind that the problem was made for.
    pub(crate) fn check_kind<A>(&self, lengths: &SeqLens<A>) -> Result<()> {
        let packed = matches!(self.sequences, Sequences::Packed { .. });
        let keys = self.sequences == Sequences::KeyLengths;
        for (name, planned, given) in [
            ("cu_seqlens_q", packed, matches!(lengths, SeqLens::Packed { .. })),
            ("seqlens_kv", keys, matches!(lengths, SeqLens::KeyLengths { .. })),
        ] {
            if planned != given {
                let (given, planned) =
                    (if given { "given" } else { "not given" }, if planned { "with" } else { "without" });
                return Err(Error::Optional { name, given, planned });
            }
        }
        Ok(())
    }

    /// Whether all sequences have the same lengths, as functions ask that are given none.
    pub(crate) fn check_equal(&self) -> Result<()> {
        self.check_kind(&SeqLens::<()>::Equal)
    }
}

/// The tokens of each of `sequences`.
fn ranges(
    name: &'static str,
    offsets: &[u32],
    sequences: usize,
    total: usize,
    longest: usize,
) -> Result<Vec<Range<usize>>> {
    if offsets.len() != sequences + 1 {
        return Err(Error::Length { name, given: offsets.len(), expected: sequences + 1 });
    }
    let range = |(sequence, ends): (usize, &[u32])| {
        let (begin, end) = (ends[0] as usize, ends[1] as usize);
        if begin > end || end > total || (sequence == 0 && begin != 0) {
            return Err(Error::Offsets { name, sequence, begin, end, total });
        }
        checked(name, sequence, end - begin, longest)?;
        Ok(begin..end)
    };
    offsets.windows(2).enumerate().map(range).collect()
}

fn checked(name: &'static str, sequence: usize, given: usize, max: usize) -> Result<usize> {
    if given <= max { Ok(given) } else { Err(Error::SeqLen { name, sequence, given, max }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed() -> AttentionProblem {
        AttentionProblem::new(3, 2, 1, 7, 9, 32).with_sequences(Sequences::Packed { total_q: 10, total_kv: 12 })
    }

    fn spans(q: &[u32], kv: &[u32]) -> Result<Vec<Span>> {
        packed().spans(&SeqLens::Packed { cu_seqlens_q: q, cu_seqlens_kv: kv })
    }

    #[test]
    fn packed_sequences_are_parts_of_one_batch() {
        let all = spans(&[0, 0, 7, 9], &[0, 3, 3, 12]).unwrap();
        let parts: Vec<_> = all.into_iter().map(|span| (span.batch, span.q, span.kv)).collect();
        assert_eq!(parts, [(0, 0..0, 0..3), (0, 0..7, 3..3), (0, 7..9, 3..12)]);
        assert_eq!((packed().q_shape().batch, packed().q_shape().seqlen, packed().kv_shape().seqlen), (1, 10, 12));
        assert!(packed().check().is_ok());
        assert!(AttentionProblem { batch: 0, ..packed() }.check().is_err());
    }

    #[test]
    fn wrong_offsets_are_errors_that_name_the_sequence() {
        let good = [0, 1, 2, 3];
        for (q, at) in [([1, 1, 2, 3], 0), ([0, 5, 4, 9], 1), ([0, 5, 9, 11], 2), ([0, u32::MAX, 2, 3], 0)] {
            let error = spans(&q, &good).unwrap_err();
            assert!(matches!(error, Error::Offsets { sequence, .. } if sequence == at), "{error}");
            assert!(error.to_string().contains(&format!("sequence {at}")), "{error}");
        }
        let error = spans(&good, &[0, 0, 10, 12]).unwrap_err();
        assert!(matches!(error, Error::SeqLen { name: "cu_seqlens_kv", sequence: 1, given: 10, max: 9 }), "{error}");
        assert!(matches!(spans(&good[..3], &good), Err(Error::Length { given: 3, expected: 4, .. })));
        assert!(matches!(packed().spans(&SeqLens::Equal), Err(Error::Optional { name: "cu_seqlens_q", .. })));
        assert!(packed().check_equal().is_err());
    }

    #[test]
    fn key_lengths_are_checked() {
        let problem = AttentionProblem::new(2, 2, 1, 7, 9, 32).with_sequences(Sequences::KeyLengths);
        let spans = |keys: &[u32]| problem.spans(&SeqLens::KeyLengths { seqlens_kv: keys });
        let all = spans(&[9, 0]).unwrap();
        assert_eq!((all[0].kv.clone(), all[1].batch, all[1].kv.clone()), (0..9, 1, 0..0));
        assert!(matches!(spans(&[9, 10]), Err(Error::SeqLen { sequence: 1, given: 10, max: 9, .. })));
        assert!(matches!(spans(&[9]), Err(Error::Length { given: 1, expected: 2, .. })));
    }
}
