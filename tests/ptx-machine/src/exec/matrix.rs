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
        Matrix::MmaInt { k: 16, a_ty, b_ty, regs } => mma_int::<16>(*a_ty, *b_ty, regs, &mut warp.registers, mask),
        Matrix::MmaInt { k: 32, a_ty, b_ty, regs } => mma_int::<32>(*a_ty, *b_ty, regs, &mut warp.registers, mask),
        Matrix::MmaInt { a_ty, b_ty, regs, .. } => mma_int::<64>(*a_ty, *b_ty, regs, &mut warp.registers, mask),
        Matrix::MmaFloat { k: 8, bf16, regs } => mma_float::<8>(*bf16, regs, &mut warp.registers, mask),
        Matrix::MmaFloat { bf16, regs, .. } => mma_float::<16>(*bf16, regs, &mut warp.registers, mask),
    }
}

/// Collects a fragment of `ROWS` rows of `K` elements; `rows` is how many registers lie across row groups.
#[inline(always)]
fn gather<T: Copy + Default, const ROWS: usize, const K: usize>(
    registers: &Registers,
    fragment: &[Slot],
    bits: usize,
    element: impl Fn(u32) -> T,
) -> [[T; K]; ROWS] {
    let mut out = [[T::default(); K]; ROWS];
    let (each, groups) = (32 / bits, ROWS / 8);
    for (r, slot) in fragment.iter().enumerate() {
        let words = registers.narrow(*slot);
        for (lane, word) in words.iter().enumerate() {
            let row = &mut out[lane / 4 + 8 * (r % groups)];
            let start = (r / groups * 4 + lane % 4) * each;
            for (i, place) in row[start..start + each].iter_mut().enumerate() {
                *place = element(word >> (i * bits));
            }
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

fn mma_int<const K: usize>(a_ty: MmaElement, b_ty: MmaElement, regs: &MmaRegs, registers: &mut Registers, mask: u32) {
    let element = |ty: MmaElement| {
        move |word: u32| {
            let unused = 32 - ty.bits;
            (if ty.signed { (word << unused) as i32 >> unused } else { (word << unused >> unused) as i32 }) as i16
        }
    };
    let a: [[i16; K]; 16] = gather(registers, &regs.a, a_ty.bits as usize, element(a_ty));
    let b: [[i16; K]; 8] = gather(registers, &regs.b, b_ty.bits as usize, element(b_ty));
    accumulate(registers, regs, mask, |row, column, c: i32| {
        let products = a[row].iter().zip(&b[column]).map(|(a, b)| i32::from(*a) * i32::from(*b));
        c.wrapping_add(products.sum::<i32>())
    });
}

fn mma_float<const K: usize>(bf16: bool, regs: &MmaRegs, registers: &mut Registers, mask: u32) {
    let format = if bf16 { BF16 } else { F16 };
    let a: [[f64; K]; 16] = gather(registers, &regs.a, 16, |word| format.decode(word & 0xffff));
    let b: [[f64; K]; 8] = gather(registers, &regs.b, 16, |word| format.decode(word & 0xffff));
    accumulate(registers, regs, mask, |row, column, c: f32| {
        a[row].iter().zip(&b[column]).fold(f64::from(c), |sum, (a, b)| sum + a * b) as f32
    });
}
