//! Which query rows of every head are computed.

use crate::error::{Error, Result};
use crate::problem::AttentionProblem;

/// A choice of query positions, the same in every head.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    All(usize),
    Some(&'a [usize]),
}

impl<'a> Rows<'a> {
    pub(super) const fn all(problem: &AttentionProblem) -> Self {
        Self::All(problem.seqlen_q)
    }

    pub(super) fn some(problem: &AttentionProblem, rows: &'a [usize]) -> Result<Self> {
        match rows.iter().find(|&&row| row >= problem.seqlen_q) {
            Some(&given) => Err(Error::Row { given, seqlen_q: problem.seqlen_q }),
            None => Ok(Self::Some(rows)),
        }
    }

    pub(super) const fn len(&self) -> usize {
        match self {
            Self::All(len) => *len,
            Self::Some(rows) => rows.len(),
        }
    }

    /// The query position of row `index` of the result.
    pub(super) fn at(&self, index: usize) -> usize {
        match self {
            Self::All(_) => index,
            Self::Some(rows) => rows[index],
        }
    }
}
