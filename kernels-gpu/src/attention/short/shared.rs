//! What is where in a CTA's shared memory (`config::short`): shared addresses.

use super::{Cta, Kernel};
use crate::attention::softmax::Notes;
use crate::config::NOTE_BYTES;
use crate::config::short::{
    blocks_offset, codes_offset, head_offset, notes_offset, numbers_offset, padded_keys, rows_offset, warp_bytes,
    warps_offset,
};
use crate::layout::{KV_BLOCK, ROW_BYTES};
use crate::ptx::opaque::rolled;
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_u32, st_shared_v4_u32};
use crate::ptx::special::{ntid_x, tid_x};
use crate::smem;
use core::marker::PhantomData;

/// Numbers of a block's keys, a word each.
const OF_BLOCK: u32 = 4 * KV_BLOCK as u32;

pub(crate) struct Shared<K, const MT: usize> {
    base: u32,
    /// Blocks of keys.
    pub blocks: u32,
    /// Keys that have a place: whole panels.
    pub keys: u32,
    kernel: PhantomData<K>,
}

impl<K, const MT: usize> Clone for Shared<K, MT> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, const MT: usize> Copy for Shared<K, MT> {}

impl<K: Kernel<MT>, const MT: usize> Shared<K, MT> {
    #[inline(always)]
    pub(crate) fn new(seqlen_kv: u32) -> Self {
        let keys = padded_keys(seqlen_kv as usize) as u32;
        Self { base: smem::base(), blocks: seqlen_kv.div_ceil(KV_BLOCK as u32), keys, kernel: PhantomData }
    }

    /// A warp's own: first its queries as they come and their codes, then, in their place, its rows' scores against a block, or scratch for a special
    /// one; behind it notes, sums, scales and biases of rows.
    #[inline(always)]
    pub(crate) fn warp(&self, warp: u32) -> u32 {
        let first = warps_offset(K::HEAD_DIM, self.blocks as usize, self.keys as usize) as u32;
        self.base + first + warp * warp_bytes(K::HEAD_DIM, MT) as u32
    }

    /// A float for each row of a warp: scales, or biases.
    #[inline(always)]
    pub(crate) fn rows(&self, warp: u32, biases: bool) -> u32 {
        let first = self.warp(warp) + rows_offset(K::HEAD_DIM, MT) as u32;
        if biases { first + 4 * 16 * MT as u32 } else { first }
    }

    /// Where a lane of a warp takes its notes.
    #[inline(always)]
    pub(crate) fn notes(&self, warp: u32, lane: u32) -> Notes {
        let scratch = self.warp(warp);
        let notes = scratch + notes_offset(K::HEAD_DIM, MT) as u32;
        let own = notes + lane / 4 * NOTE_BYTES as u32;
        let bytes = (16 * MT * NOTE_BYTES) as u32;
        Notes { own, first: own, bytes, scratch: scratch + 4 * lane, sums: notes + bytes + 16 * MT as u32 * lane }
    }

    /// A row of all dims' signs, in the type of K's elements.
    #[inline(always)]
    pub(crate) fn signs(&self) -> u32 {
        self.base
    }

    /// K's offset, a float a dim, negative where the dim changes sign.
    #[inline(always)]
    pub(crate) fn offsets(&self) -> u32 {
        self.signs() + 4 * K::HEAD_DIM as u32
    }

    /// `v_unit`, and behind it what the CTA works on.
    #[inline(always)]
    pub(crate) fn unit(&self) -> u32 {
        self.base + head_offset(K::HEAD_DIM) as u32
    }

    /// Notes what the CTA works on; visible after a barrier.
    ///
    /// # Safety
    /// Nothing else is there.
    #[inline(always)]
    pub(crate) unsafe fn note(&self, cta: &Cta) {
        let first = tid_x() == 0;
        unsafe {
            st_shared_u32(first, self.unit() + 4, cta.batch);
            st_shared_u32(first, self.unit() + 8, cta.head_kv);
            st_shared_u32(first, self.unit() + 12, cta.part);
            st_shared_v4_u32(first, self.unit() + 16, [cta.first_q, cta.seqlen_q, cta.seqlen_kv, 0]);
        }
    }

    /// What [`note`](Self::note) noted.
    #[inline(always)]
    pub(crate) unsafe fn cta(&self) -> Cta {
        let [_, batch, head_kv, part] = unsafe { ld_shared_v4_u32(self.unit()) };
        let [first_q, seqlen_q, seqlen_kv, _] = unsafe { ld_shared_v4_u32(self.unit() + 16) };
        Cta { batch, head_kv, part, first_q, seqlen_q, seqlen_kv }
    }

    /// The numbers of a head without keys: no signs, no offset, any unit. Visible after a barrier.
    ///
    /// # Safety
    /// All threads of the CTA call it.
    #[inline(always)]
    pub(crate) unsafe fn clear_head(&self) {
        let mut at = self.signs() + 4 * tid_x();
        while at <= self.unit() {
            rolled();
            unsafe { st_shared_u32(true, at, 0) };
            at += 4 * ntid_x();
        }
    }

    /// `k_block_scale` and `v_block_scale` of a block.
    #[inline(always)]
    pub(crate) fn block(&self, block: u32) -> u32 {
        self.base + blocks_offset(K::HEAD_DIM) as u32 + 16 * block
    }

    #[inline(always)]
    fn numbers(&self) -> u32 {
        self.base + numbers_offset(K::HEAD_DIM, self.blocks as usize) as u32
    }

    /// Scales of K's tokens, in order; then the keys' factors, those of 32 keys in the order of `layout::key_slot`.
    #[inline(always)]
    pub(crate) fn factors(&self, block: u32) -> u32 {
        self.numbers() + OF_BLOCK * block
    }

    /// The largest magnitudes of V's tokens; then the reciprocals of their scales, NaN where a key has no codes.
    #[inline(always)]
    pub(crate) fn inverses(&self, block: u32) -> u32 {
        self.factors(self.blocks + block)
    }

    /// Scales of V's tokens.
    #[inline(always)]
    pub(crate) fn v_scales(&self, block: u32) -> u32 {
        self.factors(2 * self.blocks + block)
    }

    /// The codes of K: `[panel of 32 dims][key][32 dims]`, a panel as those of packed blocks, with the keys of all blocks.
    #[inline(always)]
    pub(crate) fn k(&self) -> u32 {
        self.base + codes_offset(K::HEAD_DIM, self.blocks as usize) as u32
    }

    /// Bytes of a panel of K.
    #[inline(always)]
    pub(crate) fn k_panel(&self) -> u32 {
        self.keys * ROW_BYTES as u32
    }

    /// The bytes of V: packed blocks, the last of them as far as it has keys.
    #[inline(always)]
    pub(crate) fn v(&self) -> u32 {
        self.k() + self.keys * K::HEAD_DIM as u32
    }
}
