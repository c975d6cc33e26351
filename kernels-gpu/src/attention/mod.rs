//! The forward pass of INT-FlashAttention (arXiv 2409.16997, algorithm 1) on `mma.sync` (sm_80 and newer).
//!
//! One CTA owns `16 * MT * WARPS / TEAM` query rows of one head; a team of `TEAM` warps shares `16 * MT` of them. A warp makes
//! the scores and P of its part of a block's keys and the output of its part of the dims: 32 rows use each fragment of K and V
//! twice, and a team keeps their output in registers where one warp could not. Per block of 128 keys:
//!
//! ```text
//! pipeline.next_k          K block lands in shared memory, the next one is requested
//! scores::block            S = Q K^T                int8 tensor cores, straight to the softmax's working unit
//! softmax.probabilities    m, P                     the team's maximum, exponentials, P to bytes in registers
//! pipeline.next_v          V block lands, and the team's P
//! softmax.weigh            w, l                     the block's weight and row sum
//! output::update           O += w * (P V)           int8 tensor cores, float sums
//! ```

#[cfg(not(any(kernels = "hopper_d64", kernels = "hopper_d128")))]
mod entry;
mod epilogue;
mod exchange;
mod hopper;
mod mask;
mod output;
mod parked;
mod pipeline;
mod scores;
mod softmax;

use crate::config::{exchange_offset, parked_offset};
use crate::layout::KV_BLOCK;
use crate::ptx::opaque::opaque;
use crate::ptx::special::{bar_sync, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, tid_x};
use crate::smem;
use epilogue::Out;
use exchange::Exchange;
use mask::Mask;
use output::Accumulator;
use parked::{Parked, Tile};
use pipeline::Pipeline;
use scores::{KeyScales, Query};
use softmax::Softmax;

/// n8 tiles in a block of keys.
const KEY_TILES: usize = KV_BLOCK / 8;
/// k steps of P.V in a block of keys.
const KEY_STEPS: usize = KV_BLOCK / 32;

/// Most pairs of n8 tiles in flight.
const MAX_PAIRS: usize = 2;

/// Pairs of n8 tiles whose products are in flight together: four independent sums hide the latency of the tensor cores.
const fn pairs(mt: usize) -> usize {
    if mt == 1 { MAX_PAIRS } else { 1 }
}

/// What the host passes; docs/kernel-abi.md has the shapes.
#[derive(Clone, Copy)]
pub(crate) struct Args {
    pub q: *const u8,
    pub k: *const u8,
    pub v: *const u8,
    pub q_scale: *const f32,
    pub q_bias: *const f32,
    pub k_scale: *const f32,
    pub k_scale_max: *const f32,
    pub v_scale: *const f32,
    pub v_mean: *const f32,
    pub out: Out,
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
    pub group: u32,
    pub softmax_scale: f32,
}

/// The place of a lane in its warp's fragments, and of the warp in the grid.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// `lane / 4`: the row of a fragment.
    pub group: u32,
    /// `lane % 4`: the column pair of a fragment.
    pub quad: u32,
    /// First query row of the team.
    pub row: u32,
    /// `tid.x`.
    pub thread: u32,
    /// The first byte of shared memory.
    pub shared: u32,
    /// Which of the team's warps this is.
    pub member: u32,
    /// `batch * heads_q + head`.
    pub head: u64,
    /// Batch and query head.
    pub batch: u32,
    pub head_q: u32,
    /// `batch * heads_kv + head / group`.
    pub head_kv: u64,
}

/// One CTA of the attention kernel.
#[inline(always)]
pub(crate) unsafe fn attention<
    S: Softmax<D, MT>,
    const D: usize,
    const MT: usize,
    const WARPS: usize,
    const SLOTS: usize,
    const TEAM: usize,
    const CAUSAL: bool,
>(
    args: Args,
) {
    // A thread brings the scale of its own key of a block.
    const { assert!(32 * WARPS == KV_BLOCK) }
    unsafe {
        let tile_m = (16 * MT * WARPS / TEAM) as u32;
        // The longest rows first, so that the last CTAs of a causal grid are the short ones.
        let m_block = if CAUSAL { nctaid_x() - 1 - ctaid_x() } else { ctaid_x() };
        let tile = Tile { row: m_block * tile_m, head_q: ctaid_y(), batch: ctaid_z(), heads_q: nctaid_y() };
        let place = place::<MT, TEAM>(&args, &tile, tid_x());
        let parked = Parked::new(place.shared + parked_offset(D, SLOTS) as u32);
        let mask = Mask::<CAUSAL>::new(&args, tile.row, tile_m);

        let unit = S::unit(&args, place.head_kv);
        let key_unit = S::key_unit(&args, unit);
        let mut softmax = S::new(&args, unit, scores::query_scales(&args, &place));
        let mut scales = KeyScales::new(&args, &place, SLOTS * KV_BLOCK * D);
        let exchange = Exchange::<MT, TEAM>::new(exchange_offset(D, SLOTS), &place);
        let query = Query::<MT>::load::<D>(&args, &place);
        let mut pipeline = Pipeline::<D, WARPS, SLOTS>::new(&args, &place, mask.blocks);
        let mut acc = Accumulator::<MT>::zero();

        parked.store(place.thread == 0, &tile, key_unit);
        let mut block = 0;
        let first = scales.fetch(mask.blocks > 0);
        scales.publish::<S, D, MT>(0, first, key_unit);
        // For what is parked: there may be no block.
        bar_sync();
        while block < mask.blocks {
            step::<S, D, MT, WARPS, SLOTS, TEAM, CAUSAL>(
                block,
                &place,
                &mask,
                &parked,
                &query,
                &mut scales,
                &exchange,
                &mut pipeline,
                &mut softmax,
                &mut acc,
            );
            block += 1;
        }
        pipeline.drain();
        let place = self::place::<MT, TEAM>(&args, &parked.tile(), opaque(tid_x()));
        epilogue::store::<S, D, MT, TEAM>(&args, &place, &softmax, &acc);
    }
}

/// One block of keys.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn step<
    S: Softmax<D, MT>,
    const D: usize,
    const MT: usize,
    const WARPS: usize,
    const SLOTS: usize,
    const TEAM: usize,
    const CAUSAL: bool,
>(
    block: u32,
    place: &Place,
    mask: &Mask<CAUSAL>,
    parked: &Parked,
    query: &Query<MT>,
    scales: &mut KeyScales,
    exchange: &Exchange<MT, TEAM>,
    pipeline: &mut Pipeline<D, WARPS, SLOTS>,
    softmax: &mut S,
    acc: &mut Accumulator<MT>,
) {
    unsafe {
        let next_scale = scales.fetch(block + 1 < mask.blocks);
        let k = pipeline.next_k();
        let mut s = scores::block::<S, D, MT, TEAM>(query, k, scales, softmax, block, place);
        if block >= mask.full_blocks {
            mask.apply::<S, D, MT, TEAM>(&mut s, block, place);
        }
        let (mut p, exponents) = softmax.probabilities(s, exchange);
        // Before the wait, which hides the load.
        let key_unit = parked.key_unit();
        let v = pipeline.next_v();
        scales.publish::<S, D, MT>(block + 1, next_scale, key_unit);
        exchange.collect(&mut p);
        let row = softmax.weigh(exponents, &p, acc, D / 8 / TEAM);
        output::update::<S, D, MT, TEAM>(acc, &p, v, place.member, &row);
    }
}

/// The team is a parameter of the type: where it was an argument, the order of the code cost 32 bytes of spills at d=64.
#[inline(always)]
fn place<const MT: usize, const TEAM: usize>(args: &Args, tile: &Tile, thread: u32) -> Place {
    let Tile { row, head_q, batch, heads_q } = *tile;
    let (team, team_rows) = (TEAM as u32, (16 * MT) as u32);
    let thread = if team > 1 { opaque(thread) } else { thread };
    let (lane, warp) = (thread % 32, thread / 32);
    // SAFETY: the host's plan rejects a group of zero; the panic of a checked division has no place on the device.
    unsafe { core::hint::assert_unchecked(args.group != 0) };
    let head = u64::from(batch) * u64::from(heads_q) + u64::from(head_q);
    let head_kv = u64::from(batch) * u64::from(heads_q / args.group) + u64::from(head_q / args.group);
    Place {
        group: lane / 4,
        quad: lane % 4,
        row: row + warp / team * team_rows,
        thread,
        shared: smem::base(),
        member: warp % team,
        head,
        batch,
        head_q,
        head_kv,
    }
}
