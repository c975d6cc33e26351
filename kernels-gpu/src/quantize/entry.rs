//! The entry points: arguments to CTAs' work (docs/kernel-abi.md, "Entry points").

use super::launch::{counters, tile_tokens};
use super::scale::BEYOND_10_BITS;
use super::tile::{Tile, await_copies, float_address};
use super::work::{Divisor, Item, Work};
use super::{stats, tokens, values};
use crate::element::{Bf16, Element, F16, F32, Rows};
use crate::layout::{KV_BLOCK, STATS_CHUNK, block_bytes, kv_blocks};
use crate::ptx::order::{atom_acq_rel_gpu_add_u32, ld_acquire_gpu_u32};
use crate::ptx::shared::{ld_shared_u32, st_shared_f32};
use crate::ptx::special::{bar_sync, ctaid_x, ctaid_y, ctaid_z, tid_x};

/// `flags`: take the mean out of K.
const SMOOTH_K: u32 = 1;
/// `flags`: take the mean out of V.
const SMOOTH_V: u32 = 2;
/// `flags`: one scale for all channels of a head of V, the paper's.
const V_SCALE_PER_HEAD: u32 = 4;
/// `flags`: round Q's scale up to a fraction of 10 bits.
const SHORT_Q_SCALE: u32 = 8;

/// A caller's tensor: strides in elements, the head's dims contiguous.
#[derive(Clone, Copy)]
struct Tensor {
    data: *const u8,
    stride_b: i64,
    stride_h: i64,
    stride_n: i64,
}

impl Tensor {
    /// The rows of a head.
    #[inline(always)]
    fn rows<E: Element>(&self, (batch, head): (u32, u32)) -> Rows {
        Rows::new::<E>(self.data.cast_mut(), batch, self.stride_b, head, self.stride_h, self.stride_n)
    }
}

/// The arguments of `quantize_*`.
#[derive(Clone, Copy)]
struct Quantize {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_mean: *mut f32,
    v_mean: *mut f32,
    v_scale: *mut f32,
    k_scale_max: *mut f32,
    q_out: *mut u8,
    q_scale: *mut f32,
    q_bias: *mut f32,
    k_out: *mut u8,
    k_scale: *mut f32,
    v_out: *mut u8,
    workspace: *mut f32,
    seqlen_q: u32,
    seqlen_kv: u32,
    heads_q: u32,
    head_dim: u32,
    flags: u32,
    work: Work,
}

impl Quantize {
    /// The counter of a head of K and V: its statistics that are done, and one more when they have been added up.
    #[inline(always)]
    fn counter(&self, head: u32) -> *mut u32 {
        self.workspace.wrapping_add(head as usize).cast()
    }

    /// The head's partial statistics.
    #[inline(always)]
    fn partial(&self, head: u32) -> *mut f32 {
        let chunks = self.seqlen_kv.div_ceil(STATS_CHUNK as u32) as usize;
        let each = chunks * 2 * (stats::KINDS * self.head_dim) as usize;
        self.workspace.wrapping_add(counters(self.work.heads as usize) + head as usize * each)
    }

    #[inline(always)]
    fn channels(&self, head: u32) -> usize {
        head as usize * self.head_dim as usize
    }

    #[inline(always)]
    fn row_vectors<E: Element>(&self) -> u32 {
        self.head_dim / E::LANES as u32
    }

    #[inline(always)]
    fn tile_tokens<E: Element>(&self) -> u32 {
        tile_tokens(self.head_dim as usize, E::BYTES) as u32
    }

    /// The key blocks of all heads before this one.
    #[inline(always)]
    fn blocks_before(&self, head: u32) -> usize {
        head as usize * kv_blocks(self.seqlen_kv as usize)
    }

    /// Statistics of a slice; for the last one of a head, those of the head.
    #[inline(always)]
    unsafe fn stats<E: Element>(&self, head: u32, index: u32) {
        unsafe {
            let (rest, slice) = self.work.slices.div_rem(index);
            let (chunk, is_v) = (rest / 2, rest % 2 == 1);
            let rows = if is_v { self.v } else { self.k }.rows::<E>(self.work.heads_kv.div_rem(head));
            let to = self.partial(head).wrapping_add(rest as usize * (stats::KINDS * self.head_dim) as usize);
            stats::slice::<E>(&rows, chunk * STATS_CHUNK as u32, self.seqlen_kv, slice, self.head_dim, to);
            if self.count(head) == self.work.stats - 1 {
                self.finish(head);
                self.count(head);
            }
        }
    }

    /// Adds one to the head's counter, after everything that the CTA has written; returns what it was, and sees what those
    /// that counted before have written.
    #[inline(always)]
    unsafe fn count(&self, head: u32) -> u32 {
        unsafe {
            bar_sync();
            if tid_x() == 0 {
                let before = atom_acq_rel_gpu_add_u32(self.counter(head), 1);
                st_shared_f32(float_address(0), f32::from_bits(before));
            }
            bar_sync();
            let before = ld_shared_u32(float_address(0));
            bar_sync();
            before
        }
    }

    #[inline(always)]
    unsafe fn finish(&self, head: u32) {
        let channels = self.channels(head);
        let of = stats::Head {
            partial: self.partial(head),
            chunks: self.seqlen_kv.div_ceil(STATS_CHUNK as u32),
            seqlen: self.seqlen_kv,
            head_dim: self.head_dim,
            smooth: [self.flags & SMOOTH_K != 0, self.flags & SMOOTH_V != 0],
            one_scale: self.flags & V_SCALE_PER_HEAD != 0,
            mean: [self.k_mean.wrapping_add(channels), self.v_mean.wrapping_add(channels)],
            v_scale: self.v_scale.wrapping_add(channels),
            k_scale_max: self.k_scale_max.wrapping_add(head as usize),
        };
        unsafe { stats::finish(&of) }
    }

    /// Waits until the head's means and scales are there. Those who write them are in CTAs with smaller numbers, which
    /// have started and wait for nobody.
    #[inline(always)]
    unsafe fn await_stats(&self, head: u32) {
        unsafe {
            if self.work.stats > 0 {
                if tid_x() == 0 {
                    while ld_acquire_gpu_u32(self.counter(head)) <= self.work.stats {}
                }
                bar_sync();
            }
        }
    }

    /// The tile of K or V, on its way to shared memory.
    #[inline(always)]
    unsafe fn kv_tile<E: Element>(&self, from: Tensor, head: u32, index: u32) -> Tile {
        let tokens = self.tile_tokens::<E>();
        let padded = self.seqlen_kv.next_multiple_of(KV_BLOCK as u32);
        let tile = Tile::new(index * tokens, tokens, self.seqlen_kv, padded);
        unsafe { tile.load_rows::<E>(&from.rows::<E>(self.work.heads_kv.div_rem(head)), self.row_vectors::<E>()) };
        tile
    }

    #[inline(always)]
    unsafe fn keys<E: Element>(&self, head: u32, index: u32) {
        unsafe {
            let tile = self.kv_tile::<E>(self.k, head, index);
            self.await_stats(head);
            await_copies();
            let blocks = self.blocks_before(head);
            let out = tokens::Output {
                bytes: self.k_out.wrapping_add(blocks * block_bytes(self.head_dim as usize)),
                scale: self.k_scale.wrapping_add(blocks * KV_BLOCK),
                bias: core::ptr::null_mut(),
                head_dim: self.head_dim,
                scale_beyond: 0,
            };
            tokens::quantize::<E, true>(&tile, self.k_mean.wrapping_add(self.channels(head)), &out);
        }
    }

    #[inline(always)]
    unsafe fn values<E: Element>(&self, head: u32, index: u32) {
        unsafe {
            let tile = self.kv_tile::<E>(self.v, head, index);
            self.await_stats(head);
            let channels = self.channels(head);
            values::load_channels(self.v_mean.wrapping_add(channels), self.v_scale.wrapping_add(channels), self.head_dim);
            await_copies();
            let out = self.v_out.wrapping_add(self.blocks_before(head) * block_bytes(self.head_dim as usize));
            values::quantize::<E>(&tile, self.head_dim, out);
        }
    }

    #[inline(always)]
    unsafe fn queries<E: Element>(&self, head_kv: u32, index: u32) {
        unsafe {
            let tokens = self.tile_tokens::<E>();
            let (of_group, index) = self.work.queries.div_rem(index);
            let (batch, of_batch) = self.work.heads_kv.div_rem(head_kv);
            let of_batch = of_batch * self.work.group + of_group;
            let head = batch * self.heads_q + of_batch;
            let padded = self.seqlen_q.next_multiple_of(tokens::ROWS);
            let tile = Tile::new(index * tokens, tokens, self.seqlen_q, padded);
            tile.load_rows::<E>(&self.q.rows::<E>((batch, of_batch)), self.row_vectors::<E>());
            self.await_stats(head_kv);
            await_copies();
            let row = head as usize * self.seqlen_q as usize;
            let out = tokens::Output {
                bytes: self.q_out.wrapping_add(row * self.head_dim as usize),
                scale: self.q_scale.wrapping_add(row),
                bias: if self.q_bias.is_null() { self.q_bias } else { self.q_bias.wrapping_add(row) },
                head_dim: self.head_dim,
                scale_beyond: if self.flags & SHORT_Q_SCALE != 0 { BEYOND_10_BITS } else { 0 },
            };
            tokens::quantize::<E, false>(&tile, self.k_mean.wrapping_add(self.channels(head_kv)), &out);
        }
    }
}

#[inline(always)]
unsafe fn quantize<E: Element>(args: &Quantize) {
    unsafe {
        let (item, head, index) = args.work.item([ctaid_x(), ctaid_y(), ctaid_z()]);
        if head >= args.work.heads {
            return;
        }
        match item {
            Item::Stats => args.stats::<E>(head, index),
            Item::KeysValues if index % 2 == 0 => args.keys::<E>(head, index / 2),
            Item::KeysValues => args.values::<E>(head, index / 2),
            Item::Queries => args.queries::<E>(head, index),
        }
    }
}

macro_rules! entries {
    ($($element:ty => $quantize:ident;)*) => {$(
        /// Statistics of K and V, and Q, K and V to int8.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `quantize_*`.
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $quantize(
            q: *const u8,
            q_stride_b: i64,
            q_stride_h: i64,
            q_stride_n: i64,
            k: *const u8,
            k_stride_b: i64,
            k_stride_h: i64,
            k_stride_n: i64,
            v: *const u8,
            v_stride_b: i64,
            v_stride_h: i64,
            v_stride_n: i64,
            k_mean: *mut f32,
            v_mean: *mut f32,
            v_scale: *mut f32,
            k_scale_max: *mut f32,
            q_out: *mut u8,
            q_scale: *mut f32,
            q_bias: *mut f32,
            k_out: *mut u8,
            k_scale: *mut f32,
            v_out: *mut u8,
            workspace: *mut f32,
            seqlen_q: u32,
            seqlen_kv: u32,
            heads_q: u32,
            head_dim: u32,
            flags: u32,
            heads: u32,
            lead: u32,
            stats: u32,
            keys: u32,
            group: u32,
            queries: u32,
            queries_magic: u32,
            queries_shift: u32,
            heads_kv: u32,
            heads_kv_magic: u32,
            heads_kv_shift: u32,
            slices: u32,
            slices_magic: u32,
            slices_shift: u32,
        ) {
            let q = Tensor { data: q, stride_b: q_stride_b, stride_h: q_stride_h, stride_n: q_stride_n };
            let k = Tensor { data: k, stride_b: k_stride_b, stride_h: k_stride_h, stride_n: k_stride_n };
            let v = Tensor { data: v, stride_b: v_stride_b, stride_h: v_stride_h, stride_n: v_stride_n };
            let args = Quantize {
                q, k, v, k_mean, v_mean, v_scale, k_scale_max, q_out, q_scale, q_bias, k_out, k_scale, v_out, workspace,
                seqlen_q, seqlen_kv, heads_q, head_dim, flags,
                work: Work {
                    heads, lead, stats, keys, group,
                    queries: Divisor { value: queries, magic: queries_magic, shift: queries_shift },
                    heads_kv: Divisor { value: heads_kv, magic: heads_kv_magic, shift: heads_kv_shift },
                    slices: Divisor { value: slices, magic: slices_magic, shift: slices_shift },
                },
            };
            unsafe { quantize::<$element>(&args) }
        }
    )*};
}

entries! {
    F16 => quantize_f16;
    Bf16 => quantize_bf16;
    F32 => quantize_f32;
}
