//! `ld`, `st`, `atom`, `red` and `cvta`.

use super::cta::{Cta, Warp};
use crate::isa::{Access, Address, AtomicOp, Element};
use crate::memory::{
    FIRST_ALLOCATION, LOCAL_WINDOW, PARAM_WINDOW, Packet, Refusal, SHARED_WINDOW, Space, WINDOW_BYTES,
};
use crate::registers::{LANES, Lane, Registers, lanes};
use crate::report::Fault;
use crate::ty::Ty;

pub(super) fn execute(op: &Access, warp: &mut Warp, cta: &mut Cta<'_>, mask: u32, line: u32) {
    match op {
        Access::Load { space, element, count, d, address } => {
            let from = addresses(&warp.registers, *address);
            let bytes = element.bytes * *count as u32;
            let mut packets = [Packet::default(); LANES];
            for lane in lanes(mask) {
                let (space, place) = resolve(*space, from[lane]);
                packets[lane] = load(warp, cta, lane, line, (space, place), bytes);
            }
            for (place, d) in d.iter().take(*count).enumerate() {
                if let Some(d) = d {
                    let part = |lane: usize| element_of(&packets[lane], place, *element);
                    if element.wide {
                        u64::write(&mut warp.registers, *d, mask, &std::array::from_fn(part));
                    } else {
                        let part = |lane| part(lane) as u32 & register_mask(*element);
                        u32::write(&mut warp.registers, *d, mask, &std::array::from_fn(part));
                    }
                }
            }
        }
        Access::Store { space, element, count, a, address } => {
            let to = addresses(&warp.registers, *address);
            let bytes = element.bytes * *count as u32;
            let mut packets = [Packet::default(); LANES];
            for (place, a) in a.iter().take(*count).enumerate() {
                let wide = |lane: usize| warp.registers.wide(*a)[lane];
                let narrow = |lane: usize| warp.registers.narrow(*a)[lane].into();
                for (lane, packet) in packets.iter_mut().enumerate() {
                    put_element(packet, place, *element, if element.wide { wide(lane) } else { narrow(lane) });
                }
            }
            store(warp, cta, mask, line, *space, &to, bytes, &packets);
        }
        Access::Atomic { space, op, ty, d, address, b, c } => {
            let places = addresses(&warp.registers, *address);
            let wide = ty.bits() == 64;
            let read = |registers: &Registers, slot| {
                if wide { *registers.wide(slot) } else { registers.narrow(slot).map(u64::from) }
            };
            let (b, c) = (read(&warp.registers, *b), read(&warp.registers, *c));
            let mut old = [0; LANES];
            for lane in lanes(mask) {
                let (space, place) = resolve(*space, places[lane]);
                let f = |old: u64| combine(*op, *ty, old, b[lane], c[lane]);
                old[lane] = atomic(warp, cta, lane, line, (space, place), ty.bytes(), f);
            }
            match d {
                Some(d) if wide => u64::write(&mut warp.registers, *d, mask, &old),
                Some(d) => u32::write(&mut warp.registers, *d, mask, &old.map(|value| value as u32)),
                None => {}
            }
        }
        Access::Prefetch { address } => {
            let from = addresses(&warp.registers, *address);
            for lane in lanes(mask) {
                prefetch(warp, cta, lane, line, from[lane]);
            }
        }
        Access::ConvertAddress { d, a, add } => {
            warp.registers.map(mask, *d, *a, |a: u64| a.wrapping_add_signed(*add));
        }
    }
}

/// The address of every lane.
#[inline(always)]
pub(super) fn addresses(registers: &Registers, address: Address) -> [u64; LANES] {
    let Address { base, wide, offset } = address;
    if wide {
        registers.wide(base).map(|base| base.wrapping_add_signed(offset))
    } else {
        registers.narrow(base).map(|base| base.wrapping_add(offset as u32).into())
    }
}

/// Sees through generic addresses.
#[inline(always)]
pub(super) fn resolve(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    if address >= FIRST_ALLOCATION {
        return (Space::Global, address);
    }
    let windows = [(SHARED_WINDOW, Space::Shared), (LOCAL_WINDOW, Space::Local), (PARAM_WINDOW, Space::Param)];
    let found = windows.into_iter().find(|(start, _)| address.wrapping_sub(*start) < WINDOW_BYTES);
    found.map_or((Space::Generic, address), |(start, space)| (space, address - start))
}

fn refused(refusal: Refusal, space: Space, address: u64, bytes: u32) -> Fault {
    match refusal {
        Refusal::OutOfBounds => Fault::OutOfBounds { space, address, bytes },
        Refusal::Misaligned => Fault::Misaligned { space, address, bytes },
        Refusal::Uninitialised => Fault::Uninitialised { space, address, bytes },
    }
}

/// Loads for one lane; what must not be loaded is reported, and zero.
#[inline(always)]
pub(super) fn load(
    warp: &Warp,
    cta: &mut Cta<'_>,
    lane: usize,
    line: u32,
    (space, address): (Space, u64),
    bytes: u32,
) -> Packet {
    let loaded = match space {
        Space::Shared => {
            cta.parties[warp.id].touched |= 1 << lane;
            match cta.shared.load(address, bytes, &cta.parties[warp.id]) {
                Ok((packet, None)) => Ok(packet),
                Ok((packet, Some(fault))) => {
                    cta.fault(warp.id, lane, line, fault);
                    Ok(packet)
                }
                Err(refusal) => Err(refusal),
            }
        }
        Space::Global | Space::Const if cta.env.variables.owns(address) => cta.env.variables.load(address, bytes),
        Space::Global | Space::Const => cta.env.memory.load(address, bytes),
        Space::Local => warp.local.load(lane, address, bytes),
        Space::Param => param(&cta.env.params, address, bytes),
        Space::Generic => Err(Refusal::OutOfBounds),
    };
    loaded.unwrap_or_else(|refusal| {
        cta.fault(warp.id, lane, line, refused(refusal, space, address, bytes));
        Packet::default()
    })
}

/// Sees that there is memory, which nobody has to have written.
fn prefetch(warp: &Warp, cta: &mut Cta<'_>, lane: usize, line: u32, address: u64) {
    let memory = if cta.env.variables.owns(address) { cta.env.variables } else { cta.env.memory };
    if memory.load(address, 1).is_err_and(|refusal| refusal != Refusal::Uninitialised) {
        cta.fault(warp.id, lane, line, Fault::OutOfBounds { space: Space::Global, address, bytes: 1 });
    }
}

fn param(params: &[u8], address: u64, bytes: u32) -> Result<Packet, Refusal> {
    let start = usize::try_from(address).map_err(|_| Refusal::OutOfBounds)?;
    let end = start.checked_add(bytes as usize).ok_or(Refusal::OutOfBounds)?;
    let source = params.get(start..end).ok_or(Refusal::OutOfBounds)?;
    if start & (bytes as usize - 1) != 0 {
        return Err(Refusal::Misaligned);
    }
    let mut packet = Packet::default();
    bytemuck::bytes_of_mut(&mut packet)[..bytes as usize].copy_from_slice(source);
    Ok(packet)
}

/// Stores for all lanes. Of two that store to one place in shared memory, one loses, and is reported if that matters.
#[expect(clippy::too_many_arguments, reason = "where, what and by whom of one instruction")]
fn store(
    warp: &mut Warp,
    cta: &mut Cta<'_>,
    mask: u32,
    line: u32,
    space: Space,
    to: &[u64; LANES],
    bytes: u32,
    packets: &[Packet; LANES],
) {
    let mut in_shared = 0;
    for lane in lanes(mask) {
        let (space, address) = resolve(space, to[lane]);
        let packet = packets[lane];
        let stored = match space {
            Space::Shared => match cta.shared.store(address, bytes, packet, &cta.parties[warp.id], line) {
                Ok(fault) => {
                    in_shared |= 1 << lane;
                    if let Some(fault) = fault {
                        cta.fault(warp.id, lane, line, fault);
                    }
                    Ok(())
                }
                Err(refusal) => Err(refusal),
            },
            Space::Global if cta.env.variables.owns(address) => cta.env.variables.store(address, bytes, packet),
            Space::Global => cta.env.memory.store(address, bytes, packet),
            Space::Local => warp.local.store(lane, address, bytes, packet),
            Space::Const | Space::Param | Space::Generic => Err(Refusal::OutOfBounds),
        };
        if let Err(refusal) = stored {
            cta.fault(warp.id, lane, line, refused(refusal, space, address, bytes));
        }
    }
    cta.parties[warp.id].touched |= in_shared;
    for lane in lanes(in_shared) {
        let address = resolve(space, to[lane]).1;
        if cta.shared.peek(address, bytes) != packets[lane] {
            cta.fault(warp.id, lane, line, Fault::StoreConflict { address });
        }
    }
}

fn atomic(
    warp: &Warp,
    cta: &mut Cta<'_>,
    lane: usize,
    line: u32,
    (space, address): (Space, u64),
    bytes: u32,
    f: impl Fn(u64) -> u64,
) -> u64 {
    let done = match space {
        Space::Shared => {
            cta.parties[warp.id].touched |= 1 << lane;
            match cta.shared.atomic(address, bytes, &cta.parties[warp.id], line, f) {
                Ok((old, None)) => Ok(old),
                Ok((old, Some(fault))) => {
                    cta.fault(warp.id, lane, line, fault);
                    Ok(old)
                }
                Err(refusal) => Err(refusal),
            }
        }
        Space::Global if cta.env.variables.owns(address) => cta.env.variables.atomic(address, bytes, f),
        Space::Global => cta.env.memory.atomic(address, bytes, f),
        _ => Err(Refusal::OutOfBounds),
    };
    done.unwrap_or_else(|refusal| {
        cta.fault(warp.id, lane, line, refused(refusal, space, address, bytes));
        0
    })
}

/// What an atomic operation leaves behind.
fn combine(op: AtomicOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let signed = |value: u64| if ty.bits() == 32 { i64::from(value as i32) } else { value as i64 };
    let smaller = if ty.is_signed() { signed(old) < signed(b) } else { old < b };
    match op {
        AtomicOp::Add if ty == Ty::F32 => (f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits().into(),
        AtomicOp::Add => old.wrapping_add(b),
        AtomicOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomicOp::Min => {
            if smaller {
                old
            } else {
                b
            }
        }
        AtomicOp::Max => {
            if smaller {
                b
            } else {
                old
            }
        }
        AtomicOp::And => old & b,
        AtomicOp::Or => old | b,
        AtomicOp::Xor => old ^ b,
        AtomicOp::Exchange => b,
        AtomicOp::CompareAndSwap => {
            if old == b {
                c
            } else {
                old
            }
        }
    }
}

/// What fits the register: short registers keep their upper halves clear.
fn register_mask(element: Element) -> u32 {
    if element.short { 0xffff } else { u32::MAX }
}

/// One element of what was loaded, widened as its type says.
#[inline(always)]
fn element_of(packet: &Packet, place: usize, element: Element) -> u64 {
    let start = place * element.bytes as usize;
    match element.bytes {
        8 => u64::from(packet[start / 4]) | u64::from(packet[start / 4 + 1]) << 32,
        4 if element.signed => packet[start / 4] as i32 as u64,
        4 => packet[start / 4].into(),
        short => {
            let unused = 64 - 8 * short;
            let raised = u64::from(packet[start / 4] >> (8 * (start % 4))) << unused;
            if element.signed { (raised as i64 >> unused) as u64 } else { raised >> unused }
        }
    }
}

#[inline(always)]
fn put_element(packet: &mut Packet, place: usize, element: Element, value: u64) {
    let start = place * element.bytes as usize;
    match element.bytes {
        8 => {
            packet[start / 4] = value as u32;
            packet[start / 4 + 1] = (value >> 32) as u32;
        }
        4 => packet[start / 4] = value as u32,
        short => packet[start / 4] |= (value as u32 & ((1 << (8 * short)) - 1)) << (8 * (start % 4)),
    }
}
