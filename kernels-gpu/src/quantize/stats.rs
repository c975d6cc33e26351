//! Statistics of K and V: sum, minimum and maximum per head and channel (docs/kernel-abi.md, "Quantization").
//!
//! They give the means that are taken out of K (every score of a row moves alike, so the softmax does not see it) and of
//! V (added back at the end), and V's scales. A CTA takes 64 bytes of 512 rows; a thread owns one word of these and every
//! eighth token, which is exactly one of the eight accumulators of the contract. The CTA that is the last of its slice adds
//! the chunks up.

use super::launch::{QUANTIZE_THREADS, SLICE_BYTES, TILE_BYTES};
use super::scale::scale;
use super::tile::{Tile, await_copies, float_address};
use crate::element::{BATCH, Element, Rows};
use crate::layout::{STATS_CHUNK, STATS_LANES};
use crate::ptx::barrier::bar_sync;
use crate::ptx::cp_async::cp_async_16;
use crate::ptx::global::st_global_f32;
use crate::ptx::math::fma_rn_f32;
use crate::ptx::shared::{ld_shared_f32, ld_shared_u32, st_shared_f32};
use crate::ptx::shuffle::shfl_sync_bfly_b32;
use crate::ptx::special::tid_x;
use crate::smem;

/// Statistics kept for each channel: sum, minimum, maximum.
pub(crate) const KINDS: u32 = 3;
const SUM: u32 = 0;
const MIN: u32 = 1;
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

/// The statistics of slice `slice` of tokens `first .. first + 512` of `seqlen` to `partial[kind][channel of the slice]`.
#[inline(always)]
pub(crate) unsafe fn slice<E: Element>(rows: &Rows, first: u32, seqlen: u32, slice: u32, partial: *mut f32) {
    unsafe {
        let tile = Tile::new(first, STATS_CHUNK as u32, seqlen, seqlen);
        let vectors = SLICE_BYTES as u32 / 16;
        tile.load::<E>(rows, slice * vectors, vectors, |row, vector| {
            smem::base() + row * SLICE_BYTES as u32 + 16 * vector
        });
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
        if let Some((kind, channel)) = kind_and_channel::<E>() {
            let value = match kind {
                SUM => combine::<E>(kind, channel, |a, b| a + b),
                MIN => combine::<E>(kind, channel, f32::min),
                _ => combine::<E>(kind, channel, f32::max),
            };
            st_global_f32(true, partial.wrapping_add(tid_x() as usize), [value]);
        }
    }
}

/// Channels of a slice.
#[inline(always)]
pub(crate) const fn channels<E: Element>() -> u32 {
    WORDS * E::IN_WORD as u32
}

/// What the thread adds up: for the first threads, one statistic of one channel.
#[inline(always)]
fn kind_and_channel<E: Element>() -> Option<(u32, u32)> {
    let (kind, channel) = (tid_x() / channels::<E>(), tid_x() % channels::<E>());
    if kind < KINDS { Some((kind, channel)) } else { None }
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
    smem::base() + 4 * ((kind * STATS_LANES as u32 + lane) * channels::<E>() + channel)
}

/// Adds up the eight accumulators of a channel: `((a0+a1)+(a2+a3))+((a4+a5)+(a6+a7))`.
#[inline(always)]
unsafe fn combine<E: Element>(kind: u32, channel: u32, op: impl Fn(f32, f32) -> f32) -> f32 {
    let a = |lane| unsafe { ld_shared_f32(accumulator::<E>(kind, lane, channel)) };
    let low = op(op(a(0), a(1)), op(a(2), a(3)));
    op(low, op(op(a(4), a(5)), op(a(6), a(7))))
}

/// What [`finish`] works on: a slice of one head of K or V.
pub(crate) struct Slice {
    /// The slice's partial results, `[chunks][3][channels of the slice]`.
    pub partial: *const f32,
    /// How many chunks.
    pub chunks: u32,
    /// Tokens of the head.
    pub seqlen: u32,
    /// Whether the means are taken out.
    pub smooth: bool,
    /// The slice's means.
    pub mean: *mut f32,
    /// The slice's scales of V, or null.
    pub scale: *mut f32,
}

/// Adds up the chunks of a slice and stores its means, and scales where there are any; returns the largest `amax`, in warp 0.
#[inline(always)]
pub(crate) unsafe fn finish<E: Element>(of: &Slice) -> f32 {
    unsafe {
        total::<E>(of);
        bar_sync();
        let channel = tid_x();
        let mut amax = 0.0;
        if channel < channels::<E>() {
            let at = |kind| ld_shared_f32(float_address(kind * channels::<E>() + channel));
            let mean = at(SUM) / of.seqlen as f32;
            let mean = if of.smooth && mean.is_finite() { mean } else { 0.0 };
            amax = (at(KINDS - 1) - mean).abs().max((at(MIN) - mean).abs());
            st_global_f32(true, of.mean.wrapping_add(channel as usize), [mean]);
            st_global_f32(!of.scale.is_null(), of.scale.wrapping_add(channel as usize), [scale_of(amax)]);
        }
        let mut mask = 16;
        while mask > 0 {
            amax = amax.max(f32::from_bits(shfl_sync_bfly_b32(amax.to_bits(), mask)));
            mask /= 2;
        }
        amax
    }
}

/// The statistics of a slice over all chunks, in order, behind the tile. The partial results come through shared memory, so
/// that all of them, or 32 KiB, are under way at once.
#[inline(always)]
unsafe fn total<E: Element>(of: &Slice) {
    unsafe {
        let in_chunk = KINDS * channels::<E>();
        let most = TILE_BYTES as u32 / (4 * in_chunk);
        let what = kind_and_channel::<E>();
        let mut value = match what {
            Some((MIN, _)) => f32::INFINITY,
            Some((SUM, _)) | None => 0.0,
            Some(_) => f32::NEG_INFINITY,
        };
        let mut first = 0;
        while first < of.chunks {
            let chunks = (of.chunks - first).min(most);
            let mut at = 4 * tid_x();
            while at < chunks * in_chunk {
                let from = of.partial.wrapping_add((first * in_chunk + at) as usize);
                cp_async_16(smem::base() + 4 * at, from.cast());
                at += 4 * QUANTIZE_THREADS as u32;
            }
            await_copies();
            if let Some((kind, _)) = what {
                let mut chunk = 0;
                while chunk < chunks {
                    let mut next = [0.0; BATCH];
                    unroll!(0..BATCH, |i| {
                        let at = (chunk + i as u32).min(chunks - 1) * in_chunk + tid_x();
                        next[i] = ld_shared_f32(smem::base() + 4 * at);
                    });
                    unroll!(0..BATCH, |i| {
                        if chunk + (i as u32) < chunks {
                            value = match kind {
                                SUM => value + next[i],
                                MIN => value.min(next[i]),
                                _ => value.max(next[i]),
                            };
                        }
                    });
                    chunk += BATCH as u32;
                }
            }
            bar_sync();
            first += chunks;
        }
        if what.is_some() {
            st_shared_f32(float_address(tid_x()), value);
        }
    }
}

/// The scale of a channel, or of all of a head, with this `amax`.
#[inline(always)]
pub(crate) fn scale_of(amax: f32) -> f32 {
    scale(amax, fma_rn_f32)
}
