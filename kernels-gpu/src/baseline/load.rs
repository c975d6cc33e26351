//! Global to shared memory by `cp.async`: the query tile once, the K and V tiles through a ring.

use super::tile::{line, row_bytes, swizzle};
use super::{Args, Place, Tensor};
use crate::ptx::cp_async::{commit_group, cp_async_16_zfill, wait_group};
use crate::ptx::special::{bar_sync, tid_x};
use crate::smem;

/// Rows that the CTA copies at once: `line` threads a row.
const fn pass_rows(d: usize, warps: usize) -> u32 {
    32 * warps as u32 / line(d)
}

/// One thread's part of the rows of a head: every `pass_rows`-th row, every `line`-th chunk.
struct Rows<const D: usize, const WARPS: usize> {
    next: *const u8,
    /// From one pass to the next.
    pass_bytes: isize,
    /// The row at `next`, and where the rows end.
    row: u32,
    rows: u32,
}

impl<const D: usize, const WARPS: usize> Rows<D, WARPS> {
    /// Rows `first..rows` of a head.
    #[inline(always)]
    unsafe fn new(tensor: &Tensor, batch: u32, head: u32, first: u32, rows: u32) -> Self {
        let row = first + tid_x() / line(D);
        let next = unsafe { tensor.row(batch, head, row).add(16 * (tid_x() % line(D)) as usize) };
        Self { next, pass_bytes: (2 * i64::from(pass_rows(D, WARPS)) * tensor.stride_n) as isize, row, rows }
    }

    /// This thread's byte of a tile.
    #[inline(always)]
    fn tile_offset() -> u32 {
        let row = tid_x() / line(D);
        row * row_bytes(D) + (tid_x() % line(D) ^ swizzle::<D>(row)) * 16
    }

    /// Requests the next `count` rows, into the tile of which this thread's byte is at `shared`; zeros past the last row.
    #[inline(always)]
    unsafe fn request(&mut self, shared: u32, count: u32) {
        for pass in 0..count / pass_rows(D, WARPS) {
            let bytes = if self.row < self.rows { 16 } else { 0 };
            for chunk in 0..row_bytes(D) / 16 / line(D) {
                let offset = chunk * 16 * line(D);
                let to = shared + pass * pass_rows(D, WARPS) * row_bytes(D) + offset;
                unsafe { cp_async_16_zfill(to, self.next.add(offset as usize), bytes) };
            }
            self.next = unsafe { self.next.offset(self.pass_bytes) };
            self.row += pass_rows(D, WARPS);
        }
    }
}

/// Shared memory of the query tile.
pub(crate) const fn query_bytes<const D: usize, const MT: usize, const WARPS: usize>() -> u32 {
    (16 * MT * WARPS) as u32 * row_bytes(D)
}

/// Shared address of the warp's first query row.
#[inline(always)]
pub(crate) fn query_address<const D: usize, const MT: usize>() -> u32 {
    smem::base() + tid_x() / 32 * (16 * MT) as u32 * row_bytes(D)
}

/// Requests the CTA's query rows, as one group.
#[inline(always)]
pub(crate) unsafe fn query<const D: usize, const MT: usize, const WARPS: usize>(args: &Args, place: &Place) {
    const { assert!(((16 * MT * WARPS) as u32).is_multiple_of(pass_rows(D, WARPS)), "whole passes only") };
    unsafe {
        let mut rows = Rows::<D, WARPS>::new(&args.q, place.batch, place.head_q, place.cta_row, args.seqlen_q);
        rows.request(smem::base() + Rows::<D, WARPS>::tile_offset(), (16 * MT * WARPS) as u32);
        commit_group();
    }
}

/// Pairs of a K and a V tile in a ring of `STAGES`; `STAGES - 1` of them are under way while one is in use.
pub(crate) struct Ring<const D: usize, const KEYS: usize, const WARPS: usize, const STAGES: usize> {
    k: Rows<D, WARPS>,
    v: Rows<D, WARPS>,
    /// Stage 0, and this thread's byte of it.
    stages: u32,
    shared: u32,
    /// Stage that is read next, and stage that is filled next, in bytes.
    read: u32,
    write: u32,
    /// Pairs not yet requested.
    left: u32,
}

impl<const D: usize, const KEYS: usize, const WARPS: usize, const STAGES: usize> Ring<D, KEYS, WARPS, STAGES> {
    const TILE: u32 = KEYS as u32 * row_bytes(D);

    /// Requests the first pairs; the ring starts `offset` bytes into shared memory.
    #[inline(always)]
    pub(crate) unsafe fn new(args: &Args, place: &Place, offset: u32, blocks: u32) -> Self {
        const { assert!((KEYS as u32).is_multiple_of(pass_rows(D, WARPS)), "whole passes only") };
        let stages = smem::base() + offset;
        let mut ring = unsafe {
            Self {
                k: Rows::new(&args.k, place.batch, place.head_kv, 0, args.seqlen_kv),
                v: Rows::new(&args.v, place.batch, place.head_kv, 0, args.seqlen_kv),
                stages,
                shared: stages + Rows::<D, WARPS>::tile_offset(),
                read: 0,
                write: 0,
                left: blocks,
            }
        };
        for _ in 0..STAGES - 1 {
            unsafe { ring.request() };
        }
        ring
    }

    /// Requests the next pair, if there is one; commits a group in any case, so that groups count pairs.
    #[inline(always)]
    unsafe fn request(&mut self) {
        unsafe {
            if self.left > 0 {
                self.k.request(self.shared + self.write, KEYS as u32);
                self.v.request(self.shared + self.write + Self::TILE, KEYS as u32);
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
            landed::<STAGES>();
            self.request();
        }
        let k = self.stages + self.read;
        self.read = Self::advance(self.read);
        (k, k + Self::TILE)
    }

    #[inline(always)]
    fn advance(stage: u32) -> u32 {
        let next = stage + 2 * Self::TILE;
        if next == 2 * STAGES as u32 * Self::TILE { 0 } else { next }
    }
}

/// Waits for all but the latest `STAGES - 2` groups, of all threads.
#[inline(always)]
unsafe fn landed<const STAGES: usize>() {
    unsafe {
        match STAGES {
            2 => wait_group::<0>(),
            _ => wait_group::<1>(),
        }
        bar_sync();
    }
}

/// Waits for the query tile, behind which the ring has sent `STAGES - 1` groups.
#[inline(always)]
pub(crate) unsafe fn query_landed<const STAGES: usize>() {
    unsafe {
        match STAGES {
            2 => wait_group::<1>(),
            _ => wait_group::<2>(),
        }
        bar_sync();
    }
}
