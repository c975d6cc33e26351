//! Global memory: allocations far apart, shared by every CTA that runs.

use super::{ALLOCATION_BITS, FIRST_ALLOCATION, Packet, Refusal, low_mask};
use crate::error::Error;
use bytemuck::{AnyBitPattern, NoUninit};
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicU8, AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// An address in global memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevPtr(pub u64);

impl DevPtr {
    /// The null pointer.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

struct Allocation {
    base: u64,
    bytes: u64,
    words: Box<[AtomicU32]>,
    /// One bit for each byte of the word that something has written.
    written: Box<[AtomicU8]>,
    /// Whether the host has written all of it, which spares the check.
    complete: bool,
}

/// The memory of a device. Kernels and the host see the same bytes.
///
/// CTAs run in parallel, so words are atomic, and every access acquires or releases; which of two CTAs wins a race is as undefined as on a device, and
/// races between CTAs are not reported.
#[derive(Default)]
pub struct Memory {
    allocations: Vec<Allocation>,
    first: u64,
    /// Makes 64-bit atomics whole.
    wide: Mutex<()>,
}

impl Memory {
    /// A device without allocations.
    pub fn new() -> Self {
        Self::default()
    }

    /// The memory of a module's own variables, whose addresses no other memory uses.
    pub(crate) fn of_module() -> Self {
        Self { first: 1 << 20, ..Self::default() }
    }

    /// Allocates `bytes` bytes that nothing has written, aligned to `align` and to nothing more.
    ///
    /// # Panics
    ///
    /// When `align` is not a power of two, or the allocation is larger than 32 GiB.
    pub fn alloc(&mut self, bytes: u64, align: u64) -> DevPtr {
        assert!(align.is_power_of_two(), "the alignment must be a power of two");
        assert!(bytes <= 1 << (ALLOCATION_BITS - 1) && align <= 1 << 20, "the allocation is too large");
        let index = self.first + self.allocations.len() as u64;
        let base = FIRST_ALLOCATION + (index << ALLOCATION_BITS) + align;
        let words = bytes.div_ceil(4) as usize;
        self.allocations.push(Allocation {
            base,
            bytes,
            words: (0..words).map(|_| AtomicU32::new(0)).collect(),
            written: (0..words).map(|_| AtomicU8::new(0)).collect(),
            complete: false,
        });
        DevPtr(base)
    }

    /// Allocates memory that holds a copy of `values`, aligned to 256 bytes as device allocators do.
    pub fn alloc_from<T: NoUninit>(&mut self, values: &[T]) -> DevPtr {
        let ptr = self.alloc(size_of_val(values) as u64, 256);
        self.write(ptr, values).expect("the allocation was made for these values");
        ptr
    }

    /// Copies `values` to `ptr`.
    ///
    /// # Errors
    ///
    /// When the place is not inside one allocation.
    pub fn write<T: NoUninit>(&mut self, ptr: DevPtr, values: &[T]) -> Result<(), Error> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let (index, offset) = self.host_range(ptr, bytes.len() as u64)?;
        let allocation = &mut self.allocations[index];
        for (i, byte) in bytes.iter().enumerate() {
            let (word, lane) = ((offset + i) / 4, (offset + i) % 4);
            let value = allocation.words[word].get_mut();
            *value = *value & !(0xff << (8 * lane)) | u32::from(*byte) << (8 * lane);
            *allocation.written[word].get_mut() |= 1 << lane;
        }
        allocation.complete |= bytes.len() as u64 == allocation.bytes;
        Ok(())
    }

    /// Copies `count` values from `ptr`.
    ///
    /// # Errors
    ///
    /// When the place is not inside one allocation, or nothing has written all of it.
    pub fn read<T: AnyBitPattern + NoUninit>(&self, ptr: DevPtr, count: usize) -> Result<Vec<T>, Error> {
        let mut out = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        let (index, offset) = self.host_range(ptr, bytes.len() as u64)?;
        let allocation = &self.allocations[index];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let (word, lane) = ((offset + i) / 4, (offset + i) % 4);
            if allocation.written[word].load(Relaxed) >> lane & 1 == 0 {
                return Err(Error::HostUninitialised { address: ptr.0 + i as u64 });
            }
            *byte = (allocation.words[word].load(Relaxed) >> (8 * lane)) as u8;
        }
        Ok(out)
    }

    fn host_range(&self, ptr: DevPtr, bytes: u64) -> Result<(usize, usize), Error> {
        let range = self.find(ptr.0, bytes).ok_or(Error::HostOutOfBounds { address: ptr.0, bytes })?;
        Ok((range.0, range.1 as usize))
    }

    /// Whether an address, if it points anywhere, points into this memory.
    #[inline(always)]
    pub(crate) fn owns(&self, address: u64) -> bool {
        (address >> ALLOCATION_BITS).wrapping_sub(1 + self.first) < self.allocations.len() as u64
    }

    /// The allocation that holds all of the bytes, and the offset in it.
    #[inline(always)]
    fn find(&self, address: u64, bytes: u64) -> Option<(usize, u64)> {
        let index = (address >> ALLOCATION_BITS).wrapping_sub(1 + self.first) as usize;
        let allocation = self.allocations.get(index)?;
        let offset = address.wrapping_sub(allocation.base);
        (offset < allocation.bytes.max(1) && bytes <= allocation.bytes - offset).then_some((index, offset))
    }

    #[inline(always)]
    fn place(&self, address: u64, bytes: u32) -> Result<(&Allocation, usize), Refusal> {
        let (index, offset) = self.find(address, bytes.into()).ok_or(Refusal::OutOfBounds)?;
        if address & u64::from(bytes - 1) != 0 {
            return Err(Refusal::Misaligned);
        }
        Ok((&self.allocations[index], offset as usize))
    }

    /// Loads 1, 2, 4, 8 or 16 bytes.
    #[inline(always)]
    pub(crate) fn load(&self, address: u64, bytes: u32) -> Result<Packet, Refusal> {
        let (allocation, offset) = self.place(address, bytes)?;
        let (word, lane) = (offset / 4, offset as u32 % 4);
        let mut out = [0; 4];
        if bytes < 4 {
            let want = ((1 << bytes) - 1) << lane;
            if !allocation.complete && allocation.written[word].load(Relaxed) & want != want {
                return Err(Refusal::Uninitialised);
            }
            out[0] = allocation.words[word].load(Relaxed) >> (8 * lane) & low_mask(bytes);
            return Ok(out);
        }
        let count = bytes as usize / 4;
        for (to, from) in out.iter_mut().zip(&allocation.words[word..word + count]) {
            *to = from.load(Acquire);
        }
        if !allocation.complete && allocation.written[word..word + count].iter().any(|w| w.load(Relaxed) != 0xf) {
            return Err(Refusal::Uninitialised);
        }
        Ok(out)
    }

    /// Stores 1, 2, 4, 8 or 16 bytes.
    #[inline(always)]
    pub(crate) fn store(&self, address: u64, bytes: u32, packet: Packet) -> Result<(), Refusal> {
        let (allocation, offset) = self.place(address, bytes)?;
        let (word, lane) = (offset / 4, offset as u32 % 4);
        if bytes < 4 {
            let mask = low_mask(bytes) << (8 * lane);
            let value = packet[0] << (8 * lane) & mask;
            update(&allocation.words[word], |old| old & !mask | value);
            let wrote = ((1 << bytes) - 1) << lane;
            if allocation.written[word].load(Relaxed) & wrote != wrote {
                allocation.written[word].fetch_or(wrote, Relaxed);
            }
            return Ok(());
        }
        for (i, value) in packet.iter().enumerate().take(bytes as usize / 4) {
            allocation.written[word + i].store(0xf, Relaxed);
            allocation.words[word + i].store(*value, Release);
        }
        Ok(())
    }

    /// Replaces a value of 4 or 8 bytes by `f` of it, as one step, and returns the old one.
    pub(crate) fn atomic(&self, address: u64, bytes: u32, f: impl Fn(u64) -> u64) -> Result<u64, Refusal> {
        let (allocation, offset) = self.place(address, bytes)?;
        self.load(address, bytes)?;
        let word = offset / 4;
        if bytes == 4 {
            return Ok(update(&allocation.words[word], |old| f(old.into()) as u32).into());
        }
        let _whole = self.wide.lock().expect("no holder of this lock panics");
        let (low, high) = (&allocation.words[word], &allocation.words[word + 1]);
        let old = u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let new = f(old);
        low.store(new as u32, Relaxed);
        high.store((new >> 32) as u32, Relaxed);
        Ok(old)
    }
}

fn update(word: &AtomicU32, f: impl Fn(u32) -> u32) -> u32 {
    word.fetch_update(AcqRel, Acquire, |old| Some(f(old))).expect("the update always has a value")
}
