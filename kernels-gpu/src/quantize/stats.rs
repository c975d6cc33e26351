//! Statistics of K and V: sum, minimum and maximum per head and channel (docs/kernel-abi.md, "Quantization").
//!
//! They give the means that are taken out of K (every score of a row moves alike, so the softmax does not see it) and of
//! V (added back at the end), and V's scales. A CTA takes 64 bytes of 512 rows; a thread owns one word of these and every
//! eighth token, which is exactly one of the eight accumulators of the contract. The CTA that is the last of its head adds
//! the chunks up.

use super::launch::{QUANTIZE_THREADS, SLICE_BYTES};
use super::scale::scale;
use super::tile::{Tile, await_copies, float_address};
use crate::element::{BATCH, Element, Rows};
use crate::layout::{STATS_CHUNK, STATS_LANES};
use crate::ptx::global::{ld_global_f32, st_global_f32};
use crate::ptx::math::fma_rn_f32;
use crate::ptx::shared::{ld_shared_f32, ld_shared_u32, st_shared_f32};
use crate::ptx::shuffle::shfl_sync_bfly_b32;
use crate::ptx::special::{bar_sync, tid_x};
use crate::smem;

/// Statistics kept for each channel.
pub(crate) const KINDS: u32 = 3;
/// Words of a row that a CTA takes.
const WORDS: u32 = SLICE_BYTES as u32 / 4;

const _: () = assert!(QUANTIZE_THREADS == STATS_LANES * WORDS as usize);

/// A thread's accumulators: the channels of one word.
struct Columns {
    sum: [f32; 2],
    min: u32,
    max: u32,
}

impl Columns {
    #[inline(always)]
    fn add<E: Element>(&mut self, word: u32) {
        unroll!(0..E::IN_WORD, |i| {
            self.sum[i] += E::get(&[word; 4], i);
        });
        self.min = E::min(self.min, word);
        self.max = E::max(self.max, word);
    }
}

/// The statistics of slice `slice` of tokens `first .. first + 512` of `seqlen` to `partial[kind][channel]`.
#[inline(always)]
pub(crate) unsafe fn slice<E: Element>(
    rows: &Rows,
    first: u32,
    seqlen: u32,
    slice: u32,
    head_dim: u32,
    partial: *mut f32,
) {
    unsafe {
        let tile = Tile::new(first, STATS_CHUNK as u32, seqlen, seqlen);
        let vectors = SLICE_BYTES as u32 / 16;
        tile.load::<E>(rows, slice * vectors, vectors, |row, vector| smem::base() + row * SLICE_BYTES as u32 + 16 * vector);
        await_copies();
        let mut columns = Columns { sum: [0.0; 2], min: E::INFINITIES[0], max: E::INFINITIES[1] };
        let (lane, word) = (tid_x() / WORDS, tid_x() % WORDS);
        columns_of::<E>(&mut columns, tile.count, lane, word);
        bar_sync();
        unroll!(0..E::IN_WORD, |i| {
            let at = |kind| accumulator::<E>(kind, lane, word * E::IN_WORD as u32 + i as u32);
            st_shared_f32(at(0), columns.sum[i]);
            st_shared_f32(at(1), E::get(&[columns.min; 4], i));
            st_shared_f32(at(2), E::get(&[columns.max; 4], i));
        });
        bar_sync();
        let channels = WORDS * E::IN_WORD as u32;
        let (kind, channel) = (tid_x() / channels, tid_x() % channels);
        if kind < KINDS {
            let value = match kind {
                0 => combine::<E>(0, channel, |a, b| a + b),
                1 => combine::<E>(1, channel, f32::min),
                _ => combine::<E>(2, channel, f32::max),
            };
            st_global_f32(true, partial.wrapping_add((kind * head_dim + slice * channels + channel) as usize), [value]);
        }
    }
}

/// Adds the thread's word of every eighth token.
#[inline(always)]
unsafe fn columns_of<E: Element>(columns: &mut Columns, count: u32, lane: u32, word: u32) {
    let word_at = |token: u32| unsafe { ld_shared_u32(smem::base() + 4 * (token * WORDS + word)) };
    let stride = (BATCH * STATS_LANES) as u32;
    let mut token = lane;
    while token + stride <= count + lane {
        let mut batch = [0; BATCH];
        unroll!(0..BATCH, |i| {
            batch[i] = word_at(token + (i * STATS_LANES) as u32);
        });
        unroll!(0..BATCH, |i| {
            columns.add::<E>(batch[i]);
        });
        token += stride;
    }
    while token < count {
        columns.add::<E>(word_at(token));
        token += STATS_LANES as u32;
    }
}

/// Shared address of an accumulator.
#[inline(always)]
fn accumulator<E: Element>(kind: u32, lane: u32, channel: u32) -> u32 {
    smem::base() + 4 * ((kind * STATS_LANES as u32 + lane) * (WORDS * E::IN_WORD as u32) + channel)
}

/// Adds up the eight accumulators of a channel: `((a0+a1)+(a2+a3))+((a4+a5)+(a6+a7))`.
#[inline(always)]
unsafe fn combine<E: Element>(kind: u32, channel: u32, op: impl Fn(f32, f32) -> f32) -> f32 {
    let a = |lane| unsafe { ld_shared_f32(accumulator::<E>(kind, lane, channel)) };
    let low = op(op(a(0), a(1)), op(a(2), a(3)));
    op(low, op(op(a(4), a(5)), op(a(6), a(7))))
}

/// A channel's statistics over the whole head: `chunks` partial results, in order, `step` floats apart.
#[inline(always)]
unsafe fn totals(partial: *const f32, chunks: u32, step: u32, head_dim: u32) -> (f32, f32, f32) {
    let (mut sum, mut min, mut max) = (0.0_f32, f32::INFINITY, f32::NEG_INFINITY);
    let mut chunk = 0;
    while chunk < chunks {
        let mut next = [[0.0; KINDS as usize]; BATCH];
        unroll!(0..BATCH, |i| {
            let from = (chunk + i as u32).min(chunks - 1) as usize * step as usize;
            unroll!(0..KINDS as usize, |kind| {
                next[i][kind] = unsafe { ld_global_f32(partial.wrapping_add(from + kind * head_dim as usize)) };
            });
        });
        unroll!(0..BATCH, |i| {
            if chunk + (i as u32) < chunks {
                sum += next[i][0];
                min = min.min(next[i][1]);
                max = max.max(next[i][2]);
            }
        });
        chunk += BATCH as u32;
    }
    (sum, min, max)
}

/// What [`finish`] works on: one head of K and V.
pub(crate) struct Head {
    /// The head's partial results, `[chunks][2][3][head_dim]`.
    pub partial: *const f32,
    /// How many chunks.
    pub chunks: u32,
    /// Tokens of the head.
    pub seqlen: u32,
    /// Channels.
    pub head_dim: u32,
    /// Whether the means of K, V are taken out.
    pub smooth: [bool; 2],
    /// Whether V has one scale for all channels.
    pub one_scale: bool,
    /// The head's means of K, V.
    pub mean: [*mut f32; 2],
    /// The head's scales of V.
    pub v_scale: *mut f32,
    /// The bound of the head's scales of K.
    pub k_scale_max: *mut f32,
}

/// Means, V's scales and the bound of K's.
#[inline(always)]
pub(crate) unsafe fn finish(head: &Head) {
    unsafe {
        let mut at = tid_x();
        while at < 2 * head.head_dim {
            let is_v = at >= head.head_dim;
            let channel = (if is_v { at - head.head_dim } else { at }) as usize;
            let first = if is_v { (KINDS * head.head_dim) as usize } else { 0 } + channel;
            let step = 2 * KINDS * head.head_dim;
            let (sum, min, max) = totals(head.partial.wrapping_add(first), head.chunks, step, head.head_dim);
            let mean = sum / head.seqlen as f32;
            let mean = if head.smooth[is_v as usize] && mean.is_finite() { mean } else { 0.0 };
            st_global_f32(true, head.mean[is_v as usize].wrapping_add(channel), [mean]);
            st_shared_f32(float_address(at), (max - mean).abs().max((min - mean).abs()));
            at += QUANTIZE_THREADS as u32;
        }
        bar_sync();
        // a warp each for K and V; the others repeat V
        let operand = (tid_x() / 32).min(1);
        let largest = largest(operand * head.head_dim, head.head_dim);
        st_global_f32(tid_x() == 0, head.k_scale_max, [scale_of(largest)]);
        if operand == 1 {
            let mut channel = tid_x() - 32;
            while channel < head.head_dim {
                let amax = if head.one_scale { largest } else { ld_shared_f32(float_address(head.head_dim + channel)) };
                st_global_f32(true, head.v_scale.wrapping_add(channel as usize), [scale_of(amax)]);
                channel += QUANTIZE_THREADS as u32 - 32;
            }
        }
    }
}

/// The scale of a channel with this `amax`.
#[inline(always)]
fn scale_of(amax: f32) -> f32 {
    scale(amax, fma_rn_f32)
}

/// The largest of `count` floats behind the tile, a multiple of 32, in every lane of a warp.
#[inline(always)]
unsafe fn largest(first: u32, count: u32) -> f32 {
    unsafe {
        let mut value = 0.0_f32;
        let mut at = tid_x() % 32;
        while at < count {
            value = value.max(ld_shared_f32(float_address(first + at)));
            at += 32;
        }
        let mut mask = 16;
        while mask > 0 {
            value = value.max(f32::from_bits(shfl_sync_bfly_b32(value.to_bits(), mask)));
            mask /= 2;
        }
        value
    }
}
