//! Statistics of K and V: sum, minimum and maximum per head and channel (docs/kernel-abi.md, "Quantization").
//!
//! They give the means that are taken out of K (every score of a row moves alike, so the softmax does not see it) and of
//! V (added back at the end), and V's scales. A CTA takes 512 tokens; a thread owns one 16-byte column and every eighth
//! token, which is exactly one of the eight accumulators of the contract.

use super::place::div_rem;
use super::scale::scale;
use crate::element::{BATCH, Element, Rows, Vector, load_batch};
use crate::layout::{STATS_CHUNK, STATS_LANES};
use crate::ptx::global::{ld_global_nc_f32, st_global_f32};
use crate::ptx::math::fma_rn_f32;
use crate::ptx::shared::{ld_shared_f32, st_shared_f32, st_shared_v4_u32};
use crate::ptx::shuffle::shfl_sync_bfly_b32;
use crate::ptx::special::{bar_sync, tid_x};
use crate::smem;

/// Statistics kept for each channel.
const KINDS: usize = 3;

/// A thread's accumulators.
struct Columns {
    sum: [f32; 8],
    min: [f32; 8],
    max: [f32; 8],
}

impl Columns {
    #[inline(always)]
    fn add<E: Element>(&mut self, vector: &Vector) {
        let mut i = 0;
        while i < E::LANES {
            let x = E::get(vector, i);
            self.sum[i] += x;
            self.min[i] = self.min[i].min(x);
            self.max[i] = self.max[i].max(x);
            i += 1;
        }
    }
}

/// The statistics of tokens `first .. first + count` (`count` at most 512) to `partial[kind][channel]`.
#[inline(always)]
pub(crate) unsafe fn chunk<E: Element>(rows: &Rows, first: u32, count: u32, head_dim: u32, partial: *mut f32) {
    unsafe {
        let vectors = head_dim / E::LANES as u32;
        let (lane, vector) = div_rem(tid_x(), vectors);
        let mut columns = Columns { sum: [0.0; 8], min: [f32::INFINITY; 8], max: [f32::NEG_INFINITY; 8] };
        let mut token = lane;
        let stride = (BATCH * STATS_LANES) as u32;
        // the bound is that of the block's last lane: the branch is uniform
        while token - lane + stride <= count {
            let batch = load_tokens::<E>(rows, first + token, first + STATS_CHUNK as u32, vector);
            let mut i = 0;
            while i < BATCH {
                columns.add::<E>(&batch[i]);
                i += 1;
            }
            token += stride;
        }
        if token - lane < count {
            let batch = load_tokens::<E>(rows, first + token, first + count - 1, vector);
            let mut i = 0;
            while i < BATCH {
                if token + ((i * STATS_LANES) as u32) < count {
                    columns.add::<E>(&batch[i]);
                }
                i += 1;
            }
        }
        combine::<E>(&columns.sum, lane, vector, head_dim, partial, |a, b| a + b);
        combine::<E>(&columns.min, lane, vector, head_dim, partial.wrapping_add(head_dim as usize), f32::min);
        combine::<E>(&columns.max, lane, vector, head_dim, partial.wrapping_add(2 * head_dim as usize), f32::max);
    }
}

/// The thread's next eight tokens; one past `last` is read as `last`, and not used.
#[inline(always)]
unsafe fn load_tokens<E: Element>(rows: &Rows, token: u32, last: u32, vector: u32) -> [Vector; BATCH] {
    unsafe { load_batch::<E>(rows, |i| ((token + (i * STATS_LANES) as u32).min(last), vector)) }
}

/// Adds up the eight accumulators of each channel: `((a0+a1)+(a2+a3))+((a4+a5)+(a6+a7))`.
#[inline(always)]
unsafe fn combine<E: Element>(
    mine: &[f32; 8],
    lane: u32,
    vector: u32,
    head_dim: u32,
    out: *mut f32,
    op: impl Fn(f32, f32) -> f32,
) {
    unsafe {
        let at = smem::base() + 4 * (lane * head_dim + vector * E::LANES as u32);
        let mut i = 0;
        while i < E::LANES {
            st_shared_v4_u32(
                true,
                at + 4 * i as u32,
                [mine[i].to_bits(), mine[i + 1].to_bits(), mine[i + 2].to_bits(), mine[i + 3].to_bits()],
            );
            i += 4;
        }
        bar_sync();
        if tid_x() < head_dim {
            let a = |i: u32| ld_shared_f32(smem::base() + 4 * (i * head_dim + tid_x()));
            let low = op(op(a(0), a(1)), op(a(2), a(3)));
            let high = op(op(a(4), a(5)), op(a(6), a(7)));
            st_global_f32(true, out.wrapping_add(tid_x() as usize), [op(low, high)]);
        }
        bar_sync();
    }
}

/// A channel's statistics over the whole head: `chunks` partial results, in order.
#[inline(always)]
unsafe fn totals(partial: *const f32, chunks: u32, head_dim: u32) -> (f32, f32, f32) {
    let (mut sum, mut min, mut max) = (0.0_f32, f32::INFINITY, f32::NEG_INFINITY);
    let mut chunk = 0;
    while chunk < chunks {
        let mut next = [[0.0; KINDS]; BATCH];
        let mut i = 0;
        while i < BATCH {
            let from = (chunk + i as u32).min(chunks - 1) as usize * KINDS * head_dim as usize;
            let mut kind = 0;
            while kind < KINDS {
                next[i][kind] = unsafe { ld_global_nc_f32(partial.wrapping_add(from + kind * head_dim as usize)) };
                kind += 1;
            }
            i += 1;
        }
        i = 0;
        while i < BATCH {
            if chunk + (i as u32) < chunks {
                sum += next[i][0];
                min = min.min(next[i][1]);
                max = max.max(next[i][2]);
            }
            i += 1;
        }
        chunk += BATCH as u32;
    }
    (sum, min, max)
}

/// What [`finish`] works on: one head of K or of V.
pub(crate) struct Head {
    /// The head's partial results.
    pub partial: *const f32,
    /// How many chunks.
    pub chunks: u32,
    /// Tokens of the head.
    pub seqlen: u32,
    /// Channels.
    pub head_dim: u32,
    /// Whether the mean is taken out.
    pub smooth: bool,
    /// The head's means.
    pub mean: *mut f32,
}

/// Stores the channel's mean; returns its `amax` and the largest of the head.
#[inline(always)]
pub(crate) unsafe fn finish(head: &Head) -> (f32, f32) {
    unsafe {
        let channel = tid_x() as usize;
        let (sum, min, max) = totals(head.partial.wrapping_add(channel), head.chunks, head.head_dim);
        let mean = sum / head.seqlen as f32;
        let mean = if head.smooth && mean.is_finite() { mean } else { 0.0 };
        st_global_f32(true, head.mean.wrapping_add(channel), [mean]);
        let amax = (max - mean).abs().max((min - mean).abs());
        (amax, max_of_block(amax, head.head_dim / 32))
    }
}

/// The scale of a channel with this `amax`.
#[inline(always)]
pub(crate) fn scale_of(amax: f32) -> f32 {
    scale(amax, fma_rn_f32)
}

/// The largest value of a block of `warps` warps.
#[inline(always)]
unsafe fn max_of_block(mut value: f32, warps: u32) -> f32 {
    unsafe {
        let mut step = 16;
        while step > 0 {
            value = value.max(f32::from_bits(shfl_sync_bfly_b32(value.to_bits(), step)));
            step /= 2;
        }
        st_shared_f32(smem::base() + 4 * (tid_x() / 32), value);
        bar_sync();
        let mut warp = 0;
        while warp < warps {
            value = value.max(ld_shared_f32(smem::base() + 4 * warp));
            warp += 1;
        }
        value
    }
}
