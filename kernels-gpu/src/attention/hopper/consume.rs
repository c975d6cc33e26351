//! The consumers: the loop of the paper on what the producers have brought.

use super::load::tile_m;
use super::ring::{Rings, Turn};
use super::work::{Item, Work};
use super::{Heads, epilogue, output, scores};
use crate::attention::exchange::Exchange;
use crate::attention::mask::Mask;
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::{Args, KEY_TILES, Place, Softmax};
use crate::config::hopper::{self, WARPGROUP_ROWS, q_bytes};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::ld_shared_f32;
use crate::ptx::special::{first_lane, tid_x};
use crate::ptx::wgmma::Products;
use crate::smem;

/// Where a consumer stands in the rings.
#[derive(Clone, Copy)]
struct Turns {
    q: Turn,
    k: Turn,
    v: Turn,
}

/// All tiles of the CTA, by one warpgroup. `K` and `V` are the sums of a part of a block's keys and of a part of the dims; where a
/// block's scores are made `AHEAD`, `V` is all of them.
#[inline(always)]
pub(crate) unsafe fn run<
    S: Softmax<D, 1>,
    K: Products,
    V: Products,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const AHEAD: bool,
    const CAUSAL: bool,
>(
    args: &Args,
    heads: Heads,
    rings: &Rings<D, WGS, SLOTS>,
) {
    let mut turns = Turns { q: Turn::first(), k: Turn::first(), v: Turn::first() };
    let mut work = Work::<D, WGS, CAUSAL>::first();
    while work.left(args, heads) {
        unsafe { tile::<S, K, V, D, WGS, SLOTS, AHEAD, CAUSAL>(args, rings, &mut turns) };
        work.advance();
    }
}

/// One query tile.
#[inline(always)]
unsafe fn tile<
    S: Softmax<D, 1>,
    K: Products,
    V: Products,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const AHEAD: bool,
    const CAUSAL: bool,
>(
    args: &Args,
    rings: &Rings<D, WGS, SLOTS>,
    turns: &mut Turns,
) {
    // SAFETY: all consumers come here, in whole warps.
    let group = unsafe { first_lane(tid_x() / 128) };
    let buffer = rings.q().address(turns.q);
    let read_item = || unsafe { Item::read(buffer + hopper::item_offset(D, WGS) as u32) };
    unsafe { rings.q().wait_full(turns.q) };
    let (item, unit) = read_item();
    let first = item.m_block * tile_m(WGS);
    let row = first + group * WARPGROUP_ROWS as u32;
    let place = place(&item, row, tid_x());
    // Found anew where it is seldom needed: registers are what the loop is short of.
    let find_place = || {
        let item = read_item().0;
        self::place(&item, item.m_block * tile_m(WGS) + group * WARPGROUP_ROWS as u32, opaque(tid_x()))
    };
    let mask = Mask::<CAUSAL>::new(args, row, WARPGROUP_ROWS as u32);
    let blocks = if row < args.seqlen_q { mask.blocks } else { 0 };
    let speaks = tid_x() % 32 == 0;
    let (ring_k, ring_v) = (rings.k(), rings.v());
    unsafe {
        let scale = buffer + (hopper::q_scale_offset(D, WGS) as u32) + 4 * (place.row - first + place.group);
        let mut softmax = S::new(args, unit, [[ld_shared_f32(scale), ld_shared_f32(scale + 32)]]);
        let mut acc = Accumulator::<1>::zero();
        let q = buffer + group * q_bytes(D) as u32;
        if AHEAD && blocks > 0 {
            let scores = scores_of::<S, K, D, WGS, SLOTS>(&softmax, q, rings, &mut turns.k, speaks);
            let (mut p, mut exponents) =
                probabilities::<S, D, CAUSAL>(&mut softmax, scores, &mask, 0, &place, find_place);
            let mut block = 1;
            while block < blocks {
                // P V of the block before, and the scores of this one, at the same time.
                ring_v.wait_full(turns.v);
                let v = ring_v.address(turns.v);
                let mut o = output::start::<S, V, D>(&p, v, 0);
                ring_k.wait_full(turns.k);
                let sums = scores::start::<K, D>(q, ring_k.address(turns.k), 0);
                let row = softmax.weigh(exponents, &p, &mut acc, D / 8);
                o.wait::<1>();
                ring_v.release(&mut turns.v, speaks);
                output::add::<S, V, D>(&mut acc, &o, 0, &row);
                let scores = take_all::<S, K, D>(&softmax, sums, q, ring_k.address(turns.k), rings.factors(turns.k));
                ring_k.release(&mut turns.k, speaks);
                (p, exponents) = probabilities::<S, D, CAUSAL>(&mut softmax, scores, &mask, block, &place, find_place);
                block += 1;
            }
            update::<S, V, D, WGS, SLOTS>(&mut softmax, &mut acc, &p, exponents, rings, &mut turns.v, speaks);
        } else {
            let mut block = 0;
            while block < blocks {
                let scores = scores_of::<S, K, D, WGS, SLOTS>(&softmax, q, rings, &mut turns.k, speaks);
                let (p, exponents) =
                    probabilities::<S, D, CAUSAL>(&mut softmax, scores, &mask, block, &place, find_place);
                update::<S, V, D, WGS, SLOTS>(&mut softmax, &mut acc, &p, exponents, rings, &mut turns.v, speaks);
                block += 1;
            }
        }
        // The CTA's blocks are brought for all; a warpgroup computes those that its own rows see.
        let first = read_item().0.m_block * tile_m(WGS);
        let brought = Mask::<CAUSAL>::new(args, first, tile_m(WGS)).blocks;
        let mut block = blocks;
        while block < brought {
            ring_k.wait_full(turns.k);
            ring_k.release(&mut turns.k, speaks);
            ring_v.wait_full(turns.v);
            ring_v.release(&mut turns.v, speaks);
            block += 1;
        }
        let v_scale = buffer + hopper::v_scale_offset(D, WGS) as u32;
        epilogue::store::<S, D>(args, &find_place(), &softmax, &acc, v_scale);
        rings.q().release(&mut turns.q, speaks);
    }
}

/// The scores of the next block.
#[inline(always)]
unsafe fn scores_of<S: Softmax<D, 1>, K: Products, const D: usize, const WGS: usize, const SLOTS: usize>(
    softmax: &S,
    q: u32,
    rings: &Rings<D, WGS, SLOTS>,
    turn: &mut Turn,
    speaks: bool,
) -> S::Scores {
    unsafe {
        rings.k().wait_full(*turn);
        let k = rings.k().address(*turn);
        let sums = scores::start::<K, D>(q, k, 0);
        let scores = take_all::<S, K, D>(softmax, sums, q, k, rings.factors(*turn));
        rings.k().release(turn, speaks);
        scores
    }
}

/// The scores of a block of which the first part has been started: a part is taken over while the next is on its way.
#[inline(always)]
unsafe fn take_all<S: Softmax<D, 1>, K: Products, const D: usize>(
    softmax: &S,
    mut sums: K,
    q: u32,
    k: u32,
    factors: u32,
) -> S::Scores {
    let mut scores = S::empty();
    // Found anew, before the wait hides it: in the loop, registers are short.
    let factors = factors + 16 * (opaque(tid_x()) % 4);
    unsafe {
        unroll!(1..KEY_TILES / K::TILES, |part| {
            let next = scores::start::<K, D>(q, k, part);
            sums.wait::<1>();
            scores::take::<S, K, D>(softmax, &mut scores, &sums, part - 1, factors);
            sums = next;
        });
        sums.wait::<0>();
        scores::take::<S, K, D>(softmax, &mut scores, &sums, KEY_TILES / K::TILES - 1, factors);
    }
    scores
}

/// Adds P times the next block of V to the output.
#[inline(always)]
unsafe fn update<S: Softmax<D, 1>, V: Products, const D: usize, const WGS: usize, const SLOTS: usize>(
    softmax: &mut S,
    acc: &mut Accumulator<1>,
    p: &Probabilities<1>,
    exponents: S::Exponents,
    rings: &Rings<D, WGS, SLOTS>,
    turn: &mut Turn,
    speaks: bool,
) {
    unsafe {
        rings.v().wait_full(*turn);
        let v = rings.v().address(*turn);
        let mut sums = output::start::<S, V, D>(p, v, 0);
        let row = softmax.weigh(exponents, p, acc, D / 8);
        unroll!(1..D / 8 / V::TILES, |part| {
            let next = output::start::<S, V, D>(p, v, part);
            sums.wait::<1>();
            output::add::<S, V, D>(acc, &sums, part - 1, &row);
            sums = next;
        });
        sums.wait::<0>();
        rings.v().release(turn, speaks);
        output::add::<S, V, D>(acc, &sums, D / 8 / V::TILES - 1, &row);
    }
}

/// P of a block, from its scores.
#[inline(always)]
unsafe fn probabilities<S: Softmax<D, 1>, const D: usize, const CAUSAL: bool>(
    softmax: &mut S,
    mut scores: S::Scores,
    mask: &Mask<CAUSAL>,
    block: u32,
    place: &Place,
    find_place: impl Fn() -> Place,
) -> (Probabilities<1>, S::Exponents) {
    if block >= mask.full_blocks {
        mask.apply::<S, D, 1, 1>(&mut scores, block, &find_place());
    }
    unsafe { softmax.probabilities(scores, &Exchange::<1, 1>::new(0, place)) }
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
