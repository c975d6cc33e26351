//! The consumers: the loop of the paper on what the producers have brought.

use super::front::{Block, Either, Front, Narrow, Wide};
use super::producers::brought;
use super::ring::{RingState, Rings};
use super::rows::{Rows, lane};
use super::scheduler_barrier::SchedulerBarrier;
use super::tile_order::{QueryTile, TileOrder};
use super::{Kernel, epilogue, output, scores};
use crate::attention::KEY_STEPS;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::softmax::{Alone, Softmax, warp_reach, warp_scales};
use crate::attention::window::Blocks;
use crate::config::sm90a::{self, WARPGROUP_ROWS, q_bytes};
use crate::params::AttentionParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::shared::st_shared_v4_u32;
use crate::ptx::shuffle::first_lane;
use crate::ptx::special::tid_x;
use crate::ptx::wgmma::{self, Products};

/// Where a consumer is in the rings.
#[derive(Clone, Copy)]
struct RingStates {
    q: RingState,
    /// Of K, V and the key factors: blocks come in step.
    kv: RingState,
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
}
