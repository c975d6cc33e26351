//! The entry points: parameters to CTAs' work (docs/kernel-abi.md, "Entry points").

use super::offset::Source;
use super::tile::Tile;
use super::work::{Item, Operand, Work};
use super::{tokens, values};
use crate::division::div_rem;
use crate::element::{Bf16, Element, F16, F32, Rows};
use crate::layout::{KV_BLOCK, OFFSET_TOKENS, block_bytes, kv_blocks};
use crate::params::{Global, QuantizeParams};
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::ctaid_x;
use core::ptr::null_mut;

/// Element `index` of an array, or null where there is none.
#[inline(always)]
fn at<T>(array: Global<T>, index: usize) -> *mut T {
    if array.is_null() { null_mut() } else { array.ptr().cast_mut().wrapping_add(index) }
}

impl Item {
    /// The head of K and V among those of all sequences.
    #[inline(always)]
    fn head(&self, p: &QuantizeParams) -> usize {
        self.batch as usize * p.heads_kv as usize + self.head_kv as usize
    }
}

/// The head's first block of K or V among those of all heads: less than 2^32, as blocks are no more than a few a CTA.
#[inline(always)]
fn first_block(p: &QuantizeParams, item: &Item) -> u32 {
    (item.head(p) * kv_blocks(p.seqlen_kv as usize)) as u32
}

/// The number of the tile behind the CTA's last.
#[inline(always)]
fn end(tile: &Tile, item: &Item) -> u32 {
    (item.tile + item.tiles).min(tile.seqlen.div_ceil(KV_BLOCK as u32))
}

/// Where K's offset comes from.
#[inline(always)]
fn source(p: &QuantizeParams, item: &Item, k: Rows) -> Source {
    if p.rotate == 0 {
        Source::None
    } else if p.quantize_kv != 0 {
        Source::Rows(k, p.seqlen_kv.min(OFFSET_TOKENS as u32))
    } else {
        Source::Array(at(p.k_offset, item.head(p) * p.head_dim as usize))
    }
}

#[inline(always)]
unsafe fn keys<E: Element>(p: &QuantizeParams, item: &Item) {
    let first = first_block(p, item);
    let rows = Rows::new::<E>(&p.k, item.batch, item.head_kv);
    let offset = at(p.k_offset, item.head(p) * p.head_dim as usize);
    let offset = if item.tile == 0 { offset } else { null_mut() };
    let out = |tile: Tile| {
        let block = opaque(first) as usize + tile.index as usize;
        tokens::Output {
            bytes: at(p.k_out, block * block_bytes(p.head_dim as usize)),
            scale: at(p.k_scale, block * KV_BLOCK),
            bias: null_mut(),
            block_scale: at(p.k_block_scale, block),
        }
    };
    let tile = Tile { index: item.tile, seqlen: p.seqlen_kv };
    unsafe {
        tokens::quantize::<E, true>(
            p.head_dim,
            p.rotate != 0,
            rows,
            tile,
            end(&tile, item),
            source(p, item, rows),
            offset,
            out,
        )
    }
}

#[inline(always)]
unsafe fn values<E: Element>(p: &QuantizeParams, item: &Item) {
    let (first, head) = (first_block(p, item), item.head(p));
    let tile = Tile { index: item.tile, seqlen: p.seqlen_kv };
    let out = |tile: Tile| {
        let block = opaque(first) as usize + tile.index as usize;
        values::Output {
            bytes: at(p.v_out, block * block_bytes(p.head_dim as usize)),
            scale: at(p.v_scale, block * KV_BLOCK),
            block_scale: at(p.v_block_scale, block),
            unit: if tile.index == 0 { at(p.v_unit, head) } else { null_mut() },
        }
    };
    // Floats are in registers, so that there is none for this.
    let again = |x: u32| if E::BYTES == 4 { opaque(x) } else { x };
    let rows = || Rows::new::<E>(&p.v, again(item.batch), again(item.head_kv));
    let rotates = p.rotate != 0;
    unsafe {
        let head_amax = if rotates { 0.0 } else { ld_global_nc_f32(at(p.v_amax, head).cast()) };
        values::quantize::<E>(p.head_dim, rotates, false, head_amax, rows, tile, end(&tile, item), out);
    }
}

#[inline(always)]
unsafe fn queries<E: Element>(p: &QuantizeParams, item: &Item, head: u32) {
    let tile = Tile { index: item.tile, seqlen: p.seqlen_q };
    let of_all = item.batch * p.heads_q + head;
    let out = |tile: Tile| {
        let token = opaque(of_all) as usize * p.seqlen_q as usize + tile.first() as usize;
        tokens::Output {
            bytes: at(p.q_out, token * p.head_dim as usize),
            scale: at(p.q_scale, token),
            bias: at(p.q_bias, token),
            block_scale: null_mut(),
        }
    };
    let rows = Rows::new::<E>(&p.q, item.batch, head);
    let k = Rows::new::<E>(&p.k, item.batch, item.head_kv);
    let source = source(p, item, k);
    unsafe {
        tokens::quantize::<E, false>(p.head_dim, p.rotate != 0, rows, tile, end(&tile, item), source, null_mut(), out)
    }
}

#[inline(always)]
unsafe fn quantize<E: Element>(p: &QuantizeParams) {
    let work = Work::new(p);
    let item = work.item(ctaid_x());
    unsafe {
        match item.operand {
            Operand::Keys => keys::<E>(p, &item),
            Operand::Values => values::<E>(p, &item),
            Operand::Queries(of_group) => queries::<E>(p, &item, item.head_kv * work.group() + of_group),
        }
    }
}

#[inline(always)]
unsafe fn v_amax<E: Element>(p: &QuantizeParams) {
    unsafe {
        let (head, block) = div_rem(ctaid_x(), p.seqlen_kv.div_ceil(KV_BLOCK as u32));
        let (batch, head_kv) = div_rem(head, p.heads_kv);
        let rows = Rows::new::<E>(&p.v, batch, head_kv);
        values::add_amax::<E>(
            p.head_dim,
            &rows,
            Tile { index: block, seqlen: p.seqlen_kv },
            at(p.v_amax, head as usize),
        );
    }
}

macro_rules! entries {
    ($($element:ty => $quantize:ident, $v_amax:ident;)*) => {$(
        /// Q, K and V to INT8.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `quantize_*`.
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $quantize(params: QuantizeParams) {
            unsafe { quantize::<$element>(&params) }
        }

        /// The largest magnitude of each head of V, for the paper's scheme.
        ///
        /// # Safety
        /// As docs/kernel-abi.md says of `v_amax_*`.
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        pub unsafe extern "ptx-kernel" fn $v_amax(params: QuantizeParams) {
            unsafe { v_amax::<$element>(&params) }
        }
    )*};
}

entries! {
    F16 => quantize_f16, v_amax_f16;
    Bf16 => quantize_bf16, v_amax_bf16;
    F32 => quantize_f32, v_amax_f32;
}
