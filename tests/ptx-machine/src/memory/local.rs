//! Local memory: a stack for each thread of a warp.

use super::{Packet, Refusal};
use bytemuck::bytes_of;

/// The local memory of the 32 threads of a warp.
pub(crate) struct LocalMemory {
    bytes: Vec<u8>,
    written: Vec<bool>,
    depot: usize,
}

impl LocalMemory {
    /// Local memory with `depot` bytes for each thread.
    pub(crate) fn new(depot: usize) -> Self {
        Self { bytes: vec![0; 32 * depot], written: vec![false; 32 * depot], depot }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.written.fill(false);
    }

    fn place(&self, lane: usize, offset: u64, bytes: u32) -> Result<std::ops::Range<usize>, Refusal> {
        let bytes = u64::from(bytes);
        if offset > self.depot as u64 || bytes > self.depot as u64 - offset {
            return Err(Refusal::OutOfBounds);
        }
        if offset & (bytes - 1) != 0 {
            return Err(Refusal::Misaligned);
        }
        let start = lane * self.depot + offset as usize;
        Ok(start..start + bytes as usize)
    }

    pub(crate) fn load(&self, lane: usize, offset: u64, bytes: u32) -> Result<Packet, Refusal> {
        let range = self.place(lane, offset, bytes)?;
        if self.written[range.clone()].contains(&false) {
            return Err(Refusal::Uninitialised);
        }
        let mut packet = [0; 4];
        bytemuck::bytes_of_mut(&mut packet)[..range.len()].copy_from_slice(&self.bytes[range]);
        Ok(packet)
    }

    pub(crate) fn store(&mut self, lane: usize, offset: u64, bytes: u32, packet: Packet) -> Result<(), Refusal> {
        let range = self.place(lane, offset, bytes)?;
        self.written[range.clone()].fill(true);
        let length = range.len();
        self.bytes[range].copy_from_slice(&bytes_of(&packet)[..length]);
        Ok(())
    }
}
