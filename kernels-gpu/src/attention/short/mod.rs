//! Short K and V: quantization and attention in one launch, from the caller's tensors to the output.
//!
//! A CTA makes the codes of a head of K and V in its shared memory, where all of them fit, by the rules and the roundings of
//! `crate::quantize`. From then on its warps go their own ways, each through some of the tiles of query rows of the heads that share
//! this head of K and V: no barrier, no copies, nothing left for another launch.
//!
//! ```text
//! offset::ranges           least and largest of each channel of the head's first tokens of K     |
//! values::magnitudes       the largest magnitude of each token of V                              |
//! offset::tables           what is taken out of K                                                | the CTA,
//! keys::quantize           codes and scales of K                                                 | a barrier
//! blocks::scales           each block's scales, and with them the factor of each key             | between
//! values::pack             codes of V                                                            |
//! queries                  the codes of a tile of Q, which has come meanwhile                    |
//! tile::attend             the tile against all blocks that it sees                              | a warp
//! epilogue::store          the output and the log-sum-exp                                        |
//! ```
//!
//! What lies behind the last key is not worked on: K and V end with a whole panel of 32 keys, and a block is gone through panel by
//! panel. All else is as in `super::sm80`, block by block of the same 128 keys, so that a row's numbers are the same.
//!
//! # Safety
//! As `super::sm80`, and of `crate::quantize`. The compiler does not know that a shuffle must stay one instruction for the whole warp:
//! what a branch around one depends on comes from [`first_lane`] or the kernel's parameters.

mod blocks;
mod entry;
mod epilogue;
mod keys;
mod offset;
mod queries;
mod shared;
mod tile;
mod tokens;
mod values;

use super::sequence::Sequence;
use crate::division::div_rem;
use crate::element::{Bf16, Element, F16, F32, Rows};
use crate::params::{ShortParams, dtype};
use crate::ptx::barrier::bar_sync;
use crate::ptx::opaque::opaque;
use crate::ptx::shuffle::first_lane;
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};
use queries::TileRows;
use shared::Shared;
use tokens::Tokens;

/// A row of the table `short_rows`; `MT` is its `m16_tiles`.
pub(crate) trait Kernel<const MT: usize> {
    const HEAD_DIM: usize;
    /// Query rows that a warp has at a time.
    const TILE_M: u32 = 16 * MT as u32;
}

/// The head of K and V that a CTA works on, and which share of its query rows.
#[derive(Clone, Copy)]
pub(crate) struct Cta {
    pub batch: u32,
    pub head_kv: u32,
    pub part: u32,
}

impl Cta {
    #[inline(always)]
    fn new(params: &ShortParams) -> Self {
        // SAFETY: the host's plan has parts and heads.
        unsafe {
            let (head, part) = div_rem(ctaid_x(), params.parts);
            let (batch, head_kv) = div_rem(head, params.attention.heads_kv);
            Self { batch, head_kv, part }
        }
    }

    /// Tile number `index` of the head's, for the calling warp.
    #[inline(always)]
    fn tile<'a, K: Kernel<MT>, const MT: usize>(
        &self,
        params: &'a ShortParams,
        shared: Shared<K, MT>,
        index: u32,
    ) -> TileRows<'a, K, MT> {
        let attention = &params.attention;
        // SAFETY: the host's plan has rows; the CTA is of one of the launch's sequences.
        let (tile, sequence) = unsafe {
            let (of_group, tile) = div_rem(index, tiles_of_head::<K, MT>(params));
            (tile, Sequence::new(attention, self.batch, self.head_kv * attention.group + of_group))
        };
        TileRows { params, shared, sequence, row: tile * K::TILE_M, warp: warp() }
    }
}

/// Tiles of a head of Q.
#[inline(always)]
fn tiles_of_head<K: Kernel<MT>, const MT: usize>(params: &ShortParams) -> u32 {
    params.attention.seqlen_q.div_ceil(K::TILE_M)
}

/// The number of the warp, the same for all its lanes.
#[inline(always)]
fn warp() -> u32 {
    // SAFETY: warps are converged where they begin something new.
    unsafe { first_lane(opaque(tid_x()) / 32) }
}

/// Warps of the CTA.
#[inline(always)]
fn warps() -> u32 {
    ntid_x() / 32
}

/// One CTA of the kernel.
#[inline(always)]
pub(crate) unsafe fn attention<K: Kernel<MT>, const MT: usize>(params: &ShortParams) {
    unsafe {
        let (cta, shared) = (Cta::new(params), Shared::<K, MT>::new(params.attention.seqlen_kv));
        let is_tile = |index: u32| index < params.attention.group * tiles_of_head::<K, MT>(params);
        let mut index = cta.part * warps() + warp();
        if is_tile(index) {
            request(&cta.tile(params, shared, index));
        }
        shared.note(&cta);
        match params.dtype {
            dtype::F16 => quantize::<F16, K, MT>(params, &cta, &shared),
            dtype::BF16 => quantize::<Bf16, K, MT>(params, &cta, &shared),
            _ => quantize::<F32, K, MT>(params, &cta, &shared),
        }
        bar_sync();
        // What tells a tile is made anew for each: the loop over its blocks has no registers for it.
        while is_tile(index) {
            let tile = shared.cta().tile(params, shared, index);
            match params.dtype {
                dtype::F16 => tile.quantize::<F16>(),
                dtype::BF16 => tile.quantize::<Bf16>(),
                _ => tile.quantize::<F32>(),
            }
            index += params.parts * warps();
            tile::attend(&tile, || {
                if is_tile(index) {
                    request(&shared.cta().tile(params, shared, opaque(index)));
                }
            });
        }
    }
}

/// Starts bringing the rows of a tile: halves of either type are the same bytes.
#[inline(always)]
unsafe fn request<K: Kernel<MT>, const MT: usize>(tile: &TileRows<K, MT>) {
    if tile.params.dtype != dtype::F32 {
        unsafe { tile.request::<F16>() };
    }
}

/// Codes of K and V, and all that goes with them, to shared memory; visible after a barrier.
#[inline(always)]
unsafe fn quantize<E: Element, K: Kernel<MT>, const MT: usize>(
    params: &ShortParams,
    cta: &Cta,
    shared: &Shared<K, MT>,
) {
    unsafe {
        let warp = warp();
        let [k, v] = [&params.k, &params.v].map(|tensor| Rows::new::<E>(tensor, cta.batch, cta.head_kv));
        let count = params.attention.seqlen_kv;
        // All that is needed first is on its way before anything is waited for.
        let [first_k, first_v] = [&k, &v].map(|rows| Tokens::new::<E, K, MT>(rows, count, warp));
        offset::ranges::<E, K, MT>(&k, count, shared, warp);
        values::magnitudes::<E, K, MT>(first_v, shared);
        bar_sync();
        offset::tables::<E, K, MT>(shared);
        bar_sync();
        keys::quantize::<E, K, MT>(first_k, shared);
        bar_sync();
        blocks::scales::<K, MT>(&params.attention, count, shared, warp);
        bar_sync();
        values::pack::<E, K, MT>(&v, count, shared, warp);
    }
}
