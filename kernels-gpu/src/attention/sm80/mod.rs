//! The forward pass on `mma.sync` and `cp.async`: compute capability 8.0 and newer.
//!
//! One CTA owns `16 * MT * WARPS / TEAM` query rows of one head; a team of `TEAM` warps shares `16 * MT` of them. A warp makes
//! the scores and P of its part of a block's keys and the output of its part of the dims: 32 rows use each fragment of K and V
//! twice, and a team keeps their output in registers where one warp could not. Per block of 128 keys:
//!
//! ```text
//! pipeline.next_k          K block lands in shared memory, the next one is requested
//! scores::block            S = Q K^T                int8 tensor cores, straight to the softmax's working unit
//! ScoreMod::apply          S changes                in kernels of the general kind: softcap, ALiBi, bias, mask
//! mask                     S = -inf                 where the window ends in the block
//! softmax.exponents, step  m, P                     the team's maximum, exponentials, P to bytes in registers
//! pipeline.next_v          V block lands, and the team's P
//! softmax.add_block        w, l                     the block's weight and row sum
//! output::update           O += w * (P V)           int8 tensor cores, float sums
//! ```

#[cfg(kernels = "sm80")]
mod entry;
mod epilogue;
mod numbers;
mod output;
mod pipeline;
mod scores;
mod shared_vars;
mod team;

use super::lane::Lane;
use super::output::{Accumulator, Probabilities};
use super::score_mod::{ScoreMod, Scored};
use super::sequence::{Cursor, Sequence, at};
use super::softmax::{BlockScales, Notes, Softmax, SpecialBlock, value_weight, warp_reach};
use super::window::Window;
use super::{KEY_STEPS, KEY_TILES};
use crate::config::sm80::{
    MAX_WARPS, MAXIMA_BYTES, notes_offset, scratch_offset, sums_offset, team_bytes, team_offset, vars_offset,
};
use crate::config::{NOTE_BYTES, SCRATCH_BYTES};
use crate::layout::KV_BLOCK;
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::max_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, tid_x};
use crate::smem;
use core::marker::PhantomData;
use numbers::Numbers;
use pipeline::Pipeline;
use scores::{KeyFactors, Query};
use shared_vars::SharedVars;
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
    /// Query rows of a CTA.
    const TILE_M: u32 = (16 * MT * Self::WARPS / Self::TEAM) as u32;
    /// n8 tiles of a block's keys that a warp has.
    const KEY_TILES: usize = KEY_TILES / Self::TEAM;
    /// k steps of a block's P that a warp has.
    const KEY_STEPS: usize = KEY_STEPS / Self::TEAM;
    /// Whether a block's scales are loaded a block ahead, so that a special block has a step of its own. Teams were measured to be slower with
    /// it; two steps of the general kind would be much code.
    const AHEAD: bool = Self::TEAM == 1 && <Self::Softmax as Softmax<MT>>::LOUD;
    /// Whether Q is loaded anew for each block: else it would be in registers while scores change, and the output be spilled.
    const Q_ANEW: bool = Self::ScoreMod::CHANGES;
}

/// Most pairs of n8 tiles in flight.
pub(crate) const MAX_PAIRS: usize = 2;

/// Pairs of n8 tiles whose products are in flight together: four independent sums hide the latency of the tensor cores.
pub(crate) const fn pairs(mt: usize) -> usize {
    if mt == 1 { MAX_PAIRS } else { 1 }
}

/// Where a lane is: in its warp's fragments, in its team, and which head it works on.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub lane: Lane,
    /// `tid.x`.
    pub thread: u32,
    /// The first byte of shared memory.
    pub shared: u32,
    /// Which of the team's warps this is.
    pub member: u32,
    pub sequence: Sequence,
}

/// One CTA of the attention kernel.
#[inline(always)]
pub(crate) unsafe fn attention<K: Kernel<MT>, const MT: usize>(params: &AttentionParams) {
    // A thread brings the scale of its own key of a block, where it has one.
    const { assert!(32 * K::WARPS >= KV_BLOCK && K::WARPS <= MAX_WARPS && K::HEAD_DIM_V <= K::HEAD_DIM) }
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
        let place = self::place::<K, MT>(vars.row(), vars.sequence(), opaque(tid_x()));
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
            let place = self::place::<K, MT>(vars.row(), vars.sequence(), opaque(tid_x()));
            query = Query::load(params, K::HEAD_DIM, &place);
        }
        let k = pipeline.next_k(params, vars, block);
        let mut s = scores::block(&query, k, factors, softmax, block, place);
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
        let v = pipeline.next_v(params, vars, block);
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
        output::update::<K, MT>(acc, &p, v, place.member, &row);
        next_special
    }
}

/// Which scores of a block a lane has, worked out anew: in registers it would be across the loop.
#[inline(always)]
fn scored<'a, K: Kernel<MT>, const MT: usize>(
    params: &'a AttentionParams,
    block: u32,
    vars: &SharedVars,
) -> Scored<'a> {
    // SAFETY: in the loop.
    let (row, sequence) = unsafe { (vars.row(), vars.sequence()) };
    let (lane, member) = lane::<K, MT>(row, opaque(tid_x()));
    let first_key = opaque(block) * KV_BLOCK as u32 + member * (8 * K::KEY_TILES) as u32 + 2 * lane.quad;
    Scored { params, sequence, lane, first_key, tiles: K::KEY_TILES }
}

/// Hides the scores of a block that lie before (`LEFT`) or behind the window of their row.
#[inline(always)]
unsafe fn mask<K: Kernel<MT>, const MT: usize, const LEFT: bool>(
    params: &AttentionParams,
    scores: &mut <K::Softmax as Softmax<MT>>::Scores,
    block: u32,
    vars: &SharedVars,
) {
    // Opaque, and the row from shared memory: what only this needs would be in registers across the loop.
    let (lane, member) = unsafe { lane::<K, MT>(vars.row(), opaque(tid_x())) };
    let window = Window::of_lengths(params, unsafe { vars.lengths() }).anew();
    let block = opaque(block);
    let first = (member * (8 * K::KEY_TILES) as u32 + 2 * lane.quad) as i32;
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = lane.query(mt, half);
            if LEFT {
                K::Softmax::hide_before(scores, mt, half, window.first_in_block(row, block) - first, K::KEY_TILES);
            } else {
                K::Softmax::hide_from(scores, mt, half, window.end_in_block(row, block) - first, K::KEY_TILES);
            }
        });
    });
}

/// The sequence as it is for the addresses of its blocks, where that begins from shared memory: it would be in registers across the loop.
#[inline(always)]
unsafe fn blocks_of(place: &Place, vars: &SharedVars) -> Sequence {
    let [first_block, index_kv] = unsafe { vars.first_block() };
    Sequence { first_block, index_kv, ..place.sequence }
}

/// The scales of a block of K and of V, if there is such a block; else zeros, which are not special.
#[inline(always)]
unsafe fn fetch_scales(params: &AttentionParams, sequence: &Sequence, block: u32, is: bool) -> [f32; 2] {
    let mut scales = [0.0; 2];
    if is {
        scales = unsafe {
            [
                ld_global_nc_f32(sequence.k_block_scale(params, block)),
                ld_global_nc_f32(sequence.v_block_scale(params, block)),
            ]
        };
    }
    scales
}

/// The scales of a block, in the unit of the head's values, and the reach of the warp's rows.
#[inline(always)]
unsafe fn block_scales<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    sequence: &Sequence,
    vars: &SharedVars,
    block: u32,
) -> BlockScales {
    if !K::Softmax::SPECIAL {
        return BlockScales { k: 0.0, v: 1.0, reach: 0.0 };
    }
    let (mut k, mut reach) = (0.0, 0.0);
    if K::Softmax::LOUD {
        k = unsafe { ld_global_nc_f32(sequence.k_block_scale(params, block)) };
    }
    let [v, unit] =
        unsafe { [ld_global_nc_f32(sequence.v_block_scale(params, block)), ld_global_nc_f32(sequence.v_unit(params))] };
    if K::Softmax::LOUD {
        reach = unsafe { vars.reach(opaque(tid_x()) / 32) };
    }
    BlockScales { k, v: value_weight(v, unit), reach }
}

/// What the factors of a block's keys are multiplied with, if there is such a block. Its scales are given where they are loaded ahead.
#[inline(always)]
unsafe fn shrink<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    sequence: impl Fn() -> Sequence,
    block: u32,
    is: bool,
    [k, _]: [f32; 2],
) -> f32 {
    let mut shrink = 1.0;
    if K::AHEAD {
        shrink = K::Softmax::shrink(params, K::HEAD_DIM, k);
    } else if K::Softmax::LOUD && is {
        let k = unsafe { ld_global_nc_f32(sequence().k_block_scale(params, block)) };
        shrink = K::Softmax::shrink(params, K::HEAD_DIM, k);
    }
    shrink
}

/// What a special block needs, worked out anew where it is rare.
struct Special<'a, K, const MT: usize> {
    params: &'a AttentionParams,
    block: u32,
    /// Where they are not in shared memory.
    scales: BlockScales,
    vars: &'a SharedVars,
    kernel: PhantomData<K>,
}

impl<K: Kernel<MT>, const MT: usize> Special<'_, K, MT> {
    #[inline(always)]
    fn place(&self) -> Place {
        // SAFETY: in the loop.
        let (row, sequence) = unsafe { (self.vars.row(), self.vars.sequence()) };
        place::<K, MT>(row, sequence, opaque(tid_x()))
    }
}

impl<K: Kernel<MT>, const MT: usize> SpecialBlock for Special<'_, K, MT> {
    #[inline(always)]
    fn params(&self) -> &AttentionParams {
        self.params
    }

    #[inline(always)]
    fn head_dim(&self) -> usize {
        K::HEAD_DIM
    }

    #[inline(always)]
    unsafe fn scales(&self) -> BlockScales {
        if K::AHEAD { unsafe { self.vars.scales(self.block) } } else { self.scales }
    }

    #[inline(always)]
    unsafe fn q_scale(&self, mt: usize, half: usize) -> f32 {
        let place = self.place();
        let row = place.lane.query(mt, half);
        let mut scale = 1.0;
        if row < place.sequence.seqlen_q {
            scale = unsafe { ld_global_nc_f32(place.sequence.q_scale(self.params, row)) };
        }
        scale
    }

    #[inline(always)]
    unsafe fn has_keys(&self) -> bool {
        let mut k = unsafe { self.scales() }.k;
        if !K::Softmax::LOUD {
            let sequence = unsafe { self.vars.sequence() };
            k = unsafe { ld_global_nc_f32(sequence.k_block_scale(self.params, opaque(self.block))) };
        }
        k >= 0.0
    }

    #[inline(always)]
    fn keys(&self, mt: usize, half: usize) -> [i32; 2] {
        // SAFETY: in the loop.
        let window = Window::of_lengths(self.params, unsafe { self.vars.lengths() }).anew();
        let (lane, block) = (self.place().lane, opaque(self.block));
        let row = lane.query(mt, half);
        let first = 2 * lane.quad as i32;
        [window.first_in_block(row, block) - first, window.end_in_block(row, block) - first]
    }

    #[inline(always)]
    fn first_own(&self) -> i32 {
        (self.place().member as usize * 8 * K::KEY_TILES) as i32
    }

    #[inline(always)]
    fn v_scale(&self) -> impl Fn(i32) -> f32 {
        // SAFETY: in the loop; and one of the block's keys.
        let number = unsafe { self.vars.number(self.block) };
        let first = at(self.params.v_scale, number, self.params.blocks.scale_bytes);
        let first = first.wrapping_add(2 * self.place().lane.quad as usize);
        move |key| unsafe { ld_global_nc_f32(first.wrapping_add(key as usize)) }
    }

    #[inline(always)]
    unsafe fn v_unit(&self) -> f32 {
        unsafe { ld_global_nc_f32(self.place().sequence.v_unit(self.params)) }
    }

    #[inline(always)]
    fn notes(&self) -> Notes {
        notes::<K, MT>(opaque(tid_x()))
    }
}

/// Where the warp of a thread keeps its notes, from the row of the thread's quad on.
#[inline(always)]
fn notes<K: Kernel<MT>, const MT: usize>(thread: u32) -> Notes {
    let base = smem::base();
    let offset = notes_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32;
    let (warp, bytes) = (thread / 32, (16 * MT * NOTE_BYTES) as u32);
    let (team, member) = (warp / K::TEAM as u32, warp % K::TEAM as u32);
    let first = base + offset + thread % 32 / 4 * NOTE_BYTES as u32;
    let scratch = if K::TEAM == 1 {
        scratch_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32 + warp * SCRATCH_BYTES as u32
    } else {
        let of_team = team_offset(K::HEAD_DIM, K::SLOTS) as u32 + team * team_bytes(MT, K::TEAM) as u32;
        of_team + (K::TEAM * MAXIMA_BYTES) as u32 + member * (SCRATCH_BYTES / K::TEAM) as u32
    };
    Notes {
        own: first + warp * bytes,
        first: first + team * K::TEAM as u32 * bytes,
        bytes,
        scratch: base + scratch + 4 * (thread % 32),
        sums: base + sums_offset(K::HEAD_DIM, K::SLOTS, MT, K::WARPS, K::TEAM) as u32 + (16 * MT) as u32 * thread,
    }
}

/// The lane of a thread of the CTA whose tile begins at `row`, and which of its team's warps it is in.
#[inline(always)]
fn lane<K: Kernel<MT>, const MT: usize>(row: u32, thread: u32) -> (Lane, u32) {
    let (team, team_rows) = (K::TEAM as u32, (16 * MT) as u32);
    let warp = thread / 32;
    (Lane::new(thread, row + warp / team * team_rows), warp % team)
}

/// The place of thread `thread` of the CTA with these rows of a sequence.
#[inline(always)]
fn place<K: Kernel<MT>, const MT: usize>(row: u32, sequence: Sequence, thread: u32) -> Place {
    let thread = if K::TEAM > 1 { opaque(thread) } else { thread };
    let (lane, member) = lane::<K, MT>(row, thread);
    Place { lane, thread, shared: smem::base(), member, sequence }
}
