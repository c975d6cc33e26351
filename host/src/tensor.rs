//! Float tensors in the host's memory.

use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::resources::zeroed;
use crate::shape::{Shape, TensorLayout};
use crate::view::{HostSlice, HostView};
use half::{bf16, f16};

/// The elements of a host tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum HostData {
    /// float16.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
    /// float32.
    F32(Vec<f32>),
}

/// One expression for all three element types.
macro_rules! each {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            HostData::F16($values) => $body,
            HostData::BF16($values) => $body,
            HostData::F32($values) => $body,
        }
    };
}

impl HostData {
    /// The element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        match self {
            Self::F16(_) => DType::F16,
            Self::BF16(_) => DType::BF16,
            Self::F32(_) => DType::F32,
        }
    }

    /// Elements.
    #[must_use]
    pub fn len(&self) -> usize {
        each!(self, values => values.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes in memory (little endian on every machine that CUDA has).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        each!(self, values => bytemuck::cast_slice(values))
    }

    /// The same elements, borrowed.
    #[must_use]
    pub fn as_slice(&self) -> HostSlice<'_> {
        match self {
            Self::F16(values) => HostSlice::F16(values),
            Self::BF16(values) => HostSlice::BF16(values),
            Self::F32(values) => HostSlice::F32(values),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        each!(self, values => bytemuck::cast_slice_mut(values))
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn zeros(dtype: DType, len: usize) -> Result<Self> {
        const WHAT: &str = "the elements of a host tensor";
        Ok(match dtype {
            DType::F16 => Self::F16(zeroed(WHAT, len)?),
            DType::BF16 => Self::BF16(zeroed(WHAT, len)?),
            DType::F32 => Self::F32(zeroed(WHAT, len)?),
        })
    }

    /// Element `index` as float32, exactly.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> f32 {
        self.as_slice().get(index)
    }

    /// Stores `value` at `index`, rounded once to nearest even.
    #[inline]
    pub fn set(&mut self, index: usize, value: f64) {
        match self {
            Self::F16(values) => values[index] = crate::round::f16_from_f64(value),
            Self::BF16(values) => values[index] = crate::round::bf16_from_f64(value),
            Self::F32(values) => values[index] = value as f32,
        }
    }
}

impl From<Vec<f16>> for HostData {
    fn from(values: Vec<f16>) -> Self {
        Self::F16(values)
    }
}

impl From<Vec<bf16>> for HostData {
    fn from(values: Vec<bf16>) -> Self {
        Self::BF16(values)
    }
}

impl From<Vec<f32>> for HostData {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values)
    }
}

/// A float tensor in the host's memory: elements, and where each one lies. [`HostView`] is one that borrows its elements.
///
/// ```
/// use int_flash_attention::{DType, HostTensor, Shape, TensorLayout};
/// let layout = TensorLayout::bhnd(Shape::new(1, 2, 3, 32)?);
/// let zeros = HostTensor::new(vec![0.0_f32; 192], layout)?;
/// assert_eq!(zeros.get(0, 1, 2, 31), 0.0);
/// let ramp = HostTensor::from_fn(DType::F16, layout, |_, head, token, dim| (head + token + dim) as f32)?;
/// assert_eq!(ramp.get(0, 1, 2, 31), 34.0);
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    data: HostData,
    layout: TensorLayout,
}

impl HostTensor {
    /// Elements in the places that `layout` says; there may be more than it spans.
    ///
    /// # Errors
    /// A wrong [`Shape`]; [`Error::Length`] where there are fewer elements than the layout spans.
    pub fn new(data: impl Into<HostData>, layout: TensorLayout) -> Result<Self> {
        let data = data.into();
        HostView::new(data.as_slice(), layout)?;
        Ok(Self { data, layout })
    }

    /// Elements from little-endian bytes, such as a safetensors view's.
    ///
    /// # Errors
    /// A wrong [`Shape`]; bytes that are not whole elements, or not as many as the layout spans.
    pub fn from_bytes(dtype: DType, bytes: &[u8], layout: TensorLayout) -> Result<Self> {
        if !bytes.len().is_multiple_of(dtype.size()) {
            return Err(Error::PartialElement { given: bytes.len(), dtype });
        }
        let len = bytes.len() / dtype.size();
        if len != layout.span() {
            return Err(Error::Length { name: "a host tensor", given: len, expected: layout.span() });
        }
        let mut data = HostData::zeros(dtype, len)?;
        data.bytes_mut().copy_from_slice(bytes);
        Self::new(data, layout)
    }

    /// The values of `f(batch, head, token, dim)`, rounded to `dtype`; elements between the strides are zero.
    ///
    /// # Errors
    /// A wrong [`Shape`], or a layout in which elements overlap.
    pub fn from_fn(
        dtype: DType,
        layout: TensorLayout,
        mut f: impl FnMut(usize, usize, usize, usize) -> f32,
    ) -> Result<Self> {
        layout.shape().check()?;
        layout.check_disjoint()?;
        let mut data = HostData::zeros(dtype, layout.span())?;
        let Shape { batch, heads, seqlen, head_dim } = layout.shape();
        for b in 0..batch {
            for h in 0..heads {
                for n in 0..seqlen {
                    let row = layout.offset(b, h, n);
                    for d in 0..head_dim {
                        data.set(row + d, f64::from(f(b, h, n, d)));
                    }
                }
            }
        }
        Self::new(data, layout)
    }

    /// `values` in `[batch][head][token][dim]` order, rounded once to `dtype`, in the places that `layout` says.
    ///
    /// # Errors
    /// As many values as the shape has elements are needed, and a layout in which none overlap; a wrong [`Shape`].
    pub fn from_dense(dtype: DType, layout: TensorLayout, values: &[f64]) -> Result<Self> {
        layout.shape().check()?;
        layout.check_disjoint()?;
        let shape = layout.shape();
        if values.len() != shape.elements() {
            return Err(Error::Length { name: "values", given: values.len(), expected: shape.elements() });
        }
        let mut data = HostData::zeros(dtype, layout.span())?;
        for (row, channels) in values.chunks_exact(shape.head_dim).enumerate() {
            let (head, token) = (row / shape.seqlen, row % shape.seqlen);
            let start = layout.offset(head / shape.heads, head % shape.heads, token);
            for (d, &value) in channels.iter().enumerate() {
                data.set(start + d, value);
            }
        }
        Self::new(data, layout)
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

    /// The elements, in memory order, given back.
    #[must_use]
    pub fn into_data(self) -> HostData {
        self.data
    }

    /// The elements, in memory order.
    #[must_use]
    pub const fn data(&self) -> &HostData {
        &self.data
    }

    /// The elements' bytes, in memory order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The elements as their own type, in memory order; `None` if that is not `T`.
    #[must_use]
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        (T::DTYPE == self.dtype()).then(|| bytemuck::cast_slice(self.bytes()))
    }

    /// One element as float32, exactly. The indices are below the shape's sizes.
    #[must_use]
    pub fn get(&self, batch: usize, head: usize, token: usize, dim: usize) -> f32 {
        self.data.get(self.layout.offset(batch, head, token) + dim)
    }

    /// The same tensor, borrowed.
    #[must_use]
    pub fn view(&self) -> HostView<'_> {
        HostView::unchecked(self.data.as_slice(), self.layout)
    }

    /// One head's tokens as float32, `[token][dim]`.
    pub(crate) fn read_head(&self, batch: usize, head: usize) -> Vec<f32> {
        self.view().read_head(batch, head)
    }

    /// All elements, `[batch][head][token][dim]`, as float64, exactly.
    #[must_use]
    pub fn dense_f64(&self) -> Vec<f64> {
        self.view().dense_f64()
    }

    /// Whether all elements are finite. What a stride of 0 repeats is looked at once.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first one that is not, under the name given.
    pub fn check_finite(&self, name: &'static str) -> Result<()> {
        self.view().check_finite(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_values_are_checked() {
        let layout = TensorLayout::bhnd(Shape::new(1, 2, 3, 4).unwrap());
        assert!(matches!(HostTensor::new(vec![0.0_f32; 23], layout), Err(Error::Length { given: 23, .. })));
        assert!(matches!(HostTensor::from_bytes(DType::F16, &[0; 47], layout), Err(Error::PartialElement { .. })));
        let mut values = vec![f16::ONE; 24];
        values[17] = f16::INFINITY;
        let tensor = HostTensor::new(values, layout).unwrap();
        let error = tensor.check_finite("k").unwrap_err();
        assert!(matches!(error, Error::NotFinite { name: "k", head: 1, token: 1, dim: 1, .. }), "{error}");
    }

    #[test]
    fn shapes_built_by_hand_are_refused() {
        for shape in [
            Shape { batch: 1, heads: 2, seqlen: 3, head_dim: 0 },
            Shape { batch: 1, heads: 0, seqlen: 3, head_dim: 4 },
            Shape { batch: usize::MAX, heads: 2, seqlen: 3, head_dim: 4 },
        ] {
            let layout = TensorLayout::bhnd(shape);
            assert!(HostTensor::new(vec![0.0_f32; 24], layout).is_err(), "{shape}");
            assert!(HostTensor::from_bytes(DType::F32, &[], layout).is_err(), "{shape}");
            assert!(HostTensor::from_fn(DType::F32, layout, |_, _, _, _| 0.0).is_err(), "{shape}");
            assert!(HostTensor::from_dense(DType::F32, layout, &[]).is_err(), "{shape}");
        }
    }

    #[test]
    fn longer_data_is_taken_and_given_back() {
        let layout = TensorLayout::bhnd(Shape::new(1, 2, 3, 4).unwrap());
        let tensor = HostTensor::new((0..30).map(|x| x as f32).collect::<Vec<_>>(), layout).unwrap();
        assert_eq!((tensor.get(0, 1, 2, 3), tensor.dense_f64().len()), (23.0, 24));
        assert_eq!(tensor.into_data().len(), 30);
    }

    /// 2^60 elements that are 32: looking at each would take years.
    #[test]
    fn repeated_elements_are_looked_at_once() {
        let shape = Shape::new(1 << 20, 1 << 20, 1 << 15, 32).unwrap();
        let layout = TensorLayout::strided(shape, [0; 3]).unwrap();
        let mut values = vec![1.0_f32; 32];
        HostTensor::new(values.clone(), layout).unwrap().check_finite("v").unwrap();
        values[7] = f32::NAN;
        let error = HostTensor::new(values, layout).unwrap().check_finite("v").unwrap_err();
        assert!(matches!(error, Error::NotFinite { token: 0, dim: 7, .. }), "{error}");
    }

    #[test]
    fn layouts_place_the_same_values() {
        let shape = Shape::new(2, 3, 5, 4).unwrap();
        let value = |b, h, n, d| (1000 * b + 100 * h + 10 * n + d) as f32;
        let strided = TensorLayout::strided(shape, [300, 8, 60]).unwrap();
        let tensors = [TensorLayout::bhnd(shape), TensorLayout::bnhd(shape), strided]
            .map(|layout| HostTensor::from_fn(DType::F32, layout, value).unwrap());
        for tensor in &tensors {
            assert_eq!(tensor.dense_f64(), tensors[0].dense_f64());
            assert_eq!(tensor.get(1, 2, 4, 3), value(1, 2, 4, 3));
            let again = HostTensor::from_dense(DType::F32, tensor.layout(), &tensor.dense_f64()).unwrap();
            assert_eq!(&again, tensor);
        }
        assert_eq!(tensors[0].as_slice::<f32>().unwrap()[119], 1243.0);
        assert!(tensors[0].as_slice::<f16>().is_none());
    }
}
