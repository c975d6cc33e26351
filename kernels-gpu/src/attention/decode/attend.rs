//! The loop.

use super::output::Output;
use super::ring::{Half, Ring};
use super::rows::Rows;
use super::schedule::is_edge;
use super::scores;
use super::softmax::Softmax;
use super::walk::Walk;
use crate::params::DecodeParams;
use crate::ptx::global::prefetch_global_l2;
use crate::ptx::grid_dependency::{launch_dependents, wait};
use crate::ptx::special::{ctaid_x, tid_x};

/// A row of the table `decode_rows`.
pub(crate) trait Kernel {
    const HEAD_DIM: usize;
    /// Warps of a CTA: each makes all scores and P of a block, and the output of its part of the dims.
    const TEAM: usize;
    /// Whether pages may have V in 4 bits.
    const V4: bool;
    /// Whether it may start before the launch in front of it has ended, and the merge before this one has.
    const OVERLAPS: bool;
}

/// Has a part of the block table brought to L2, a CTA a line, while the launch in front still runs: what that writes there is seen all the same.
#[inline(always)]
unsafe fn prefetch_table(params: &DecodeParams) {
    /// Entries of a line.
    const LINE: u32 = 32;
    let (first, split) = (LINE * ctaid_x(), &params.split);
    let entries = (split.batch - 1) as usize * params.table_stride as usize + split.max_blocks as usize;
    if (first as usize) < entries && tid_x() == 0 {
        unsafe { prefetch_global_l2(params.block_table.ptr().wrapping_add(first as usize).cast()) }
    }
}

/// A worker's share of all blocks.
#[inline(always)]
pub(crate) unsafe fn decode<K: Kernel>(params: &DecodeParams) {
    unsafe {
        if K::OVERLAPS {
            prefetch_table(params);
            // This launch is there before its inputs are, and the merge behind it, which reads lengths ahead of its own wait, after that.
            wait();
            launch_dependents();
        }
        let Some(mut walk) = Walk::start(params, ctaid_x()) else { return };
        let mut current = walk.nowhere();
        let mut ring = Ring::<K>::new();
        let mut rows = Rows::<K>::none();
        let (mut softmax, mut output) = (Softmax::new(), Output::<K>::zero());
        let mut next = walk.advance(params);
        // One round more than blocks: in the first, the first block is requested.
        loop {
            let keys = ring.next(params, &next, Half::Keys);
            let there = current.exists && current.has_page(params);
            let mut weights = None;
            if there {
                let scales = ring.scales(&current);
                let mut s = scores::block::<K>(&rows, keys, scales, params);
                let edge = is_edge(&params.split, current.seqlen_kv, current.block);
                let unit = scores::finish(&mut s, &rows, &current, params, edge);
                weights = Some(softmax.block(&mut s, &current, params, unit, scales, edge));
            }
            // Its page is read from the table meanwhile.
            let behind = walk.advance(params);
            let values = ring.next(params, &next, Half::Values);
            if let Some(weights) = &weights {
                if K::V4 && current.is_v4(params) {
                    output.add_v4(weights, values);
                } else {
                    output.add(weights, values);
                }
            }
            if !current.exists || current.ends_piece() {
                if current.exists {
                    output.store(params, &current, &softmax);
                }
                if !next.exists {
                    break;
                }
                (softmax, output) = (Softmax::new(), Output::zero());
                rows = Rows::load(params, &next);
            }
            (current, next) = (next, behind);
        }
        ring.drain();
    }
}
