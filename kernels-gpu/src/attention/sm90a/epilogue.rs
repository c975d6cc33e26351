//! O = acc / l * v_scale + v_mean, and the log-sum-exp.
//!
//! All warps of a CTA come here at about the same time, and nobody is left to hide what they wait for or to compute meanwhile: the
//! channels' scales are in shared memory, each row's address is found once, and eight elements are one store.

use super::Kernel;
use crate::attention::epilogue::{self, Finished, NEIGHBOURS, OutputRows, TILES, store_lse, store_neighbours};
use crate::attention::lane::Lane;
use crate::attention::output::Accumulator;
use crate::attention::sequence::Sequence;
use crate::attention::softmax::Softmax;
use crate::element::Element;
use crate::layout::V_GROUP;
use crate::params::AttentionParams;
use crate::ptx::shared::ld_shared_v4_f32;
use core::marker::PhantomData;

/// The 16 rows of a warp.
struct Warp<'a, K> {
    params: &'a AttentionParams,
    sequence: &'a Sequence,
    lane: Lane,
    acc: &'a Accumulator<1>,
    finished: [Finished; 2],
    v_scale: u32,
    kernel: PhantomData<K>,
}

/// Writes the 16 rows of a warp; the channels' scales and then their means are at shared address `v_scale`.
#[inline(always)]
pub(crate) unsafe fn store<K: Kernel>(
    params: &AttentionParams,
    sequence: &Sequence,
    lane: Lane,
    softmax: &K::Softmax,
    acc: &Accumulator<1>,
    v_scale: u32,
) {
    // The shuffles inside need the whole warp.
    let finished = unsafe { [softmax.finish(0, 0), softmax.finish(0, 1)] };
    let warp = Warp::<K> { params, sequence, lane, acc, finished, v_scale, kernel: PhantomData };
    unsafe { epilogue::store(params, &warp) };
    unroll!(0..2, |half| {
        let row = lane.query(0, half);
        if row < params.seqlen_q && lane.quad == 0 {
            unsafe { store_lse(params, sequence, row, finished[half].lse) };
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
            let at = self.v_scale + 4 * (V_GROUP * group + column) as u32;
            let [scale, mean] = unsafe { [neighbours(at), neighbours(at + 4 * K::HEAD_DIM as u32)] };
            unroll!(0..2, |half| {
                let mut o = [0.0; NEIGHBOURS];
                unroll!(0..NEIGHBOURS, |i| {
                    let acc = self.acc.o[0][TILES * group + i / 2][2 * half + i % 2];
                    o[i] = self.finished[half].output(acc, scale[i], mean[i]);
                });
                let inside = rows[half] < self.params.seqlen_q;
                let address = first[half].wrapping_add(V_GROUP * group * E::BYTES);
                unsafe { store_neighbours::<E, WHOLE>(inside, address, &o, self.finished[half].seen) };
            });
        });
    }
}

/// The floats of a lane's neighbouring channels at shared address `at`.
#[inline(always)]
unsafe fn neighbours(at: u32) -> [f32; NEIGHBOURS] {
    let ([a, b, c, d], [e, f, g, h]) = unsafe { (ld_shared_v4_f32(at), ld_shared_v4_f32(at + 16)) };
    [a, b, c, d, e, f, g, h]
}
