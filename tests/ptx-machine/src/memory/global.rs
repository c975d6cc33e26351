//! Global memory: allocations far apart, shared by every CTA that runs.

use super::pages::{Page, Pages};
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

/// Memory that only takes room where something has been written.
struct Allocation {
    base: u64,
    bytes: u64,
    /// Where the first word begins: the base, rounded down so that aligned values are whole words.
    origin: u64,
    page_bits: u32,
    pages: Pages,
    /// Whether the host has written all of it, which spares the check.
    complete: bool,
}

/// Pages are no smaller, and an allocation has no more of them.
const SMALLEST_PAGE_BITS: u32 = 16;
const MOST_PAGE_BITS: u32 = 22;
/// The largest access.
const WIDEST: u64 = 16;

impl Allocation {
    fn new(base: u64, bytes: u64) -> Self {
        let origin = base & !(WIDEST - 1);
        let all = base - origin + bytes;
        let page_bits = SMALLEST_PAGE_BITS.max((all.max(1).ilog2() + 1).saturating_sub(MOST_PAGE_BITS));
        let pages = Pages::new(all.div_ceil(1 << page_bits) as usize);
        Self { base, bytes, origin, page_bits, pages, complete: false }
    }

    /// The page of an address inside the allocation, and the place in it.
    #[inline(always)]
    fn split(&self, address: u64) -> (usize, usize) {
        let offset = address - self.origin;
        ((offset >> self.page_bits) as usize, (offset & ((1 << self.page_bits) - 1)) as usize)
    }

    /// A page to be written to.
    #[inline(always)]
    fn page(&self, page: usize) -> &Page {
        self.pages.touch(page, || {
            let end = self.base - self.origin + self.bytes;
            (end - ((page as u64) << self.page_bits)).min(1 << self.page_bits).div_ceil(4) as usize
        })
    }
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
        Self { first: 1 << 19, ..Self::default() }
    }

    /// Allocates `bytes` bytes that nothing has written, aligned to `align` and to nothing more. They take room only where
    /// they are written to.
    ///
    /// # Panics
    ///
    /// When `align` is not a power of two, or the allocation is larger than 4 TiB.
    pub fn alloc(&mut self, bytes: u64, align: u64) -> DevPtr {
        assert!(align.is_power_of_two(), "the alignment must be a power of two");
        assert!(bytes <= 1 << (ALLOCATION_BITS - 1) && align <= 1 << 20, "the allocation is too large");
        let index = self.first + self.allocations.len() as u64;
        let base = FIRST_ALLOCATION + (index << ALLOCATION_BITS) + align;
        self.allocations.push(Allocation::new(base, bytes));
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
        let index = self.find(ptr.0, bytes.len() as u64).ok_or_else(|| out_of_bounds(ptr, bytes.len()))?;
        let allocation = &mut self.allocations[index];
        allocation.complete |= bytes.len() as u64 == allocation.bytes;
        for (address, byte) in (ptr.0..).zip(bytes) {
            let (page, place) = allocation.split(address);
            let (word, lane) = (place / 4, place % 4);
            let page = allocation.page(page);
            let old = page.words[word].load(Relaxed);
            page.words[word].store(old & !(0xff << (8 * lane)) | u32::from(*byte) << (8 * lane), Relaxed);
            page.written[word].fetch_or(1 << lane, Relaxed);
        }
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
        let index = self.find(ptr.0, bytes.len() as u64).ok_or_else(|| out_of_bounds(ptr, bytes.len()))?;
        let allocation = &self.allocations[index];
        for (address, byte) in (ptr.0..).zip(bytes) {
            let (page, place) = allocation.split(address);
            let (word, lane) = (place / 4, place % 4);
            let page = allocation.pages.get(page).filter(|page| page.written[word].load(Relaxed) >> lane & 1 == 1);
            let page = page.ok_or(Error::HostUninitialised { address })?;
            *byte = (page.words[word].load(Relaxed) >> (8 * lane)) as u8;
        }
        Ok(out)
    }

    /// How many bytes of the allocation that `ptr` points into something has written.
    ///
    /// # Errors
    ///
    /// When it points into none.
    pub fn written(&self, ptr: DevPtr) -> Result<u64, Error> {
        let index = self.find(ptr.0, 0).ok_or_else(|| out_of_bounds(ptr, 0))?;
        let pages = self.allocations[index].pages.touched();
        let of_word = |word: &AtomicU8| u64::from(word.load(Relaxed).count_ones());
        Ok(pages.flat_map(|page| page.written.iter().map(of_word)).sum())
    }

    /// Whether an address, if it points anywhere, points into this memory.
    #[inline(always)]
    pub(crate) fn owns(&self, address: u64) -> bool {
        (address >> ALLOCATION_BITS).wrapping_sub(1 + self.first) < self.allocations.len() as u64
    }

    /// The allocation that holds all of the bytes.
    #[inline(always)]
    fn find(&self, address: u64, bytes: u64) -> Option<usize> {
        let index = (address >> ALLOCATION_BITS).wrapping_sub(1 + self.first) as usize;
        let allocation = self.allocations.get(index)?;
        let offset = address.wrapping_sub(allocation.base);
        (offset < allocation.bytes.max(1) && bytes <= allocation.bytes - offset).then_some(index)
    }

    /// The allocation of an aligned access, its page and the word and byte in that.
    #[inline(always)]
    fn place(&self, address: u64, bytes: u32) -> Result<(&Allocation, usize, usize, u32), Refusal> {
        let allocation = &self.allocations[self.find(address, bytes.into()).ok_or(Refusal::OutOfBounds)?];
        if address & u64::from(bytes - 1) != 0 {
            return Err(Refusal::Misaligned);
        }
        let (page, place) = allocation.split(address);
        Ok((allocation, page, place / 4, place as u32 % 4))
    }

    /// Loads 1, 2, 4, 8 or 16 bytes.
    #[inline(always)]
    pub(crate) fn load(&self, address: u64, bytes: u32) -> Result<Packet, Refusal> {
        let (allocation, page, word, lane) = self.place(address, bytes)?;
        let page = allocation.pages.get(page).ok_or(Refusal::Uninitialised)?;
        let mut out = [0; 4];
        if bytes < 4 {
            let want = ((1 << bytes) - 1) << lane;
            if !allocation.complete && page.written[word].load(Relaxed) & want != want {
                return Err(Refusal::Uninitialised);
            }
            out[0] = page.words[word].load(Relaxed) >> (8 * lane) & low_mask(bytes);
            return Ok(out);
        }
        let count = bytes as usize / 4;
        for (to, from) in out.iter_mut().zip(&page.words[word..word + count]) {
            *to = from.load(Acquire);
        }
        if !allocation.complete && page.written[word..word + count].iter().any(|w| w.load(Relaxed) != 0xf) {
            return Err(Refusal::Uninitialised);
        }
        Ok(out)
    }

    /// Stores 1, 2, 4, 8 or 16 bytes.
    #[inline(always)]
    pub(crate) fn store(&self, address: u64, bytes: u32, packet: Packet) -> Result<(), Refusal> {
        let (allocation, page, word, lane) = self.place(address, bytes)?;
        let page = allocation.page(page);
        if bytes < 4 {
            let mask = low_mask(bytes) << (8 * lane);
            let value = packet[0] << (8 * lane) & mask;
            update(&page.words[word], |old| old & !mask | value);
            let wrote = ((1 << bytes) - 1) << lane;
            if page.written[word].load(Relaxed) & wrote != wrote {
                page.written[word].fetch_or(wrote, Relaxed);
            }
            return Ok(());
        }
        for (i, value) in packet.iter().enumerate().take(bytes as usize / 4) {
            page.written[word + i].store(0xf, Relaxed);
            page.words[word + i].store(*value, Release);
        }
        Ok(())
    }

    /// Replaces a value of 4 or 8 bytes by `f` of it, as one step, and returns the old one.
    pub(crate) fn atomic(&self, address: u64, bytes: u32, f: impl Fn(u64) -> u64) -> Result<u64, Refusal> {
        let (allocation, page, word, _) = self.place(address, bytes)?;
        self.load(address, bytes)?;
        let page = allocation.page(page);
        if bytes == 4 {
            return Ok(update(&page.words[word], |old| f(old.into()) as u32).into());
        }
        let _whole = self.wide.lock().expect("no holder of this lock panics");
        let (low, high) = (&page.words[word], &page.words[word + 1]);
        let old = u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let new = f(old);
        low.store(new as u32, Relaxed);
        high.store((new >> 32) as u32, Relaxed);
        Ok(old)
    }
}

fn out_of_bounds(ptr: DevPtr, bytes: usize) -> Error {
    Error::HostOutOfBounds { address: ptr.0, bytes: bytes as u64 }
}

fn update(word: &AtomicU32, f: impl Fn(u32) -> u32) -> u32 {
    word.fetch_update(AcqRel, Acquire, |old| Some(f(old))).expect("the update always has a value")
}
