//! Which keys a query sees.

use crate::error::{Error, Result};
use std::fmt;

/// Which keys a query sees, counted from the key beside it: query `i` stands beside key `i + seqlen_kv - seqlen_q`, so that the
/// sequences end together, and sees `left` keys before that one, that one, and `right` keys behind it, as far as there are any.
/// `None` is no limit.
///
/// A model's `sliding_window = W` (`i - j < W`) is `left = W - 1`, with `right = 0` as it is causal.
///
/// ```
/// use int_flash_attention::Window;
/// assert_eq!("4095,0".parse(), Ok(Window { left: Some(4095), right: Some(0) }));
/// assert_eq!("inf,0".parse(), Ok(Window::CAUSAL));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the one beside the query.
    pub left: Option<usize>,
    /// Keys behind the one beside the query.
    pub right: Option<usize>,
}

impl Window {
    /// Every query sees every key.
    pub const FULL: Self = Self { left: None, right: None };
    /// A query sees no key behind the one beside it.
    pub const CAUSAL: Self = Self { left: None, right: Some(0) };

    /// As a query of a sequence of `seqlen_q` sees it: a side that hides no key of `seqlen_kv` from any query has no limit.
    #[must_use]
    pub const fn of_lengths(self, seqlen_q: usize, seqlen_kv: usize) -> Self {
        let left = match self.left {
            Some(left) if left < seqlen_kv.saturating_sub(1) => Some(left),
            _ => None,
        };
        let right = match self.right {
            Some(right) if right < seqlen_q.saturating_sub(1) => Some(right),
            _ => None,
        };
        Self { left, right }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |f: &mut fmt::Formatter<'_>, side: Option<usize>| match side {
            Some(keys) => write!(f, "{keys}"),
            None => f.write_str("inf"),
        };
        side(f, self.left)?;
        f.write_str(",")?;
        side(f, self.right)
    }
}

impl std::str::FromStr for Window {
    type Err = Error;

    /// `LEFT,RIGHT`: how many keys, or `inf`.
    fn from_str(s: &str) -> Result<Self> {
        let side = |side: &str| match side.trim() {
            "inf" => Ok(None),
            number => number.parse().map(Some).map_err(|_| Error::Window { given: s.into(), side: number.into() }),
        };
        let Some((left, right)) = s.split_once(',') else {
            return Err(Error::Parse {
                what: "window",
                given: s.into(),
                allowed: "LEFT,RIGHT (numbers of keys, or inf), as 4095,0",
            });
        };
        Ok(Self { left: side(left)?, right: side(right)? })
    }
}
