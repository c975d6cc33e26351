//! The consumers: the loop of the paper on what the producers have brought.

use super::baton::Baton;
use super::load::tile_m;
use super::ring::{Rings, Turn};
use super::work::{Item, Work};
use super::{Heads, epilogue, output, scores};
use crate::attention::exchange::Exchange;
use crate::attention::mask::Mask;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::{Args, KEY_STEPS, Place, Softmax};
use crate::config::hopper::{self, WARPGROUP_ROWS, q_bytes};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::ld_shared_f32;
use crate::ptx::special::{first_lane, tid_x};
use crate::ptx::wgmma::{self, Products};
use crate::smem;
use output::parts;

/// Where a consumer stands in the rings.
#[derive(Clone, Copy)]
struct Turns {
    q: Turn,
    /// Of K, V and the key factors: blocks come in step.
    kv: Turn,
}

/// A warpgroup's rows of a query tile.
struct Rows<const D: usize, const WGS: usize, const SLOTS: usize, const CAUSAL: bool> {
    rings: Rings<D, WGS, SLOTS>,
    baton: Baton<WGS>,
    /// Shared addresses of the tile's buffer and of the warpgroup's rows of Q in it.
    buffer: u32,
    q: u32,
    group: u32,
    mask: Mask<CAUSAL>,
    place: Place,
    /// Whether this lane speaks for its warp.
    speaks: bool,
}

/// All tiles of the CTA, by one warpgroup.
#[inline(always)]
pub(crate) unsafe fn run<
    S: Softmax<D, 1>,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const TURN: usize,
    const CAUSAL: bool,
>(
    args: &Args,
    heads: Heads,
    rings: &Rings<D, WGS, SLOTS>,
) {
    let mut turns = Turns { q: Turn::first(), kv: Turn::first() };
    let mut work = Work::<D, WGS, CAUSAL>::first();
    // SAFETY: all consumers come here, in whole warps.
    let baton = unsafe { Baton::new() };
    while work.left(args, heads) {
        unsafe { tile::<S, D, WGS, SLOTS, TURN, CAUSAL>(args, rings, baton, &mut turns) };
        work.advance();
    }
    unsafe { baton.finish() };
}

/// One query tile.
#[inline(always)]
unsafe fn tile<
    S: Softmax<D, 1>,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const TURN: usize,
    const CAUSAL: bool,
>(
    args: &Args,
    rings: &Rings<D, WGS, SLOTS>,
    baton: Baton<WGS>,
    turns: &mut Turns,
) {
    // SAFETY: all consumers come here, in whole warps.
    let group = unsafe { first_lane(tid_x() / 128) };
    let buffer = rings.q().address(turns.q);
    unsafe { rings.q().wait_full(turns.q) };
    let (item, unit) = unsafe { Item::read(buffer + hopper::item_offset(D, WGS) as u32) };
    let first = item.m_block * tile_m(WGS);
    let row = first + group * WARPGROUP_ROWS as u32;
    let rows = Rows {
        rings: *rings,
        baton,
        buffer,
        q: buffer + group * q_bytes(D) as u32,
        group,
        mask: Mask::<CAUSAL>::new(args, row, WARPGROUP_ROWS as u32),
        place: place(&item, row, tid_x()),
        speaks: tid_x() % 32 == 0,
    };
    let blocks = if row < args.seqlen_q { rows.mask.blocks } else { 0 };
    let (ring_k, ring_v) = (rings.k(), rings.v());
    unsafe {
        let scale = buffer + (hopper::q_scale_offset(D, WGS) as u32) + 4 * (rows.place.row - first + rows.place.group);
        let mut softmax = S::new(args, unit, [[ld_shared_f32(scale), ld_shared_f32(scale + 32)]]);
        let mut acc = Accumulator::<1>::zero();
        if blocks > 0 {
            ring_k.wait_full(turns.kv);
            let mut sums = scores::start::<D>(rows.q, ring_k.address(turns.kv));
            let mut index = 0;
            while index + 1 < blocks {
                rows.block::<S, TURN, true>(&mut softmax, &mut acc, &mut sums, turns, index);
                index += 1;
            }
            rows.block::<S, TURN, false>(&mut softmax, &mut acc, &mut sums, turns, index);
        }
        // The CTA's blocks are brought for all; a warpgroup computes those that its own rows see.
        let first = rows.read_item().m_block * tile_m(WGS);
        let brought = Mask::<CAUSAL>::new(args, first, tile_m(WGS)).blocks;
        let mut index = blocks;
        while index < brought {
            ring_k.wait_full(turns.kv);
            ring_k.release(turns.kv, rows.speaks);
            baton.take();
            baton.pass();
            ring_v.wait_full(turns.kv);
            ring_v.release(turns.kv, rows.speaks);
            turns.kv = ring_v.next(turns.kv);
            index += 1;
        }
        let v_scale = buffer + hopper::v_scale_offset(D, WGS) as u32;
        epilogue::store::<S, D>(args, &rows.find_place(), &softmax, &acc, v_scale);
        rings.q().release(turns.q, rows.speaks);
        turns.q = rings.q().next(turns.q);
    }
}

impl<const D: usize, const WGS: usize, const SLOTS: usize, const CAUSAL: bool> Rows<D, WGS, SLOTS, CAUSAL> {
    /// Block `index`, whose scores are on their way in `sums`. With `MORE`, those of the next block are when it returns, in the
    /// registers of P V.
    #[inline(always)]
    unsafe fn block<S: Softmax<D, 1>, const TURN: usize, const MORE: bool>(
        &self,
        softmax: &mut S,
        acc: &mut Accumulator<1>,
        sums: &mut scores::Sums,
        turns: &mut Turns,
        index: u32,
    ) {
        let (ring_k, ring_v) = (self.rings.k(), self.rings.v());
        unsafe {
            let now = turns.kv;
            // Asked long before the answer matters, where a register is left to keep it.
            let v_there = D < 128 && ring_v.test_full(now);
            // Found anew, before the wait hides it: in the loop, registers are short.
            let factors = self.rings.factors(now) + 16 * (opaque(tid_x()) % 4);
            sums.wait::<0>();
            let mut scores = scores::take::<S, D>(softmax, sums, factors);
            if index >= self.mask.full_blocks {
                self.mask.apply::<S, D, 1, 1>(&mut scores, index, &self.find_place());
            }
            let exponents = softmax.exponents(&scores, &Exchange::<1, 1>::new(0, &self.place));
            ring_k.release(now, self.speaks);
            let next = ring_k.next(now);
            let k_there = MORE && ring_k.test_full(next);
            self.baton.take();
            ring_v.wait_full_unless(v_there, now);
            let (p, mut o) = self.products::<S, TURN>(softmax, &scores, &exponents, ring_v.address(now));
            let row = softmax.weigh(exponents, &p, acc, D / 8);
            unroll!(0..parts(D), |part| {
                if part + 1 == parts(D) {
                    o[part].wait::<0>();
                    ring_v.release(now, self.speaks);
                } else {
                    o[part].wait::<1>();
                }
                output::add::<S, D>(acc, &o[part], part, &row);
            });
            if MORE {
                ring_k.wait_full_unless(k_there, next);
                *sums = scores::start::<D>(self.q, ring_k.address(next));
            }
            turns.kv = next;
        }
    }

    /// P of a block, and its products with the V block at shared address `v`. The first part's start as P comes.
    #[inline(always)]
    unsafe fn products<S: Softmax<D, 1>, const TURN: usize>(
        &self,
        softmax: &mut S,
        scores: &S::Scores,
        exponents: &S::Exponents,
        v: u32,
    ) -> (Probabilities<1>, [output::Sums; 2]) {
        let mut p = [[[0; 4]; KEY_STEPS]; 1];
        let mut o = [output::NONE; 2];
        unsafe {
            unroll!(0..KEY_STEPS, |step| {
                p[0][step] = softmax.step(scores, exponents, step)[0];
                output::step::<D>(&mut o[0], &mut p, step, v, 0);
                if step == TURN {
                    self.baton.pass();
                }
            });
            wgmma::commit_group();
            if parts(D) > 1 {
                unroll!(0..KEY_STEPS, |step| {
                    output::step::<D>(&mut o[1], &mut p, step, v, 1);
                });
                wgmma::commit_group();
            }
        }
        (p, o)
    }

    #[inline(always)]
    fn read_item(&self) -> Item {
        // SAFETY: the buffer is full.
        unsafe { Item::read(self.buffer + hopper::item_offset(D, WGS) as u32).0 }
    }

    /// The place of this lane, found anew where it is seldom needed: registers are what the loop is short of.
    #[inline(always)]
    fn find_place(&self) -> Place {
        let item = self.read_item();
        place(&item, item.m_block * tile_m(WGS) + self.group * WARPGROUP_ROWS as u32, opaque(tid_x()))
    }
}

/// The place of a lane: its warp has 16 of the warpgroup's rows.
#[inline(always)]
fn place(item: &Item, row: u32, thread: u32) -> Place {
    let (lane, warp) = (thread % 32, thread / 32 % 4);
    Place {
        group: lane / 4,
        quad: lane % 4,
        row: row + 16 * warp,
        thread,
        shared: smem::base(),
        member: 0,
        head: item.head.into(),
        batch: item.batch,
        head_q: item.head_q,
        head_kv: item.head_kv.into(),
    }
}
