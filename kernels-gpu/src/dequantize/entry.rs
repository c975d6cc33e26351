//! The entry points, and their way from the arguments to a block.

use super::launch::{TOKENS, shared_bytes, threads};
use super::walk::{ByChannel, ByToken, spread};
use crate::division::div_rem;
use crate::element::{BATCH, Bf16, Element, F16, F32, Rows, store_batch};
use crate::layout::{KV_BLOCK, V_OFFSETS, block_bytes, k_offset};
use crate::params::operand::{K, Q};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{
    ld_global_nc_f32, ld_global_nc_u32, ld_global_nc_v2_u32, ld_global_nc_v4_f32, ld_global_nc_v4_u32,
};
use crate::ptx::math::{add_rn_f32, mul_rn_f32, prmt};
use crate::ptx::shared::{ld_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::special::{ctaid_x, tid_x};
use crate::smem;

/// One block of 128 tokens of a head.
struct Block {
    /// The block's bytes.
    data: *const u8,
    /// The block's scales (Q, K) or the head's (V).
    scale: *const f32,
    /// The head's means, or null.
    mean: *const f32,
    /// The head's rows of the output.
    rows: Rows,
    /// First token of the block.
    first: u32,
    /// Tokens of the block that exist, 1 to 128.
    count: u32,
    /// Dims of a row.
    head_dim: u32,
}

/// Q or K (where `KEYS`).
#[inline(always)]
unsafe fn tokens<E: Element, const KEYS: bool>(block: &Block) {
    unsafe {
        let place = ByToken::<E>::of_lane(block.head_dim);
        let pieces = ByToken::<E>::PIECES;
        let means = [channels::<E>(block.mean, place.dim(0)), channels::<E>(block.mean, place.dim(pieces - 1))];
        let mut batch = 0;
        while batch < ByToken::<E>::batches(block.head_dim) {
            let place = ByToken::<E>::of_lane(block.head_dim);
            let row = |i: usize| place.row(batch, (i / pieces) as u32).min(block.count - 1);
            let mut bytes = [[0; 2]; BATCH];
            let mut scales = [0.0; BATCH];
            unroll!(0..BATCH, |i| {
                let (row, dim) = (row(i) as usize, place.dim(i % pieces));
                let offset = if KEYS { k_offset(row, dim) } else { row * block.head_dim as usize + dim };
                let from = block.data.wrapping_add(offset);
                bytes[i] = if E::LANES == 8 { ld_global_nc_v2_u32(from) } else { [ld_global_nc_u32(from), 0] };
                scales[i] = ld_global_nc_f32(block.scale.wrapping_add(row));
            });
            let mut vectors = [[0; 4]; BATCH];
            unroll!(0..BATCH, |i| {
                let (x, mean) = (floats(bytes[i].map(|word| word ^ V_OFFSETS)), &means[i % pieces]);
                let mut y = [0.0; 8];
                unroll!(0..E::LANES, |j| {
                    y[j] = add_rn_f32(mul_rn_f32(x[j], scales[i]), mean[j]);
                });
                vectors[i] = E::pack(&y);
            });
            store_batch::<E>(
                &vectors,
                &block.rows,
                |i| place.has(i % pieces) & (place.row(batch, (i / pieces) as u32) < block.count),
                |i| (block.first + row(i), place.vector(i % pieces)),
            );
            batch += 1;
        }
    }
}

/// V.
#[inline(always)]
unsafe fn values<E: Element>(block: &Block) {
    unsafe {
        load_block(block);
        bar_sync();
        let mut pass = 0;
        while pass < ByChannel::<E>::passes(block.head_dim) {
            let place = ByChannel::<E>::of_lane(block.head_dim, pass);
            let scale = channels::<E>(block.scale, place.dim());
            let mean = channels::<E>(block.mean, place.dim());
            let mut keys = [[0.0; 8]; 8];
            unroll!(0..E::LANES, |dim| {
                let x = floats(ld_shared_v2_u32(smem::base() + place.shared_offset(dim)));
                unroll!(0..8, |i| {
                    keys[i][dim] = add_rn_f32(mul_rn_f32(x[i], scale[dim]), mean[dim]);
                });
            });
            let mut vectors = [[0; 4]; BATCH];
            unroll!(0..BATCH, |i| {
                vectors[i] = E::pack(&keys[i]);
            });
            store_batch::<E>(
                &vectors,
                &block.rows,
                |i| place.has() & (place.key(i) < block.count),
                |i| (block.first + place.key(i), place.vector()),
            );
            pass += 1;
        }
    }
}

/// Copies a packed block of V to shared memory.
#[inline(always)]
unsafe fn load_block(block: &Block) {
    /// Loads of a thread under way at once.
    const BATCH: usize = 4;
    let bytes = shared_bytes(block.head_dim as usize) as u32;
    let step = 16 * threads(block.head_dim as usize) as u32;
    let mut first = 16 * tid_x();
    while first < bytes {
        let at = |i: usize| first + i as u32 * step;
        let mut vectors = [[0; 4]; BATCH];
        unroll!(0..BATCH, |i| {
            vectors[i] = unsafe { ld_global_nc_v4_u32(block.data.wrapping_add(at(i).min(bytes - 16) as usize)) };
        });
        unroll!(0..BATCH, |i| {
            unsafe { st_shared_v4_u32(at(i) < bytes, smem::base() + spread(at(i)), vectors[i]) };
        });
        first += BATCH as u32 * step;
    }
}

/// The eight codes of two words, which have each [`V_OFFSET`](crate::layout::V_OFFSET) too large.
#[inline(always)]
fn floats(bytes: [u32; 2]) -> [f32; 8] {
    let (low, high) = (dequantize4(bytes[0]), dequantize4(bytes[1]));
    [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
}

/// The four codes of a word, each of whose bytes is [`V_OFFSET`] larger, as floats, exactly: without conversion instructions, which run at a quarter of the
/// rate.
#[inline(always)]
fn dequantize4(unsigned: u32) -> [f32; 4] {
    /// 2^23 in bits: with a byte in the low bits, 2^23 plus that byte.
    const BIAS: u32 = 0x4b00_0000;
    let float = |select| add_rn_f32(f32::from_bits(prmt(unsigned, BIAS, select)), -(8_388_608.0 + 128.0));
    [float(0x7440), float(0x7441), float(0x7442), float(0x7443)]
}

/// One float for each dim of a vector; -0, which changes no sum, where there is no array.
#[inline(always)]
unsafe fn channels<E: Element>(array: *const f32, dim: usize) -> [f32; 8] {
    let mut out = [-0.0; 8];
    if !array.is_null() {
        let mut i = 0;
        while i < E::LANES {
            let four = unsafe { ld_global_nc_v4_f32(array.wrapping_add(dim + i)) };
            (out[i], out[i + 1], out[i + 2], out[i + 3]) = (four[0], four[1], four[2], four[3]);
            i += 4;
        }
    }
    out
}

/// The arguments of `dequantize_*`.
struct Args {
    data: *const u8,
    scale: *const f32,
    mean: *const f32,
    out: *mut u8,
    stride_b: i64,
    stride_h: i64,
    stride_n: i64,
    seqlen: u32,
    heads: u32,
    head_dim: u32,
    operand: u32,
}

#[inline(always)]
unsafe fn dequantize<E: Element>(args: &Args) {
    unsafe {
        let blocks = args.seqlen.div_ceil(TOKENS as u32);
        let (head, block) = div_rem(ctaid_x(), blocks);
        let first = block * TOKENS as u32;
        let head_dim = args.head_dim as usize;
        let (batch, head_of_batch) = div_rem(head, args.heads);
        let channels = head as usize * head_dim;
        let row = head as usize * args.seqlen as usize + first as usize;
        let packed = ctaid_x() as usize;
        let (data, scale) = match args.operand {
            Q => (row * head_dim, row),
            K => (packed * block_bytes(head_dim), packed * KV_BLOCK),
            _ => (packed * block_bytes(head_dim), channels),
        };
        let block = Block {
            data: args.data.wrapping_add(data),
            scale: args.scale.wrapping_add(scale),
            mean: if args.mean.is_null() { args.mean } else { args.mean.wrapping_add(channels) },
            rows: Rows::new::<E>(args.out, batch, args.stride_b, head_of_batch, args.stride_h, args.stride_n),
            first,
            head_dim: args.head_dim,
            count: (args.seqlen - first).min(TOKENS as u32),
        };
        match args.operand {
            Q => tokens::<E, false>(&block),
            K => tokens::<E, true>(&block),
            _ => values::<E>(&block),
        }
    }
}

macro_rules! entries {
    ($($element:ty => $dequantize:ident;)*) => {$(
        /// One operand back to floats, one block of 128 tokens a CTA.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `dequantize_*`.
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $dequantize(
            data: *const u8,
            scale: *const f32,
            mean: *const f32,
            out: *mut u8,
            out_stride_b: i64,
            out_stride_h: i64,
            out_stride_n: i64,
            seqlen: u32,
            heads: u32,
            head_dim: u32,
            operand: u32,
        ) {
            let args = Args {
                data, scale, mean, out, stride_b: out_stride_b, stride_h: out_stride_h, stride_n: out_stride_n,
                seqlen, heads, head_dim, operand,
            };
            unsafe { dequantize::<$element>(&args) }
        }
    )*};
}

entries! {
    F16 => dequantize_f16;
    Bf16 => dequantize_bf16;
    F32 => dequantize_f32;
}
