//! `wgmma.mma_async`: matrix descriptors, and the product of bytes.
//!
//! Warp `w` of the warpgroup computes rows from `16 * w`. In it, lane `l` is thread `l % 4` of group `l / 4`, and its
//! accumulator `i` is row `group + 8 * (i / 2 % 2)`, column `8 * (i / 4) + 2 * thread + i % 2`. Register `r` of A holds
//! row `group + 8 * (r % 2)`, columns from `16 * (r / 2) + 4 * thread`, as that of `mma.m16n8k32` does.

use super::cta::{Cta, Warp};
use super::warpgroup::WARPS;
use crate::isa::{Wgmma, WgmmaA};
use crate::memory::{Refusal, SharedMemory, Space};
use crate::registers::{LANES, Lane, Registers, Slot};
use crate::report::Fault;

/// Rows of a warp, and the depth of the product.
const ROWS: usize = 16;
const DEPTH: usize = 32;
/// What shared memory delivers at once.
const CHUNK: usize = 16;

/// Bytes of one row, widened.
type Row = [i16; DEPTH];

/// A matrix in shared memory, as a descriptor says: K-major, in units of eight rows.
#[derive(Clone, Copy)]
struct Tile {
    start: u64,
    /// From one column of core matrices to the next, where nothing is swizzled.
    leading: u64,
    /// From eight rows to the next eight.
    stride: u64,
    /// Bytes of a row of the swizzled pattern; 16 if there is none.
    row: u64,
}

impl Tile {
    /// Reads a descriptor; none if it is not one, or its pattern does not begin where the hardware takes it to.
    fn of(descriptor: u64) -> Option<Self> {
        let field = |at: u32| (descriptor >> at & 0x3fff) << 4;
        let (start, leading, stride) = (field(0), field(16), field(32));
        let row = [16, 128, 64, 32][(descriptor >> 62) as usize];
        let used = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 3 << 62;
        // The pattern repeats every eight rows, and no row of 32 bytes may leave a row of the pattern.
        let fits = row == 16 || (start & (8 * row - 1)) < row && start % 32 == 0 && stride % (8 * row) == 0;
        (descriptor & !used == 0 && fits).then_some(Self { start, leading, stride, row })
    }

    /// Where half a row lies.
    fn chunk(&self, row: usize, half: usize) -> u64 {
        let (row, half) = (row as u64, half as u64);
        let place = self.start + row / 8 * self.stride;
        if self.row == 16 {
            return place + row % 8 * 16 + half * self.leading;
        }
        let place = place + row % 8 * self.row + half * 16;
        // Address bits from 4 on are XORed with those from 7 on: one, two or three, as the row has 2, 4 or 8 chunks.
        place ^ (place >> 3 & (self.row - 16))
    }
}

/// The operands of one instruction, which are the same for all lanes.
pub(super) struct Tiles {
    a: Option<u64>,
    b: u64,
    accumulate: bool,
    columns: usize,
}

impl Tiles {
    /// None if lanes disagree.
    pub(super) fn of(op: &Wgmma, warp: &Warp) -> Option<Self> {
        let same = |slot: Slot| {
            let values = warp.registers.wide(slot);
            values.iter().all(|value| *value == values[0]).then_some(values[0])
        };
        let scale = warp.registers.predicate(op.scale_d.predicate) ^ if op.scale_d.negated { u32::MAX } else { 0 };
        if scale != 0 && scale != u32::MAX {
            return None;
        }
        let a = match op.a {
            WgmmaA::Registers(_) => None,
            WgmmaA::Descriptor(slot) => Some(same(slot)?),
        };
        Some(Self { a, b: same(op.b)?, accumulate: scale != 0, columns: 2 * op.d.len() })
    }

    /// What tells the instruction from others on the same line.
    pub(super) fn operands(&self) -> [u64; 3] {
        [self.a.unwrap_or(0), self.b, self.accumulate.into()]
    }

    /// A descriptor that describes nothing.
    pub(super) fn unusable(&self) -> Option<u64> {
        self.a.into_iter().chain([self.b]).find(|descriptor| Tile::of(*descriptor).is_none())
    }

    /// Tells shared memory what the instruction reads.
    pub(super) fn note_reads(&self, shared: &mut SharedMemory, warpgroup: usize, number: u32) {
        for (descriptor, rows) in [(self.a, WARPS * ROWS), (Some(self.b), self.columns)] {
            let Some(tile) = descriptor.and_then(Tile::of) else { continue };
            for row in 0..rows {
                for half in 0..2 {
                    shared.note_read(tile.chunk(row, half), warpgroup, number);
                }
            }
        }
    }
}

/// Multiplies the rows of one warp.
pub(super) fn multiply(op: &Wgmma, tiles: &Tiles, warp: &mut Warp, cta: &mut Cta<'_>, line: u32) {
    let first = warp.id % WARPS * ROWS;
    let a = match &op.a {
        WgmmaA::Registers(slots) => from_registers(&warp.registers, slots, op.a_signed),
        WgmmaA::Descriptor(_) => rows(tiles.a.unwrap_or(0), first..first + ROWS, op.a_signed, warp, cta, line),
    };
    let b = rows(tiles.b, 0..tiles.columns, op.b_signed, warp, cta, line);
    let mut sums = vec![[0; ROWS]; tiles.columns];
    for (column, sums) in b.iter().zip(&mut sums) {
        for (row, sum) in a.iter().zip(sums) {
            *sum = dot(row, column);
        }
    }
    for (i, d) in op.d.iter().enumerate() {
        let mut values = if tiles.accumulate { i32::read(&warp.registers, *d) } else { [0; LANES] };
        for (lane, value) in values.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2);
            *value = value.wrapping_add(sums[column][row]);
        }
        i32::write(&mut warp.registers, *d, u32::MAX, &values);
    }
}

/// One sum. By itself, it becomes four multiply-adds of eight pairs; inlined, compilers prefer to work on four rows at
/// once, and spend most of the time gathering their elements.
#[inline(never)]
fn dot(a: &Row, b: &Row) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

fn widen(byte: u8, signed: bool) -> i16 {
    if signed { (byte as i8).into() } else { byte.into() }
}

fn from_registers(registers: &Registers, slots: &[Slot; 4], signed: bool) -> Vec<Row> {
    let mut out = vec![[0; DEPTH]; ROWS];
    for (r, slot) in slots.iter().enumerate() {
        for (lane, word) in registers.narrow(*slot).iter().enumerate() {
            let row = &mut out[lane / 4 + 8 * (r % 2)][16 * (r / 2) + 4 * (lane % 4)..];
            for (to, byte) in row.iter_mut().zip(word.to_le_bytes()) {
                *to = widen(byte, signed);
            }
        }
    }
    out
}

/// Rows of a matrix in shared memory; what must not be read is reported, and zero.
fn rows(
    descriptor: u64,
    rows: std::ops::Range<usize>,
    signed: bool,
    warp: &Warp,
    cta: &mut Cta<'_>,
    line: u32,
) -> Vec<Row> {
    let mut out = vec![[0; DEPTH]; rows.len()];
    let Some(tile) = Tile::of(descriptor) else { return out };
    let mut fine = None;
    for (row, out) in rows.zip(&mut out) {
        for (half, out) in out.as_chunks_mut::<CHUNK>().0.iter_mut().enumerate() {
            let address = tile.chunk(row, half);
            match cta.shared.read_async(address, &cta.parties[warp.id], &mut fine) {
                Ok((bytes, fault)) => {
                    *out = bytes.map(|byte| widen(byte, signed));
                    if let Some(fault) = fault {
                        cta.fault(warp.id, 0, line, fault);
                    }
                }
                Err(refusal) => {
                    let (space, bytes) = (Space::Shared, CHUNK as u32);
                    let fault = match refusal {
                        Refusal::Uninitialised => Fault::Uninitialised { space, address, bytes },
                        Refusal::Misaligned => Fault::Misaligned { space, address, bytes },
                        Refusal::OutOfBounds => Fault::OutOfBounds { space, address, bytes },
                    };
                    cta.fault(warp.id, 0, line, fault);
                }
            }
        }
    }
    out
}
