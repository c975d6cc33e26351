//! Shapes and strides of the float tensors.

use crate::error::{Error, Result};
use std::fmt;

/// The sizes of a tensor, whatever the order in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Heads of a sequence.
    pub heads: usize,
    /// Tokens of a head.
    pub seqlen: usize,
    /// Channels of a token.
    pub head_dim: usize,
}

impl Shape {
    /// Checked sizes.
    ///
    /// # Errors
    /// A size of zero, or elements (of four bytes) that do not fit a 63-bit address.
    pub fn new(batch: usize, heads: usize, seqlen: usize, head_dim: usize) -> Result<Self> {
        let shape = Self { batch, heads, seqlen, head_dim };
        for (name, size) in
            [("batch", batch), ("heads", heads), ("the number of tokens", seqlen), ("head_dim", head_dim)]
        {
            if size == 0 {
                return Err(Error::ZeroSize { name });
            }
        }
        let elements = batch
            .checked_mul(heads)
            .and_then(|n| n.checked_mul(seqlen))
            .and_then(|n| n.checked_mul(head_dim))
            .and_then(|n| n.checked_mul(4));
        match elements {
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(shape),
            _ => Err(Error::Overflow { what: "the elements", shape: shape.to_string() }),
        }
    }

    /// Elements in all.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.rows() * self.head_dim
    }

    /// Tokens of all heads and sequences.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.batch * self.heads * self.seqlen
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, heads, seqlen, head_dim } = self;
        write!(f, "[batch {batch}, heads {heads}, tokens {seqlen}, head_dim {head_dim}]")
    }
}

/// The order of a contiguous tensor's dimensions, the slowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// `[batch][head][token][dim]`.
    #[default]
    Bhnd,
    /// `[batch][token][head][dim]`.
    Bnhd,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bhnd => "bhnd",
            Self::Bnhd => "bnhd",
        })
    }
}

impl std::str::FromStr for Order {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.to_ascii_lowercase().as_str() {
            "bhnd" => Ok(Self::Bhnd),
            "bnhd" => Ok(Self::Bnhd),
            _ => Err(Error::Parse { what: "layout", given: s.into(), allowed: "bhnd, bnhd" }),
        }
    }
}

/// Where each element of a tensor lies: a shape and the strides of batch, head and token. The last dimension is
/// contiguous.
///
/// ```
/// use int_flash_attention::{Order, Shape, TensorLayout};
/// let shape = Shape::new(2, 12, 512, 64)?;
/// let layout = TensorLayout::new(shape, Order::Bnhd);
/// assert_eq!(layout.strides(), [512 * 12 * 64, 64, 12 * 64]);
/// // every second token of a longer cache
/// let strided = TensorLayout::strided(shape, [12 * 1024 * 64, 1024 * 64, 128])?;
/// assert_eq!(strided.order(), None);
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorLayout {
    shape: Shape,
    strides: [i64; 3],
    span: usize,
}

impl TensorLayout {
    /// A contiguous tensor.
    #[must_use]
    pub fn new(shape: Shape, order: Order) -> Self {
        let Shape { heads, seqlen, head_dim, .. } = shape;
        // `Shape` is built by `Shape::new` or by hand; a product that wraps here is caught wherever a buffer is checked.
        let product = |sizes: &[usize]| sizes.iter().fold(1_i64, |n, &size| n.saturating_mul(size as i64));
        let strides = match order {
            Order::Bhnd => [product(&[heads, seqlen, head_dim]), product(&[seqlen, head_dim]), head_dim as i64],
            Order::Bnhd => [product(&[heads, seqlen, head_dim]), head_dim as i64, product(&[heads, head_dim])],
        };
        let span = product(&[shape.batch, heads, seqlen, head_dim]) as usize;
        Self { shape, strides, span }
    }

    /// `[batch][head][token][dim]`.
    #[must_use]
    pub fn bhnd(shape: Shape) -> Self {
        Self::new(shape, Order::Bhnd)
    }

    /// `[batch][token][head][dim]`.
    #[must_use]
    pub fn bnhd(shape: Shape) -> Self {
        Self::new(shape, Order::Bnhd)
    }

    /// Any strides of batch, head and token, in elements; 0 repeats one slice (for an input).
    ///
    /// # Errors
    /// A negative stride, a wrong [`Shape`], or an address past 63 bits.
    pub fn strided(shape: Shape, strides: [i64; 3]) -> Result<Self> {
        let Shape { batch, heads, seqlen, head_dim } = shape;
        Shape::new(batch, heads, seqlen, head_dim)?;
        let mut span = head_dim as i128;
        for ((name, size), stride) in [("batch", batch), ("head", heads), ("token", seqlen)].into_iter().zip(strides) {
            if stride < 0 {
                return Err(Error::Stride { name, given: stride, allowed: "0 or more" });
            }
            span += (size as i128 - 1) * i128::from(stride);
        }
        if span * 4 > i128::from(i64::MAX) {
            return Err(Error::Overflow { what: "the addresses", shape: format!("{shape} with strides {strides:?}") });
        }
        Ok(Self { shape, strides, span: span as usize })
    }

    /// A contiguous tensor from the four dimensions of a file, in the order written there.
    ///
    /// # Errors
    /// Not four dimensions, or a wrong [`Shape`].
    pub fn from_dims(dims: &[usize], order: Order) -> Result<Self> {
        let &[batch, second, third, head_dim] = dims else {
            return Err(Error::Rank { given: dims.to_vec() });
        };
        let (heads, seqlen) = match order {
            Order::Bhnd => (second, third),
            Order::Bnhd => (third, second),
        };
        Ok(Self::new(Shape::new(batch, heads, seqlen, head_dim)?, order))
    }

    /// The sizes.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Strides of batch, head and token, in elements.
    #[must_use]
    pub const fn strides(&self) -> [i64; 3] {
        self.strides
    }

    /// Elements from the first to the last, both included: what a buffer has to hold.
    #[must_use]
    pub const fn span(&self) -> usize {
        self.span
    }

    /// The order, where the tensor is contiguous.
    #[must_use]
    pub fn order(&self) -> Option<Order> {
        [Order::Bhnd, Order::Bnhd].into_iter().find(|&order| Self::new(self.shape, order) == *self)
    }

    /// The dimensions as they stand in memory, for a contiguous tensor in this order.
    #[must_use]
    pub fn dims(&self, order: Order) -> [usize; 4] {
        let Shape { batch, heads, seqlen, head_dim } = self.shape;
        match order {
            Order::Bhnd => [batch, heads, seqlen, head_dim],
            Order::Bnhd => [batch, seqlen, heads, head_dim],
        }
    }

    /// Index of the first channel of a token. The arguments are below the shape's sizes.
    #[must_use]
    pub const fn offset(&self, batch: usize, head: usize, token: usize) -> usize {
        batch * self.strides[0] as usize + head * self.strides[1] as usize + token * self.strides[2] as usize
    }

    /// Whether every element has an address of its own, which an output needs.
    ///
    /// # Errors
    /// [`Error::Overlap`].
    pub fn check_disjoint(&self) -> Result<()> {
        let Shape { batch, heads, seqlen, head_dim } = self.shape;
        let mut dims = [(batch, self.strides[0]), (heads, self.strides[1]), (seqlen, self.strides[2])];
        dims.sort_by_key(|&(_, stride)| stride);
        // Nested: each stride steps over everything that the smaller strides reach. (Sufficient, and what layouts do.)
        let mut reach = head_dim as i128;
        for (size, stride) in dims.into_iter().filter(|&(size, _)| size > 1) {
            if i128::from(stride) < reach {
                return Err(Error::Overlap { strides: self.strides, shape: self.shape.to_string() });
            }
            reach += (size as i128 - 1) * i128::from(stride);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        assert!(matches!(Shape::new(1, 0, 1, 1), Err(Error::ZeroSize { name: "heads" })));
        assert!(matches!(Shape::new(1 << 31, 1 << 31, 1, 1), Err(Error::Overflow { .. })));
        assert!(matches!(Shape::new(usize::MAX, 2, 1, 1), Err(Error::Overflow { .. })));
        assert_eq!(Shape::new(1 << 12, 1 << 10, 1 << 12, 128).unwrap().elements(), 1 << 41);
        assert!(matches!(TensorLayout::from_dims(&[1, 2, 3], Order::Bhnd), Err(Error::Rank { .. })));
    }

    #[test]
    fn strides_are_checked() {
        let shape = Shape::new(2, 3, 5, 4).unwrap();
        assert!(matches!(
            TensorLayout::strided(shape, [60, -1, 4]),
            Err(Error::Stride { name: "head", given: -1, .. })
        ));
        assert!(matches!(TensorLayout::strided(shape, [i64::MAX, 20, 4]), Err(Error::Overflow { .. })));
        assert_eq!(TensorLayout::strided(shape, [60, 20, 4]).unwrap(), TensorLayout::bhnd(shape));
        assert_eq!(TensorLayout::bnhd(shape).order(), Some(Order::Bnhd));
        assert_eq!(TensorLayout::bnhd(shape).offset(1, 2, 4), 60 + 8 + 48);
        let repeated = TensorLayout::strided(shape, [0, 20, 4]).unwrap();
        assert_eq!(repeated.span(), 60);
        assert!(matches!(repeated.check_disjoint(), Err(Error::Overlap { .. })));
        assert!(TensorLayout::bnhd(shape).check_disjoint().is_ok());
        assert!(TensorLayout::strided(shape, [200, 40, 8]).unwrap().check_disjoint().is_ok());
        assert!(TensorLayout::strided(shape, [60, 20, 3]).unwrap().check_disjoint().is_err());
    }
}
