//! Loops compiled twice: for every machine, and for AVX2.

/// A loop to run with the widest vectors that the machine has. `run` has to be `#[inline(always)]`, and what it calls too.
pub(super) trait Kernel {
    fn run(self, vectors: impl Vectors);
}

/// Runs `kernel`, compiled for AVX2 where the machine has it. The results are the same: nothing is contracted, and only integers are
/// reordered.
#[inline]
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn avx2(kernel: impl Kernel) {
            kernel.run(avx2::Avx2(()));
        }
        // SAFETY: the machine has AVX2, as was just asked.
        return unsafe { avx2(kernel) };
    }
    kernel.run(Plain);
}

/// Products that the compiler does not find the instruction for by itself.
pub(super) trait Vectors: Copy {
    /// `out[row][column] = sum over i of a[row][i] b[i][column]` in int32, where `pairs` has two rows of `b` beside each other, `[i / 2][column][i % 2]`;
    /// columns a multiple of 32. The caller's bounds keep it below 2^31. What is loaded of `b` serves all rows.
    fn products<const ROWS: usize>(self, a: [&[i16]; ROWS], pairs: &[[i16; 2]], out: [&mut [i32]; ROWS]);
}

/// The compiler's.
#[derive(Clone, Copy)]
struct Plain;

impl Vectors for Plain {
    #[inline(always)]
    fn products<const ROWS: usize>(self, a: [&[i16]; ROWS], pairs: &[[i16; 2]], out: [&mut [i32]; ROWS]) {
        for (a, out) in a.into_iter().zip(out) {
            out.fill(0);
            for (a, row) in a.as_chunks::<2>().0.iter().zip(pairs.chunks_exact(out.len())) {
                for (out, b) in out.iter_mut().zip(row) {
                    *out += i32::from(a[0]) * i32::from(b[0]) + i32::from(a[1]) * i32::from(b[1]);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Vectors;
    use std::arch::x86_64::{
        _mm_loadu_si32, _mm256_add_epi32, _mm256_broadcastd_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_setzero_si256, _mm256_storeu_si256,
    };

    /// Made where the machine has AVX2, nowhere else.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(pub(super) ());

    /// Of int32 in a vector.
    const LANES: usize = 8;
    /// Vectors of columns that are summed up at once: with four rows their sums, two vectors of `b` and a pair of `a` are in registers.
    const VECTORS: usize = 2;
    const COLUMNS: usize = VECTORS * LANES;

    impl Vectors for Avx2 {
        #[inline(always)]
        fn products<const ROWS: usize>(self, a: [&[i16]; ROWS], pairs: &[[i16; 2]], mut out: [&mut [i32]; ROWS]) {
            let Some(columns) = out.first().map(|out| out.len()) else { return };
            let count = pairs.len() / columns;
            let a = a.map(|a| &a.as_chunks::<2>().0[..count]);
            for first in (0..columns).step_by(COLUMNS) {
                // SAFETY: the machine has AVX2, or there would be no `self`; each load and store is of an array of the vector's size.
                unsafe {
                    let mut sums = [[_mm256_setzero_si256(); VECTORS]; ROWS];
                    for (i, row) in pairs.chunks_exact(columns).enumerate() {
                        let b = row[first..][..COLUMNS].as_chunks::<LANES>().0;
                        let b: [_; VECTORS] = std::array::from_fn(|at| _mm256_loadu_si256(b[at].as_ptr().cast()));
                        for (sums, a) in sums.iter_mut().zip(&a) {
                            let a = _mm256_broadcastd_epi32(_mm_loadu_si32(a[i].as_ptr().cast()));
                            for (sum, b) in sums.iter_mut().zip(b) {
                                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
                            }
                        }
                    }
                    for (out, sums) in out.iter_mut().zip(sums) {
                        for (out, sum) in out[first..][..COLUMNS].as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                            _mm256_storeu_si256(out.as_mut_ptr().cast(), sum);
                        }
                    }
                }
            }
        }
    }
}

/// `a . b` in int32; lengths a multiple of 32. The caller's bounds keep it below 2^31.
#[inline(always)]
pub(super) fn dot(a: &[i16], b: &[i8]) -> i32 {
    let mut sum = 0;
    for (a, b) in a.chunks_exact(32).zip(b.chunks_exact(32)) {
        for i in 0..32 {
            sum += i32::from(a[i]) * i32::from(b[i]);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Products<'a, const ROWS: usize>([&'a [i16]; ROWS], &'a [[i16; 2]], [&'a mut [i32]; ROWS]);

    impl<const ROWS: usize> Kernel for Products<'_, ROWS> {
        #[inline(always)]
        fn run(self, vectors: impl Vectors) {
            vectors.products(self.0, self.1, self.2);
        }
    }

    #[test]
    fn products_are_the_sums_whatever_the_machine_has() {
        for (rows, columns) in [(2, 32), (64, 128), (128, 96), (256, 256)] {
            // The largest codes are among them, of both signs.
            let of_row = |row: usize| -> Vec<i16> {
                let seed = 255 * (1 - row as i16);
                (0..rows).map(|i| (i as i16 * 37 + seed) % 256 - 128 * (i as i16 % 2)).collect()
            };
            let a = [0, 1, 2, 3].map(of_row);
            let b = |i: usize, column: usize| (i * 89 + column * 53) as u8 as i8;
            let pair = |at: usize| [0, 1].map(|i| i16::from(b(at / columns * 2 + i, at % columns)));
            let pairs: Vec<[i16; 2]> = (0..rows / 2 * columns).map(pair).collect();
            let expected = a.each_ref().map(|a| -> Vec<i32> {
                (0..columns).map(|column| (0..rows).map(|i| i32::from(a[i]) * i32::from(b(i, column))).sum()).collect()
            });
            let a = a.each_ref().map(Vec::as_slice);
            let mut out = [1, 2, 3, 4].map(|x| vec![x; columns]);
            dispatch(Products(a, &pairs, out.each_mut().map(Vec::as_mut_slice)));
            assert_eq!(out, expected);
            Plain.products([a[3], a[2]], &pairs, out[..2].as_chunks_mut::<2>().0[0].each_mut().map(Vec::as_mut_slice));
            assert_eq!([&out[0], &out[1]], [&expected[3], &expected[2]]);
            dispatch(Products([a[1]], &pairs, [&mut out[0]]));
            assert_eq!(out[0], expected[1]);
        }
    }
}
