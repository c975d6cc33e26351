//! A tile of the caller's rows.

use super::launch::{THREAD_VECTORS, padded_of_threads, raw_bytes, raw_offset};
use crate::element::{Element, Rows, Vector, load, load_elements};
use crate::layout::KV_BLOCK;
use crate::ptx::cp_async::{commit_group, cp_async_16_zfill, wait_group};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::special::{ntid_x, tid_x_again};
use crate::smem;

/// The head dim, or the next power of two. The threads of the CTA say it, which takes no computation and no register.
#[inline(always)]
pub(crate) fn padded<E: Element>() -> u32 {
    padded_of_threads(ntid_x(), E::BYTES)
}

/// Tokens of a head that a CTA converts.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The tile's number in its head.
    pub index: u32,
    /// Tokens of the head.
    pub seqlen: u32,
}

impl Tile {
    /// First token.
    #[inline(always)]
    pub fn first(&self) -> u32 {
        // Made anew wherever it is needed: it takes no register meanwhile.
        opaque(self.index) * KV_BLOCK as u32
    }

    /// Tokens that exist, 1 to 128.
    #[inline(always)]
    pub fn count(&self) -> u32 {
        (self.seqlen - self.first()).min(KV_BLOCK as u32)
    }
}

/// A thread's vectors of a tile.
///
/// Halves wait in places of shared memory that no other thread looks at: on their way there they take no registers, and later only those
/// that are worked on do. Floats are worked on in the registers that they came to.
#[derive(Clone, Copy)]
pub(crate) struct Vectors {
    registers: [Vector; THREAD_VECTORS],
    /// Shared address of the first.
    first: u32,
    /// Bytes from one to the next.
    step: u32,
}

impl Vectors {
    /// Starts loading them; `place` says which: token of the head, and vector of the row. Zeros where `has` is false.
    ///
    /// # Safety
    /// They are in the tensor, which the grid does not write.
    #[inline(always)]
    pub unsafe fn load<E: Element>(
        rows: &Rows,
        has: impl Fn(usize) -> bool,
        place: impl Fn(usize) -> (u32, u32),
    ) -> Self {
        unsafe {
            if !in_shared::<E>() {
                let mut registers = load::<E, THREAD_VECTORS>(rows, &place);
                unroll!(0..THREAD_VECTORS, |i| {
                    registers[i] = registers[i].map(|word| selp_b32(has(i), word, 0));
                });
                return Self { registers, first: 0, step: 0 };
            }
            let vectors = Self { registers: [[0; 4]; THREAD_VECTORS], first: 0, step: 0 }.again::<E>();
            if rows.aligned {
                unroll!(0..THREAD_VECTORS, |i| {
                    cp_async_16_zfill(vectors.address(i), rows.at(place(i)), if has(i) { 16 } else { 0 });
                });
                commit_group();
            } else {
                let mut i = 0;
                while i < THREAD_VECTORS {
                    let loaded = load_elements::<E>(rows.at(place(i)));
                    st_shared_v4_u32(true, vectors.address(i), if has(i) { loaded } else { [0; 4] });
                    // Rolled: this is the slow way.
                    i = opaque(i as u32 + 1) as usize;
                }
            }
            vectors
        }
    }

    /// The same, with addresses made anew: neither those before nor what has been computed of the vectors take registers any more.
    #[inline(always)]
    pub fn again<E: Element>(&self) -> Self {
        if !in_shared::<E>() {
            return Self { registers: self.registers.map(|vector| vector.map(opaque)), ..*self };
        }
        let first = smem::base() + raw_offset(padded::<E>() as usize, E::BYTES) as u32 + 16 * tid_x_again();
        Self { first, step: 16 * ntid_x(), ..*self }
    }

    #[inline(always)]
    fn address(&self, i: usize) -> u32 {
        self.first + i as u32 * self.step
    }

    /// Waits until they are there.
    ///
    /// # Safety
    /// None beyond running on the device.
    #[inline(always)]
    pub unsafe fn wait<E: Element>(&self) {
        if in_shared::<E>() {
            unsafe { wait_group::<0>() }
        }
    }

    /// Vector number `i`.
    ///
    /// # Safety
    /// They have been waited for.
    #[inline(always)]
    pub unsafe fn get<E: Element>(&self, i: usize) -> Vector {
        if in_shared::<E>() { unsafe { ld_shared_v4_u32(self.address(i)) } } else { self.registers[i] }
    }
}

#[inline(always)]
const fn in_shared<E: Element>() -> bool {
    raw_bytes(1, E::BYTES) > 0
}
