//! `shfl`, `vote`, `activemask`, `bar.warp.sync`, `elect.sync`.

use super::cta::{Cta, Warp as State};
use crate::isa::{Shuffle, Vote, Warp};
use crate::registers::{LANES, Lane, lanes};
use crate::report::Fault;

pub(super) fn execute(op: &Warp, warp: &mut State, cta: &mut Cta<'_>, mask: u32, line: u32) {
    match op {
        Warp::Shuffle { mode, d, p, a, b, c, members } => {
            check_members(warp, cta, mask, line, warp.registers.narrow(*members)[first(mask)]);
            let [a, b, c] = [a, b, c].map(|slot| *warp.registers.narrow(*slot));
            let (mut values, mut valid) = ([0; LANES], 0);
            for lane in lanes(mask) {
                let (source, in_range) = shuffle_source(*mode, lane as u32, b[lane], c[lane]);
                valid |= u32::from(in_range) << lane;
                values[lane] = a[source as usize];
                if mask >> source & 1 == 0 {
                    cta.fault(warp.id, lane, line, Fault::ShuffleFromInactive { source_lane: source });
                }
            }
            if let Some(d) = d {
                u32::write(&mut warp.registers, *d, mask, &values);
            }
            if let Some(p) = p {
                warp.registers.set_predicate(*p, mask, valid);
            }
        }
        Warp::Vote { mode, d, p, members } => {
            let members = warp.registers.narrow(*members)[first(mask)];
            check_members(warp, cta, mask, line, members);
            let negate = if p.negated { u32::MAX } else { 0 };
            let votes = (warp.registers.predicate(p.predicate) ^ negate) & mask & members;
            let all = votes == mask & members;
            let verdict = |holds: bool| if holds { u32::MAX } else { 0 };
            match mode {
                Vote::Ballot => u32::write(&mut warp.registers, *d, mask, &[votes; LANES]),
                Vote::All => warp.registers.set_predicate(*d, mask, verdict(all)),
                Vote::Any => warp.registers.set_predicate(*d, mask, verdict(votes != 0)),
                Vote::Uniform => warp.registers.set_predicate(*d, mask, verdict(all || votes == 0)),
            }
        }
        Warp::Elect { d, p, members } => {
            let members = warp.registers.narrow(*members)[first(mask)];
            check_members(warp, cta, mask, line, members);
            let leader = members.trailing_zeros();
            if let Some(d) = d {
                u32::write(&mut warp.registers, *d, mask, &[leader; LANES]);
            }
            warp.registers.set_predicate(*p, mask, 1_u32.checked_shl(leader).unwrap_or(0));
        }
        Warp::ActiveMask { d } => u32::write(&mut warp.registers, *d, mask, &[mask; LANES]),
        Warp::Sync { members } => {
            let members = warp.registers.narrow(*members)[first(mask)];
            check_members(warp, cta, mask, line, members);
            // Lanes that are not members do not meet the others, and what any does counts as not known to all.
            if (warp.present & !warp.exited) & !members == 0 {
                cta.parties[warp.id].meet(cta.shared.tick());
            }
        }
    }
}

fn first(mask: u32) -> usize {
    mask.trailing_zeros() as usize
}

/// Every member must be here, and whoever is here must be a member.
fn check_members(warp: &State, cta: &mut Cta<'_>, mask: u32, line: u32, members: u32) {
    cta.require_lanes(warp, line, members | mask, mask & members);
}

/// The lane that `shfl` reads, and whether it lies in the segment; if not, a lane reads itself.
fn shuffle_source(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = lane & segment | clamp & !segment;
    let (source, in_range) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
        Shuffle::Down => (lane + b, lane + b <= last),
        Shuffle::Butterfly => (lane ^ b, lane ^ b <= last),
        Shuffle::Index => {
            let source = lane & segment | b & !segment;
            (source, source <= last)
        }
    };
    if in_range { (source, true) } else { (lane, false) }
}
