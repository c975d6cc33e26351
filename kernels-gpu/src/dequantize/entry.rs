//! The entry points, and their way from the parameters to a block.

use super::launch::{TOKENS, shared_bytes, threads};
use super::walk::{ByChannel, spread};
use crate::division::div_rem;
use crate::element::{Bf16, Element, F16, F32, Rows, store};
use crate::layout::{KV_BLOCK, V_OFFSETS, V_ROTATION, block_bytes, k_offset, rotate_v_back, rotation};
use crate::params::DequantizeParams;
use crate::params::operand::{K, Q};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{
    ld_global_nc_f32, ld_global_nc_u32, ld_global_nc_v2_u32, ld_global_nc_v4_f32, ld_global_nc_v4_u32,
};
use crate::ptx::math::{add_rn_f32, mul_rn_f32, prmt};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::special::{ctaid_x, tid_x};
use crate::rotation::{DIMS, TokenLane, vectors};
use crate::seqlens::sequence_of_tile;
use crate::smem;

/// One block of 128 tokens of a head.
struct Block {
    /// The block's bytes.
    data: *const u8,
    /// The block's scales.
    scale: *const f32,
    /// What is added to each token of the head, or null.
    offset: *const f32,
    /// The head's rows of the output.
    rows: Rows,
    /// First token of the block.
    first: u32,
    /// Tokens of the block that exist, 1 to 128.
    count: u32,
    /// Dims of a row of codes, and of one of the output.
    head_dim: u32,
    dims: u32,
    /// Whether the codes are of a rotated tensor.
    rotated: bool,
}

/// Q or K (where `KEYS`).
#[inline(always)]
unsafe fn tokens<E: Element, const KEYS: bool>(block: &Block) {
    unsafe {
        let signs = TokenLane::new(block.head_dim, block.head_dim.next_power_of_two()).signs::<E, DIMS>();
        let factor = 1.0 / rotation(block.head_dim as usize) as f32;
        let mut first = tid_x() / 32 * TokenLane::new(block.head_dim, block.head_dim.next_power_of_two()).tokens();
        while first < block.count {
            // In the loop, so that addresses take registers only where they are used.
            let place = TokenLane::new(block.head_dim, block.head_dim.next_power_of_two());
            let dim = |i: usize| place.vector_or_first::<E>(i) as usize * E::LANES;
            let row = first + place.token;
            let from = row.min(block.count - 1) as usize;
            let mut x = [0.0; DIMS];
            let scale = ld_global_nc_f32(block.scale.wrapping_add(from));
            unroll!(0..vectors::<E>(), |i| {
                let offset = if KEYS { k_offset(from, dim(i)) } else { from * block.head_dim as usize + dim(i) };
                let from = block.data.wrapping_add(offset);
                let bytes = if E::LANES == 8 { ld_global_nc_v2_u32(from) } else { [ld_global_nc_u32(from), 0] };
                let codes = floats(bytes.map(|word| word ^ V_OFFSETS));
                unroll!(0..E::LANES, |j| {
                    x[i * E::LANES + j] = mul_rn_f32(codes[j], scale);
                });
            });
            if block.rotated {
                place.butterflies::<E>(&mut x);
                // Opaque: the sign of each dim, shifted to its place, would be in a register across the loop.
                let signs = opaque(signs);
                unroll!(0..DIMS, |i| {
                    let sign = signs << (31 - i) & 1 << 31;
                    x[i] = f32::from_bits(mul_rn_f32(x[i], factor).to_bits() ^ sign);
                });
            }
            if !block.offset.is_null() {
                unroll!(0..DIMS / 4, |quad| {
                    let vector = place.vector_of::<E>(4 * quad / E::LANES, block.dims) as usize;
                    let at = block.offset.wrapping_add(vector * E::LANES + 4 * quad % E::LANES);
                    let offset = ld_global_nc_v4_f32(at);
                    unroll!(0..4, |i| {
                        x[4 * quad + i] = add_rn_f32(x[4 * quad + i], offset[i]);
                    });
                });
            }
            let vector = |i: usize| {
                let mut values = [0.0; 8];
                unroll!(0..E::LANES, |j| {
                    values[j] = x[i * E::LANES + j];
                });
                E::pack(&values)
            };
            let row = block.first + from as u32;
            let exists = first + place.token < block.count;
            if E::LANES == 8 {
                let all = [vector(0), vector(1), vector(2), vector(3)];
                store::<E, 4>(
                    &all,
                    &block.rows,
                    |i| exists & place.is_of::<E>(i, block.dims),
                    |i| (row, place.vector_of::<E>(i, block.dims)),
                );
            } else {
                let all = [vector(0), vector(1), vector(2), vector(3), vector(4), vector(5), vector(6), vector(7)];
                store::<E, 8>(
                    &all,
                    &block.rows,
                    |i| exists & place.is_of::<E>(i, block.dims),
                    |i| (row, place.vector_of::<E>(i, block.dims)),
                );
            }
            first += threads(block.head_dim as usize) as u32 / 32 * place.tokens();
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
            let mut keys = [[0.0; 8]; 8];
            let mut scales = [0.0; 8];
            unroll!(0..8, |i| {
                scales[i] = ld_global_nc_f32(block.scale.wrapping_add(place.key(i) as usize));
            });
            unroll!(0..E::LANES, |dim| {
                let x = floats(ld_shared_v2_u32(smem::base() + place.shared_offset(dim)));
                unroll!(0..8, |i| {
                    keys[i][dim] = mul_rn_f32(x[i], scales[i]);
                });
            });
            if block.rotated {
                unroll!(0..8, |i| {
                    unroll!(0..E::LANES / V_ROTATION, |four| {
                        let at = V_ROTATION * four;
                        let x = rotate_v_back([keys[i][at], keys[i][at + 1], keys[i][at + 2], keys[i][at + 3]]);
                        unroll!(0..V_ROTATION, |j| {
                            keys[i][at + j] = mul_rn_f32(x[j], 1.0 / V_ROTATION as f32);
                        });
                    });
                });
            }
            let mut vectors = [[0; 4]; 8];
            unroll!(0..8, |i| {
                vectors[i] = E::pack(&keys[i]);
            });
            store::<E, 8>(
                &vectors,
                &block.rows,
                |i| place.has() & (place.vector() < block.dims / E::LANES as u32) & (place.key(i) < block.count),
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

#[inline(always)]
unsafe fn dequantize<E: Element>(p: &DequantizeParams) {
    unsafe {
        let (is_q, seqlens, head_dim) = (p.operand == Q, &p.seqlens, p.head_dim as usize);
        let (is_packed, offsets, total, blocks) = if is_q {
            (seqlens.packed_q, seqlens.cu_seqlens_q, seqlens.total_q, seqlens.q_tiles(p.batch, TOKENS as u32))
        } else {
            (seqlens.packed_kv, seqlens.cu_seqlens_kv, seqlens.total_kv, seqlens.kv_blocks(p.batch))
        };
        let (head, mut block) = div_rem(ctaid_x(), blocks);
        let (mut sequence, head_of_batch) = div_rem(head, p.heads);
        if is_packed != 0 {
            (sequence, block) = sequence_of_tile(offsets, total, p.batch, TOKENS as u32, block);
        }
        let tokens = if is_q { seqlens.q(sequence, p.seqlen) } else { seqlens.kv(sequence, p.seqlen) };
        let first = block * TOKENS as u32;
        if first >= tokens.len {
            return;
        }
        let row = head as usize * total as usize + (tokens.first + first) as usize;
        let packed = ctaid_x() as usize;
        let (data, scale) = match p.operand {
            Q => (row * head_dim, row),
            _ => (packed * block_bytes(head_dim), packed * KV_BLOCK),
        };
        let offset = p.offset.ptr();
        let of_all = sequence as usize * p.heads as usize + head_of_batch as usize;
        let block = Block {
            data: p.data.ptr().wrapping_add(data),
            scale: p.scale.ptr().wrapping_add(scale),
            offset: if p.offset.is_null() { offset } else { offset.wrapping_add(of_all * p.dims as usize) },
            rows: Rows::new::<E>(&p.out, tokens.batch, head_of_batch).skip(tokens.first),
            first,
            head_dim: p.head_dim,
            dims: p.dims,
            count: (tokens.len - first).min(TOKENS as u32),
            rotated: p.rotated != 0,
        };
        match p.operand {
            Q => self::tokens::<E, false>(&block),
            K => self::tokens::<E, true>(&block),
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
        #[cfg($dequantize)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $dequantize(params: DequantizeParams) {
            unsafe { dequantize::<$element>(&params) }
        }
    )*};
}

entries! {
    F16 => dequantize_f16;
    Bf16 => dequantize_bf16;
    F32 => dequantize_f32;
}
