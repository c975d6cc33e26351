//! Shared memory, with a shadow for each byte: who wrote it last, who read it since, and at what time.
//!
//! [`Party`] says which times are ordered before an access. Threads of one warp run in lock step, so they are ordered
//! by the instructions themselves.

mod proxy;

use super::{Packet, Party, Refusal};
use crate::report::{Fault, RaceKind};
use proxy::WgmmaReads;

const PARTY: u32 = 0x3f;
/// The party of bytes that are an mbarrier.
const MBARRIER: u32 = PARTY;
const ATOMIC: u32 = 0x40;
const PENDING: u32 = 0x80;
const TIME_SHIFT: u32 = 8;
/// Times from here on do not fit the shadow.
const TIME_LIMIT: u32 = 1 << 24;

/// The warps that read a byte, and when the last did.
#[derive(Clone, Copy, Default)]
struct Readers {
    time: u32,
    warps: u32,
}

fn stamp(party: &Party) -> u32 {
    party.time << TIME_SHIFT | party.warp
}

/// What an access to bytes that are not ordinary memory for the moment has met.
fn pending(address: u64, write: u32) -> Fault {
    if write & PARTY == MBARRIER { Fault::MbarrierInUse { address } } else { Fault::AsyncPending { address } }
}

/// The shared memory of one CTA.
#[derive(Default)]
pub(crate) struct SharedMemory {
    /// The lowest address that belongs to the kernel.
    first: u64,
    bytes: Vec<u8>,
    /// Time, flags and party of the last write of each byte.
    writes: Vec<u32>,
    write_lines: Vec<u32>,
    reads: Vec<Readers>,
    /// For each word and warp, when the warp last read some of it.
    read_times: Vec<u32>,
    warps: usize,
    wgmma: WgmmaReads,
    /// The time now, of the CTA as a whole.
    pub(crate) now: u32,
    /// The time at which the CTA began; older writes are another CTA's.
    start: u32,
    /// Everything before this time is ordered before everything from now on.
    floor: u32,
}

impl SharedMemory {
    /// Prepares for the next CTA: nothing is written, whatever the bytes hold.
    pub(crate) fn begin(&mut self, first: u32, end: u32, warps: usize) {
        let bytes = end as usize;
        if self.bytes.len() != bytes || self.warps != warps || self.now > TIME_LIMIT / 2 {
            *self = Self {
                bytes: vec![0; bytes],
                writes: vec![0; bytes],
                write_lines: vec![0; bytes],
                reads: vec![Readers::default(); bytes],
                read_times: vec![0; bytes.div_ceil(4) * warps],
                warps,
                wgmma: WgmmaReads::new(bytes, warps),
                ..Self::default()
            };
        }
        self.first = first.into();
        self.wgmma.begin();
        self.now += 1;
        self.start = self.now;
        self.floor = self.now;
    }

    /// Moves time on, and says what it is now.
    pub(crate) fn tick(&mut self) -> u32 {
        self.now += 1;
        assert!(self.now < TIME_LIMIT, "a CTA passes fewer than eight million barriers");
        self.now
    }

    /// Notes that every warp has met every other.
    pub(crate) fn all_met(&mut self) {
        self.floor = self.now;
    }

    #[inline(always)]
    fn place(&self, address: u64, bytes: u32) -> Result<std::ops::Range<usize>, Refusal> {
        let length = u64::from(bytes);
        if address < self.first || address >= self.bytes.len() as u64 || length > self.bytes.len() as u64 - address {
            return Err(Refusal::OutOfBounds);
        }
        if address & (length - 1) != 0 {
            return Err(Refusal::Misaligned);
        }
        Ok(address as usize..(address + length) as usize)
    }

    /// Loads up to 16 bytes; a fault comes with the bytes as they are.
    #[inline(always)]
    pub(crate) fn load(&mut self, address: u64, bytes: u32, party: &Party) -> Result<(Packet, Option<Fault>), Refusal> {
        let range = self.place(address, bytes)?;
        let (start, floor) = (self.start << TIME_SHIFT, self.floor << TIME_SHIFT);
        let mut suspicious = false;
        for write in &self.writes[range.clone()] {
            suspicious |= *write < start || *write & PENDING != 0 || (*write >= floor && *write & PARTY != party.warp);
        }
        let fault = if suspicious { self.judge_load(range.clone(), party)? } else { None };
        let me = Readers { time: party.time, warps: 1 << party.warp };
        for readers in &mut self.reads[range.clone()] {
            let others = if readers.time >= self.floor { readers.warps } else { 0 };
            *readers = Readers { time: me.time.max(readers.time), warps: others | me.warps };
        }
        for word in range.start / 4..range.end.div_ceil(4) {
            self.read_times[word * self.warps + party.warp as usize] = party.time;
        }
        Ok((read_packet(&self.bytes[range]), fault))
    }

    #[cold]
    fn judge_load(&self, range: std::ops::Range<usize>, party: &Party) -> Result<Option<Fault>, Refusal> {
        for byte in range {
            let write = self.writes[byte];
            if write >> TIME_SHIFT < self.start {
                return Err(Refusal::Uninitialised);
            }
            if let Some(fault) = self.judge_write(byte, party, RaceKind::ReadAfterWrite, false) {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }

    /// Compares an access with the last write of the byte.
    fn judge_write(&self, byte: usize, party: &Party, kind: RaceKind, atomic: bool) -> Option<Fault> {
        let write = self.writes[byte];
        if write >> TIME_SHIFT < self.start {
            return None;
        }
        let address = byte as u64;
        if write & PENDING != 0 {
            return Some(pending(address, write));
        }
        let other = write & PARTY;
        let both_atomic = atomic && write & ATOMIC != 0;
        let race = !both_atomic && !party.is_after(other, write >> TIME_SHIFT);
        race.then(|| self.race_with_write(byte, kind))
    }

    /// Checks a write, and enters it into the shadow with the given flags.
    #[inline(always)]
    fn shadow_write(&mut self, range: std::ops::Range<usize>, party: &Party, line: u32, flags: u32) -> Option<Fault> {
        let (start, floor) = (self.start << TIME_SHIFT, self.floor << TIME_SHIFT);
        let mut suspicious = false;
        for write in &self.writes[range.clone()] {
            suspicious |=
                *write >= start && (*write & PENDING != 0 || (*write >= floor && *write & PARTY != party.warp));
        }
        let me = 1 << party.warp;
        for readers in &self.reads[range.clone()] {
            suspicious |= readers.time >= self.floor && readers.warps & !me != 0;
        }
        suspicious |= self.wgmma.any(&range);
        let fault = if suspicious { self.judge_store(range.clone(), party, flags & ATOMIC != 0) } else { None };
        self.writes[range.clone()].fill(stamp(party) | flags);
        self.write_lines[range].fill(line);
        fault
    }

    #[cold]
    fn judge_store(&self, range: std::ops::Range<usize>, party: &Party, atomic: bool) -> Option<Fault> {
        for byte in range.clone() {
            if let Some(fault) = self.judge_write(byte, party, RaceKind::WriteAfterWrite, atomic) {
                return Some(fault);
            }
            if let Some(fault) = self.judge_readers(byte, party) {
                return Some(fault);
            }
        }
        self.wgmma.judge(&range, party)
    }

    /// Compares a write with the ordinary reads of the byte since its last write.
    fn judge_readers(&self, byte: usize, party: &Party) -> Option<Fault> {
        let readers = self.reads[byte];
        let current = readers.time >= self.floor;
        let racing = |warp: &u32| {
            let time = readers.time.min(self.read_times[byte / 4 * self.warps + *warp as usize]);
            readers.warps >> warp & 1 == 1 && !party.is_after(*warp, time)
        };
        let other_warp = (0..self.warps as u32).filter(|_| current).find(racing)?;
        let kind = RaceKind::WriteAfterRead;
        Some(Fault::Race { kind, address: byte as u64, other_warp, other_line: None })
    }

    /// Stores up to 16 bytes.
    #[inline(always)]
    pub(crate) fn store(
        &mut self,
        address: u64,
        bytes: u32,
        packet: Packet,
        party: &Party,
        line: u32,
    ) -> Result<Option<Fault>, Refusal> {
        let range = self.place(address, bytes)?;
        write_packet(&mut self.bytes[range.clone()], packet);
        Ok(self.shadow_write(range, party, line, 0))
    }

    /// The bytes as they are, unchecked, at a place where a store has just succeeded.
    pub(crate) fn peek(&self, address: u64, bytes: u32) -> Packet {
        read_packet(&self.bytes[address as usize..address as usize + bytes as usize])
    }

    /// Replaces a value of 4 or 8 bytes by `f` of it.
    pub(crate) fn atomic(
        &mut self,
        address: u64,
        bytes: u32,
        party: &Party,
        line: u32,
        f: impl Fn(u64) -> u64,
    ) -> Result<(u64, Option<Fault>), Refusal> {
        let range = self.place(address, bytes)?;
        if self.writes[range.clone()].iter().any(|w| w >> TIME_SHIFT < self.start) {
            return Err(Refusal::Uninitialised);
        }
        let fault = self.shadow_write(range.clone(), party, line, ATOMIC);
        let mut old = 0_u64;
        bytemuck::bytes_of_mut(&mut old)[..range.len()].copy_from_slice(&self.bytes[range.clone()]);
        let length = range.len();
        self.bytes[range].copy_from_slice(&f(old).to_le_bytes()[..length]);
        Ok((old, fault))
    }

    /// Marks bytes as being filled by a `cp.async`; to other accesses it counts as a write that is not over.
    pub(crate) fn expect(
        &mut self,
        address: u64,
        bytes: u32,
        party: &Party,
        line: u32,
    ) -> Result<Option<Fault>, Refusal> {
        let range = self.place(address, bytes)?;
        Ok(self.shadow_write(range, party, line, PENDING))
    }

    /// Completes a `cp.async`: the bytes arrive, written by the warp that waited.
    pub(crate) fn land(&mut self, address: u64, bytes: u32, packet: Packet, party: &Party) {
        let range = address as usize..address as usize + bytes as usize;
        self.writes[range.clone()].fill(stamp(party));
        write_packet(&mut self.bytes[range], packet);
    }
}

/// Up to 16 bytes as a packet; sizes that are powers of two are single moves.
#[inline(always)]
fn read_packet(bytes: &[u8]) -> Packet {
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk));
    match bytes.len() {
        16 => [word(0), word(4), word(8), word(12)],
        8 => [word(0), word(4), 0, 0],
        4 => [word(0), 0, 0, 0],
        2 => [u16::from_le_bytes([bytes[0], bytes[1]]).into(), 0, 0, 0],
        _ => [bytes[0].into(), 0, 0, 0],
    }
}

#[inline(always)]
fn write_packet(bytes: &mut [u8], packet: Packet) {
    let source: &[u8; 16] = bytemuck::cast_ref(&packet);
    match bytes.len() {
        16 => bytes.copy_from_slice(source),
        8 => bytes.copy_from_slice(&source[..8]),
        4 => bytes.copy_from_slice(&source[..4]),
        length => bytes.copy_from_slice(&source[..length]),
    }
}
