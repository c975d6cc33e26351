//! Memory of a GPU: owned buffers, typed views, and views whose element type is a value.

use super::Gpu;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use bytemuck::Pod;
use int_flash_attention_driver::DevicePtr;
use std::marker::PhantomData;

/// Memory of a GPU that this object owns.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    gpu: Gpu,
    ptr: DevicePtr,
    len: usize,
    elements: PhantomData<T>,
}

impl Gpu {
    /// Room for `len` elements, all bytes zero.
    ///
    /// # Errors
    /// More bytes than 63 bits hold, or what the driver says, for instance that there is not so much memory.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| i64::try_from(bytes).is_ok());
        let bytes = bytes.ok_or_else(|| Error::Overflow { what: "the bytes", shape: format!("{len} elements") })?;
        let driver = self.bind()?;
        let ptr = driver.alloc(bytes)?;
        let buffer = DeviceBuffer { gpu: self.clone(), ptr, len, elements: PhantomData };
        // SAFETY: just allocated with so many bytes. Waiting makes it ready for every stream.
        unsafe { driver.fill(ptr, 0, bytes) }?;
        driver.synchronize()?;
        Ok(buffer)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.alloc(values.len())?;
        buffer.copy_from(values)?;
        Ok(buffer)
    }
}

impl<T: Pod> DeviceBuffer<T> {
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

    /// The GPU.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// To be read by a kernel.
    #[must_use]
    pub const fn slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { ptr: self.ptr, len: self.len, elements: PhantomData }
    }

    /// To be written by a kernel.
    #[must_use]
    pub const fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { ptr: self.ptr, len: self.len, elements: PhantomData }
    }

    /// Copies all elements from the host, after everything that the GPU was given, and waits.
    ///
    /// # Errors
    /// Another number of elements, or what the driver says.
    pub fn copy_from(&mut self, values: &[T]) -> Result<()> {
        if values.len() != self.len {
            return Err(Error::Length { name: "the host's slice", given: values.len(), expected: self.len });
        }
        let driver = self.gpu.bind()?;
        driver.synchronize()?;
        // SAFETY: the buffer has as many bytes, and the GPU is idle. The copy may still be under way when the call
        // returns, hence the wait.
        unsafe { driver.copy_to_device(self.ptr, bytemuck::cast_slice(values)) }?;
        Ok(driver.synchronize()?)
    }

    /// Copies all elements to the host, after everything that the GPU was given.
    ///
    /// # Errors
    /// Another number of elements, or what the driver says, which includes errors of earlier launches.
    pub fn copy_to(&self, values: &mut [T]) -> Result<()> {
        if values.len() != self.len {
            return Err(Error::Length { name: "the host's slice", given: values.len(), expected: self.len });
        }
        let driver = self.gpu.bind()?;
        driver.synchronize()?;
        // SAFETY: the buffer has as many bytes, and the GPU is idle.
        Ok(unsafe { driver.copy_to_host(bytemuck::cast_slice_mut(values), self.ptr) }?)
    }

    /// All elements, after everything that the GPU was given.
    ///
    /// # Errors
    /// What the driver says, which includes errors of earlier launches.
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.len];
        self.copy_to(&mut values)?;
        Ok(values)
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if let Ok(driver) = self.gpu.bind() {
            // An error means that the context is gone, and the memory with it.
            // SAFETY: allocated by this object; `cuMemFree` waits for kernels that use it.
            let _ = unsafe { driver.free(self.ptr) };
        }
    }
}

/// Elements in a GPU's memory, to be read.
#[derive(Debug)]
pub struct DeviceSlice<'a, T> {
    ptr: DevicePtr,
    len: usize,
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
    elements: PhantomData<&'a mut [T]>,
}

macro_rules! view {
    ($view:ident) => {
        impl<'a, T: Pod> $view<'a, T> {
            /// Memory that something else owns, such as another framework's tensor.
            ///
            /// # Safety
            /// `len` elements at `ptr` belong to the context that the view is used in; until the launches that got the view
            /// are done, they stay allocated and nothing else uses them in a conflicting way.
            #[must_use]
            pub const unsafe fn from_raw(ptr: DevicePtr, len: usize) -> Self {
                Self { ptr, len, elements: PhantomData }
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
                $view { ptr: self.ptr, len: self.len, elements: PhantomData }
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
                Ok(Self { ptr, len: end - start, elements: PhantomData })
            }
        }
    };
}

view!(DeviceSlice);
view!(DeviceSliceMut);

impl<T> DeviceSliceMut<'_, T> {
    /// A shorter borrow of the same elements.
    #[must_use]
    pub const fn reborrow(&mut self) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { ptr: self.ptr, len: self.len, elements: PhantomData }
    }

    /// The same elements, to be read.
    #[must_use]
    pub const fn as_slice(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { ptr: self.ptr, len: self.len, elements: PhantomData }
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

            /// The address, after the type, the length and the alignment have been checked.
            #[inline]
            pub(super) fn checked(&self, name: &'static str, dtype: DType, len: usize) -> Result<u64> {
                if self.dtype != dtype {
                    return Err(Error::DTypeMismatch { name, given: self.dtype, expected: dtype });
                }
                check(name, self.bytes.ptr, self.len(), len, dtype.size() as u64)
            }
        }

        impl<'a, T: Element> From<$view<'a, T>> for $any<'a> {
            fn from(view: $view<'a, T>) -> Self {
                let bytes = $view { ptr: view.ptr, len: view.len * size_of::<T>(), elements: PhantomData };
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

/// What the kernels' vector accesses to packed arrays ask.
const PACKED_ALIGN: u64 = 16;

/// A contiguous array's address, after its length and alignment have been checked. It may be longer than needed.
pub(super) trait Checked {
    fn checked(&self, name: &'static str, len: usize) -> Result<u64>;
}

impl<T> Checked for DeviceSlice<'_, T> {
    #[inline]
    fn checked(&self, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, PACKED_ALIGN)
    }
}

impl<T> Checked for DeviceSliceMut<'_, T> {
    #[inline]
    fn checked(&self, name: &'static str, len: usize) -> Result<u64> {
        check(name, self.ptr, self.len, len, PACKED_ALIGN)
    }
}

#[inline]
fn check(name: &'static str, address: u64, given: usize, expected: usize, align: u64) -> Result<u64> {
    if given < expected {
        return Err(Error::Length { name, given, expected });
    }
    if !address.is_multiple_of(align) || address == 0 {
        return Err(Error::Alignment { name, address, align });
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn views_are_checked() {
        // SAFETY: never used on a GPU.
        let view = unsafe { DeviceSlice::<u16>::from_raw(0x1010, 10) };
        assert_eq!(view.checked("k", 10), Ok(0x1010));
        assert!(matches!(view.checked("k", 11), Err(Error::Length { name: "k", given: 10, expected: 11 })));
        assert!(view.range(3, 11).is_err());
        let part = view.range(1, 10).unwrap();
        assert_eq!((part.ptr(), part.len()), (0x1012, 9));
        assert!(matches!(part.checked("k", 9), Err(Error::Alignment { align: 16, .. })));
        let any = AnySlice::from(part.cast::<f16>());
        assert_eq!(any.checked("q", DType::F16, 9), Ok(0x1012));
        assert!(matches!(any.checked("q", DType::F32, 9), Err(Error::DTypeMismatch { .. })));
        assert!(matches!(any.checked("q", DType::F16, 10), Err(Error::Length { .. })));
    }
}
