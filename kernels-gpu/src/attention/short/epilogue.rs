//! The rows of a warp to global memory.

use super::Kernel;
use super::tile::{Scheme, Tile};
use crate::attention::epilogue::{self, Finished, NEIGHBOURS, OutputRows, TILES, store_lse_of, store_neighbours};
use crate::attention::output::Accumulator;
use crate::attention::softmax::Softmax;
use crate::element::Element;
use crate::layout::V_GROUP;
use crate::ptx::shared::ld_shared_f32;

/// The rows of a warp.
struct Warp<'a, K, const MT: usize> {
    tile: &'a Tile<'a, K, MT>,
    acc: &'a Accumulator<MT>,
    finished: [[Finished; 2]; MT],
}

#[inline(always)]
pub(crate) unsafe fn store<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    softmax: &Scheme<MT>,
    acc: &Accumulator<MT>,
) {
    let (params, lane, sequence) = (tile.params, tile.lane(), unsafe { tile.sequence() });
    let unit = unsafe { ld_shared_f32(tile.shared.unit()) };
    let mut finished = [[Finished::UNSEEN; 2]; MT];
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            finished[mt][half] = unsafe { softmax.finish(mt, half, unit, f32::NEG_INFINITY, || tile.notes()) };
            let row = lane.query(mt, half);
            if row < sequence.seqlen_q && lane.quad == 0 && !params.lse.is_null() {
                unsafe {
                    let bias = tile.of_row(true, mt, half);
                    store_lse_of(params, &sequence, row, finished[mt][half].lse, bias);
                }
            }
        });
    });
    unsafe { epilogue::store(params, &Warp { tile, acc, finished }) };
}

impl<K: Kernel<MT>, const MT: usize> OutputRows for Warp<'_, K, MT> {
    #[inline(always)]
    unsafe fn store<E: Element, const WHOLE: bool>(&self) {
        let (params, lane, sequence) = (self.tile.params, self.tile.lane(), unsafe { self.tile.sequence() });
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let (row, finished) = (lane.query(mt, half), &self.finished[mt][half]);
                let first = sequence.o::<E>(params, row, NEIGHBOURS * lane.quad as usize);
                unroll!(0..K::HEAD_DIM / V_GROUP, |group| {
                    let mut sums = [0.0; NEIGHBOURS];
                    unroll!(0..NEIGHBOURS, |i| {
                        sums[i] = self.acc.o[mt][TILES * group + i / 2][2 * half + i % 2];
                    });
                    let o = finished.output(sums);
                    let address = first.wrapping_add(V_GROUP * group * E::BYTES);
                    unsafe { store_neighbours::<E, WHOLE>(row < sequence.seqlen_q, address, &o, finished.seen) };
                });
            });
        });
    }
}
