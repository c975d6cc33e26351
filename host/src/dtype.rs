//! Element types of the float tensors.

use crate::error::Error;
use half::{bf16, f16};
use int_flash_attention_kernels::params::dtype;
use std::fmt;

/// The element type of a float tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE binary32.
    F32,
}

impl DType {
    /// Bytes of an element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }

    /// The kernels' code of this type. For the launches of this crate and of its tests.
    #[doc(hidden)]
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::F16 => dtype::F16,
            Self::BF16 => dtype::BF16,
            Self::F32 => dtype::F32,
        }
    }

    /// `value` rounded to this type, to nearest even.
    ///
    /// ```
    /// use int_flash_attention::DType;
    /// assert_eq!(DType::BF16.round(1.001), 1.0);
    /// assert_eq!(DType::F32.round(0.25), 0.25);
    /// ```
    #[must_use]
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::F16 => f64::from(crate::round::f16_from_f64(value)),
            Self::BF16 => f64::from(crate::round::bf16_from_f64(value)),
            Self::F32 => f64::from(value as f32),
        }
    }

    /// The largest finite number of this type; outputs saturate there.
    ///
    /// ```
    /// assert_eq!(int_flash_attention::DType::F16.largest(), 65504.0);
    /// ```
    #[must_use]
    pub fn largest(self) -> f64 {
        match self {
            Self::F16 => f64::from(f16::MAX),
            Self::BF16 => f64::from(bf16::MAX),
            Self::F32 => f64::from(f32::MAX),
        }
    }

    /// Half the distance between `value`'s neighbours in this type: the most that [`round`](Self::round) moves it
    /// (short of overflow).
    #[must_use]
    pub fn half_step(self, value: f64) -> f64 {
        let (digits, smallest) = match self {
            Self::F16 => (11, -24),
            Self::BF16 => (8, -133),
            Self::F32 => (24, -149),
        };
        let relative = value.abs() * (-f64::from(digits)).exp2();
        relative.max(f64::from(smallest - 1).exp2())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        match s.to_ascii_lowercase().as_str() {
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            "f32" => Ok(Self::F32),
            _ => Err(Error::Parse { what: "element type", given: s.into(), allowed: "f16, bf16, f32" }),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
}

/// A Rust type that is a [`DType`].
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync {
    /// The element type.
    const DTYPE: DType;
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
