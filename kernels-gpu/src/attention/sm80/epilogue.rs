//! The rows of a warp to global memory.

use super::Kernel;
use super::place::Place;
use crate::attention::epilogue::{self, Finished, NEIGHBOURS, OutputRows, TILES, has_dim, store_neighbours};
use crate::attention::output::Accumulator;
use crate::attention::softmax::Softmax;
use crate::element::Element;
use crate::layout::V_GROUP;
use crate::params::AttentionParams;
use core::marker::PhantomData;

/// The rows of a warp.
struct Warp<'a, K, const MT: usize> {
    params: &'a AttentionParams,
    place: &'a Place,
    acc: &'a Accumulator<MT>,
    finished: [[Finished; 2]; MT],
    kernel: PhantomData<K>,
}

#[inline(always)]
pub(crate) unsafe fn store<K: Kernel<MT>, const MT: usize>(
    params: &AttentionParams,
    place: &Place,
    softmax: &K::Softmax,
    acc: &Accumulator<MT>,
) {
    let unit = unsafe { K::Softmax::output_unit(params, &place.sequence) };
    let mut finished = [[Finished::UNSEEN; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = place.lane.query(mt, half);
            let sink = unsafe { K::Softmax::sink_exponent(params, &place.sequence, row) };
            // The shuffles inside need the whole warp.
            let notes = || super::place::notes::<K, MT>(place.thread);
            finished[mt][half] = unsafe { softmax.finish(mt, half, unit, sink, notes) };
            if row < place.sequence.seqlen_q && place.lane.quad == 0 && place.member == 0 {
                unsafe { K::Softmax::store_lse(params, &place.sequence, row, &finished[mt][half]) };
            }
        });
    });
    unsafe { epilogue::store(params, &Warp::<K, MT> { params, place, acc, finished, kernel: PhantomData }) };
}

/// First of the lane's dims.
#[inline(always)]
fn first_dim<K: Kernel<MT>, const MT: usize>(place: &Place) -> usize {
    place.member as usize * (K::HEAD_DIM_V / K::PIECES / K::TEAM) + NEIGHBOURS * place.lane.quad as usize
}

/// How far behind it those of its group number `group` are: of each piece the warp has as many groups.
const fn further<K: Kernel<MT>, const MT: usize>(group: usize) -> usize {
    let of_piece = K::HEAD_DIM_V / K::PIECES / K::TEAM / V_GROUP;
    group / of_piece * (K::HEAD_DIM_V / K::PIECES) + group % of_piece * V_GROUP
}

impl<K: Kernel<MT>, const MT: usize> OutputRows for Warp<'_, K, MT> {
    #[inline(always)]
    unsafe fn store<E: Element, const WHOLE: bool>(&self) {
        let first_dim = first_dim::<K, MT>(self.place);
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let (row, finished) = (self.place.lane.query(mt, half), &self.finished[mt][half]);
                let first = self.place.sequence.o::<E>(self.params, row, first_dim);
                unroll!(0..K::HEAD_DIM_V / V_GROUP / K::TEAM, |group| {
                    let mut sums = [0.0; NEIGHBOURS];
                    unroll!(0..NEIGHBOURS, |i| {
                        sums[i] = self.acc.o[mt][TILES * group + i / 2][2 * half + i % 2];
                    });
                    let o = finished.output(sums);
                    let further = further::<K, MT>(group);
                    let address = first.wrapping_add(further * E::BYTES);
                    let inside = row < self.place.sequence.seqlen_q && has_dim(self.params, first_dim + further);
                    unsafe { store_neighbours::<E, WHOLE>(inside, address, &o, finished.seen) };
                });
            });
        });
    }
}
