//! The forward pass on `mma.sync` and `cp.async`: compute capability 8.0 and newer.
//!
//! One CTA owns `16 * MT * WARPS / TEAM` query rows of one head; a team of `TEAM` warps shares `16 * MT` of them. A warp makes
//! the scores and P of its part of a block's keys and the output of its part of the dims: 32 rows use each fragment of K and V
//! twice, and a team keeps their output in registers where one warp could not. A block of a head of more than 256 dims comes in
//! pieces of so many dims. Per block of 128 keys:
//!
//! ```text
//! pipeline.next            K block lands in shared memory, the next one is requested
//! scores::block            S = Q K^T                int8 tensor cores
//! Front::take              S                        straight to the softmax's working unit, or to 16 bits where the block is narrow
//! ScoreMod::apply          S changes                in kernels of the general kind: softcap, ALiBi, bias, mask
//! mask                     S = -inf                 where the window ends in the block
//! Front::exponents, step   m, P                     the team's maximum, exponentials, P to bytes in registers
//! pipeline.next            V block lands, and the team's P
//! softmax.add_block        w, l                     the block's weight and row sum
//! output::update           O += w * (P V)           int8 tensor cores, float sums
//! ```

#[cfg(kernels = "sm80")]
mod entry;
mod epilogue;
mod front;
mod mask;
mod numbers;
mod output;
mod pipeline;
mod place;
mod scores;
mod shared_vars;
mod special;
mod team;

use super::output::{Accumulator, Probabilities};
use super::score_mod::ScoreMod;
use super::sequence::{Cursor, Sequence, is_paged};
use super::softmax::{BlockScales, CodeSums, Softmax, warp_reach, warp_scales};
use super::window::Window;
use super::{KEY_STEPS, KEY_TILES};
use crate::config::sm80::{MAX_WARPS, parked_bytes, pieces, team_offset, vars_offset};
use crate::layout::{KV_BLOCK, NARROW_ROWS, V_GROUP};
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::max_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, tid_x};
use front::{Block, Front, Wide};
use mask::{mask, scored};
use numbers::Numbers;
use pipeline::{Of, Pipeline};
use place::{Place, notes, place};
use scores::{KeyFactors, Query};
use shared_vars::SharedVars;
use special::{block_scales, blocks_of, fetch_scales, narrow_unit, shrink};
use team::SharingTeam;

/// A row of the table `sm80_rows`; `MT` is its `m16_tiles`.
pub(crate) trait Kernel<const MT: usize>: Sized {
    type Softmax: Softmax<MT>;
    type ScoreMod: ScoreMod<<Self::Softmax as Softmax<MT>>::Scores>;
    /// How it takes narrow blocks: as all others where it does not take them as such.
    type Narrow: Front<Self, MT>;
    const HEAD_DIM: usize;
    /// Of V and of the output, no larger.
    const HEAD_DIM_V: usize;
    const WARPS: usize;
    const SLOTS: usize;
    const TEAM: usize;
    /// Pieces that a block of K comes in, and one of V.
    const PIECES: usize = pieces(Self::HEAD_DIM);
    /// Query rows of a CTA.
    const TILE_M: u32 = (16 * MT * Self::WARPS / Self::TEAM) as u32;
    /// n8 tiles of a block's keys that a warp has.
    const KEY_TILES: usize = KEY_TILES / Self::TEAM;
    /// k steps of a block's P that a warp has.
    const KEY_STEPS: usize = KEY_STEPS / Self::TEAM;
    /// Whether narrow blocks have a step of their own.
    const NARROW: bool = Self::Narrow::NARROW;
    /// Whether special blocks have. Teams were measured to be slower with it; two steps of the general kind would be much code.
    const APART: bool = Self::TEAM == 1 && <Self::Softmax as Softmax<MT>>::LOUD;
    /// Whether a block's scales are loaded a block ahead, as it then has to be known what it is.
    const AHEAD: bool = Self::APART || Self::NARROW;
    /// Whether Q is loaded anew for each block: else it would be in registers while scores change, and the output be spilled. Of longer heads the
    /// loads were measured to be slower than what is spilled (docs/kernel-log/sm80.md, S79).
    const Q_ANEW: bool = Self::ScoreMod::CHANGES && Self::HEAD_DIM <= 64;
    /// Whether Q is in shared memory, and loaded from there for each block: its registers are those that products need among exponentials.
    const Q_PARKED: bool = parked_bytes(Self::HEAD_DIM, MT, Self::WARPS, Self::TEAM) > 0;
}

/// Most pairs of n8 tiles in flight.
pub(crate) const MAX_PAIRS: usize = 2;

/// Pairs of n8 tiles whose products are in flight together: four independent sums hide the latency of the tensor cores.
pub(crate) const fn pairs(mt: usize) -> usize {
    if mt == 1 { MAX_PAIRS } else { 1 }
}

/// One CTA of the attention kernel.
#[inline(always)]
pub(crate) unsafe fn attention<K: Kernel<MT>, const MT: usize>(params: &AttentionParams) {
    // A thread brings the scale of its own key of a block, where it has one.
    const { assert!(32 * K::WARPS >= KV_BLOCK && K::WARPS <= MAX_WARPS && K::HEAD_DIM_V <= K::HEAD_DIM) }
    // A warp stores whole groups of dims of each piece.
    const { assert!(K::HEAD_DIM_V.is_multiple_of(K::PIECES * K::TEAM * V_GROUP)) }
    const { assert!(!K::NARROW || K::TILE_M.is_multiple_of(NARROW_ROWS as u32)) }
    unsafe {
        // The longest rows first, so that the last CTAs of the grid are the short ones.
        let index = if Window::of(params).grows() { nctaid_x() - 1 - ctaid_x() } else { ctaid_x() };
        let (mut batch, mut m_block) = (ctaid_z(), index);
        if params.seqlens.packed_q != 0 {
            (batch, m_block) = params.seqlens.of_query_tile(params.batch, params.seqlen_q, K::TILE_M, index);
        }
        let row = m_block * K::TILE_M;
        let place = place::<K, MT>(row, Sequence::new(params, batch, ctaid_y()), tid_x());
        if row >= place.sequence.seqlen_q {
            return;
        }
        let window = place.sequence.window(params);
        let vars = SharedVars::new(place.shared + vars_offset(K::HEAD_DIM, K::SLOTS) as u32);
        let blocks = window.blocks(row, K::TILE_M);

        let common_factor = K::Softmax::common_factor(params, K::HEAD_DIM);
        let q_scales = scores::query_scales(params, &place);
        let mut reach = 0.0;
        if K::Softmax::LOUD {
            unroll!(0..MT, |mt| {
                reach = max_f32(reach, warp_reach(params, K::HEAD_DIM, q_scales[mt]));
            });
        }
        let q_biases = || scores::query_biases(params, &place);
        let mut softmax = K::Softmax::new(params, q_scales, q_biases, || notes::<K, MT>(place.thread));
        let (mut block, mut more) = (blocks.first, blocks.first != blocks.end);
        let factors = KeyFactors::<K, MT>::new(&place);
        let team = SharingTeam::<K, MT>::new(team_offset(K::HEAD_DIM, K::SLOTS), &place);
        let mut query = if K::Q_ANEW { Query::NONE } else { Query::<MT>::load(params, K::HEAD_DIM, &place) };
        if K::Q_PARKED {
            query.park::<K>();
            query = Query::NONE;
        }
        let mut pipeline = Pipeline::<K, MT>::new(params, &place, &blocks);
        let mut acc = Accumulator::<MT>::zero();

        vars.store(place.thread == 0, row, &place.sequence, common_factor, &blocks);
        vars.store_reach(place.thread / 32, reach);
        if K::NARROW {
            let first = place.thread.is_multiple_of(32 * K::TEAM as u32);
            let team = team_of::<K, MT>(place.thread);
            vars.store_rows(first, team, warp_scales(scores::scales_of_rows(&place, q_scales)));
        }
        let mut numbers = Numbers::new(params, &place, &vars, &blocks);
        let first_number = || Cursor::new(params, &place.sequence, block, true).number(params, || place.sequence);
        let first = factors.fetch(params, first_number, more);
        let mut scales = [0.0; 2];
        if K::AHEAD {
            scales = fetch_scales(params, &place.sequence, block, more);
            vars.store_unit(place.thread == 0, ld_global_nc_f32(place.sequence.v_unit(params)));
            vars.store_scales(place.thread == 0, block, scales);
        }
        let shrink = shrink::<K, MT>(params, || place.sequence, block, more, scales);
        factors.publish(block, first, common_factor * shrink);
        if K::NARROW {
            let whole = if is_paged(params) { place.sequence.seqlen_kv / KV_BLOCK as u32 } else { u32::MAX };
            vars.store_whole(place.thread == 0, whole);
            vars.store_share(block, first, scales[0], whole);
        }
        // For the variables in shared memory: there may be no block, and so no other barrier before the end.
        bar_sync();
        let mut kind = kind::<K, MT>(params, &vars, block, scales);
        while more {
            // Opaque, and the last block from shared memory: else the end of the blocks would be in a register across the loop.
            let next = opaque(block + 1);
            more = block != vars.last_block();
            let mut state = State {
                numbers: &mut numbers,
                factors: &factors,
                pipeline: &mut pipeline,
                softmax: &mut softmax,
                acc: &mut acc,
            };
            // Bodies of their own, where that was measured to be faster: branches within would keep a body's loads and exponentials from
            // overlapping.
            kind = if K::NARROW && kind.narrow {
                step::<K, K::Narrow, MT>(params, block, more, &place, &vars, &query, &team, &mut state, false)
            } else if K::APART && kind.special {
                step::<K, Wide, MT>(params, block, more, &place, &vars, &query, &team, &mut state, true)
            } else {
                let special = !K::APART && kind.special;
                step::<K, Wide, MT>(params, block, more, &place, &vars, &query, &team, &mut state, special)
            };
            block = next;
        }
        pipeline.drain();
        let place = place::place::<K, MT>(vars.row(), vars.sequence(), opaque(tid_x()));
        epilogue::store::<K, MT>(params, &place, &softmax, &acc);
    }
}

/// The team of a thread.
#[inline(always)]
fn team_of<K: Kernel<MT>, const MT: usize>(thread: u32) -> u32 {
    thread / (32 * K::TEAM as u32)
}

/// What a block is, where that is known ahead: narrow, or special for some row of the warp, or neither.
#[derive(Clone, Copy)]
struct BlockKind {
    narrow: bool,
    special: bool,
}

/// What the block with these scales is, behind the barrier that makes visible whether its keys share theirs.
#[inline(always)]
unsafe fn kind<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    vars: &SharedVars,
    block: u32,
    scales: [f32; 2],
) -> BlockKind {
    let mut kind = BlockKind { narrow: false, special: false };
    unsafe {
        if K::NARROW {
            let team = team_of::<K, MT>(opaque(tid_x()));
            let unit = narrow_unit::<K, MT>(params, scales[0]);
            kind.narrow = match NARROW_ROWS / (16 * MT) {
                2 => vars.is_narrow::<2>(block, team, unit, scales[1]),
                _ => vars.is_narrow::<4>(block, team, unit, scales[1]),
            };
        }
        if K::AHEAD && !kind.narrow {
            kind.special = K::Softmax::is_special(&vars.scales_with(scales));
        }
    }
    kind
}

/// What a block moves on.
struct State<'a, K: Kernel<MT>, const MT: usize> {
    numbers: &'a mut Numbers,
    factors: &'a KeyFactors<K, MT>,
    pipeline: &'a mut Pipeline<K, MT>,
    softmax: &'a mut K::Softmax,
    acc: &'a mut Accumulator<MT>,
}

/// One block of keys, `special` for some row of the warp or for none; `more` says whether there are more of them. What the next one is.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn step<K: Kernel<MT>, F: Front<K, MT>, const MT: usize>(
    params: &AttentionParams,
    block: u32,
    more: bool,
    place: &Place,
    vars: &SharedVars,
    query: &Query<MT>,
    team: &SharingTeam<K, MT>,
    state: &mut State<K, MT>,
    special: bool,
) -> BlockKind {
    let State { numbers, factors, pipeline, softmax, acc } = state;
    unsafe {
        // Long before they are needed: the products hide the loads.
        let next_scale = factors.fetch(params, || vars.number(block + 1), more);
        numbers.advance(params, vars, block);
        let sequence = blocks_of(place, vars);
        let (mut next_scales, mut scales) = ([0.0; 2], BlockScales { k: 0.0, v: 1.0, reach: 0.0 });
        if K::AHEAD {
            next_scales = fetch_scales(params, &sequence, block + 1, more);
        } else {
            scales = block_scales::<K, MT>(params, &sequence, vars, block);
        }
        let mut query = *query;
        if K::Q_ANEW {
            // In front of the barrier, which hides the loads.
            let place = place::place::<K, MT>(vars.row(), vars.sequence(), opaque(tid_x()));
            query = Query::load(params, K::HEAD_DIM, &place);
        }
        if K::Q_PARKED {
            query = Query::parked::<K>();
        }
        let this = Block { params, place, vars, factors, team, index: block, scales };
        let mut next_k = |piece| pipeline.next(params, vars, block, Of::K(piece));
        let mut s = K::Softmax::empty();
        if K::PIECES == 1 {
            let k = next_k(0);
            scores::block::<K, MT>(&query, k, place, |pair, sums| F::take(&this, softmax, &mut s, pair, sums));
        } else {
            s = scores::block_of_pieces(&query, next_k, factors, softmax, block, place);
        }
        K::ScoreMod::apply(&mut s, || scored::<K, MT>(params, block, vars));
        let [full_from, full_to] = vars.full();
        // One branch for most blocks.
        if (block >= full_to) | (block < full_from) {
            if block >= full_to {
                mask::<K, MT, false>(params, block, vars, |mt, half, keys| F::hide_from(&mut s, mt, half, keys));
            }
            if block < full_from {
                mask::<K, MT, true>(params, block, vars, |mt, half, keys| F::hide_before(&mut s, mt, half, keys));
            }
        }
        let special = if K::AHEAD { special } else { K::Softmax::SPECIAL && K::Softmax::is_special(&scales) };
        let scales = || if K::AHEAD { vars.scales(block) } else { scales };
        let tiles = K::HEAD_DIM_V / 8 / K::TEAM;
        let next;
        if F::NARROW && K::TEAM == 1 {
            // Step by step: sums of P V that are all in registers, so that P is not. It was measured to be faster.
            vars.store_share(block + 1, next_scale, next_scales[0], vars.whole());
            vars.store_scales(opaque(tid_x()) == 0, block + 1, next_scales);
            let exponents = F::exponents(&this, softmax, &mut s, special);
            let v = pipeline.next(params, vars, block, Of::V(0));
            let (mut sums, mut codes) = (output::no_sums(), [CodeSums::ZERO; MT]);
            unroll!(0..K::KEY_STEPS, |step| {
                let p = F::step(softmax, &s, &exponents, step);
                output::multiply::<K, MT>(&mut sums, &p, step, v);
                unroll!(0..MT, |mt| {
                    codes[mt].add(p[mt]);
                });
            });
            let mut of_rows = [[0.0; 2]; MT];
            unroll!(0..MT, |mt| {
                of_rows[mt] = codes[mt].get();
            });
            let row = F::add_codes(softmax, &exponents, of_rows, acc, tiles, scales);
            next = kind::<K, MT>(params, vars, block + 1, next_scales);
            let shrink = shrink::<K, MT>(params, || blocks_of(place, vars), block + 1, more, next_scales);
            factors.publish(block + 1, next_scale, vars.common_factor() * shrink);
            output::add::<K, MT>(acc, &sums, &row);
        } else {
            let exponents = F::exponents(&this, softmax, &mut s, special);
            let mut p: Probabilities<MT> = [[[0; 4]; KEY_STEPS]; MT];
            unroll!(0..K::KEY_STEPS, |step| {
                let codes = F::step(softmax, &s, &exponents, step);
                unroll!(0..MT, |mt| {
                    p[mt][step] = codes[mt];
                });
                team.share(&p, step);
            });
            // Before the wait, which hides the load.
            let common_factor = vars.common_factor();
            if K::NARROW {
                vars.store_share(block + 1, next_scale, next_scales[0], vars.whole());
            }
            let v = pipeline.next(params, vars, block, Of::V(0));
            if K::AHEAD {
                vars.store_scales(opaque(tid_x()) == 0, block + 1, next_scales);
            }
            team.collect(&mut p);
            let notes = || notes::<K, MT>(opaque(tid_x()));
            let row =
                softmax.add_block::<SharingTeam<K, MT>>(F::of_rows(&exponents), &p, acc, tiles, special, scales, notes);
            next = kind::<K, MT>(params, vars, block + 1, next_scales);
            let shrink = shrink::<K, MT>(params, || blocks_of(place, vars), block + 1, more, next_scales);
            factors.publish(block + 1, next_scale, common_factor * shrink);
            output::update::<K, MT>(acc, &p, v, 0, place.member, &row);
            unroll!(1..K::PIECES, |piece| {
                let v = pipeline.next(params, vars, block, Of::V(piece));
                output::update::<K, MT>(acc, &p, v, piece, place.member, &row);
            });
        }
        next
    }
}
