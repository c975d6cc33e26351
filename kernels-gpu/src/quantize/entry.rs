//! The entry points: arguments to blocks (docs/kernel-abi.md, "Entry points").

use super::launch::TOKENS;
use super::place::div_rem;
use super::scale::BEYOND_10_BITS;
use super::{stats, tokens, values};
use crate::element::{Bf16, Element, F16, F32, Rows};
use crate::layout::{KV_BLOCK, STATS_CHUNK, block_bytes};
use crate::ptx::global::st_global_f32;
use crate::ptx::special::{ctaid_x, ctaid_y, nctaid_x, tid_x};

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
    /// The rows of head `head` (counted over all batches) of `heads` a batch.
    #[inline(always)]
    fn rows<E: Element>(&self, head: u32, heads: u32) -> Rows {
        let (batch, head) = div_rem(head, heads);
        Rows::new::<E>(self.data.cast_mut(), batch, self.stride_b, head, self.stride_h, self.stride_n)
    }
}

#[inline(always)]
unsafe fn kv_stats<E: Element>(k: Tensor, v: Tensor, partial: *mut f32, seqlen: u32, heads: u32, head_dim: u32) {
    unsafe {
        let chunks = seqlen.div_ceil(STATS_CHUNK as u32);
        let (head, chunk) = div_rem(ctaid_x(), chunks);
        let rows = if ctaid_y() == 0 { k } else { v }.rows::<E>(head, heads);
        let first = chunk * STATS_CHUNK as u32;
        let result = ctaid_y() as usize * nctaid_x() as usize + ctaid_x() as usize;
        let to = partial.wrapping_add(result * 3 * head_dim as usize);
        stats::chunk::<E>(&rows, first, (seqlen - first).min(STATS_CHUNK as u32), head_dim, to);
    }
}

/// Means of K and V, scales of V, and the bound of K's scales. One thread a channel, one block a head.
///
/// # Safety
/// As docs/kernel-abi.md says of `kv_stats_finish`.
#[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
#[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
pub unsafe extern "ptx-kernel" fn kv_stats_finish(
    partial: *const f32,
    k_mean: *mut f32,
    v_mean: *mut f32,
    v_scale: *mut f32,
    k_scale_max: *mut f32,
    seqlen_kv: u32,
    head_dim: u32,
    flags: u32,
) {
    unsafe {
        let chunks = seqlen_kv.div_ceil(STATS_CHUNK as u32);
        let (head, is_v) = (ctaid_x() as usize, ctaid_y() == 1);
        let first = (ctaid_y() as usize * nctaid_x() as usize + head) * chunks as usize;
        let channels = head * head_dim as usize;
        let (amax, head_amax) = stats::finish(&stats::Head {
            partial: partial.wrapping_add(first * 3 * head_dim as usize),
            chunks,
            seqlen: seqlen_kv,
            head_dim,
            smooth: flags & if is_v { SMOOTH_V } else { SMOOTH_K } != 0,
            mean: if is_v { v_mean } else { k_mean }.wrapping_add(channels),
        });
        if is_v {
            let amax = if flags & V_SCALE_PER_HEAD != 0 { head_amax } else { amax };
            st_global_f32(true, v_scale.wrapping_add(channels + tid_x() as usize), [stats::scale_of(amax)]);
        } else {
            st_global_f32(tid_x() == 0, k_scale_max.wrapping_add(head), [stats::scale_of(head_amax)]);
        }
    }
}

/// The arguments of `quantize_*`.
#[derive(Clone, Copy)]
struct Quantize {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_mean: *const f32,
    v_mean: *const f32,
    v_scale: *const f32,
    q_out: *mut u8,
    q_scale: *mut f32,
    q_bias: *mut f32,
    k_out: *mut u8,
    k_scale: *mut f32,
    v_out: *mut u8,
    seqlen_q: u32,
    seqlen_kv: u32,
    heads_q: u32,
    heads_kv: u32,
    head_dim: u32,
    q_blocks: u32,
    kv_blocks: u32,
    flags: u32,
}

/// A block of 128 tokens: which head, which token is its first, and how many there are.
struct TokenBlock {
    head: u32,
    first: u32,
    count: u32,
}

impl TokenBlock {
    #[inline(always)]
    fn new(block: u32, seqlen: u32) -> Self {
        let blocks = seqlen.div_ceil(TOKENS as u32);
        let (head, index) = div_rem(block, blocks);
        let first = index * TOKENS as u32;
        Self { head, first, count: (seqlen - first).min(TOKENS as u32) }
    }
}

#[inline(always)]
unsafe fn quantize<E: Element>(args: &Quantize) {
    unsafe {
        // last block first: V's last heads are what kv_stats has just read
        let block = nctaid_x() - 1 - ctaid_x();
        if block < args.q_blocks {
            return query_block::<E>(args, &TokenBlock::new(block, args.seqlen_q));
        }
        let block = block - args.q_blocks;
        if block < args.kv_blocks {
            key_block::<E>(args, &TokenBlock::new(block, args.seqlen_kv), block);
        } else {
            let block = block - args.kv_blocks;
            value_block::<E>(args, &TokenBlock::new(block, args.seqlen_kv), block);
        }
    }
}

#[inline(always)]
unsafe fn query_block<E: Element>(args: &Quantize, at: &TokenBlock) {
    let (batch, head) = div_rem(at.head, args.heads_q);
    let (group, _) = div_rem(args.heads_q, args.heads_kv);
    let head_kv = batch as usize * args.heads_kv as usize + div_rem(head, group).0 as usize;
    let row = at.head as usize * args.seqlen_q as usize + at.first as usize;
    let block = tokens::Block {
        rows: args.q.rows::<E>(at.head, args.heads_q),
        first: at.first,
        count: at.count,
        mean: args.k_mean.wrapping_add(head_kv * args.head_dim as usize),
        out: args.q_out.wrapping_add(row * args.head_dim as usize),
        scale: args.q_scale.wrapping_add(row),
        bias: if args.q_bias.is_null() { args.q_bias } else { args.q_bias.wrapping_add(row) },
        head_dim: args.head_dim,
        scale_beyond: if args.flags & SHORT_Q_SCALE != 0 { BEYOND_10_BITS } else { 0 },
    };
    unsafe { tokens::quantize::<E, false>(&block) }
}

#[inline(always)]
unsafe fn key_block<E: Element>(args: &Quantize, at: &TokenBlock, index: u32) {
    let block = tokens::Block {
        rows: args.k.rows::<E>(at.head, args.heads_kv),
        first: at.first,
        count: at.count,
        mean: args.k_mean.wrapping_add(at.head as usize * args.head_dim as usize),
        out: args.k_out.wrapping_add(index as usize * block_bytes(args.head_dim as usize)),
        scale: args.k_scale.wrapping_add(index as usize * KV_BLOCK),
        bias: core::ptr::null_mut(),
        head_dim: args.head_dim,
        scale_beyond: 0,
    };
    unsafe { tokens::quantize::<E, true>(&block) }
}

#[inline(always)]
unsafe fn value_block<E: Element>(args: &Quantize, at: &TokenBlock, index: u32) {
    let block = values::Block {
        rows: args.v.rows::<E>(at.head, args.heads_kv),
        first: at.first,
        count: at.count,
        mean: args.v_mean.wrapping_add(at.head as usize * args.head_dim as usize),
        scale: args.v_scale.wrapping_add(at.head as usize * args.head_dim as usize),
        head_dim: args.head_dim,
        out: args.v_out,
        index,
    };
    unsafe { values::quantize::<E>(&block) }
}

macro_rules! entries {
    ($element:ty, $kv_stats:ident, $quantize:ident) => {
        /// Sum, minimum and maximum per channel of 512 tokens of K (y = 0) or V (y = 1).
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `kv_stats_*`.
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $kv_stats(
            k: *const u8,
            k_stride_b: i64,
            k_stride_h: i64,
            k_stride_n: i64,
            v: *const u8,
            v_stride_b: i64,
            v_stride_h: i64,
            v_stride_n: i64,
            partial: *mut f32,
            seqlen_kv: u32,
            heads_kv: u32,
            head_dim: u32,
        ) {
            let k = Tensor { data: k, stride_b: k_stride_b, stride_h: k_stride_h, stride_n: k_stride_n };
            let v = Tensor { data: v, stride_b: v_stride_b, stride_h: v_stride_h, stride_n: v_stride_n };
            unsafe { kv_stats::<$element>(k, v, partial, seqlen_kv, heads_kv, head_dim) }
        }

        /// Q, K and V to int8, one block of 128 tokens a CTA.
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
            k_mean: *const f32,
            v_mean: *const f32,
            v_scale: *const f32,
            q_out: *mut u8,
            q_scale: *mut f32,
            q_bias: *mut f32,
            k_out: *mut u8,
            k_scale: *mut f32,
            v_out: *mut u8,
            seqlen_q: u32,
            seqlen_kv: u32,
            heads_q: u32,
            heads_kv: u32,
            head_dim: u32,
            q_blocks: u32,
            kv_blocks: u32,
            flags: u32,
        ) {
            let q = Tensor { data: q, stride_b: q_stride_b, stride_h: q_stride_h, stride_n: q_stride_n };
            let k = Tensor { data: k, stride_b: k_stride_b, stride_h: k_stride_h, stride_n: k_stride_n };
            let v = Tensor { data: v, stride_b: v_stride_b, stride_h: v_stride_h, stride_n: v_stride_n };
            let args = Quantize {
                q,
                k,
                v,
                k_mean,
                v_mean,
                v_scale,
                q_out,
                q_scale,
                q_bias,
                k_out,
                k_scale,
                v_out,
                seqlen_q,
                seqlen_kv,
                heads_q,
                heads_kv,
                head_dim,
                q_blocks,
                kv_blocks,
                flags,
            };
            unsafe { quantize::<$element>(&args) }
        }
    };
}

entries!(F16, kv_stats_f16, quantize_f16);
entries!(Bf16, kv_stats_bf16, quantize_bf16);
entries!(F32, kv_stats_f32, quantize_f32);
