//! The loop.

use super::output::Output;
use super::ring::{Half, Ring};
use super::rows::Rows;
use super::scores;
use super::softmax::Softmax;
use super::walk::Walk;
use crate::params::DecodeParams;
use crate::ptx::special::ctaid_x;

/// A row of the table `decode_rows`.
pub(crate) trait Kernel {
    const HEAD_DIM: usize;
    /// Warps of a CTA: each makes all scores and P of a block, and the output of its part of the dims.
    const TEAM: usize;
}

/// A worker's share of all blocks.
#[inline(always)]
pub(crate) unsafe fn decode<K: Kernel>(params: &DecodeParams) {
    unsafe {
        let Some(mut walk) = Walk::start(params, ctaid_x()) else { return };
        let mut current = walk.block();
        let mut ring = Ring::<K>::new();
        ring.request(params, &current, Half::Keys);
        ring.request(params, &current, Half::Values);
        let mut next = walk.advance(params);
        let mut rows = Rows::<K>::load(params, &current);
        let mut softmax = Softmax::new();
        let mut output = Output::<K>::zero();
        loop {
            // Now, so that its page's number is there when it becomes the next block.
            let after = walk.advance(params);
            let keys = ring.next(params, &next, Half::Keys);
            let there = current.has_page(params);
            let mut weights = None;
            if there {
                let scales = ring.scales(&current);
                let mut s = scores::block::<K>(&rows, keys, scales, params);
                let edge = rows.is_edge(params, &current);
                let unit = scores::finish(&mut s, &rows, &current, params, edge);
                weights = Some(softmax.block(&mut s, &rows, &current, params, unit, scales, edge));
            }
            let values = ring.next(params, &next, Half::Values);
            if let Some(weights) = &weights {
                output.add(weights, values);
            }
            if current.ends_piece() {
                output.store(params, &current, &rows, &softmax);
                if !next.exists {
                    break;
                }
                output = Output::zero();
                softmax = Softmax::new();
                rows = Rows::load(params, &next);
            }
            (current, next) = (next, after);
        }
        ring.drain();
    }
}
