//! The entry points: parameters to CTAs' work (docs/kernel-abi.md, "Entry points").

use super::offset::Source;
use super::tile::{D32, Tile, WIDE};
use super::work::{Item, Operand};
use super::{tokens, values, wide};
use crate::division::div_rem;
use crate::element::{Bf16, F16, F16OfPaper, F32, Rows};
use crate::layout::{KV_BLOCK, OFFSET_TOKENS, block_bytes};
use crate::params::{Global, QuantizeParams, SeqLens, Strided};
use crate::ptx::global::{ld_global_nc_f32, st_global_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};
use crate::quantize::arithmetic::Rotated;
use crate::seqlens::{Tokens, sequence_of_tile};
use core::ptr::null_mut;

/// Element `index` of an array, or null where there is none.
#[inline(always)]
fn at<T>(array: Global<T>, index: usize) -> *mut T {
    if array.is_null() { null_mut() } else { array.ptr().cast_mut().wrapping_add(index) }
}

/// A CTA's run of tiles, and the sequence that it is of.
struct Run {
    item: Item,
    /// The sequence.
    sequence: u32,
    /// Its tokens.
    q: Tokens,
    kv: Tokens,
}

impl Run {
    /// Of an item of the grid. Of packed sequences it may be past the end of its sequence.
    #[inline(always)]
    unsafe fn new(p: &QuantizeParams, mut item: Item) -> Self {
        let of_q = matches!(item.operand, Operand::Queries(_));
        let SeqLens { cu_seqlens_q, cu_seqlens_kv, total_q, total_kv, packed_q, packed_kv, .. } = p.seqlens;
        let (packed, offsets, total) =
            if of_q { (packed_q, cu_seqlens_q, total_q) } else { (packed_kv, cu_seqlens_kv, total_kv) };
        let mut sequence = item.batch;
        if packed != 0 {
            let (of, run) = unsafe {
                let (run, _) = div_rem(item.tile, item.tiles);
                sequence_of_tile(offsets, total, p.batch, item.tiles * KV_BLOCK as u32, run)
            };
            (sequence, item.tile) = (of, run * item.tiles);
        }
        let (q, kv) = unsafe { (p.seqlens.q(sequence, p.seqlen_q), p.seqlens.kv(sequence, p.seqlen_kv)) };
        Self { item, sequence, q, kv }
    }

    /// Whether the run has tokens of a head that has so many.
    #[inline(always)]
    fn is_within(&self, tokens: &Tokens) -> bool {
        self.item.tile * (KV_BLOCK as u32) < tokens.len
    }

    /// The head of K and V among those of all sequences.
    #[inline(always)]
    fn head(&self, p: &QuantizeParams) -> usize {
        self.sequence as usize * p.heads_kv as usize + self.item.head_kv as usize
    }

    /// The sequence's first block of K or V among those of all heads: less than 2^32, which would be 16 TiB at least.
    #[inline(always)]
    fn first_block(&self, p: &QuantizeParams) -> u32 {
        let head = self.kv.batch * p.heads_kv + self.item.head_kv;
        head * p.seqlens.kv_blocks(p.batch) + p.seqlens.first_block(self.sequence, &self.kv)
    }

    /// The number of the tile behind the CTA's last.
    #[inline(always)]
    fn end(&self, tile: &Tile) -> u32 {
        (self.item.tile + self.item.tiles).min(tile.seqlen.div_ceil(KV_BLOCK as u32))
    }

    /// The rows of the sequence's head of K.
    #[inline(always)]
    fn rows_of_k<E: Rotated>(&self, p: &QuantizeParams) -> Rows {
        Rows::new::<E>(&p.k, self.kv.batch, self.item.head_kv).skip(self.kv.first)
    }

    /// Where K's offset comes from.
    #[inline(always)]
    fn source(&self, p: &QuantizeParams, k: Rows) -> Source {
        if p.rotate == 0 {
            Source::None
        } else if p.quantize_kv == 0 || p.goes_on != 0 {
            Source::Array(at(p.k_offset, self.head(p) * p.dims as usize))
        } else if self.kv.len == 0 {
            Source::Zero
        } else {
            Source::Rows(k, self.kv.len.min(OFFSET_TOKENS as u32))
        }
    }
}

/// One of two fields of the parameter. Selected as a value: the compiler would select the address, for which it copies the whole parameter to memory.
#[inline(always)]
fn either(first: bool, a: u64, b: u64) -> u64 {
    let [low, high] = [0, 32].map(|shift| u64::from(selp_b32(first, (a >> shift) as u32, (b >> shift) as u32)));
    high << 32 | low
}

/// [`either`] of two arrays.
#[inline(always)]
fn array<T>(first: bool, a: Global<T>, b: Global<T>) -> Global<T> {
    Global::new(either(first, a.address(), b.address()))
}

/// A run of K, or of head `head_q` of Q.
#[inline(always)]
unsafe fn tokens<E: Rotated>(p: &QuantizeParams, run: &Run, keys: bool, head_q: u32) {
    let offset = at(p.k_offset, run.head(p) * p.dims as usize);
    let (tokens, head, first);
    if keys {
        (tokens, head) = (run.kv, run.item.head_kv);
        first = run.first_block(p) as usize * KV_BLOCK;
    } else {
        (tokens, head) = (run.q, head_q);
        first = (run.q.batch * p.heads_q + head_q) as usize * p.seqlens.total_q as usize + run.q.first as usize;
    }
    if !run.is_within(&tokens) {
        // Of no tokens.
        let none = keys & (tokens.len == 0) & (run.item.tile == 0) & (p.goes_on == 0);
        let mut dim = tid_x();
        while dim < p.dims {
            unsafe { st_global_f32(none, offset.wrapping_add(dim as usize), [0.0]) };
            dim += ntid_x();
        }
        return;
    }
    let of = Strided {
        data: array(keys, p.k.data, p.q.data),
        stride_b: either(keys, p.k.stride_b as u64, p.q.stride_b as u64) as i64,
        stride_h: either(keys, p.k.stride_h as u64, p.q.stride_h as u64) as i64,
        stride_n: either(keys, p.k.stride_n as u64, p.q.stride_n as u64) as i64,
    };
    let rows = Rows::new::<E>(&of, tokens.batch, head).skip(tokens.first);
    let offset = if keys & (run.item.tile == 0) & (p.goes_on == 0) { offset } else { null_mut() };
    let [low, high] = [first as u32, (first >> 32) as u32];
    let out = |tile: Tile| {
        let token = ((opaque(high) as usize) << 32 | opaque(low) as usize) + tile.first() as usize;
        tokens::Output {
            bytes: at(array(keys, p.k_out, p.q_out), token * p.head_dim as usize),
            scale: at(array(keys, p.k_scale, p.q_scale), token),
            bias: at(p.q_bias, token),
            block_scale: at(p.k_block_scale, token / KV_BLOCK),
            // Not of the head's first block.
            shares: (p.share_k != 0) & ((tile.index != 0) | (p.goes_on != 0)),
        }
    };
    let tile = Tile { index: run.item.tile, seqlen: tokens.len };
    let source = run.source(p, run.rows_of_k::<E>(p));
    unsafe {
        let (rotates, end) = (E::rotates(p), run.end(&tile));
        if WIDE {
            if keys {
                wide::tokens::<E, true>(p.dims, rows, tile, end, source, offset, out);
            } else {
                wide::tokens::<E, false>(p.dims, rows, tile, end, source, offset, out);
            }
        } else if E::BYTES == 2 && !D32 {
            tokens::quantize::<E, 64>(keys, p.head_dim, p.dims, rotates, rows, tile, end, source, offset, out);
        } else {
            tokens::quantize::<E, 32>(keys, p.head_dim, p.dims, rotates, rows, tile, end, source, offset, out);
        }
    }
}

#[inline(always)]
unsafe fn values<E: Rotated>(p: &QuantizeParams, run: &Run) {
    let (first, head) = (run.first_block(p), run.head(p));
    if !run.is_within(&run.kv) {
        let none = (run.kv.len == 0) & (run.item.tile == 0) & (tid_x() == 0) & (p.goes_on == 0);
        unsafe { st_global_f32(none, at(p.v_unit, head), [1.0]) };
        return;
    }
    let tile = Tile { index: run.item.tile, seqlen: run.kv.len };
    let out = |tile: Tile| {
        let block = opaque(first) as usize + tile.index as usize;
        values::Output {
            bytes: at(p.v_out, block * block_bytes(p.head_dim_v as usize)),
            scale: at(p.v_scale, block * KV_BLOCK),
            block_scale: at(p.v_block_scale, block),
            unit: if tile.index == 0 && p.goes_on == 0 { at(p.v_unit, head) } else { null_mut() },
        }
    };
    // Floats are in registers, so that there is none for this.
    let again = |x: u32| if E::BYTES == 4 { opaque(x) } else { x };
    let rows = || Rows::new::<E>(&p.v, again(run.kv.batch), again(run.item.head_kv)).skip(again(run.kv.first));
    let rotates = E::rotates(p);
    unsafe {
        let head_amax = if rotates { 0.0 } else { ld_global_nc_f32(at(p.v_amax, head).cast()) };
        // No tile has the number of the first block where that is elsewhere.
        let first_block = if p.goes_on == 0 { 0 } else { u32::MAX };
        let scales = values::Scaling { rotates, steps: false, head_amax, first_block };
        if WIDE {
            wide::values::<E>(p.dims_v, scales, rows, tile, run.end(&tile), out);
        } else {
            values::quantize::<E>(p.head_dim_v, p.dims_v, scales, rows, tile, run.end(&tile), out);
        }
    }
}

#[inline(always)]
unsafe fn quantize<E: Rotated>(p: &QuantizeParams) {
    unsafe {
        let run = Run::new(p, p.work.item(ctaid_x()));
        let (keys, of_group) = match run.item.operand {
            Operand::Values => return values::<E>(p, &run),
            Operand::Keys => (true, 0),
            Operand::Queries(of_group) => (false, of_group),
        };
        tokens::<E>(p, &run, keys, run.item.head_kv * p.work.group() + of_group);
    }
}

#[inline(always)]
unsafe fn v_amax<E: Rotated>(p: &QuantizeParams) {
    unsafe {
        let (head, tile) = div_rem(ctaid_x(), p.seqlens.kv_blocks(p.batch));
        let (batch, head_kv) = div_rem(head, p.heads_kv);
        let item = Item { batch, head_kv, operand: Operand::Values, tile, tiles: 1 };
        let run = Run::new(p, item);
        if run.is_within(&run.kv) {
            let rows = Rows::new::<E>(&p.v, run.kv.batch, head_kv).skip(run.kv.first);
            let tile = Tile { index: run.item.tile, seqlen: run.kv.len };
            values::add_amax::<E>(p.head_dim_v, p.dims_v, &rows, tile, at(p.v_amax, run.head(p)));
        }
    }
}

macro_rules! entries {
    ($($element:ty => [$($quantize:ident),*] $(, $v_amax:ident)?;)*) => {$(
        $(/// Q, K and V to INT8.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `quantize_*`.
        #[cfg($quantize)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $quantize(params: QuantizeParams) {
            unsafe { quantize::<$element>(&params) }
        })*

        $(/// The largest magnitude of each head of V, for the paper's scheme.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `v_amax_*`.
        #[cfg(v_amax)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $v_amax(params: QuantizeParams) {
            unsafe { v_amax::<$element>(&params) }
        })?
    )*};
}

entries! {
    F16 => [quantize_f16, quantize_f16_d32], v_amax_f16;
    F16OfPaper => [quantize_f16_paper, quantize_f16_d32_paper];
    Bf16 => [quantize_bf16, quantize_bf16_d32], v_amax_bf16;
    F32 => [quantize_f32], v_amax_f32;
}

macro_rules! wide_entries {
    ($($element:ty => $quantize:ident;)*) => {$(
        /// Q, K and V to INT8, of wide heads.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `quantize_*`.
        #[cfg(quantize_wide)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $quantize(params: QuantizeParams) {
            unsafe { quantize::<$element>(&params) }
        }
    )*};
}

wide_entries! {
    F16 => quantize_wide_f16;
    Bf16 => quantize_wide_bf16;
    F32 => quantize_wide_f32;
}
