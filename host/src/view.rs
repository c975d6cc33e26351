//! Float tensors in memory of the host that something else owns.

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::shape::{Shape, TensorLayout};
use crate::tensor::{HostData, HostTensor};
use half::{bf16, f16};
use std::ops::Range;

/// Elements of the host's memory, borrowed; the element type is a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HostSlice<'a> {
    /// float16.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// float32.
    F32(&'a [f32]),
}

/// One expression for all three element types.
macro_rules! each {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            HostSlice::F16($values) => $body,
            HostSlice::BF16($values) => $body,
            HostSlice::F32($values) => $body,
        }
    };
}

impl<'a> HostSlice<'a> {
    /// The element type.
    #[must_use]
    pub const fn dtype(self) -> DType {
        match self {
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::F32(_) => DType::F32,
        }
    }

    /// Elements.
    #[must_use]
    pub const fn len(self) -> usize {
        each!(self, values => values.len())
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The bytes in memory (little endian on every machine that CUDA has).
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        each!(self, values => bytemuck::cast_slice(values))
    }

    /// Element `index` as float32, exactly.
    #[inline]
    #[must_use]
    pub fn get(self, index: usize) -> f32 {
        match self {
            Self::F16(values) => values[index].to_f32(),
            Self::BF16(values) => values[index].to_f32(),
            Self::F32(values) => values[index],
        }
    }

    /// The elements from `first` on, of which there are as many.
    pub(crate) fn from(self, first: usize) -> Self {
        match self {
            Self::F16(values) => Self::F16(&values[first..]),
            Self::BF16(values) => Self::BF16(&values[first..]),
            Self::F32(values) => Self::F32(&values[first..]),
        }
    }
}

impl<'a, T: Element> From<&'a [T]> for HostSlice<'a> {
    fn from(values: &'a [T]) -> Self {
        match T::DTYPE {
            DType::F16 => Self::F16(bytemuck::cast_slice(values)),
            DType::BF16 => Self::BF16(bytemuck::cast_slice(values)),
            DType::F32 => Self::F32(bytemuck::cast_slice(values)),
        }
    }
}

/// A float tensor in memory that something else owns, such as another framework's: what [`HostTensor`] is for elements of its own.
/// Functions that read a tensor take either.
///
/// ```
/// use int_flash_attention::{Device, HostView, Options, Shape, TensorLayout, attention};
/// let values = vec![0.25_f32; 2 * 100 * 64];
/// let x = HostView::new(&values[..], TensorLayout::bnhd(Shape::new(1, 2, 100, 64)?))?; // nothing is copied
/// let output = attention(Device::Cpu, x, x, x, &Options::default())?;
/// let _owned = output.o.into_data();
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostView<'a> {
    data: HostSlice<'a>,
    layout: TensorLayout,
}

impl<'a> HostView<'a> {
    /// Elements in the places that `layout` says; there may be more than it spans.
    ///
    /// # Errors
    /// A wrong [`Shape`]; [`Error::Length`] where there are fewer elements than the layout spans.
    pub fn new(data: impl Into<HostSlice<'a>>, layout: TensorLayout) -> Result<Self> {
        let data = data.into();
        layout.shape().check()?;
        if data.len() < layout.span() {
            return Err(Error::Length { name: "a host tensor", given: data.len(), expected: layout.span() });
        }
        Ok(Self { data, layout })
    }

    /// Of elements and a layout that have been checked.
    pub(crate) const fn unchecked(data: HostSlice<'a>, layout: TensorLayout) -> Self {
        Self { data, layout }
    }

    /// The element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Where the elements lie.
    #[must_use]
    pub const fn layout(&self) -> TensorLayout {
        self.layout
    }

    /// The sizes.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.layout.shape()
    }

    /// The elements, in memory order.
    #[must_use]
    pub const fn data(&self) -> HostSlice<'a> {
        self.data
    }

    /// The elements' bytes, in memory order.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.data.bytes()
    }

    /// One token's channels as float32, exactly.
    pub(crate) fn read_row(&self, batch: usize, head: usize, token: usize, out: &mut [f32]) {
        let start = self.layout.offset(batch, head, token);
        match self.data {
            HostSlice::F16(values) => {
                for (to, from) in out.iter_mut().zip(&values[start..]) {
                    *to = from.to_f32();
                }
            }
            HostSlice::BF16(values) => {
                for (to, from) in out.iter_mut().zip(&values[start..]) {
                    *to = from.to_f32();
                }
            }
            HostSlice::F32(values) => out.copy_from_slice(&values[start..start + out.len()]),
        }
    }

    /// One head's tokens as float32, `[token][dim]`.
    pub(crate) fn read_head(&self, batch: usize, head: usize) -> Vec<f32> {
        let Shape { seqlen, head_dim, .. } = self.shape();
        let mut out = vec![0.0; seqlen * head_dim];
        for (token, row) in out.chunks_exact_mut(head_dim).enumerate() {
            self.read_row(batch, head, token, row);
        }
        out
    }

    /// All elements, `[batch][head][token][dim]`, as float64, exactly.
    #[must_use]
    pub fn dense_f64(&self) -> Vec<f64> {
        let Shape { batch, heads, .. } = self.shape();
        let mut out = Vec::with_capacity(self.shape().elements());
        for head in 0..batch * heads {
            out.extend(self.read_head(head / heads, head % heads).into_iter().map(f64::from));
        }
        out
    }

    /// Whether all elements are finite. What a stride of 0 repeats is looked at once.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first one that is not, under the name given.
    pub fn check_finite(&self, name: &'static str) -> Result<()> {
        let [batch, _, seqlen] = self.layout.distinct();
        (0..batch).try_for_each(|batch| self.check_tokens_finite(name, batch, 0..seqlen))
    }

    /// [`check_finite`](Self::check_finite) of these tokens of a batch.
    pub(crate) fn check_tokens_finite(&self, name: &'static str, b: usize, tokens: Range<usize>) -> Result<()> {
        let [_, heads, _] = self.layout.distinct();
        let mut row = vec![0.0; self.shape().head_dim];
        for h in 0..heads {
            for n in tokens.clone() {
                self.read_row(b, h, n, &mut row);
                // Of all elements first, which is quick; a look for the one costs as much as the row has.
                let most = row.iter().fold(0, |most, x: &f32| x.abs().to_bits().max(most));
                if most < f32::INFINITY.to_bits() {
                    continue;
                }
                if let Some(dim) = row.iter().position(|x| !x.is_finite()) {
                    return Err(Error::NotFinite { name, value: row[dim], batch: b, head: h, token: n, dim });
                }
            }
        }
        Ok(())
    }

    /// These tokens of every batch, in place; they are inside of the tensor, and at least one.
    pub(crate) fn of_tokens(&self, tokens: Range<usize>) -> Result<Self> {
        let layout = TensorLayout::strided(Shape { seqlen: tokens.len(), ..self.shape() }, self.layout.strides())?;
        let start = self.layout.offset(0, 0, tokens.start);
        let data = match self.data {
            HostSlice::F16(values) => HostSlice::F16(&values[start..]),
            HostSlice::BF16(values) => HostSlice::BF16(&values[start..]),
            HostSlice::F32(values) => HostSlice::F32(&values[start..]),
        };
        Self::new(data, layout)
    }

    /// The tokens of one batch, copied, `[1][head][token][dim]`; they are inside of the tensor, and at least one.
    pub(crate) fn tokens(&self, batch: usize, tokens: Range<usize>) -> Result<HostTensor> {
        let Shape { heads, head_dim, .. } = self.shape();
        let layout = TensorLayout::bhnd(Shape::new(1, heads, tokens.len(), head_dim)?);
        let (size, mut data) = (self.dtype().size(), HostData::zeros(self.dtype(), layout.span())?);
        let rows = (0..heads).flat_map(|head| tokens.clone().map(move |token| (head, token)));
        for (row, (head, token)) in data.bytes_mut().chunks_exact_mut(head_dim * size).zip(rows) {
            row.copy_from_slice(&self.bytes()[self.layout.offset(batch, head, token) * size..][..head_dim * size]);
        }
        HostTensor::new(data, layout)
    }
}

impl<'a> From<&'a HostTensor> for HostView<'a> {
    fn from(tensor: &'a HostTensor) -> Self {
        tensor.view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_the_tensor_without_a_copy() {
        let layout = TensorLayout::bnhd(Shape::new(2, 3, 5, 4).unwrap());
        let values: Vec<bf16> = (0..layout.span() + 3).map(|x| bf16::from_f32(x as f32)).collect();
        let view = HostView::new(&values[..], layout).unwrap();
        let tensor = HostTensor::new(values.clone(), layout).unwrap();
        assert_eq!(view.bytes().as_ptr(), values.as_ptr().cast());
        assert_eq!((view, view.dense_f64()), (tensor.view(), tensor.dense_f64()));
        assert_eq!((view.dtype(), view.shape(), view.data().len()), (DType::BF16, layout.shape(), values.len()));
        let short = HostView::new(&values[..layout.span() - 1], layout);
        assert!(matches!(short, Err(Error::Length { given: 119, expected: 120, .. })), "{short:?}");
    }
}
