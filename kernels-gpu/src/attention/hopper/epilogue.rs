//! O = acc / l * v_scale + v_mean, and the log-sum-exp.
//!
//! All warps of a CTA come here at about the same time, and nobody is left to hide what they wait for or to compute meanwhile: the
//! channels' scales are in shared memory, each row's address is found once, and eight elements are one store.

use crate::attention::epilogue::{NEIGHBOURS, OutputRows, TILES, store_lse, store_neighbours};
use crate::attention::output::Accumulator;
use crate::attention::softmax::Finished;
use crate::attention::{Args, Place, Softmax};
use crate::element::Element;
use crate::layout::V_GROUP;
use crate::ptx::memory::ld_shared_v4_f32;

/// The 16 rows of a warp.
struct Warp<'a, const D: usize> {
    args: &'a Args,
    place: &'a Place,
    acc: &'a Accumulator<1>,
    finished: [Finished; 2],
    v_scale: u32,
}

/// Writes the 16 rows of a warp; the channels' scales and then their means are at shared address `v_scale`.
#[inline(always)]
pub(crate) unsafe fn store<S: Softmax<D, 1>, const D: usize>(
    args: &Args,
    place: &Place,
    softmax: &S,
    acc: &Accumulator<1>,
    v_scale: u32,
) {
    // The shuffles inside need the whole warp.
    let finished = unsafe { [softmax.finish(0, 0), softmax.finish(0, 1)] };
    unsafe { args.out.store(&Warp::<D> { args, place, acc, finished, v_scale }) };
    unroll!(0..2, |half| {
        let row = place.row + place.group + 8 * half as u32;
        if row < args.seqlen_q && place.quad == 0 {
            unsafe { store_lse(args, place, row, finished[half].lse) };
        }
    });
}

impl<const D: usize> OutputRows for Warp<'_, D> {
    #[inline(always)]
    unsafe fn store<E: Element, const WHOLE: bool>(&self) {
        let column = NEIGHBOURS * self.place.quad as usize;
        let rows = [0, 8].map(|row| self.place.row + self.place.group + row);
        let first = rows.map(|row| self.args.out.address::<E>(self.place, row, column));
        unroll!(0..D / V_GROUP, |group| {
            let at = self.v_scale + 4 * (V_GROUP * group + column) as u32;
            let [scale, mean] = unsafe { [neighbours(at), neighbours(at + 4 * D as u32)] };
            unroll!(0..2, |half| {
                let mut o = [0.0; NEIGHBOURS];
                unroll!(0..NEIGHBOURS, |i| {
                    let acc = self.acc.o[0][TILES * group + i / 2][2 * half + i % 2];
                    o[i] = self.finished[half].output(acc, scale[i], mean[i]);
                });
                let inside = rows[half] < self.args.seqlen_q;
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
