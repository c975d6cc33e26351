//! Global to shared memory by `cp.async`: the query tile once, the K and V tiles through a ring.

use super::tile::{line, row_bytes, swizzle};
use super::{Kernel, Place};
use crate::attention::sequence::token;
use crate::params::{BaselineParams, Strided};
use crate::ptx::barrier::bar_sync;
use crate::ptx::cp_async::{commit_group, cp_async_16_zfill, wait_group};
use crate::ptx::special::tid_x;
use crate::smem;
use core::marker::PhantomData;

/// Rows that the CTA copies at once: `line` threads a row.
const fn pass_rows(d: usize, warps: usize) -> u32 {
    32 * warps as u32 / line(d)
}

/// One thread's part of the rows of a head: every `pass_rows`-th row, every `line`-th chunk.
struct Rows<K, const MT: usize> {
    next: *const u8,
    /// From one pass to the next.
    pass_bytes: isize,
    /// The row at `next`, and where the rows end.
    row: u32,
    rows: u32,
    kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> Rows<K, MT> {
    /// Rows that the CTA copies at once.
    const PASS: u32 = pass_rows(K::HEAD_DIM, K::WARPS);
    /// Threads that share a row.
    const LINE: u32 = line(K::HEAD_DIM);

    /// Rows `first..rows` of a head.
    #[inline(always)]
    unsafe fn new(tensor: &Strided, batch: u32, head: u32, first: u32, rows: u32) -> Self {
        let row = first + tid_x() / Self::LINE;
        let next = token(tensor, 2, [batch, head, row], 8 * (tid_x() % Self::LINE) as usize);
        let pass_bytes = (2 * i64::from(Self::PASS) * tensor.stride_n) as isize;
        Self { next, pass_bytes, row, rows, kernel: PhantomData }
    }

    /// This thread's byte of a tile.
    #[inline(always)]
    fn tile_offset() -> u32 {
        let row = tid_x() / Self::LINE;
        row * row_bytes(K::HEAD_DIM) + (tid_x() % Self::LINE ^ swizzle(K::HEAD_DIM, row)) * 16
    }

    /// Requests the next `count` rows, into the tile of which this thread's byte is at `shared`; zeros past the last row.
    #[inline(always)]
    unsafe fn request(&mut self, shared: u32, count: u32) {
        for pass in 0..count / Self::PASS {
            let bytes = if self.row < self.rows { 16 } else { 0 };
            for chunk in 0..row_bytes(K::HEAD_DIM) / 16 / Self::LINE {
                let offset = chunk * 16 * Self::LINE;
                let to = shared + pass * Self::PASS * row_bytes(K::HEAD_DIM) + offset;
                unsafe { cp_async_16_zfill(to, self.next.add(offset as usize), bytes) };
            }
            self.next = unsafe { self.next.offset(self.pass_bytes) };
            self.row += Self::PASS;
        }
    }
}

/// Shared memory of the query tile.
const fn query_bytes<K: Kernel<MT>, const MT: usize>() -> u32 {
    K::TILE_M * row_bytes(K::HEAD_DIM)
}

/// Shared address of the warp's first query row.
#[inline(always)]
pub(crate) fn query_address<K: Kernel<MT>, const MT: usize>() -> u32 {
    smem::base() + tid_x() / 32 * (16 * MT) as u32 * row_bytes(K::HEAD_DIM)
}

/// Requests the CTA's query rows, as one group.
#[inline(always)]
pub(crate) unsafe fn query<K: Kernel<MT>, const MT: usize>(params: &BaselineParams, place: &Place) {
    const { assert!(K::TILE_M.is_multiple_of(Rows::<K, MT>::PASS), "whole passes only") };
    unsafe {
        let mut rows = Rows::<K, MT>::new(&params.q, place.batch, place.head_q, place.cta_row, params.seqlen_q);
        rows.request(smem::base() + Rows::<K, MT>::tile_offset(), K::TILE_M);
        commit_group();
    }
}

/// Pairs of a K and a V tile in a ring of `STAGES`; `STAGES - 1` of them are under way while one is in use.
pub(crate) struct Ring<K, const MT: usize> {
    k: Rows<K, MT>,
    v: Rows<K, MT>,
    /// Stage 0, and this thread's byte of it.
    stages: u32,
    shared: u32,
    /// Stage that is read next, and stage that is filled next, in bytes.
    read: u32,
    write: u32,
    /// Pairs not yet requested.
    left: u32,
}

impl<K: Kernel<MT>, const MT: usize> Ring<K, MT> {
    const TILE: u32 = K::KEYS as u32 * row_bytes(K::HEAD_DIM);

    /// Requests the first of the pairs `first..end`; the ring lies behind the query tile.
    #[inline(always)]
    pub(crate) unsafe fn new(params: &BaselineParams, place: &Place, first: u32, end: u32) -> Self {
        const { assert!((K::KEYS as u32).is_multiple_of(Rows::<K, MT>::PASS), "whole passes only") };
        let stages = smem::base() + query_bytes::<K, MT>();
        let (key, keys) = (first * K::KEYS as u32, params.seqlen_kv);
        let mut ring = unsafe {
            Self {
                k: Rows::new(&params.k, place.batch, place.head_kv, key, keys),
                v: Rows::new(&params.v, place.batch, place.head_kv, key, keys),
                stages,
                shared: stages + Rows::<K, MT>::tile_offset(),
                read: 0,
                write: 0,
                left: end - first,
            }
        };
        for _ in 0..K::STAGES - 1 {
            unsafe { ring.request() };
        }
        ring
    }

    /// Requests the next pair, if there is one; commits a group in any case, so that groups count pairs.
    #[inline(always)]
    unsafe fn request(&mut self) {
        unsafe {
            if self.left > 0 {
                self.k.request(self.shared + self.write, K::KEYS as u32);
                self.v.request(self.shared + self.write + Self::TILE, K::KEYS as u32);
                self.left -= 1;
                self.write = Self::advance(self.write);
            }
            commit_group();
        }
    }

    /// The shared addresses of the next K and V tile, landed and visible to the CTA; the stage of the pair before is refilled.
    #[inline(always)]
    pub(crate) unsafe fn next(&mut self) -> (u32, u32) {
        unsafe {
            landed::<K, MT>();
            self.request();
        }
        let k = self.stages + self.read;
        self.read = Self::advance(self.read);
        (k, k + Self::TILE)
    }

    #[inline(always)]
    fn advance(stage: u32) -> u32 {
        let next = stage + 2 * Self::TILE;
        if next == 2 * K::STAGES as u32 * Self::TILE { 0 } else { next }
    }
}

/// Waits for all but the latest `STAGES - 2` groups, of all threads.
#[inline(always)]
unsafe fn landed<K: Kernel<MT>, const MT: usize>() {
    unsafe {
        match K::STAGES {
            2 => wait_group::<0>(),
            _ => wait_group::<1>(),
        }
        bar_sync();
    }
}

/// Waits for the query tile, behind which the ring has sent `STAGES - 1` groups.
#[inline(always)]
pub(crate) unsafe fn query_landed<K: Kernel<MT>, const MT: usize>() {
    unsafe {
        match K::STAGES {
            2 => wait_group::<1>(),
            _ => wait_group::<2>(),
        }
        bar_sync();
    }
}
