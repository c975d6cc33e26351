//! The forward pass on `mma.sync` and `cp.async`: compute capability 8.0 and newer.
//!
//! One CTA owns `16 * MT * WARPS / TEAM` query rows of one head; a team of `TEAM` warps shares `16 * MT` of them. A warp makes
//! the scores and P of its part of a block's keys and the output of its part of the dims: 32 rows use each fragment of K and V
//! twice, and a team keeps their output in registers where one warp could not. A block of a head of more than 256 dims comes in
//! pieces of so many dims. Per block of 128 keys:
//!
//! ```text
//! pipeline.next            K block lands in shared memory, the next one is requested
//! scores::block            S = Q K^T                int8 tensor cores, straight to the softmax's working unit
//! ScoreMod::apply          S changes                in kernels of the general kind: softcap, ALiBi, bias, mask
//! mask                     S = -inf                 where the window ends in the block
//! softmax.exponents, step  m, P                     the team's maximum, exponentials, P to bytes in registers
//! pipeline.next            V block lands, and the team's P
//! softmax.add_block        w, l                     the block's weight and row sum
//! output::update           O += w * (P V)           int8 tensor cores, float sums
//! ```

#[cfg(kernels = "sm80")]
mod entry;
mod epilogue;
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
use super::sequence::{Cursor, Sequence};
use super::softmax::{BlockScales, Softmax, warp_reach};
use super::window::Window;
use super::{KEY_STEPS, KEY_TILES};
use crate::config::sm80::{MAX_WARPS, pieces, team_offset, vars_offset};
use crate::layout::{KV_BLOCK, V_GROUP};
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::max_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, tid_x};
use core::marker::PhantomData;
use mask::{mask, scored};
use numbers::Numbers;
use pipeline::{Of, Pipeline};
use place::{Place, notes, place};
use scores::{KeyFactors, Query};
use shared_vars::SharedVars;
use special::{Special, block_scales, blocks_of, fetch_scales, shrink};
use team::SharingTeam;

/// A row of the table `sm80_rows`; `MT` is its `m16_tiles`.
pub(crate) trait Kernel<const MT: usize> {
    type Softmax: Softmax<MT>;
    type ScoreMod: ScoreMod<<Self::Softmax as Softmax<MT>>::Scores>;
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
    /// Whether a block's scales are loaded a block ahead, so that a special block has a step of its own. Teams were measured to be slower with
    /// it; two steps of the general kind would be much code.
    const AHEAD: bool = Self::TEAM == 1 && <Self::Softmax as Softmax<MT>>::LOUD;
    /// Whether Q is loaded anew for each block: else it would be in registers while scores change, and the output be spilled. Of longer heads the
    /// loads were measured to be slower than what is spilled (docs/kernel-log/sm80.md, S79).
    const Q_ANEW: bool = Self::ScoreMod::CHANGES && Self::HEAD_DIM <= 64;
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
        let query = if K::Q_ANEW { Query::NONE } else { Query::<MT>::load(params, K::HEAD_DIM, &place) };
        let mut pipeline = Pipeline::<K, MT>::new(params, &place, &blocks);
        let mut acc = Accumulator::<MT>::zero();

        vars.store(place.thread == 0, row, &place.sequence, common_factor, &blocks);
        vars.store_reach(place.thread / 32, reach);
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
        // For the variables in shared memory: there may be no block, and so no other barrier before the end.
        bar_sync();
        let mut special = K::AHEAD && K::Softmax::is_special(&vars.scales_with(scales));
        while more {
            // Opaque: else the end of the blocks and the one before it would be in registers across the loop.
            let next = opaque(block + 1);
            more = next != blocks.end;
            let mut state = State {
                numbers: &mut numbers,
                factors: &factors,
                pipeline: &mut pipeline,
                softmax: &mut softmax,
                acc: &mut acc,
            };
            special = if K::AHEAD && special {
                step::<K, MT>(params, block, more, &place, &vars, &query, &team, &mut state, true)
            } else {
                // A body of its own, where that was measured to be faster: branches within would keep its loads and exponentials from
                // overlapping.
                step::<K, MT>(params, block, more, &place, &vars, &query, &team, &mut state, false)
            };
            block = next;
        }
        pipeline.drain();
        let place = place::place::<K, MT>(vars.row(), vars.sequence(), opaque(tid_x()));
        epilogue::store::<K, MT>(params, &place, &softmax, &acc);
    }
}

/// What a block moves on.
struct State<'a, K: Kernel<MT>, const MT: usize> {
    numbers: &'a mut Numbers,
    factors: &'a KeyFactors<K, MT>,
    pipeline: &'a mut Pipeline<K, MT>,
    softmax: &'a mut K::Softmax,
    acc: &'a mut Accumulator<MT>,
}

/// One block of keys, `special` for some row of the warp or for none; `more` says whether there are more of them. Whether the next one is
/// special.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn step<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    block: u32,
    more: bool,
    place: &Place,
    vars: &SharedVars,
    query: &Query<MT>,
    team: &SharingTeam<K, MT>,
    state: &mut State<K, MT>,
    special: bool,
) -> bool {
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
        let next_k = |piece| pipeline.next(params, vars, block, Of::K(piece));
        let mut s = scores::block(&query, next_k, factors, softmax, block, place);
        K::ScoreMod::apply(&mut s, || scored::<K, MT>(params, block, vars));
        let [full_from, full_to] = vars.full();
        if block >= full_to {
            mask::<K, MT, false>(params, &mut s, block, vars);
        }
        if block < full_from {
            mask::<K, MT, true>(params, &mut s, block, vars);
        }
        let mut row_scales = K::Softmax::row_scales(|| notes::<K, MT>(opaque(tid_x())));
        let special = if K::AHEAD { special } else { K::Softmax::SPECIAL && K::Softmax::is_special(&scales) };
        if special {
            K::Softmax::special(
                &mut s,
                &mut row_scales,
                team,
                &Special::<K, MT> { params, block, scales, vars, kernel: PhantomData },
            );
        }
        let exponents = softmax.exponents(&s, row_scales, team);
        if special {
            K::Softmax::note_exponents(&exponents, || notes::<K, MT>(opaque(tid_x())));
        }
        let mut p: Probabilities<MT> = [[[0; 4]; KEY_STEPS]; MT];
        unroll!(0..K::KEY_STEPS, |step| {
            let codes = softmax.step(&s, &exponents, step);
            unroll!(0..MT, |mt| {
                p[mt][step] = codes[mt];
            });
            team.share(&p, step);
        });
        // Before the wait, which hides the load.
        let common_factor = vars.common_factor();
        let v = pipeline.next(params, vars, block, Of::V(0));
        let shrink = shrink::<K, MT>(params, || blocks_of(place, vars), block + 1, more, next_scales);
        factors.publish(block + 1, next_scale, common_factor * shrink);
        let mut next_special = false;
        if K::AHEAD {
            vars.store_scales(opaque(tid_x()) == 0, block + 1, next_scales);
            next_special = K::Softmax::is_special(&vars.scales_with(next_scales));
        }
        team.collect(&mut p);
        let notes = || notes::<K, MT>(opaque(tid_x()));
        let tiles = K::HEAD_DIM_V / 8 / K::TEAM;
        let scales = || if K::AHEAD { vars.scales(block) } else { scales };
        let row = softmax.add_block::<SharingTeam<K, MT>>(
            K::Softmax::of_rows(&exponents),
            &p,
            acc,
            tiles,
            special,
            scales,
            notes,
        );
        output::update::<K, MT>(acc, &p, v, 0, place.member, &row);
        unroll!(1..K::PIECES, |piece| {
            let v = pipeline.next(params, vars, block, Of::V(piece));
            output::update::<K, MT>(acc, &p, v, piece, place.member, &row);
        });
        next_special
    }
}
