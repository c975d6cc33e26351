//! The parts of an array that belong to sequences.

use anyhow::{Result, ensure};
use bytemuck::{AnyBitPattern, NoUninit};
use int_flash_attention::Span;
use ptx_machine::{DevPtr, Memory};
use std::ops::Range;

/// Ranges of an array's elements.
pub(super) struct Parts(Vec<Range<usize>>);

impl Parts {
    /// What `range` says of every head of every sequence, in units of so many elements.
    pub(super) fn new(spans: &[Span], heads: usize, unit: usize, range: impl Fn(&Span, usize) -> Range<usize>) -> Self {
        let parts = spans.iter().flat_map(|span| (0..heads).map(move |head| (span, head)));
        let parts = parts.map(|(span, head)| range(span, head)).filter(|part| !part.is_empty());
        Self(parts.map(|part| part.start * unit..part.end * unit).collect())
    }

    /// An array of `len` elements of which a kernel must have written the parts, and nothing else, which is `rest` here.
    pub(super) fn read<T: AnyBitPattern + NoUninit>(
        &self,
        memory: &Memory,
        array: DevPtr,
        len: usize,
        rest: T,
    ) -> Result<Vec<T>> {
        let (mut all, mut bytes) = (vec![rest; len], 0);
        for part in &self.0 {
            let values = memory.read::<T>(array.offset((part.start * size_of::<T>()) as u64), part.len())?;
            all[part.clone()].copy_from_slice(&values);
            bytes += size_of_val(values.as_slice()) as u64;
        }
        let written = memory.written(array)?;
        ensure!(self.0.is_empty() || written == bytes, "{written} bytes were written to {bytes} bytes of sequences");
        Ok(all)
    }

    /// An array of which only the parts are there.
    pub(super) fn upload<T: NoUninit>(&self, memory: &mut Memory, values: &[T]) -> DevPtr {
        let array = memory.alloc(size_of_val(values) as u64, 256);
        for part in &self.0 {
            let at = array.offset((part.start * size_of::<T>()) as u64);
            memory.write(at, &values[part.clone()]).expect("parts are inside of the array");
        }
        array
    }
}
