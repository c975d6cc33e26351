//! A tile of the caller's rows.

use super::launch::{THREAD_VECTORS, WIDE_DIMS, padded_of_threads, raw_bytes};
use crate::element::{Element, Rows, Vector, load, load_elements};
use crate::layout::KV_BLOCK;
use crate::ptx::barrier::warp_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16_zfill, wait_group};
use crate::ptx::opaque::{opaque, rolled};
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::special::{ntid_x, tid_x_again};
use crate::smem;

/// Whether this is a module for halves of heads of 32 dims: a lane has 32 of a token there, else 64 (`tokens`).
pub(crate) const D32: bool = cfg!(any(quantize_f16_d32, quantize_bf16_d32, quantize_f16_d32_paper));
/// Whether this is the module for heads of more dims than a CTA has all of a tile of (`wide`).
pub(crate) const WIDE: bool = cfg!(quantize_wide);

/// The head dim, or the next power of two. The threads of the CTA say it, which takes no computation and no register.
#[inline(always)]
pub(crate) fn padded<E: Element>() -> u32 {
    if WIDE { WIDE_DIMS as u32 } else { padded_of_threads(ntid_x(), E::BYTES) }
}

/// Shared address behind the tile as it comes.
#[inline(always)]
pub(crate) fn behind_raw<E: Element>() -> u32 {
    smem::base() + if in_shared::<E>() { 16 * THREAD_VECTORS as u32 * ntid_x() } else { 0 }
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
/// Halves come to shared memory, where each warp has its own: on their way there they take no registers, and later only those that are worked
/// on do. So those of the next tile are asked for as soon as these have been read. Which lane brings a vector is not which works on it: the
/// eight lanes that write at a time bring 128 bytes that are neighbours, and those that read at a time have other banks each. Floats are
/// worked on in the registers that they came to.
#[derive(Clone, Copy)]
pub(crate) struct Vectors {
    registers: [Vector; THREAD_VECTORS],
}

/// Bytes from a vector that a lane brings to its next: those of a warp's lanes lie together.
pub(crate) const STEP: u32 = 16 * 32;

/// Shared address of the warp's vectors.
#[inline(always)]
pub(crate) fn of_warp() -> u32 {
    smem::base() + tid_x_again() / 32 * (STEP * THREAD_VECTORS as u32)
}

impl Vectors {
    /// None on its way yet.
    #[inline(always)]
    pub fn none() -> Self {
        Self { registers: [[0; 4]; THREAD_VECTORS] }
    }

    /// Starts loading `N` of them, to shared address `to` and each [`STEP`] behind, as a group of copies; `place` says which: row, and vector
    /// of the row. Zeros where `has` is false.
    ///
    /// # Safety
    /// They are in the tensor, which the grid does not write; those that were in their place have been read.
    #[inline(always)]
    pub unsafe fn request<E: Element, const N: usize>(
        &mut self,
        to: u32,
        rows: &Rows,
        has: impl Fn(usize) -> bool,
        place: impl Fn(usize) -> (u32, u32),
    ) {
        unsafe {
            if !in_shared::<E>() {
                let loaded = load::<E, N>(rows, &place);
                unroll!(0..N, |i| {
                    self.registers[i] = loaded[i].map(|word| selp_b32(has(i), word, 0));
                });
                return;
            }
            if rows.aligned {
                unroll!(0..N, |i| {
                    cp_async_16_zfill(to + i as u32 * STEP, rows.at(place(i)), if has(i) { 16 } else { 0 });
                });
            } else {
                let mut i = 0;
                while i < N {
                    // This is the slow way: by ptxas too.
                    rolled();
                    let loaded = load_elements::<E>(rows.at(place(i)));
                    st_shared_v4_u32(true, to + i as u32 * STEP, if has(i) { loaded } else { [0; 4] });
                    i = opaque(i as u32 + 1) as usize;
                }
            }
            commit_group();
        }
    }

    /// Brings vector number `i` to its registers, from shared address `at` unless it came there.
    ///
    /// # Safety
    /// As of [`get`](Self::get).
    #[inline(always)]
    pub unsafe fn in_registers<E: Element>(&mut self, i: usize, at: u32) {
        self.registers[i] = unsafe { self.get::<E>(i, at) };
    }

    /// Vector number `i`, which is in registers.
    #[inline(always)]
    pub fn vector(&self, i: usize) -> Vector {
        self.registers[i]
    }

    /// Vector number `i`, which is at shared address `at` unless it is in registers.
    ///
    /// # Safety
    /// They have been waited for.
    #[inline(always)]
    pub unsafe fn get<E: Element>(&self, i: usize, at: u32) -> Vector {
        if in_shared::<E>() { unsafe { ld_shared_v4_u32(at) } } else { self.registers[i] }
    }
}

/// Waits until all groups of the warp's copies but the latest `PENDING` are there.
///
/// # Safety
/// In whole warps.
#[inline(always)]
pub(crate) unsafe fn wait<E: Element, const PENDING: usize>() {
    if in_shared::<E>() {
        unsafe {
            wait_group::<PENDING>();
            warp_sync();
        }
    }
}

/// Another group without copies, in place of one that is not wanted any more: groups are counted.
///
/// # Safety
/// None beyond running on the device.
#[inline(always)]
pub(crate) unsafe fn request_none<E: Element>() {
    if in_shared::<E>() {
        unsafe { commit_group() }
    }
}

/// Whether a tile waits in shared memory.
#[inline(always)]
pub(crate) const fn in_shared<E: Element>() -> bool {
    !WIDE && raw_bytes(1, E::BYTES) > 0
}
