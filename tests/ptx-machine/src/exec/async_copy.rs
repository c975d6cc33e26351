//! `cp.async`: copies that take their bytes at once, and deliver them only when somebody waits.

use super::cta::{Cta, Warp};
use super::memory::{addresses, load};
use crate::isa::{Address, Async};
use crate::memory::{Packet, Refusal, Space};
use crate::registers::{LANES, Slot, lanes};
use crate::report::Fault;

/// The copies under way for the threads of a warp.
#[derive(Default)]
pub(super) struct Copies {
    pending: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u32; LANES],
}

struct Copy {
    lane: usize,
    /// The number of the group, in the order in which the lane commits them.
    group: u32,
    to: u64,
    bytes: u32,
    packet: Packet,
}

pub(super) fn execute(op: &Async, warp: &mut Warp, cta: &mut Cta<'_>, mask: u32, line: u32) {
    match *op {
        Async::Copy { bytes, to, from, source_bytes, ignore } => {
            issue(warp, cta, mask, line, (bytes, to, from), (source_bytes, ignore));
        }
        Async::Commit => {
            for lane in lanes(mask) {
                warp.copies.committed[lane] += 1;
            }
        }
        Async::WaitGroup { newest } => land(warp, cta, mask, |group, committed| group + newest < committed),
        Async::WaitAll => land(warp, cta, mask, |_, _| true),
    }
}

fn issue(
    warp: &mut Warp,
    cta: &mut Cta<'_>,
    mask: u32,
    line: u32,
    (bytes, to, from): (u32, Address, Address),
    (source_bytes, ignore): (Option<Slot>, Option<Slot>),
) {
    let (to, from) = (addresses(&warp.registers, to), addresses(&warp.registers, from));
    for lane in lanes(mask) {
        let ignored = ignore.is_some_and(|slot| warp.registers.predicate(slot) >> lane & 1 == 1);
        let wanted = match source_bytes {
            _ if ignored => 0,
            Some(slot) => warp.registers.narrow(slot)[lane],
            None => bytes,
        };
        let packet = source(warp, cta, lane, line, from[lane], bytes, wanted);
        match cta.shared.expect(to[lane], bytes, &cta.parties[warp.id], line) {
            Ok(fault) => {
                let group = warp.copies.committed[lane];
                warp.copies.pending.push(Copy { lane, group, to: to[lane], bytes, packet });
                if let Some(fault) = fault {
                    cta.fault(warp.id, lane, line, fault);
                }
            }
            Err(refusal) => {
                let (space, address) = (Space::Shared, to[lane]);
                let fault = match refusal {
                    Refusal::Misaligned => Fault::Misaligned { space, address, bytes },
                    _ => Fault::OutOfBounds { space, address, bytes },
                };
                cta.fault(warp.id, lane, line, fault);
            }
        }
    }
}

/// The first `wanted` of `bytes` bytes, and zeros. The address must be aligned to all of them.
fn source(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, from: u64, bytes: u32, wanted: u32) -> Packet {
    if wanted > bytes || from & u64::from(bytes - 1) != 0 {
        let (space, address) = (Space::Global, from);
        let fault = if wanted > bytes {
            Fault::OutOfBounds { space, address, bytes: wanted }
        } else {
            Fault::Misaligned { space, address, bytes }
        };
        cta.fault(warp.id, lane, line, fault);
        return Packet::default();
    }
    if wanted == bytes {
        return load(warp, cta, lane, line, (Space::Global, from), bytes);
    }
    let mut packet = Packet::default();
    for byte in 0..wanted {
        let value = load(warp, cta, lane, line, (Space::Global, from + u64::from(byte)), 1)[0];
        packet[byte as usize / 4] |= value << (8 * (byte % 4));
    }
    packet
}

/// Delivers the copies of the waiting lanes whose group is due.
fn land(warp: &mut Warp, cta: &mut Cta<'_>, mask: u32, due: impl Fn(u32, u32) -> bool) {
    let (shared, party) = (&mut cta.shared, &mut cta.parties[warp.id]);
    let Copies { pending, committed } = &mut warp.copies;
    pending.retain(|copy| {
        let lands = mask >> copy.lane & 1 == 1 && due(copy.group, committed[copy.lane]);
        if lands {
            party.touched |= 1 << copy.lane;
            shared.land(copy.to, copy.bytes, copy.packet, party);
        }
        !lands
    });
}
