//! Views of a GPU's memory: typed ones, and ones whose element type is a value.

use super::buffer::{DeviceBuffer, Memory};
use super::launch::Launch;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use bytemuck::Pod;
use int_flash_attention_driver::{DevicePtr, StreamHandle};
use std::marker::PhantomData;
use std::sync::Arc;

/// What a view knows of its memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Home<'a> {
    /// A buffer of this crate.
    Buffer(&'a Arc<Memory>),
    /// An address of which the caller has promised everything.
    Promised,
    /// Another library's memory, borrowed for the call: the driver is asked where it is.
    #[cfg_attr(not(any(feature = "cudarc", feature = "cust")), allow(dead_code))]
    Foreign {
        /// The stream behind whose work the library orders what comes after, where it does not wait for the whole GPU.
        ordered_by: Option<StreamHandle>,
    },
}

/// Elements in a GPU's memory, to be read.
#[derive(Debug)]
pub struct DeviceSlice<'a, T> {
    ptr: DevicePtr,
    len: usize,
    home: Home<'a>,
    elements: PhantomData<&'a [T]>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

/// Elements in a GPU's memory, to be written.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T> {
    ptr: DevicePtr,
    len: usize,
    home: Home<'a>,
    elements: PhantomData<&'a mut [T]>,
}

macro_rules! view {
    ($view:ident) => {
        impl<'a, T: Pod> $view<'a, T> {
            /// A view of memory of which this is known.
            pub(super) const fn of(ptr: DevicePtr, len: usize, home: Home<'a>) -> Self {
                Self { ptr, len, home, elements: PhantomData }
            }

            /// Memory that something else owns, such as another framework's tensor.
            ///
            /// # Safety
            /// `len` elements at `ptr` belong to the context that the view is used in; until the launches that got the view
            /// are done, and while a graph that recorded them may be launched, they stay allocated, and nothing else uses them in
            /// a conflicting way.
            #[must_use]
            pub const unsafe fn from_raw(ptr: DevicePtr, len: usize) -> Self {
                Self::of(ptr, len, Home::Promised)
            }

            /// Another library's memory, of a GPU and context that the launch will ask the driver for.
            ///
            /// # Safety
            /// As [`from_raw`](Self::from_raw), without the context and the graphs.
            #[cfg(feature = "cust")]
            pub(crate) const unsafe fn foreign(ptr: DevicePtr, len: usize) -> Self {
                Self::of(ptr, len, Home::Foreign { ordered_by: None })
            }

            /// Another library's memory, which it frees and gives others behind the work of one stream.
            ///
            /// # Safety
            /// As [`from_raw`](Self::from_raw) for launches on that stream, without the context and the graphs.
            #[cfg(feature = "cudarc")]
            pub(crate) const unsafe fn foreign_on(ptr: DevicePtr, len: usize, stream: StreamHandle) -> Self {
                Self::of(ptr, len, Home::Foreign { ordered_by: Some(stream) })
            }

            /// Elements.
            #[must_use]
            pub const fn len(&self) -> usize {
                self.len
            }

            /// Whether there are none.
            #[must_use]
            pub const fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// The first element's address on the GPU.
            #[must_use]
            pub const fn ptr(&self) -> DevicePtr {
                self.ptr
            }

            /// The same bytes as elements of another type of the same size, such as `u16` as `f16`.
            #[must_use]
            pub const fn cast<U: Pod>(self) -> $view<'a, U> {
                const { assert!(size_of::<T>() == size_of::<U>(), "the element types differ in size") };
                $view { ptr: self.ptr, len: self.len, home: self.home, elements: PhantomData }
            }

            /// The elements from `start` to before `end`.
            ///
            /// # Errors
            /// A range that is not inside.
            pub fn range(self, start: usize, end: usize) -> Result<Self> {
                if start > end || end > self.len {
                    return Err(Error::Length { name: "a device slice", given: self.len, expected: end.max(start) });
                }
                let ptr = self.ptr + (start * size_of::<T>()) as u64;
                Ok(Self { ptr, len: end - start, home: self.home, elements: PhantomData })
            }

            /// `len` elements from byte `start` on, which are inside and nobody else's.
            pub(crate) const fn part<U: Pod>(&self, start: usize, len: usize) -> $view<'a, U> {
                $view { ptr: self.ptr + start as u64, len, home: self.home, elements: PhantomData }
            }
        }
    };
}

view!(DeviceSlice);
view!(DeviceSliceMut);

impl<T: Pod> DeviceSliceMut<'_, T> {
    /// No elements, for instance as the workspace of a plan that needs none.
    #[must_use]
    pub const fn empty() -> DeviceSliceMut<'static, T> {
        DeviceSliceMut::of(0, 0, Home::Promised)
    }
}

impl<T> DeviceSliceMut<'_, T> {
    /// A shorter borrow of the same elements.
    #[must_use]
    pub const fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { ptr: self.ptr, len: self.len, home: self.home, elements: PhantomData }
    }

    /// The same elements, to be read.
    #[must_use]
    pub const fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { ptr: self.ptr, len: self.len, home: self.home, elements: PhantomData }
    }
}

impl<T> DeviceSlice<'_, T> {
    /// As [`Checked`], for an array that a kernel reads element by element.
    pub(super) fn checked_elements(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, size_of::<T>() as u64)?;
        launch.accept(name, self.ptr, self.home)
    }
}

impl<'a, T: Pod> From<&'a DeviceBuffer<T>> for DeviceSlice<'a, T> {
    fn from(buffer: &'a DeviceBuffer<T>) -> Self {
        buffer.slice()
    }
}

impl<'a, T: Pod> From<&'a mut DeviceBuffer<T>> for DeviceSliceMut<'a, T> {
    fn from(buffer: &'a mut DeviceBuffer<T>) -> Self {
        buffer.slice_mut()
    }
}

/// Floats in a GPU's memory, to be read; the element type is a value.
#[derive(Clone, Copy, Debug)]
pub struct AnySlice<'a> {
    bytes: DeviceSlice<'a, u8>,
    dtype: DType,
}

/// Floats in a GPU's memory, to be written; the element type is a value.
#[derive(Debug)]
pub struct AnySliceMut<'a> {
    bytes: DeviceSliceMut<'a, u8>,
    dtype: DType,
}

macro_rules! any_view {
    ($any:ident, $view:ident, $source:ty) => {
        impl<'a> $any<'a> {
            /// Bytes as elements of this type; a rest smaller than an element is left out.
            #[must_use]
            pub const fn from_bytes(bytes: $view<'a, u8>, dtype: DType) -> Self {
                Self { bytes, dtype }
            }

            /// The element type.
            #[must_use]
            pub const fn dtype(&self) -> DType {
                self.dtype
            }

            /// Elements.
            #[must_use]
            pub const fn len(&self) -> usize {
                self.bytes.len / self.dtype.size()
            }

            /// Whether there are none.
            #[must_use]
            pub const fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The elements from number `start` on.
            pub(crate) fn skip(&self, start: usize) -> Result<$any<'_>> {
                let size = self.dtype.size();
                if start > self.len() {
                    return Err(Error::Length { name: "a device slice", given: self.len(), expected: start });
                }
                Ok($any { bytes: self.bytes.part(start * size, self.bytes.len - start * size), dtype: self.dtype })
            }

            /// Whether they are of this type, and so many.
            pub(crate) fn check(&self, name: &'static str, dtype: DType, len: usize) -> Result<()> {
                if self.dtype != dtype {
                    return Err(Error::DTypeMismatch { name, given: self.dtype, expected: dtype });
                }
                check(name, self.bytes.ptr, self.len(), len, dtype.size() as u64)
            }

            /// The address, after the type, the length, the alignment and the context have been checked.
            #[inline]
            pub(super) fn checked(
                &self,
                launch: &Launch<'_>,
                name: &'static str,
                dtype: DType,
                len: usize,
            ) -> Result<u64> {
                self.check(name, dtype, len)?;
                launch.accept(name, self.bytes.ptr, self.bytes.home)
            }
        }

        impl<'a, T: Element> From<$view<'a, T>> for $any<'a> {
            fn from(view: $view<'a, T>) -> Self {
                let $view { ptr, len, home, .. } = view;
                let bytes = $view { ptr, len: len * size_of::<T>(), home, elements: PhantomData };
                Self { bytes, dtype: T::DTYPE }
            }
        }

        impl<'a, T: Element> From<$source> for $any<'a> {
            fn from(buffer: $source) -> Self {
                $view::from(buffer).into()
            }
        }
    };
}

any_view!(AnySlice, DeviceSlice, &'a DeviceBuffer<T>);
any_view!(AnySliceMut, DeviceSliceMut, &'a mut DeviceBuffer<T>);

impl<'a> AnySliceMut<'a> {
    /// The bytes.
    pub(crate) const fn bytes(&self) -> &DeviceSliceMut<'a, u8> {
        &self.bytes
    }
}

impl DeviceSlice<'_, u8> {
    /// The address of bytes that are read one by one, after the length and the context have been checked.
    #[inline]
    pub(super) fn checked_bytes(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, 1)?;
        launch.accept(name, self.ptr, self.home)
    }
}

/// What the kernels' vector accesses to packed arrays ask.
const PACKED_ALIGN: u64 = 16;

/// A contiguous array's address, after its length, alignment and context have been checked. It may be longer than needed.
pub(super) trait Checked {
    fn checked(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64>;
}

impl<T> Checked for DeviceSlice<'_, T> {
    #[inline]
    fn checked(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, PACKED_ALIGN)?;
        launch.accept(name, self.ptr, self.home)
    }
}

impl<T> Checked for DeviceSliceMut<'_, T> {
    #[inline]
    fn checked(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, PACKED_ALIGN)?;
        launch.accept(name, self.ptr, self.home)
    }
}

/// An array that kernels read a word at a time: it is aligned to its elements.
pub(super) trait Words {
    fn words(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64>;
}

impl Words for DeviceSlice<'_, u32> {
    #[inline]
    fn words(&self, launch: &Launch<'_>, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, size_of::<u32>() as u64)?;
        launch.accept(name, self.ptr, self.home)
    }
}

/// The same for a buffer that holds several of them.
pub(super) fn check_packed(name: &'static str, address: u64, given: usize, expected: usize) -> Result<()> {
    check(name, address, given, expected, PACKED_ALIGN)
}

#[inline]
fn check(name: &'static str, address: u64, given: usize, expected: usize, align: u64) -> Result<()> {
    if given < expected {
        return Err(Error::Length { name, given, expected });
    }
    if !address.is_multiple_of(align) || address == 0 {
        return Err(Error::Alignment { name, address, align });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn views_are_parts() {
        // SAFETY: never used on a GPU.
        let view = unsafe { DeviceSlice::<u16>::from_raw(0x1010, 10) };
        assert!(view.range(3, 11).is_err());
        let part = view.range(1, 10).unwrap();
        assert_eq!((part.ptr(), part.len()), (0x1012, 9));
        let any = AnySlice::from(part.cast::<f16>());
        assert_eq!((any.len(), any.dtype()), (9, DType::F16));
    }
}
