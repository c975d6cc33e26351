//! The entry points: arguments to CTAs' work (docs/kernel-abi.md, "Entry points").

use super::launch::flags::{SHORT_Q_SCALE, SMOOTH_K, SMOOTH_V, V_SCALE_PER_HEAD};
use super::launch::{QUANTIZE_THREADS, counters, operand_counters, tile_tokens};
use super::scale::BEYOND_10_BITS;
use super::tile::{Tile, await_copies, float_address};
use super::work::{Divisor, Item, Work};
use super::{stats, tokens, values};
use crate::element::{Bf16, Element, F16, F32, Rows};
use crate::layout::{KV_BLOCK, STATS_CHUNK, block_bytes, kv_blocks};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_f32, st_global_f32};
use crate::ptx::order::{atom_acq_rel_gpu_add_u32, ld_acquire_gpu_u32, red_relaxed_gpu_max_u32};
use crate::ptx::shared::{ld_shared_u32, st_shared_f32};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, tid_x};

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
    /// An operand's counters: slices done, bits of the largest `amax`, and for each slice the chunks done.
    #[inline(always)]
    fn counters(&self, operand: u32) -> *mut u32 {
        let each = operand_counters(self.work.slices.value as usize) as u32;
        self.workspace.wrapping_add(operand as usize * each as usize).cast()
    }

    /// The partial statistics of a chunk of a slice of an operand.
    #[inline(always)]
    fn partial<E: Element>(&self, operand: u32, slice: u32, chunk: u32) -> *mut f32 {
        let slices = self.work.slices.value;
        let (chunks, in_chunk) = (self.chunks() as usize, (stats::KINDS * stats::channels::<E>()) as usize);
        let before = (operand as usize * slices as usize + slice as usize) * chunks + chunk as usize;
        self.workspace.wrapping_add(counters(self.work.heads() as usize, slices as usize) + before * in_chunk)
    }

    #[inline(always)]
    fn chunks(&self) -> u32 {
        self.seqlen_kv.div_ceil(STATS_CHUNK as u32)
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

    /// Statistics of a chunk of a slice; the last chunk's CTA adds up the slice, the last slice's finishes the operand.
    #[inline(always)]
    unsafe fn stats<E: Element>(&self, operand: u32, index: u32) {
        unsafe {
            let (head, is_v) = (operand / 2, operand % 2 == 1);
            let (chunk, slice) = self.work.slices.div_rem(index);
            let rows = if is_v { self.v } else { self.k }.rows::<E>(self.work.heads_kv.div_rem(head));
            let to = self.partial::<E>(operand, slice, chunk);
            stats::slice::<E>(&rows, chunk * STATS_CHUNK as u32, self.seqlen_kv, slice, to);
            let counters = self.counters(operand);
            if count(counters.wrapping_add(2 + slice as usize), || {}) < self.chunks() - 1 {
                return;
            }
            let first = self.channels(head) + (slice * stats::channels::<E>()) as usize;
            let one_scale = self.flags & V_SCALE_PER_HEAD != 0;
            let amax = stats::finish::<E>(&stats::Slice {
                partial: self.partial::<E>(operand, slice, 0),
                chunks: self.chunks(),
                seqlen: self.seqlen_kv,
                smooth: self.flags & if is_v { SMOOTH_V } else { SMOOTH_K } != 0,
                mean: if is_v { self.v_mean } else { self.k_mean }.wrapping_add(first),
                scale: if is_v && !one_scale { self.v_scale.wrapping_add(first) } else { core::ptr::null_mut() },
            });
            // magnitudes compare as their bits do
            let with = || red_relaxed_gpu_max_u32(counters.wrapping_add(1), amax.to_bits());
            if count(counters, with) == self.work.slices.value - 1 {
                let scale = self.operand_scale(operand);
                if !is_v {
                    st_global_f32(tid_x() == 0, self.k_scale_max.wrapping_add(head as usize), [scale]);
                } else if one_scale {
                    let mut channel = tid_x();
                    while channel < self.head_dim {
                        st_global_f32(true, self.v_scale.wrapping_add(self.channels(head) + channel as usize), [scale]);
                        channel += QUANTIZE_THREADS as u32;
                    }
                }
            }
        }
    }

    /// The scale of the largest `amax` of an operand whose slices are done.
    #[inline(always)]
    unsafe fn operand_scale(&self, operand: u32) -> f32 {
        let largest = unsafe { ld_global_f32(self.counters(operand).wrapping_add(1).cast()) };
        stats::scale_of(largest)
    }

    /// Waits until the operand's means and scales are there. Those who write them are in CTAs with smaller numbers, which
    /// have started and wait for nobody.
    #[inline(always)]
    unsafe fn await_stats(&self, operand: u32) {
        unsafe {
            if self.work.stats > 0 {
                if tid_x() == 0 {
                    while ld_acquire_gpu_u32(self.counters(operand)) < self.work.slices.value {}
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
            self.await_stats(2 * head);
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
            self.await_stats(2 * head + 1);
            let channels = self.channels(head);
            let one_scale = self.flags & V_SCALE_PER_HEAD != 0;
            let (mean, scale) = (self.v_mean.wrapping_add(channels), self.v_scale.wrapping_add(channels));
            values::load_channels(self.head_dim, |channel| {
                let scale = if one_scale {
                    self.operand_scale(2 * head + 1)
                } else {
                    ld_global_f32(scale.wrapping_add(channel))
                };
                (ld_global_f32(mean.wrapping_add(channel)), scale)
            });
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
            if of_group >= self.work.group {
                return;
            }
            let (batch, of_batch) = self.work.heads_kv.div_rem(head_kv);
            let of_batch = of_batch * self.work.group + of_group;
            let head = batch * self.heads_q + of_batch;
            let padded = self.seqlen_q.next_multiple_of(tokens::ROWS);
            let tile = Tile::new(index * tokens, tokens, self.seqlen_q, padded);
            tile.load_rows::<E>(&self.q.rows::<E>((batch, of_batch)), self.row_vectors::<E>());
            self.await_stats(2 * head_kv);
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

/// Adds one to a counter, after everything that the CTA has written; returns what it was, and sees what those that counted
/// before have written. Thread 0 does `with` at the same time: next to a barrier there is one branch at most, as the compiler
/// would give each side of a second one a barrier of its own.
#[inline(always)]
unsafe fn count(counter: *mut u32, with: impl FnOnce()) -> u32 {
    unsafe {
        bar_sync();
        if tid_x() == 0 {
            with();
            st_shared_f32(float_address(0), f32::from_bits(atom_acq_rel_gpu_add_u32(counter, 1)));
        }
        bar_sync();
        let before = ld_shared_u32(float_address(0));
        bar_sync();
        before
    }
}

#[inline(always)]
unsafe fn quantize<E: Element>(args: &Quantize) {
    unsafe {
        let (item, operand, index) = args.work.item([ctaid_x(), ctaid_y(), ctaid_z()]);
        if operand >= args.work.operands {
            return;
        }
        match item {
            Item::Stats => args.stats::<E>(operand, index),
            Item::KeysValues if operand % 2 == 0 => args.keys::<E>(operand / 2, index),
            Item::KeysValues => args.values::<E>(operand / 2, index),
            Item::Queries => args.queries::<E>(operand / 2, index),
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
            operands: u32,
            lead: u32,
            lead_queries: u32,
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
                    operands, lead, lead_queries, stats, keys, group,
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
