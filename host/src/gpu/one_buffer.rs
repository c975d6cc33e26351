//! The operands' arrays one behind the other in one buffer: the bytes that it takes, and which array lies where.

use super::buffer::{Memory, Parts};
use super::memory::check_packed;
use super::operands::{
    DeviceK, DeviceOperands, DeviceQ, DeviceV, ViewK, ViewMutK, ViewMutOperands, ViewMutQ, ViewMutV, ViewOperands,
    ViewQ, ViewV,
};
use super::{DeviceSlice, DeviceSliceMut, Gpu};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::{Lengths, PackedFormat, Quantized, QuantizedK, QuantizedQ, QuantizedV};
use int_flash_attention_driver::DevicePtr;
use std::sync::Arc;

/// Where each array begins, as if it were an allocation of its own.
const ALIGN: usize = 256;

/// What arrays are taken from, in the order in which they lie.
pub(super) trait Arrays {
    /// An array of `i8`.
    type Codes;
    /// An array of `f32`.
    type Floats;
    fn codes(&mut self, len: usize) -> Self::Codes;
    fn floats(&mut self, len: usize) -> Self::Floats;
}

/// How far arrays have been taken from the front of a buffer, in bytes. `usize::MAX` is more than any buffer has.
#[derive(Default)]
pub(super) struct Taken(usize);

impl Taken {
    /// Where the next array begins.
    pub(super) fn take<T>(&mut self, len: usize) -> usize {
        let start = self.0;
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(ALIGN));
        self.0 = start.saturating_add(bytes.unwrap_or(usize::MAX));
        start
    }
}

/// Nothing but the bytes.
impl Arrays for Taken {
    type Codes = ();
    type Floats = ();
    fn codes(&mut self, len: usize) {
        self.take::<i8>(len);
    }
    fn floats(&mut self, len: usize) {
        self.take::<f32>(len);
    }
}

/// An operand, or all of them.
pub(super) trait Packed {
    /// With its arrays from `arrays`. The problem has been checked.
    fn take<A: Arrays>(problem: &AttentionProblem, arrays: &mut A) -> Result<Self::Of<A::Codes, A::Floats>>;
    type Of<I, F>;
}

pub(super) struct Q;
pub(super) struct K;
pub(super) struct V;
pub(super) struct All;

impl Packed for Q {
    type Of<I, F> = QuantizedQ<I, F>;
    fn take<A: Arrays>(problem: &AttentionProblem, arrays: &mut A) -> Result<QuantizedQ<A::Codes, A::Floats>> {
        let lengths = Lengths::of(problem.q_shape())?;
        Ok(QuantizedQ {
            shape: problem.q_shape(),
            scheme: problem.scheme,
            data: arrays.codes(lengths.q_data),
            scale: arrays.floats(lengths.q_scale),
            bias: (problem.scheme == Scheme::Default).then(|| arrays.floats(lengths.q_scale)),
        })
    }
}

impl Packed for K {
    type Of<I, F> = QuantizedK<I, F>;
    fn take<A: Arrays>(problem: &AttentionProblem, arrays: &mut A) -> Result<QuantizedK<A::Codes, A::Floats>> {
        let lengths = Lengths::of_kv(problem)?;
        Ok(QuantizedK {
            shape: problem.kv_shape(),
            packed: lengths.packed,
            scheme: problem.scheme,
            format: PackedFormat::CURRENT,
            data: arrays.codes(lengths.kv_data),
            scale: arrays.floats(lengths.kv_scale),
            block_scale: arrays.floats(lengths.blocks),
            offset: arrays.floats(lengths.channels),
        })
    }
}

impl Packed for V {
    type Of<I, F> = QuantizedV<I, F>;
    fn take<A: Arrays>(problem: &AttentionProblem, arrays: &mut A) -> Result<QuantizedV<A::Codes, A::Floats>> {
        let lengths = Lengths::of_v(problem)?;
        Ok(QuantizedV {
            shape: problem.v_shape(),
            packed: lengths.packed,
            scheme: problem.scheme,
            format: PackedFormat::CURRENT,
            data: arrays.codes(lengths.kv_data),
            scale: arrays.floats(lengths.kv_scale),
            block_scale: arrays.floats(lengths.blocks),
            unit: arrays.floats(lengths.heads),
        })
    }
}

impl Packed for All {
    type Of<I, F> = Quantized<I, F>;
    fn take<A: Arrays>(problem: &AttentionProblem, arrays: &mut A) -> Result<Quantized<A::Codes, A::Floats>> {
        Ok(Quantized { q: Q::take(problem, arrays)?, k: K::take(problem, arrays)?, v: V::take(problem, arrays)? })
    }
}

/// The bytes of a buffer that holds an operand.
fn bytes<P: Packed>(problem: &AttentionProblem) -> Result<usize> {
    problem.check()?;
    let mut taken = Taken::default();
    P::take(problem, &mut taken)?;
    if i64::try_from(taken.0).is_err() {
        return Err(Error::Overflow {
            what: "the bytes of the quantized operands",
            shape: format!("q {} with k {}", problem.q_shape(), problem.kv_shape()),
        });
    }
    Ok(taken.0)
}

/// One allocation with an operand's arrays.
fn alloc<P: Packed>(
    gpu: &Gpu,
    problem: &AttentionProblem,
) -> Result<P::Of<super::DeviceBuffer<i8>, super::DeviceBuffer<f32>>> {
    let memory: Arc<Memory> = gpu.uninitialized_bytes(bytes::<P>(problem)?)?;
    P::take(problem, &mut Parts::of(memory))
}

macro_rules! slices {
    ($($slice:ident),*) => {
        $(
            /// The buffer, and how much of it has been given out.
            impl<'a> Arrays for (&mut $slice<'a, u8>, Taken) {
                type Codes = $slice<'a, i8>;
                type Floats = $slice<'a, f32>;
                fn codes(&mut self, len: usize) -> Self::Codes {
                    let start = self.1.take::<i8>(len);
                    self.0.part(start, len)
                }
                fn floats(&mut self, len: usize) -> Self::Floats {
                    let start = self.1.take::<f32>(len);
                    self.0.part(start, len)
                }
            }
        )*
    };
}

slices!(DeviceSlice, DeviceSliceMut);

macro_rules! in_one_buffer {
    ($($packed:ident: $owner:ident, $what:literal, $($view:ident of $slice:ident: $for:literal),*;)*) => {
        $(
            impl $owner {
                #[doc = concat!("Room for ", $what, " of a problem, in one allocation. What it holds is not defined before it is quantized.")]
                ///
                /// # Errors
                /// A wrong problem, or what the driver says.
                pub fn alloc(gpu: &Gpu, problem: &AttentionProblem) -> Result<Self> {
                    alloc::<$packed>(gpu, problem)
                }

                #[doc = concat!("The bytes of one buffer that holds ", $what, " of a problem.")]
                ///
                /// # Errors
                /// A wrong problem, or more bytes than 63 bits hold.
                pub fn bytes(problem: &AttentionProblem) -> Result<usize> {
                    bytes::<$packed>(problem)
                }
            }

            $(
                impl<'a> $view<'a> {
                    #[doc = concat!("The arrays of ", $what, " of a problem in one buffer, ", $for, ".")]
                    ///
                    /// # Errors
                    #[doc = concat!("A wrong problem; fewer bytes than [`", stringify!($owner), "::bytes`] says; an address that is no multiple of 16.")]
                    #[allow(unused_mut)]
                    pub fn in_buffer(problem: &AttentionProblem, mut buffer: $slice<'a, u8>) -> Result<Self> {
                        check_packed("the buffer of the operands", buffer.ptr(), buffer.len(), bytes::<$packed>(problem)?)?;
                        $packed::take(problem, &mut (&mut buffer, Taken::default()))
                    }

                    #[doc = concat!("The arrays of ", $what, " of a problem in one allocation of something else, such as an engine's pool, ", $for, ".")]
                    ///
                    /// # Errors
                    /// A wrong problem, or an address that is no multiple of 16.
                    ///
                    /// # Safety
                    #[doc = concat!("As of [`", stringify!($slice), "::from_raw`], for [`", stringify!($owner), "::bytes`] bytes at `address`.")]
                    pub unsafe fn from_raw(problem: &AttentionProblem, address: DevicePtr) -> Result<Self> {
                        // SAFETY: the caller's promise.
                        let buffer = unsafe { $slice::from_raw(address, bytes::<$packed>(problem)?) };
                        Self::in_buffer(problem, buffer)
                    }
                }
            )*
        )*
    };
}

in_one_buffer! {
    Q: DeviceQ, "the queries", ViewQ of DeviceSlice: "to be read", ViewMutQ of DeviceSliceMut: "to be written";
    K: DeviceK, "the keys", ViewK of DeviceSlice: "to be read", ViewMutK of DeviceSliceMut: "to be written";
    V: DeviceV, "the values", ViewV of DeviceSlice: "to be read", ViewMutV of DeviceSliceMut: "to be written";
    All: DeviceOperands, "all operands",
        ViewOperands of DeviceSlice: "to be read", ViewMutOperands of DeviceSliceMut: "to be written";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where each array of operands begins and ends.
    fn spans(operands: &ViewOperands<'_>) -> Vec<(u64, u64)> {
        let Quantized { q, k, v } = operands;
        let codes = |x: &DeviceSlice<'_, i8>| (x.ptr(), x.ptr() + x.len() as u64);
        let floats = |x: &DeviceSlice<'_, f32>| (x.ptr(), x.ptr() + 4 * x.len() as u64);
        let mut spans = vec![codes(&q.data), floats(&q.scale)];
        spans.extend(q.bias.as_ref().map(floats));
        spans.extend([codes(&k.data), floats(&k.scale), floats(&k.block_scale), floats(&k.offset)]);
        spans.extend([codes(&v.data), floats(&v.scale), floats(&v.block_scale), floats(&v.unit)]);
        spans
    }

    #[test]
    fn arrays_lie_one_behind_the_other() {
        let base = 0x7000_0000;
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::new(2, 6, 3, 37, 300, 64).with_scheme(scheme);
            let bytes = DeviceOperands::bytes(&problem).unwrap();
            // SAFETY: never used on a GPU.
            let operands = unsafe { ViewMutOperands::from_raw(&problem, base) }.unwrap();
            let spans = spans(&operands.as_view());
            assert_eq!(spans[0].0, base);
            assert!(spans.iter().all(|(start, _)| start.is_multiple_of(ALIGN as u64)));
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
            let end = spans.last().unwrap().1;
            assert!(end <= base + bytes as u64 && end + ALIGN as u64 > base + bytes as u64);
            // SAFETY: as above.
            let read = unsafe { ViewOperands::from_raw(&problem, base) }.unwrap();
            assert_eq!(self::spans(&read), spans);
            let parts = [DeviceQ::bytes, DeviceK::bytes, DeviceV::bytes].map(|bytes| bytes(&problem).unwrap());
            assert_eq!(parts.iter().sum::<usize>(), bytes);
            // Nothing but what the shapes say, and what alignment adds.
            let lengths = (Lengths::of(problem.q_shape()).unwrap(), Lengths::of(problem.kv_shape()).unwrap());
            let rows = if scheme == Scheme::Default { 2 * lengths.0.q_scale } else { lengths.0.q_scale };
            let kv = 2 * lengths.1.kv_data + 4 * (2 * (lengths.1.kv_scale + lengths.1.blocks));
            let least = lengths.0.q_data + 4 * rows + kv + 4 * (lengths.1.channels + lengths.1.heads);
            assert!((least..least + spans.len() * ALIGN).contains(&bytes), "{least} {bytes}");
        }
    }

    #[test]
    fn buffers_that_do_not_fit_are_refused() {
        let problem = AttentionProblem::new(1, 2, 1, 10, 20, 64);
        let bytes = DeviceOperands::bytes(&problem).unwrap();
        // SAFETY: never used on a GPU.
        let buffer = |address, bytes| unsafe { DeviceSliceMut::<u8>::from_raw(address, bytes) };
        let short = ViewMutOperands::in_buffer(&problem, buffer(0x1000, bytes - 1));
        assert!(
            matches!(&short, Err(Error::Length { given, expected, .. }) if (*given, *expected) == (bytes - 1, bytes))
        );
        let crooked = ViewMutOperands::in_buffer(&problem, buffer(0x1008, bytes));
        assert!(matches!(crooked, Err(Error::Alignment { align: 16, .. })));
        // SAFETY: as above.
        assert!(matches!(unsafe { ViewMutK::from_raw(&problem, 0) }, Err(Error::Alignment { address: 0, .. })));
        let wrong = AttentionProblem::new(1, 2, 1, 10, 20, 44);
        assert!(matches!(DeviceOperands::bytes(&wrong), Err(Error::HeadDim { .. })));
        let huge = AttentionProblem::new(1 << 15, 1 << 14, 1 << 14, 1 << 30, 1 << 25, 32);
        assert!(matches!(DeviceOperands::bytes(&huge), Err(Error::Overflow { .. })));
    }
}
