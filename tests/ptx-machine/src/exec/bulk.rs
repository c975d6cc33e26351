//! `cp.async.bulk`: one thread copies a whole tile, and an mbarrier tells when it is there.

use super::cta::{Cta, Warp};
use super::mbarrier;
use super::memory::{addresses, load};
use super::schedule::Flow;
use crate::isa::BulkCopy;
use crate::memory::{Refusal, Space};
use crate::registers::lanes;
use crate::report::Fault;

/// Addresses and sizes are multiples of this.
const UNIT: u32 = 16;

pub(super) fn execute(op: &BulkCopy, warp: &mut Warp, cta: &mut Cta<'_>, mask: u32, line: u32) -> Flow {
    let [to, from, at] = [op.to, op.from, op.mbarrier].map(|address| addresses(&warp.registers, address));
    let bytes = *warp.registers.narrow(op.bytes);
    for lane in lanes(mask) {
        let Some(index) = mbarrier::find(warp, cta, lane, line, at[lane]) else { return Flow::Next };
        if !mbarrier::check_copy(warp, cta, lane, line, index) {
            return Flow::Next;
        }
        if let Some(fault) = refuse(cta, warp.id, line, to[lane], from[lane], bytes[lane]) {
            cta.fatal(warp.id, lane, line, fault);
            return Flow::Next;
        }
        let mut data = Vec::with_capacity(bytes[lane] as usize);
        for offset in (0..bytes[lane]).step_by(UNIT as usize) {
            let place = (Space::Global, from[lane] + u64::from(offset));
            data.extend_from_slice(bytemuck::bytes_of(&load(warp, cta, lane, line, place, UNIT)));
        }
        mbarrier::copy(warp, cta, lane, line, index, to[lane], data);
    }
    Flow::Next
}

/// Marks the target; says what is wrong with it, or with the source or the size.
fn refuse(cta: &mut Cta<'_>, warp: usize, line: u32, to: u64, from: u64, bytes: u32) -> Option<Fault> {
    if !bytes.is_multiple_of(UNIT) {
        return Some(Fault::BulkCopySize { bytes });
    }
    if !from.is_multiple_of(UNIT.into()) {
        return Some(Fault::Misaligned { space: Space::Global, address: from, bytes: UNIT });
    }
    let (space, address) = (Space::Shared, to);
    match cta.shared.expect_bulk(to, bytes.into(), &cta.parties[warp], line) {
        Ok(fault) => fault,
        Err(Refusal::Misaligned) => Some(Fault::Misaligned { space, address, bytes: UNIT }),
        Err(_) => Some(Fault::OutOfBounds { space, address, bytes }),
    }
}
