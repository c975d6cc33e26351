//! The consumers: the loop of the paper on what the producers have brought.

use super::front::{Block, Either, Front, Narrow, Wide};
use super::producers::brought;
use super::ring::{RingState, Rings};
use super::scheduler_barrier::SchedulerBarrier;
use super::tile_order::{QueryTile, TileOrder};
use super::{Kernel, epilogue, output, scores};
use crate::attention::KEY_STEPS;
use crate::attention::lane::Lane;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::at;
use crate::attention::softmax::{Alone, BlockScales, Notes, Softmax, SpecialBlock, warp_reach, warp_scales};
use crate::attention::window::Blocks;
use crate::config::sm90a::{self, WARPGROUP_ROWS, q_bytes};
use crate::config::{NOTE_BYTES, SCRATCH_BYTES};
use crate::layout::{NARROW_LEAST, NARROW_MOST};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::global::ld_global_nc_f32;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_f32, ld_shared_u32, ld_shared_v2_u32, ld_shared_v4_f32, st_shared_v4_u32};
use crate::ptx::shuffle::{first_lane, vote_any};
use crate::ptx::special::tid_x;
use crate::ptx::wgmma::{self, Products};

/// Where a consumer is in the rings.
#[derive(Clone, Copy)]
struct RingStates {
    q: RingState,
    /// Of K, V and the key factors: blocks come in step.
    kv: RingState,
}

/// A warpgroup's rows of a query tile.
pub(crate) struct Rows<'a, K> {
    params: &'a AttentionParams,
    pub(super) rings: &'a Rings<K>,
    barrier: SchedulerBarrier<K>,
    /// Shared addresses of the tile's buffer and of the warpgroup's rows of Q in it.
    buffer: u32,
    q: u32,
    group: u32,
    /// Shared address of the warp's [`Rings::reach`]; uniform, so that it is ready before a block's scales are.
    reach: u32,
    /// The blocks that these rows see.
    blocks: Blocks,
    /// Whether this lane speaks for its warp at the barriers of the rings.
    elected: bool,
}

/// All tiles of the CTA, by one warpgroup.
#[inline(always)]
pub(crate) unsafe fn run<K: Kernel>(params: &AttentionParams, rings: &Rings<K>) {
    let mut states = RingStates { q: RingState::first(), kv: RingState::first() };
    let mut order = TileOrder::<K>::first(params);
    // SAFETY: all consumers come here, in whole warps.
    let barrier = unsafe { SchedulerBarrier::new() };
    while order.left(params) {
        unsafe { tile(params, rings, barrier, &mut states) };
        order.advance();
    }
    unsafe { barrier.finish() };
}

/// One query tile.
#[inline(always)]
unsafe fn tile<K: Kernel>(
    params: &AttentionParams,
    rings: &Rings<K>,
    barrier: SchedulerBarrier<K>,
    states: &mut RingStates,
) {
    // SAFETY: all consumers come here, in whole warps.
    let group = unsafe { first_lane(tid_x() / 128) };
    let buffer = rings.q().address(states.q);
    unsafe { rings.q().wait_full(states.q) };
    let tile = unsafe { QueryTile::read(buffer + sm90a::tile_offset(K::HEAD_DIM, K::WGS) as u32) };
    let elected = tid_x() % 32 == 0;
    if !tile.has_rows(K::TILE_M) {
        unsafe { rings.q().release(states.q, elected) };
        states.q = rings.q().next(states.q);
        return;
    }
    let first = tile.first_row(K::TILE_M);
    let row = first + group * WARPGROUP_ROWS as u32;
    let first_brought = brought::<K>(params, &tile).first;
    let (window, seqlen_q) = (tile.sequence.window(params), tile.sequence.seqlen_q);
    let blocks = if row < seqlen_q {
        window.blocks(row, WARPGROUP_ROWS as u32)
    } else {
        // Rows past the end: all that is brought is for others.
        Blocks { first: first_brought, full_from: 0, full_to: 0, end: first_brought }
    };
    let steps = if K::TRIMMED && blocks.first < blocks.end {
        let end = row + WARPGROUP_ROWS as u32;
        // Later rows see no fewer keys on the right.
        let last = if end < seqlen_q { end } else { seqlen_q } - 1;
        (window.end_in_block(last, blocks.end - 1) as u32).div_ceil(32)
    } else {
        KEY_STEPS as u32
    };
    // SAFETY: all consumers come here, in whole warps.
    let reach = rings.reach(unsafe { first_lane(tid_x() / 32) });
    let rows = Rows {
        params,
        rings,
        barrier,
        buffer,
        reach,
        q: buffer + group * q_bytes(K::HEAD_DIM) as u32,
        group,
        blocks,
        elected,
    };
    let ring_k = rings.k();
    unsafe {
        let lane = lane(row, tid_x());
        let q_scales = rows.q_scales(lane, first);
        if K::Softmax::SPECIAL {
            // Of all rows of the warpgroup: its warps issue `wgmma` together, and so take a block's branches together. In shared memory:
            // registers are what the loop is short of.
            let of_two_rows = rows.q_scales_of_two_rows(tid_x() % 32);
            let (reach, [least, most]) = (warp_reach(params, K::HEAD_DIM, of_two_rows), warp_scales(of_two_rows));
            let [reach, least, most] = [reach, least, most].map(f32::to_bits);
            st_shared_v4_u32(true, rows.reach, [reach, least, most, steps]);
            warp_sync();
        }
        let mut softmax = K::Softmax::new(params, q_scales, || [[0.0; 2]], || rows.notes());
        let mut acc = Accumulator::<1>::zero();
        rows.skip(states, blocks.first - first_brought);
        if blocks.first < blocks.end {
            ring_k.wait_full(states.kv);
            let mut sums = scores::start::<K>(rows.q, ring_k.address(states.kv));
            let mut index = blocks.first;
            while index + 1 < blocks.end {
                rows.block::<true>(&mut softmax, &mut acc, &mut sums, states, index);
                index += 1;
            }
            rows.block::<false>(&mut softmax, &mut acc, &mut sums, states, index);
        }
        rows.skip(states, brought::<K>(params, &rows.read_tile()).end - blocks.end);
        let sequence = rows.read_tile().sequence;
        let unit = K::Softmax::output_unit(params, &sequence);
        epilogue::store::<K>(params, &sequence, rows.find_lane(), &softmax, &acc, unit, || rows.notes());
        rings.q().release(states.q, rows.elected);
        states.q = rings.q().next(states.q);
    }
}

impl<K: Kernel> Rows<'_, K> {
    /// Passes over blocks that are brought for rows of other warpgroups.
    #[inline(always)]
    unsafe fn skip(&self, states: &mut RingStates, blocks: u32) {
        let (ring_k, ring_v) = (self.rings.k(), self.rings.v());
        let mut left = blocks;
        while left > 0 {
            unsafe {
                ring_k.wait_full(states.kv);
                ring_k.release(states.kv, self.elected);
                self.barrier.await_turn();
                self.barrier.end_turn();
                ring_v.wait_full(states.kv);
                ring_v.release(states.kv, self.elected);
            }
            states.kv = ring_v.next(states.kv);
            left -= 1;
        }
    }

    /// Block `index`, whose scores are on their way in `sums`. With `MORE`, those of the next block are when it returns, in the
    /// registers of P V.
    #[inline(always)]
    unsafe fn block<const MORE: bool>(
        &self,
        softmax: &mut K::Softmax,
        acc: &mut Accumulator<1>,
        sums: &mut scores::Sums,
        states: &mut RingStates,
        index: u32,
    ) {
        unsafe {
            let steps = if MORE || !K::TRIMMED { KEY_STEPS as u32 } else { self.last_steps() };
            // The scales came with K.
            let narrow = K::Softmax::NARROW && self.is_narrow(states.kv);
            if K::APART && narrow {
                let block = Block { now: states.kv, index, narrow: true, special: false, steps };
                self.add::<Narrow, MORE>(softmax, acc, sums, states, block);
                return;
            }
            let special = K::Softmax::SPECIAL && !narrow && K::Softmax::is_special(&self.scales(states.kv));
            let block = |special| Block { now: states.kv, index, narrow, special, steps };
            if !K::APART && K::Softmax::NARROW {
                self.add::<Either, MORE>(softmax, acc, sums, states, block(special));
            } else if special {
                self.add::<Wide, MORE>(softmax, acc, sums, states, block(true));
            } else {
                self.add::<Wide, MORE>(softmax, acc, sums, states, block(false));
            }
        }
    }

    /// The steps of the last block that have keys which any of the warpgroup's rows sees.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    unsafe fn last_steps(&self) -> u32 {
        unsafe { first_lane(ld_shared_u32(self.reach + 12)) }
    }

    /// Whether a block is narrow for the warpgroup's rows.
    #[inline(always)]
    unsafe fn is_narrow(&self, state: RingState) -> bool {
        unsafe {
            let [_, v, unit, _] = ld_shared_v4_f32(self.rings.block_scales(state));
            let [_, least, most, _] = ld_shared_v4_f32(self.reach);
            let within = mul_rn_f32(unit, least) >= NARROW_LEAST && mul_rn_f32(unit, most) <= NARROW_MOST;
            vote_any(within && !v.is_nan())
        }
    }

    /// [`Self::block`], which is as `block` says.
    #[inline(always)]
    unsafe fn add<F: Front<K>, const MORE: bool>(
        &self,
        softmax: &mut K::Softmax,
        acc: &mut Accumulator<1>,
        sums: &mut scores::Sums,
        states: &mut RingStates,
        block: Block,
    ) {
        let (ring_k, ring_v) = (self.rings.k(), self.rings.v());
        unsafe {
            let now = block.now;
            // Early, so that the test's latency is hidden, where there is a register in which to keep the answer until it is used.
            let v_there = K::APART && ring_v.test_full(now);
            let exponents = F::exponents(self, softmax, sums, block);
            ring_k.release(now, self.elected);
            let next = ring_k.next(now);
            let k_there = MORE && ring_k.test_full(next);
            self.barrier.await_turn();
            ring_v.wait_full_unless(v_there, now);
            let (mut p, mut o) = self.products::<F>(softmax, &exponents, ring_v.address(now), block.steps);
            let row = softmax.add_block::<Alone>(
                F::of_rows(&exponents),
                &p,
                acc,
                K::HEAD_DIM / 8,
                block.special,
                || self.scales(now),
                || self.notes(),
            );
            unroll!(0..K::PARTS, |part| {
                let sums = &mut o[part % 2];
                if part + 1 == K::PARTS {
                    sums.wait::<0>();
                    ring_v.release(now, self.elected);
                } else {
                    sums.wait::<1>();
                }
                output::add::<K>(acc, sums, part, &row);
                if part + 2 < K::PARTS {
                    output::start::<K>(sums, &mut p, block.steps, ring_v.address(now), part + 2);
                }
            });
            if MORE {
                ring_k.wait_full_unless(k_there, next);
                *sums = scores::start::<K>(self.q, ring_k.address(next));
            }
            states.kv = next;
        }
    }

    /// Whether all of the rows see all keys of a block. One branch around all masks is a jump less for most blocks; not in a body of its own, where ptxas
    /// then moves exponentials in front of the turn.
    #[inline(always)]
    pub(super) fn sees_all(&self, block: u32) -> bool {
        !K::APART && block >= self.blocks.full_from && block < self.blocks.full_to
    }

    /// Calls `hide` for each row with where its window begins (`LEFT`) or ends in a block, counted from the lane's first key, if it does there
    /// for some row.
    #[inline(always)]
    pub(super) fn mask<const LEFT: bool>(&self, block: u32, mut hide: impl FnMut(usize, i32)) {
        if if LEFT { block >= self.blocks.full_from } else { block < self.blocks.full_to } {
            return;
        }
        let (lane, window) = (self.find_lane(), self.read_tile().sequence.window(self.params));
        unroll!(0..2, |half| {
            // Opaque: where each row's window ends would be in registers across the loop.
            let row = Lane { row: opaque(lane.row), ..lane }.query(0, half);
            let key = if LEFT { window.first_in_block(row, block) } else { window.end_in_block(row, block) };
            hide(half, key - 2 * lane.quad as i32);
        });
    }

    /// P of the first `steps` steps of a block, zero behind, and its products with the first two parts of the V block at shared address `v`. The first
    /// part's start as P comes.
    #[inline(always)]
    unsafe fn products<F: Front<K>>(
        &self,
        softmax: &mut K::Softmax,
        exponents: &F::Exponents,
        v: u32,
        steps: u32,
    ) -> (Probabilities<1>, [K::Part; 2]) {
        let mut p = [[[0; 4]; KEY_STEPS]; 1];
        let mut o = [K::Part::ZERO; 2];
        unsafe {
            unroll!(0..KEY_STEPS, |step| {
                if step == 0 || (step as u32) < steps {
                    p[0][step] = F::step(softmax, exponents, step);
                    output::step::<K>(&mut o[0], &mut p, step, v, 0, || {
                        if K::EARLY && step == K::HANDOVER {
                            self.barrier.end_turn();
                        }
                    });
                }
                if !K::EARLY && step == K::HANDOVER {
                    self.barrier.end_turn();
                }
            });
            wgmma::commit_group();
            if K::PARTS > 1 {
                output::start::<K>(&mut o[1], &mut p, steps, v, 1);
            }
        }
        (p, o)
    }

    /// The scales of a block whose K has landed, and the reach of the warpgroup's rows.
    #[inline(always)]
    pub(super) unsafe fn scales(&self, state: RingState) -> BlockScales {
        if !K::Softmax::SPECIAL {
            return BlockScales { k: 0.0, v: 1.0, reach: 0.0 };
        }
        let [k, v] = unsafe { ld_shared_v2_u32(self.rings.block_scales(state)) }.map(f32::from_bits);
        BlockScales { k, v, reach: unsafe { ld_shared_f32(self.reach) } }
    }

    /// The scales of the lane's rows, in the tile whose first row is `first`.
    #[inline(always)]
    unsafe fn q_scales(&self, lane: Lane, first: u32) -> [[f32; 2]; 1] {
        let at = self.buffer + sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * (lane.query(0, 0) - first);
        unsafe { [[ld_shared_f32(at), ld_shared_f32(at + 32)]] }
    }

    /// The unit of the scores of a narrow block, without the row's scale.
    #[inline(always)]
    pub(super) unsafe fn narrow_unit(&self, state: RingState) -> f32 {
        unsafe { ld_shared_f32(self.rings.block_scales(state) + 8) }
    }

    /// The scales of the lane's two rows.
    #[inline(always)]
    pub(super) unsafe fn own_q_scales(&self) -> [f32; 2] {
        let thread = opaque(tid_x());
        let row = self.group * WARPGROUP_ROWS as u32 + 16 * (thread / 32 % 4) + thread % 32 / 4;
        let at = self.buffer + sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * row;
        unsafe { [ld_shared_f32(at), ld_shared_f32(at + 32)] }
    }

    /// The scales of the warpgroup's rows `row` and `row + 32`.
    #[inline(always)]
    unsafe fn q_scales_of_two_rows(&self, row: u32) -> [f32; 2] {
        let of_group = sm90a::q_scale_offset(K::HEAD_DIM, K::WGS) as u32 + 4 * self.group * WARPGROUP_ROWS as u32;
        let at = self.buffer + of_group + 4 * row;
        unsafe { [ld_shared_f32(at), ld_shared_f32(at + 128)] }
    }

    /// Where the warp keeps its notes: from the row of the lane's quad on.
    #[inline(always)]
    pub(super) fn notes(&self) -> Notes {
        let thread = opaque(tid_x());
        let row = 16 * (thread / 32) + thread % 32 / 4;
        let own = self.rings.notes() + row * NOTE_BYTES as u32;
        let scratch = self.rings.scratch() + thread / 32 * SCRATCH_BYTES as u32 + 4 * (thread % 32);
        Notes { own, first: own, bytes: 0, scratch, sums: self.rings.sums() + 16 * thread }
    }

    #[inline(always)]
    fn read_tile(&self) -> QueryTile {
        // SAFETY: the buffer is full.
        unsafe { QueryTile::read(self.buffer + sm90a::tile_offset(K::HEAD_DIM, K::WGS) as u32) }
    }

    /// This lane, computed anew where it is seldom needed: registers are what the loop is short of.
    #[inline(always)]
    fn find_lane(&self) -> Lane {
        let row = self.read_tile().first_row(K::TILE_M) + self.group * WARPGROUP_ROWS as u32;
        lane(row, opaque(tid_x()))
    }
}

/// What a special block needs, worked out anew where it is rare.
pub(super) struct Special<'a, K> {
    pub rows: &'a Rows<'a, K>,
    pub now: RingState,
    pub block: u32,
}

impl<K: Kernel> SpecialBlock for Special<'_, K> {
    #[inline(always)]
    fn params(&self) -> &AttentionParams {
        self.rows.params
    }

    #[inline(always)]
    fn head_dim(&self) -> usize {
        K::HEAD_DIM
    }

    #[inline(always)]
    unsafe fn scales(&self) -> BlockScales {
        unsafe { self.rows.scales(self.now) }
    }

    #[inline(always)]
    unsafe fn q_scale(&self, _: usize, half: usize) -> f32 {
        let first = self.rows.read_tile().first_row(K::TILE_M);
        unsafe { self.rows.q_scales(self.rows.find_lane(), first)[0][half] }
    }

    #[inline(always)]
    unsafe fn has_keys(&self) -> bool {
        unsafe { self.scales() }.k >= 0.0
    }

    #[inline(always)]
    fn keys(&self, mt: usize, half: usize) -> [i32; 2] {
        let window = self.rows.read_tile().sequence.window(self.rows.params).anew();
        let (lane, block) = (self.rows.find_lane(), opaque(self.block));
        let row = lane.query(mt, half);
        let first = 2 * lane.quad as i32;
        [window.first_in_block(row, block) - first, window.end_in_block(row, block) - first]
    }

    #[inline(always)]
    fn first_own(&self) -> i32 {
        0
    }

    #[inline(always)]
    fn v_scale(&self) -> impl Fn(i32) -> f32 {
        // SAFETY: K has landed, and with it the block's scales; and one of the block's keys.
        let number = unsafe { ld_shared_u32(self.rows.rings.block_scales(self.now) + 12) };
        let first = at(self.rows.params.v_scale, number, self.rows.params.blocks.scale_bytes);
        let first = first.wrapping_add(2 * self.rows.find_lane().quad as usize);
        move |key| unsafe { ld_global_nc_f32(first.wrapping_add(key as usize)) }
    }

    #[inline(always)]
    unsafe fn v_unit(&self) -> f32 {
        unsafe { ld_global_nc_f32(self.rows.read_tile().sequence.v_unit(self.rows.params)) }
    }

    #[inline(always)]
    fn notes(&self) -> Notes {
        self.rows.notes()
    }
}

/// A lane of the warpgroup whose rows begin at `row`: its warp has 16 of them.
#[inline(always)]
fn lane(row: u32, thread: u32) -> Lane {
    Lane::new(thread, row + 16 * (thread / 32 % 4))
}
