//! The numeric schemes.

use core::fmt;

/// The numeric scheme: how Q, K, V and the softmax's weights P become 8 bits (docs/kernel-abi.md, to the bit).
///
/// In both, Q and K have a scale a token, a row that sees a token with a NaN or an infinity is NaN, and outputs in float16 and bfloat16
/// saturate at their largest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// For models, the more accurate one on what they compute: Q and K rotated, V with scales of blocks or tokens, u8 P scaled by
    /// the block's row maximum, so that small weights count beside an attention sink.
    ///
    /// Nothing is taken over the sequence: a head's first 64 tokens give K's offset and its first block V's unit, and else no token's codes
    /// depend on tokens of other blocks. Tokens that are appended change no block of 128 that was full, and a token that is not finite
    /// spoils the rows that see it alone. Every float16 input is in range.
    #[default]
    Default,
    /// arXiv 2409.16997 to the letter, to compare with: int8 P scaled by the running maximum, V with one scale a head.
    ///
    /// Weights below 1/254 of the row's maximum are lost, however many they are. A token that is appended may change all of V's codes, and
    /// one of V that is not finite makes every row of the head NaN. Head dims up to 128.
    Paper,
}

impl Scheme {
    /// All schemes.
    pub const ALL: [Self; 2] = [Self::Default, Self::Paper];

    /// Whether Q, K and V are rotated and a token's scales are of its own or of its block, K has an offset taken out, and Q's scales are
    /// rounded up to 10 bits.
    #[must_use]
    pub const fn rotates(self) -> bool {
        matches!(self, Self::Default)
    }

    /// Dims of a head that the rotation of Q and K mixes, and with it how many times the scores of their codes are the scores.
    #[must_use]
    pub const fn rotation(self, head_dim: usize) -> usize {
        match self {
            Self::Default => crate::layout::rotation(crate::layout::packed_dim(head_dim)),
            Self::Paper => 1,
        }
    }
}

/// A name that no [`Scheme`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownScheme;

impl fmt::Display for UnknownScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the schemes are {} and {}", Scheme::Default, Scheme::Paper)
    }
}

impl core::error::Error for UnknownScheme {}

impl core::str::FromStr for Scheme {
    type Err = UnknownScheme;

    fn from_str(name: &str) -> Result<Self, UnknownScheme> {
        let named = |scheme: &Self| match scheme {
            Self::Default => name.eq_ignore_ascii_case("default"),
            Self::Paper => name.eq_ignore_ascii_case("paper"),
        };
        Self::ALL.into_iter().find(named).ok_or(UnknownScheme)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Paper => "paper",
        })
    }
}
