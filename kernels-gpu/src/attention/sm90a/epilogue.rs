//! O = acc / l, rotated back, and the log-sum-exp.
//!
//! All warps of a CTA come here at about the same time, and nobody is left to hide what they wait for or to compute meanwhile: each
//! row's address is found once, and eight elements are one store.

use super::Kernel;
use crate::attention::epilogue::{self, Finished, NEIGHBOURS, OutputRows, TILES, has_dim, store_neighbours};
use crate::attention::lane::Lane;
use crate::attention::output::Accumulator;
use crate::attention::sequence::Sequence;
use crate::attention::softmax::{Notes, Softmax};
use crate::element::Element;
use crate::layout::V_GROUP;
use crate::params::AttentionParams;
use core::marker::PhantomData;

/// The 16 rows of a warp.
struct Warp<'a, K> {
    params: &'a AttentionParams,
    sequence: &'a Sequence,
    lane: Lane,
    acc: &'a Accumulator<1>,
    finished: [Finished; 2],
    kernel: PhantomData<K>,
}

/// Writes the 16 rows of a warp; `unit` is that of the head's values.
#[inline(always)]
pub(crate) unsafe fn store<K: Kernel>(
    params: &AttentionParams,
    sequence: &Sequence,
    lane: Lane,
    softmax: &K::Softmax,
    acc: &Accumulator<1>,
    unit: f32,
    notes: impl Fn() -> Notes,
) {
    let finished = [0, 1].map(|half| unsafe {
        let sink = K::Softmax::sink_exponent(params, sequence, lane.query(0, half));
        // The shuffles inside need the whole warp.
        softmax.finish(0, half, unit, sink, &notes)
    });
    let warp = Warp::<K> { params, sequence, lane, acc, finished, kernel: PhantomData };
    unsafe { epilogue::store(params, &warp) };
    unroll!(0..2, |half| {
        let row = lane.query(0, half);
        if row < sequence.seqlen_q && lane.quad == 0 {
            unsafe { K::Softmax::store_lse(params, sequence, row, &finished[half]) };
        }
    });
}

impl<K: Kernel> OutputRows for Warp<'_, K> {
    #[inline(always)]
    unsafe fn store<E: Element, const WHOLE: bool>(&self) {
        let column = NEIGHBOURS * self.lane.quad as usize;
        let rows = [self.lane.query(0, 0), self.lane.query(0, 1)];
        let first = rows.map(|row| self.sequence.o::<E>(self.params, row, column));
        unroll!(0..K::HEAD_DIM / V_GROUP, |group| {
            unroll!(0..2, |half| {
                let mut sums = [0.0; NEIGHBOURS];
                unroll!(0..NEIGHBOURS, |i| {
                    sums[i] = self.acc.o[0][TILES * group + i / 2][2 * half + i % 2];
                });
                let o = self.finished[half].output(sums);
                let inside = rows[half] < self.sequence.seqlen_q && has_dim(self.params, column + V_GROUP * group);
                let address = first[half].wrapping_add(V_GROUP * group * E::BYTES);
                unsafe { store_neighbours::<E, WHOLE>(inside, address, &o, self.finished[half].seen) };
            });
        });
    }
}
