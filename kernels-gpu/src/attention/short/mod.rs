//! Short K and V: quantization and attention in one launch, from the caller's tensors to the output.
//!
//! A CTA makes the codes of a head of K and V in its shared memory, where all of them fit, by the rules and the roundings of
//! `crate::quantize`. From then on its warps go their own ways, each through some of the tiles of query rows of the heads that share
//! this head of K and V: no barrier, no copies, nothing left for another launch.
//!
//! ```text
//! offset::ranges           least and largest of each channel of the first tokens of K  |
//! offset::tables           what is taken out of K                                      | K's team, a barrier
//! keys::quantize           codes and scales of K                                       | between
//! blocks::keys             each block's scale, and with it the factor of each key      |
//!
//! values::magnitudes       the largest magnitude of each token of V                    |
//! blocks::values           each block's scale, or each key's                           | V's team, likewise
//! values::pack             codes of V                                                  |
//!
//! queries                  the codes of a tile of Q, which has come meanwhile          |
//! attend::attend           the tile against all blocks that it sees                    | a warp
//! epilogue::store          the output and the log-sum-exp                              |
//! ```
//!
//! What lies behind the last key is not worked on: K and V end with a whole panel of 32 keys, and a block is gone through panel by
//! panel. All else is as in `super::sm80`, block by block of the same 128 keys, so that a row's numbers are the same, narrow blocks aside: none are here.
//!
//! # Safety
//! As `super::sm80`, and of `crate::quantize`. The compiler does not know that a shuffle must stay one instruction for the whole warp:
//! what a branch around one depends on comes from [`first_lane`] or the kernel's parameters.

mod attend;
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
use crate::config::short::team_warps;
use crate::division::div_rem;
use crate::element::{Bf16, F16, F32, Rows};
use crate::params::{ShortParams, dtype};
use crate::ptx::barrier::{bar_sync, bar_sync_some, warp_sync};
use crate::ptx::opaque::{opaque, rolled};
use crate::ptx::shuffle::first_lane;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, ntid_x, tid_x};
use crate::quantize::arithmetic::Rotated;
use crate::seqlens;
use queries::TileRows;
use shared::Shared;
use tokens::Tokens;

/// A row of the table `short_rows`; `MT` is its `m16_tiles`.
pub(crate) trait Kernel<const MT: usize> {
    const HEAD_DIM: usize;
    /// Query rows that a warp has at a time.
    const TILE_M: u32 = 16 * MT as u32;
}

/// The head of K and V of a sequence that a CTA works on, and which share of its query rows.
#[derive(Clone, Copy)]
pub(crate) struct Cta {
    pub batch: u32,
    pub head_kv: u32,
    pub part: u32,
    pub first_q: u32,
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
}

impl Cta {
    /// That of the calling one, and where the sequence's keys are.
    #[inline(always)]
    fn new(params: &ShortParams) -> (Self, seqlens::Tokens) {
        // Neighbours of the first dimension are worked on at a time.
        let (mut head_kv, mut batch, part) = (ctaid_x(), ctaid_y(), ctaid_z());
        if params.sequences_first != 0 {
            (head_kv, batch) = (batch, head_kv);
        }
        let params = &params.attention;
        let seqlens = &params.seqlens;
        // SAFETY: the grid has as many as there are sequences. All lanes say the same, and the compiler is to know.
        let (q, kv) = unsafe {
            let q = seqlens.q(batch, params.seqlen_q);
            let kv = seqlens.kv(batch, params.seqlen_kv);
            let kv = seqlens::Tokens { first: first_lane(kv.first), len: first_lane(kv.len), ..kv };
            (seqlens::Tokens { first: first_lane(q.first), len: first_lane(q.len), ..q }, kv)
        };
        (Self { batch, head_kv, part, first_q: q.first, seqlen_q: q.len, seqlen_kv: kv.len }, kv)
    }

    /// A head of Q; blocks of K and V are not in global memory.
    #[inline(always)]
    pub(crate) fn sequence(&self, head_q: u32) -> Sequence {
        let &Self { batch, first_q, seqlen_q, seqlen_kv, .. } = self;
        Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv: 0, first_block: 0 }
    }

    /// Tiles of a head of Q.
    #[inline(always)]
    fn tiles_of_head<K: Kernel<MT>, const MT: usize>(&self) -> u32 {
        self.seqlen_q.div_ceil(K::TILE_M)
    }

    /// Tile number `index` of the head's, for the calling warp.
    ///
    /// # Safety
    /// There are tiles.
    #[inline(always)]
    unsafe fn tile<'a, K: Kernel<MT>, const MT: usize>(
        &self,
        params: &'a ShortParams,
        shared: Shared<K, MT>,
        index: u32,
    ) -> TileRows<'a, K, MT> {
        let (of_head, mut at) = (self.tiles_of_head::<K, MT>(), (0, index));
        if index >= of_head {
            // SAFETY: the caller's promise.
            at = unsafe { div_rem(opaque(index), of_head) };
        }
        let (of_group, tile) = at;
        let sequence = self.sequence(self.head_kv * params.attention.group + of_group);
        TileRows { params, shared, sequence, row: tile * K::TILE_M, warp: warp() }
    }
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

/// The warps that quantize K, or V ([`team_warps`]).
#[derive(Clone, Copy)]
pub(crate) struct Team {
    first: u32,
    /// Warps.
    pub size: u32,
    /// The calling warp.
    warp: u32,
}

impl Team {
    #[inline(always)]
    fn is_in(self) -> bool {
        self.member() < self.size
    }

    /// The number of the calling warp.
    #[inline(always)]
    pub(crate) fn member(self) -> u32 {
        self.warp.wrapping_sub(self.first)
    }

    /// # Safety
    /// The team calls it, with a number that no other team has.
    #[inline(always)]
    unsafe fn sync(self, barrier: u32) {
        unsafe { bar_sync_some(barrier, 32 * self.size) }
    }
}

/// One CTA of the kernel.
#[inline(always)]
pub(crate) unsafe fn attention<K: Kernel<MT>, const MT: usize>(params: &ShortParams) {
    unsafe {
        let (cta, kv) = Cta::new(params);
        let tiles = params.attention.group * cta.tiles_of_head::<K, MT>();
        let first = cta.part * warps();
        // A sequence of a pack may be short, or have no queries.
        if first >= tiles {
            return;
        }
        let shared = Shared::<K, MT>::new(cta.seqlen_kv);
        let mut index = first + warp();
        if index < tiles {
            request(&cta.tile(params, shared, index));
        }
        shared.note(&cta);
        if kv.len == 0 {
            shared.clear_head();
        } else {
            match params.dtype {
                dtype::F16 => quantize::<F16, K, MT>(params, &cta, &kv, &shared),
                dtype::BF16 => quantize::<Bf16, K, MT>(params, &cta, &kv, &shared),
                _ => quantize::<F32, K, MT>(params, &cta, &kv, &shared),
            }
        }
        bar_sync();
        // What tells a tile is made anew for each: the loop over its blocks has no registers for it.
        while index < tiles {
            rolled();
            let Cta { seqlen_q, seqlen_kv, .. } = shared.cta();
            let (seqlen_q, seqlen_kv) = (first_lane(seqlen_q), first_lane(seqlen_kv));
            let tile = Cta { seqlen_q, seqlen_kv, ..shared.cta() }.tile(params, shared, index);
            match params.dtype {
                dtype::F16 => tile.quantize::<F16>(),
                dtype::BF16 => tile.quantize::<Bf16>(),
                _ => tile.quantize::<F32>(),
            }
            index += params.parts * warps();
            attend::attend(&tile);
            // Where the next tile arrives scores have been read.
            warp_sync();
            if index < tiles {
                request(&shared.cta().tile(params, shared, opaque(index)));
            }
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
unsafe fn quantize<E: Rotated, K: Kernel<MT>, const MT: usize>(
    params: &ShortParams,
    cta: &Cta,
    kv: &seqlens::Tokens,
    shared: &Shared<K, MT>,
) {
    unsafe {
        let (warp, warps) = (warp(), warps());
        let (size, count) = (team_warps(warps), kv.len);
        let rows = |tensor| Rows::new::<E>(tensor, kv.batch, cta.head_kv).skip(kv.first);
        let of_k = Team { first: 0, size, warp };
        if of_k.is_in() {
            let k = rows(&params.k);
            // All that is needed first is on its way before anything is waited for.
            let tokens = Tokens::new::<E, K, MT>(&k, count, of_k);
            offset::ranges::<E, K, MT>(&k, count, shared, of_k);
            of_k.sync(1);
            offset::tables::<E, K, MT>(shared, of_k);
            of_k.sync(1);
            keys::quantize::<E, K, MT>(tokens, shared);
            of_k.sync(1);
            blocks::keys::<K, MT>(&params.attention, shared, of_k);
        }
        let of_v = Team { first: warps - size, size, warp };
        if of_v.is_in() {
            let v = rows(&params.v);
            let tokens = Tokens::new::<E, K, MT>(&v, count, of_v);
            values::magnitudes::<E, K, MT>(tokens, shared);
            of_v.sync(2);
            blocks::values::<K, MT>(count, shared, of_v);
            of_v.sync(2);
            values::pack::<E, K, MT>(&v, count, shared, of_v);
        }
    }
}
