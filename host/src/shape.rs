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

    /// Whether [`new`](Self::new) would have made it: the sizes are public, and may be anything.
    pub(crate) fn check(self) -> Result<()> {
        Self::new(self.batch, self.heads, self.seqlen, self.head_dim).map(|_| ())
    }

    /// Elements in all (`usize::MAX` where they are more, which no shape from [`new`](Self::new) has).
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.rows().saturating_mul(self.head_dim)
    }

    /// Tokens of all heads and sequences (`usize::MAX` where they are more).
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.batch.saturating_mul(self.heads).saturating_mul(self.seqlen)
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
        // A shape built by hand may be wrong; it is checked wherever a tensor or a plan is made.
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

    /// Any strides of batch, head and token, in elements; 0 repeats one slice (for an input). The stride of a size of 1 leads
    /// nowhere: a negative one is taken as 0.
    ///
    /// # Errors
    /// A negative stride, a wrong [`Shape`], or an address past 63 bits.
    pub fn strided(shape: Shape, mut strides: [i64; 3]) -> Result<Self> {
        let Shape { batch, heads, seqlen, head_dim } = shape;
        Shape::new(batch, heads, seqlen, head_dim)?;
        let mut span = head_dim as i128;
        let sizes = [("batch", batch), ("head", heads), ("token", seqlen)];
        for ((name, size), stride) in sizes.into_iter().zip(&mut strides) {
            if size == 1 {
                *stride = (*stride).max(0);
            }
            if *stride < 0 {
                return Err(Error::Stride { name, given: *stride, allowed: "0 or more" });
            }
            span += (size as i128 - 1) * i128::from(*stride);
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

    /// Index of the first channel of a token. The arguments are below the shape's sizes; past them the result means nothing.
    #[must_use]
    pub const fn offset(&self, batch: usize, head: usize, token: usize) -> usize {
        let [b, h, n] = self.strides;
        let batch = batch.wrapping_mul(b as usize);
        batch.wrapping_add(head.wrapping_mul(h as usize)).wrapping_add(token.wrapping_mul(n as usize))
    }

    /// The sizes without repetition: 1 where a stride of 0 repeats one slice.
    pub(crate) fn distinct(&self) -> [usize; 3] {
        let Shape { batch, heads, seqlen, .. } = self.shape;
        let [b, h, n] = self.strides;
        [(batch, b), (heads, h), (seqlen, n)].map(|(size, stride)| if stride == 0 { size.min(1) } else { size })
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
        // Each stride steps over the next smaller one, but not over all that it reaches.
        let small = Shape::new(2, 2, 2, 32).unwrap();
        assert!(TensorLayout::strided(small, [64, 32, 32]).unwrap().check_disjoint().is_err());
        // Addresses are of bytes: of four for an element.
        let quarter = i64::MAX / 4;
        let two = Shape::new(2, 1, 1, 4).unwrap();
        assert!(TensorLayout::strided(two, [quarter - 4, 0, 0]).is_ok());
        assert!(matches!(TensorLayout::strided(two, [quarter, 0, 0]), Err(Error::Overflow { .. })));
    }

    #[test]
    fn the_stride_of_a_size_of_one_leads_nowhere() {
        let one = Shape::new(1, 1, 5, 4).unwrap();
        let layout = TensorLayout::strided(one, [-20, i64::MIN, 4]).unwrap();
        assert_eq!((layout.strides(), layout.span(), layout.offset(0, 0, 4)), ([0, 0, 4], 20, 16));
        assert!(layout.check_disjoint().is_ok());
        assert!(matches!(TensorLayout::strided(one, [0, 0, -4]), Err(Error::Stride { name: "token", .. })));
    }

    #[test]
    fn shapes_built_by_hand_do_not_panic() {
        let huge = Shape { batch: usize::MAX, heads: 3, seqlen: 5, head_dim: 7 };
        assert_eq!((huge.rows(), huge.elements()), (usize::MAX, usize::MAX));
        let none = Shape { batch: 0, heads: 3, seqlen: 5, head_dim: 0 };
        assert_eq!((none.rows(), none.elements()), (0, 0));
        for shape in [huge, none] {
            assert!(shape.check().is_err());
            let layout = TensorLayout::bnhd(shape);
            let _ = (layout.offset(usize::MAX, usize::MAX, usize::MAX), layout.check_disjoint(), layout.distinct());
        }
    }
}
