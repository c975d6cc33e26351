//! `ldmatrix` and `mma`.
//!
//! Lane `l` of a warp is thread `l % 4` of group `l / 4`. With `e` elements to a register, its register `r` of A
//! holds row `group + 8 * (r % 2)`, columns from `(r / 2) * 4 * e + thread * e`; register `r` of B holds column
//! `group`, rows from `r * 4 * e + thread * e`; accumulator `r` is row `group + 8 * (r / 2)`, column
//! `2 * thread + r % 2`. That holds for every shape `m16n8` and element size.
//!
//! Integer products are exact and sums wrap. Products of `f16` and `bf16` are exact, their sum is taken in double
//! precision and rounded to `f32` once; PTX leaves both order and rounding open, and tensor cores truncate.

use super::cta::{Cta, Warp};
use super::memory::{addresses, load};
use crate::isa::{Matrix, MmaElement, MmaRegs};
use crate::memory::Space;
use crate::numeric::{BF16, F16};
use crate::registers::{LANES, Lane, Registers, Slot};

pub(super) fn execute(op: &Matrix, warp: &mut Warp, cta: &mut Cta<'_>, mask: u32, line: u32) {
    cta.require_lanes(warp, line, u32::MAX, mask);
    match op {
        Matrix::Load { trans, d, address } => {
            let rows = addresses(&warp.registers, *address);
            for (matrix, d) in d.iter().enumerate() {
                let mut words = [[0; 4]; 8];
                for (row, words) in words.iter_mut().enumerate() {
                    let lane = 8 * matrix + row;
                    *words = load(warp, cta, lane, line, (Space::Shared, rows[lane]), 16);
                }
                let half = |row: usize, column: usize| words[row][column / 2] >> (16 * (column % 2)) & 0xffff;
                let values = std::array::from_fn(|lane| {
                    let (group, thread) = (lane / 4, lane % 4);
                    if *trans {
                        half(2 * thread, group) | half(2 * thread + 1, group) << 16
                    } else {
                        words[group][thread]
                    }
                });
                u32::write(&mut warp.registers, *d, mask, &values);
            }
        }
        Matrix::MmaInt { a_ty, b_ty, regs } => {
            let registers = &mut warp.registers;
            match (regs.b.len(), a_ty.bits) {
                (1, 8) => mma_int::<4, 4>(*a_ty, *b_ty, regs, registers, mask),
                (1, _) => mma_int::<4, 8>(*a_ty, *b_ty, regs, registers, mask),
                (_, 8) => mma_int::<8, 4>(*a_ty, *b_ty, regs, registers, mask),
                _ => mma_int::<8, 8>(*a_ty, *b_ty, regs, registers, mask),
            }
        }
        Matrix::MmaFloat { bf16, regs } if regs.b.len() == 1 => mma_float::<4>(*bf16, regs, &mut warp.registers, mask),
        Matrix::MmaFloat { bf16, regs } => mma_float::<8>(*bf16, regs, &mut warp.registers, mask),
    }
}

/// Collects a fragment as `ROWS` rows of `WORDS` registers each.
#[inline(always)]
fn gather<const ROWS: usize, const WORDS: usize>(registers: &Registers, fragment: &[Slot]) -> [[u32; WORDS]; ROWS] {
    let mut out = [[0; WORDS]; ROWS];
    let groups = ROWS / 8;
    for (r, slot) in fragment.iter().enumerate() {
        for (lane, word) in registers.narrow(*slot).iter().enumerate() {
            out[lane / 4 + 8 * (r % groups)][r / groups * 4 + lane % 4] = *word;
        }
    }
    out
}

/// Takes the elements out of their registers.
#[inline(always)]
fn elements<const ROWS: usize, const WORDS: usize, const EACH: usize>(
    rows: &[[u32; WORDS]; ROWS],
    signed: bool,
) -> [[[i16; EACH]; WORDS]; ROWS] {
    let bits = 32 / EACH;
    let mut out = [[[0; EACH]; WORDS]; ROWS];
    for (word, out) in rows.as_flattened().iter().zip(out.as_flattened_mut()) {
        for (i, element) in out.iter_mut().enumerate() {
            let high = (word << (32 - bits * (i + 1))) as i32;
            *element = (if signed { high >> (32 - bits) } else { (high as u32 >> (32 - bits)) as i32 }) as i16;
        }
    }
    out
}

/// Adds `dot(row, column)` to each accumulator.
#[inline(always)]
fn accumulate<T: Lane>(registers: &mut Registers, regs: &MmaRegs, mask: u32, dot: impl Fn(usize, usize, T) -> T) {
    let mut out = [[T::default(); LANES]; 4];
    for (r, out) in out.iter_mut().enumerate() {
        let c = T::read(registers, regs.c[r]);
        for lane in 0..LANES {
            out[lane] = dot(lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2, c[lane]);
        }
    }
    for (slot, values) in regs.d.iter().zip(&out) {
        T::write(registers, *slot, mask, values);
    }
}

fn mma_int<const WORDS: usize, const EACH: usize>(
    a_ty: MmaElement,
    b_ty: MmaElement,
    regs: &MmaRegs,
    registers: &mut Registers,
    mask: u32,
) {
    let a = elements::<16, WORDS, EACH>(&gather(registers, &regs.a), a_ty.signed);
    let b = elements::<8, WORDS, EACH>(&gather(registers, &regs.b), b_ty.signed);
    accumulate(registers, regs, mask, |row, column, c: i32| {
        let pairs = a[row].as_flattened().iter().zip(b[column].as_flattened());
        c.wrapping_add(pairs.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum())
    });
}

fn mma_float<const WORDS: usize>(bf16: bool, regs: &MmaRegs, registers: &mut Registers, mask: u32) {
    let format = if bf16 { BF16 } else { F16 };
    let pair = |word: u32| [format.decode(word & 0xffff), format.decode(word >> 16)];
    let a = gather::<16, WORDS>(registers, &regs.a).map(|row| row.map(pair));
    let b = gather::<8, WORDS>(registers, &regs.b).map(|row| row.map(pair));
    accumulate(registers, regs, mask, |row, column, c: f32| {
        let pairs = a[row].as_flattened().iter().zip(b[column].as_flattened());
        pairs.fold(f64::from(c), |sum, (a, b)| sum + a * b) as f32
    });
}
