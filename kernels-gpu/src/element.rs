//! The element types of the caller's tensors (float16, bfloat16, float32), and strided rows of them.
//!
//! A lane moves 16 bytes at a time, a [`Vector`]: eight halves or four floats, lowest address first.

use crate::params::Strided;
use crate::ptx::global::{
    ld_global_nc_u16, ld_global_nc_u32, ld_global_nc_v4_u32, st_global_u16, st_global_u32, st_global_v4_u32,
};
use crate::ptx::math::{
    cvt_f32_f16_high, cvt_f32_f16_low, cvt_rn_bf16x2_f32, cvt_rn_f16x2_f32, cvt_rn_satfinite_bf16x2_f32,
    cvt_rn_satfinite_f16x2_f32, max_bf16x2, max_f16x2, min_bf16x2, min_f16x2,
};

/// 16 bytes of elements.
pub(crate) type Vector = [u32; 4];

/// A float type in global memory.
pub(crate) trait Element {
    /// Bytes of an element.
    const BYTES: usize;
    /// Elements of a [`Vector`].
    const LANES: usize = 16 / Self::BYTES;
    /// Elements of a word of 4 bytes.
    const IN_WORD: usize = 4 / Self::BYTES;

    /// Element `i` of a vector, exactly, in float32.
    fn get(vector: &Vector, i: usize) -> f32;

    /// A vector of the first [`LANES`](Self::LANES) of `values`, rounded to nearest even.
    fn pack(values: &[f32; 8]) -> Vector;

    /// [`pack`](Self::pack), with the largest finite magnitude for what is beyond it.
    fn pack_finite(values: &[f32; 8]) -> Vector;

    /// The smaller elements of two words; of a number and none, the number.
    fn min(a: u32, b: u32) -> u32;

    /// The larger elements of two words; of a number and none, the number.
    fn max(a: u32, b: u32) -> u32;
}

/// IEEE binary16.
pub(crate) struct F16;
/// [`F16`], worked on in float32: of the paper's scheme.
pub(crate) struct F16OfPaper;
/// bfloat16, the upper half of a float32.
pub(crate) struct Bf16;
/// IEEE binary32.
pub(crate) struct F32;

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn get(vector: &Vector, i: usize) -> f32 {
        if i % 2 == 0 { cvt_f32_f16_low(vector[i / 2]) } else { cvt_f32_f16_high(vector[i / 2]) }
    }

    #[inline(always)]
    fn pack(x: &[f32; 8]) -> Vector {
        [
            cvt_rn_f16x2_f32(x[1], x[0]),
            cvt_rn_f16x2_f32(x[3], x[2]),
            cvt_rn_f16x2_f32(x[5], x[4]),
            cvt_rn_f16x2_f32(x[7], x[6]),
        ]
    }

    #[inline(always)]
    fn pack_finite(x: &[f32; 8]) -> Vector {
        [
            cvt_rn_satfinite_f16x2_f32(x[1], x[0]),
            cvt_rn_satfinite_f16x2_f32(x[3], x[2]),
            cvt_rn_satfinite_f16x2_f32(x[5], x[4]),
            cvt_rn_satfinite_f16x2_f32(x[7], x[6]),
        ]
    }

    #[inline(always)]
    fn min(a: u32, b: u32) -> u32 {
        min_f16x2(a, b)
    }

    #[inline(always)]
    fn max(a: u32, b: u32) -> u32 {
        max_f16x2(a, b)
    }
}

impl Element for F16OfPaper {
    const BYTES: usize = F16::BYTES;

    #[inline(always)]
    fn get(vector: &Vector, i: usize) -> f32 {
        F16::get(vector, i)
    }

    #[inline(always)]
    fn pack(x: &[f32; 8]) -> Vector {
        F16::pack(x)
    }

    #[inline(always)]
    fn pack_finite(x: &[f32; 8]) -> Vector {
        F16::pack_finite(x)
    }

    #[inline(always)]
    fn min(a: u32, b: u32) -> u32 {
        F16::min(a, b)
    }

    #[inline(always)]
    fn max(a: u32, b: u32) -> u32 {
        F16::max(a, b)
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn get(vector: &Vector, i: usize) -> f32 {
        f32::from_bits(if i % 2 == 0 { vector[i / 2] << 16 } else { vector[i / 2] & 0xffff_0000 })
    }

    #[inline(always)]
    fn pack(x: &[f32; 8]) -> Vector {
        [
            cvt_rn_bf16x2_f32(x[1], x[0]),
            cvt_rn_bf16x2_f32(x[3], x[2]),
            cvt_rn_bf16x2_f32(x[5], x[4]),
            cvt_rn_bf16x2_f32(x[7], x[6]),
        ]
    }

    #[inline(always)]
    fn pack_finite(x: &[f32; 8]) -> Vector {
        [
            cvt_rn_satfinite_bf16x2_f32(x[1], x[0]),
            cvt_rn_satfinite_bf16x2_f32(x[3], x[2]),
            cvt_rn_satfinite_bf16x2_f32(x[5], x[4]),
            cvt_rn_satfinite_bf16x2_f32(x[7], x[6]),
        ]
    }

    #[inline(always)]
    fn min(a: u32, b: u32) -> u32 {
        min_bf16x2(a, b)
    }

    #[inline(always)]
    fn max(a: u32, b: u32) -> u32 {
        max_bf16x2(a, b)
    }
}

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn get(vector: &Vector, i: usize) -> f32 {
        f32::from_bits(vector[i])
    }

    #[inline(always)]
    fn pack(x: &[f32; 8]) -> Vector {
        [x[0].to_bits(), x[1].to_bits(), x[2].to_bits(), x[3].to_bits()]
    }

    #[inline(always)]
    fn pack_finite(x: &[f32; 8]) -> Vector {
        Self::pack(x)
    }

    #[inline(always)]
    fn min(a: u32, b: u32) -> u32 {
        f32::from_bits(a).min(f32::from_bits(b)).to_bits()
    }

    #[inline(always)]
    fn max(a: u32, b: u32) -> u32 {
        f32::from_bits(a).max(f32::from_bits(b)).to_bits()
    }
}

/// Where a head's rows lie: token `i` starts `i * stride` bytes after `base`, its dims are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    base: *mut u8,
    /// Bytes from one row to the next.
    pub stride: i64,
    /// Whether every row starts at a multiple of 16 bytes, so that a vector is one instruction.
    pub aligned: bool,
}

impl Rows {
    /// The rows of one head of a tensor.
    #[inline(always)]
    pub fn new<E: Element>(tensor: &Strided, batch: u32, head: u32) -> Self {
        let offset =
            i64::from(batch).wrapping_mul(tensor.stride_b).wrapping_add(i64::from(head).wrapping_mul(tensor.stride_h));
        let base = tensor.data.ptr().cast_mut().wrapping_offset(offset.wrapping_mul(E::BYTES as i64) as isize);
        let stride = tensor.stride_n.wrapping_mul(E::BYTES as i64);
        Self { base, stride, aligned: (base as usize | stride as usize) % 16 == 0 }
    }

    /// The same rows without those before this one.
    #[inline(always)]
    pub fn skip(mut self, row: u32) -> Self {
        self.base = self.at((row, 0));
        self
    }

    /// The address of a vector of a row.
    #[inline(always)]
    pub fn at(&self, (row, vector): (u32, u32)) -> *mut u8 {
        let offset = i64::from(row).wrapping_mul(self.stride).wrapping_add(i64::from(vector * 16));
        self.base.wrapping_offset(offset as isize)
    }
}

/// Stores vector `i` where `place(i)` says by row and vector of the row, if `predicate(i)`.
///
/// # Safety
/// Where the predicate holds, that is in the tensor, and this thread alone accesses it.
#[inline(always)]
pub(crate) unsafe fn store<E: Element, const N: usize>(
    vectors: &[Vector; N],
    rows: &Rows,
    predicate: impl Fn(usize) -> bool,
    place: impl Fn(usize) -> (u32, u32),
) {
    if rows.aligned {
        unroll!(0..N, |i| {
            unsafe { st_global_v4_u32(predicate(i), rows.at(place(i)), vectors[i]) };
        });
    } else {
        unroll!(0..N, |i| {
            unsafe { store_elements::<E>(predicate(i), rows.at(place(i)), &vectors[i]) };
        });
    }
}

/// Loads `N` vectors of rows; `place` says which: row, and vector of the row. All of them are under way at once.
///
/// # Safety
/// They are in the tensor, which the grid does not write.
#[inline(always)]
pub(crate) unsafe fn load<E: Element, const N: usize>(rows: &Rows, place: impl Fn(usize) -> (u32, u32)) -> [Vector; N] {
    let mut vectors = [[0; 4]; N];
    if rows.aligned {
        unroll!(0..N, |i| {
            vectors[i] = unsafe { ld_global_nc_v4_u32(rows.at(place(i))) };
        });
    } else {
        unroll!(0..N, |i| {
            vectors[i] = unsafe { load_elements::<E>(rows.at(place(i))) };
        });
    }
    vectors
}

/// Loads the vectors that have `N` elements, as [`load`]; those behind are zeros.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn load_dims<E: Element, const N: usize>(
    rows: &Rows,
    place: impl Fn(usize) -> (u32, u32),
) -> [Vector; 8] {
    let mut all = [[0; 4]; 8];
    macro_rules! load {
        ($count:expr) => {{
            let some = unsafe { load::<E, { $count }>(rows, place) };
            unroll!(0..$count, |i| {
                all[i] = some[i];
            });
        }};
    }
    match N / E::LANES {
        1 => load!(1),
        2 => load!(2),
        4 => load!(4),
        _ => load!(8),
    }
    all
}

/// A vector, element by element.
///
/// # Safety
/// It is in the tensor, and the grid does not write it.
#[inline(always)]
pub(crate) unsafe fn load_elements<E: Element>(address: *const u8) -> Vector {
    let mut vector = [0; 4];
    let mut word = 0;
    while word < 4 {
        let at = address.wrapping_add(4 * word);
        vector[word] = unsafe {
            if E::BYTES == 4 {
                ld_global_nc_u32(at)
            } else {
                ld_global_nc_u16(at) | ld_global_nc_u16(at.wrapping_add(2)) << 16
            }
        };
        word += 1;
    }
    vector
}

/// A vector, element by element.
///
/// # Safety
/// As [`store`].
#[inline(always)]
pub(crate) unsafe fn store_elements<E: Element>(predicate: bool, address: *mut u8, vector: &Vector) {
    unroll!(0..4, |word| {
        let at = address.wrapping_add(4 * word);
        unsafe {
            if E::BYTES == 4 {
                st_global_u32(predicate, at, [vector[word]]);
            } else {
                st_global_u16(predicate, at, [vector[word] as u16]);
                st_global_u16(predicate, at.wrapping_add(2), [(vector[word] >> 16) as u16]);
            }
        }
    });
}
