//! What asynchronous instructions do to shared memory: bulk copies write, `wgmma` reads, and mbarriers sit in it.
//!
//! A `wgmma` reads from the moment its first warp issues it until a `wgmma.wait_group` covers it; one that any of the
//! four warps has executed is enough, as the instruction is one for all of them. An ordinary write reaches
//! asynchronous instructions only through a proxy fence.

use super::{MBARRIER, PARTY, PENDING, SharedMemory, TIME_SHIFT};
use crate::memory::{Party, Refusal};
use crate::report::{Fault, RaceKind};
use std::ops::Range;

/// Bytes that an asynchronous access takes at a time.
const CHUNK: usize = 16;
const WARPS: usize = 4;

/// The reads of `wgmma`, by chunk and warpgroup.
#[derive(Default)]
pub(super) struct WgmmaReads {
    /// For each chunk, the warpgroups that read it since its last write, as bits.
    readers: Vec<u8>,
    /// For each chunk and warpgroup, the number of the last `wgmma` of the warpgroup that read it.
    last: Vec<u32>,
    warpgroups: usize,
    /// For each warp, how many of its warpgroup's `wgmma` it knows to be complete, and since when.
    waits: Vec<Vec<(u32, u32)>>,
}

impl WgmmaReads {
    pub(super) fn new(bytes: usize, warps: usize) -> Self {
        let (chunks, warpgroups) = (bytes.div_ceil(CHUNK), warps.div_ceil(WARPS));
        Self {
            readers: vec![0; chunks],
            last: vec![0; chunks * warpgroups],
            warpgroups,
            waits: vec![Vec::new(); WARPS * warpgroups],
        }
    }

    /// Forgets everything.
    pub(super) fn begin(&mut self) {
        self.readers.fill(0);
        self.waits.iter_mut().for_each(Vec::clear);
    }

    /// Whether a `wgmma` has read any of the bytes since they were written.
    #[inline(always)]
    pub(super) fn any(&self, bytes: &Range<usize>) -> bool {
        self.readers[bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)].iter().fold(0, |all, some| all | some) != 0
    }

    /// Compares a write with the reads.
    pub(super) fn judge(&self, bytes: &Range<usize>, party: &Party) -> Option<Fault> {
        let mut fine = (usize::MAX, 0);
        for chunk in bytes.start / CHUNK..bytes.end.div_ceil(CHUNK) {
            for warpgroup in (0..self.warpgroups).filter(|group| self.readers[chunk] >> group & 1 == 1) {
                let number = self.last[chunk * self.warpgroups + warpgroup];
                if (warpgroup, number) == fine {
                    continue;
                }
                if let Some(fault) = self.judge_one(warpgroup, number, (chunk * CHUNK) as u64, party) {
                    return Some(fault);
                }
                fine = (warpgroup, number);
            }
        }
        None
    }

    fn judge_one(&self, warpgroup: usize, number: u32, address: u64, party: &Party) -> Option<Fault> {
        let mut complete = false;
        for warp in WARPS * warpgroup..WARPS * (warpgroup + 1) {
            let waits = &self.waits[warp];
            let first = waits.partition_point(|(done, _)| *done <= number);
            if let Some((_, time)) = waits.get(first) {
                if party.is_after(warp as u32, *time) {
                    return None;
                }
                complete = true;
            }
        }
        if !complete {
            return Some(Fault::WgmmaReading { address });
        }
        let (kind, other_warp) = (RaceKind::WriteAfterRead, (WARPS * warpgroup) as u32);
        Some(Fault::Race { kind, address, other_warp, other_line: None })
    }
}

impl SharedMemory {
    fn chunks(&self, address: u64, bytes: u64) -> Result<Range<usize>, Refusal> {
        let size = self.bytes.len() as u64;
        if address < self.first || address > size || bytes > size - address {
            return Err(Refusal::OutOfBounds);
        }
        if !(address | bytes).is_multiple_of(CHUNK as u64) {
            return Err(Refusal::Misaligned);
        }
        Ok(address as usize..(address + bytes) as usize)
    }

    /// The race of an access with the last write of a byte.
    pub(super) fn race_with_write(&self, byte: usize, kind: RaceKind) -> Fault {
        let (address, other_warp) = (byte as u64, self.writes[byte] & PARTY);
        if other_warp >= crate::memory::FIRST_MBARRIER {
            return Fault::AsyncPending { address };
        }
        Fault::Race { kind, address, other_warp, other_line: Some(self.write_lines[byte]) }
    }

    /// Compares an asynchronous access with the last write of a byte.
    fn judge_async(&self, byte: usize, party: &Party, kind: RaceKind) -> Option<Fault> {
        let (write, address) = (self.writes[byte], byte as u64);
        let (other_warp, time) = (write & PARTY, write >> TIME_SHIFT);
        if time < self.start {
            return None;
        }
        if write & PENDING != 0 {
            return Some(super::pending(address, write));
        }
        if party.is_proxied(other_warp, time) {
            return None;
        }
        if party.is_after(other_warp, time) {
            return Some(Fault::MissingProxyFence { address, other_warp, other_line: self.write_lines[byte] });
        }
        Some(self.race_with_write(byte, kind))
    }

    /// Reads a chunk for a `wgmma`. `fine` is the last write that turned out to be in order, to look at each once.
    #[inline(always)]
    pub(crate) fn read_async(
        &self,
        address: u64,
        party: &Party,
        fine: &mut Option<u32>,
    ) -> Result<([u8; CHUNK], Option<Fault>), Refusal> {
        let range = self.chunks(address, CHUNK as u64)?;
        let writes: &[u32; CHUNK] = self.writes[range.start..].first_chunk().ok_or(Refusal::OutOfBounds)?;
        let bytes = *self.bytes[range.start..].first_chunk().ok_or(Refusal::OutOfBounds)?;
        let same = writes.iter().fold(0, |differences, write| differences | (write ^ writes[0])) == 0;
        if same && *fine == Some(writes[0]) {
            return Ok((bytes, None));
        }
        for (byte, write) in range.zip(writes) {
            if write >> TIME_SHIFT < self.start {
                return Err(Refusal::Uninitialised);
            }
            if let Some(fault) = self.judge_async(byte, party, RaceKind::ReadAfterWrite) {
                return Ok((bytes, Some(fault)));
            }
        }
        *fine = same.then_some(writes[0]);
        Ok((bytes, None))
    }

    /// Notes that the `wgmma` with the given number, counted from zero, reads a chunk.
    #[inline(always)]
    pub(crate) fn note_read(&mut self, address: u64, warpgroup: usize, number: u32) {
        let chunk = address as usize / CHUNK;
        if let Some(readers) = self.wgmma.readers.get_mut(chunk) {
            *readers |= 1 << warpgroup;
            self.wgmma.last[chunk * self.wgmma.warpgroups + warpgroup] = number;
        }
    }

    /// Notes that a warp has waited for that many of its warpgroup's `wgmma`.
    pub(crate) fn note_wait(&mut self, done: u32, party: &Party) {
        let waits = &mut self.wgmma.waits[party.warp as usize];
        if waits.last().is_none_or(|(before, _)| *before < done) {
            waits.push((done, party.time));
        }
    }

    /// Marks bytes as being filled by a bulk copy of which an mbarrier will tell.
    pub(crate) fn expect_bulk(
        &mut self,
        address: u64,
        bytes: u64,
        party: &Party,
        line: u32,
    ) -> Result<Option<Fault>, Refusal> {
        let range = self.chunks(address, bytes)?;
        let mut fault = None;
        let mut fine = 0;
        for byte in range.clone() {
            let write = self.writes[byte];
            let readers = self.reads[byte];
            if write != fine {
                fault = fault.or_else(|| self.judge_async(byte, party, RaceKind::WriteAfterWrite));
                fine = write;
            }
            if readers.time >= self.floor {
                fault = fault.or_else(|| self.judge_readers(byte, party));
            }
        }
        fault = fault.or_else(|| self.wgmma.judge(&range, party));
        self.writes[range.clone()].fill(self.now << TIME_SHIFT | PENDING);
        self.write_lines[range].fill(line);
        Ok(fault)
    }

    /// Completes a bulk copy: the bytes arrive, written by an mbarrier at the time given.
    pub(crate) fn land_bulk(&mut self, address: u64, data: &[u8], mbarrier: u32, time: u32) {
        let range = address as usize..address as usize + data.len();
        self.writes[range.clone()].fill(time << TIME_SHIFT | mbarrier);
        self.wgmma.readers[range.start / CHUNK..range.end / CHUNK].fill(0);
        self.bytes[range].copy_from_slice(data);
    }

    /// Makes 8 bytes an mbarrier, which no other access may touch.
    pub(crate) fn claim(&mut self, address: u64, party: &Party, line: u32) -> Result<Option<Fault>, Refusal> {
        let range = self.place(address, 8)?;
        let fault = self.shadow_write(range.clone(), party, line, 0);
        self.writes[range].fill(party.time << TIME_SHIFT | PENDING | MBARRIER);
        Ok(fault)
    }

    /// Makes an mbarrier ordinary memory, with nothing written.
    pub(crate) fn disclaim(&mut self, address: u64) {
        self.writes[address as usize..address as usize + 8].fill(0);
    }
}
