//! O = acc / l, rotated back, and the log-sum-exp.

use super::sequence::Sequence;
use crate::element::{Bf16, Element, F16, F32, store_elements};
use crate::layout::{V_ROTATION, rotate_v_back};
use crate::params::{AttentionParams, Strided, dtype};
use crate::ptx::global::{ld_global_nc_f32, st_global_f32, st_global_v4_u32};
use crate::ptx::math::fma_rn_f32;

/// Dims of a lane that are neighbours (`layout::v_row`), and n8 tiles that have them.
pub(crate) const NEIGHBOURS: usize = 8;
pub(crate) const TILES: usize = 4;

/// What a row's output is made of: `o * factor - offset`, times `rest`.
#[derive(Clone, Copy)]
pub(crate) struct Finished {
    pub factor: f32,
    /// [`V_OFFSET`](crate::layout::V_OFFSET) times the sum of the row's weights: what V's bytes, which are so much larger than its
    /// codes, have added to the row.
    pub offset: f32,
    /// A power of two that types with float32's exponents have beyond what `factor` holds; 1 but for values that float16 has not.
    pub rest: f32,
    /// Whether four neighbouring dims are to be rotated back.
    pub rotated: bool,
    /// All bits, or none for a row that sees no key.
    pub seen: u32,
    /// The log-sum-exp in base 2.
    pub lse: f32,
}

impl Finished {
    /// Of a row that sees no key.
    pub(crate) const UNSEEN: Self =
        Self { factor: 0.0, offset: 0.0, rest: 1.0, rotated: false, seen: 0, lse: f32::NEG_INFINITY };

    /// A lane's neighbouring elements of the output, given their sums.
    #[inline(always)]
    pub(crate) fn output<E: Element>(&self, sums: [f32; NEIGHBOURS]) -> [f32; NEIGHBOURS] {
        let mut o = sums.map(|sum| fma_rn_f32(sum, self.factor, -self.offset));
        if self.rotated {
            unroll!(0..NEIGHBOURS / V_ROTATION, |i| {
                let four = [o[V_ROTATION * i], o[V_ROTATION * i + 1], o[V_ROTATION * i + 2], o[V_ROTATION * i + 3]];
                let four = rotate_v_back(four);
                unroll!(0..V_ROTATION, |j| {
                    o[V_ROTATION * i + j] = four[j];
                });
            });
        }
        if E::WIDE { o.map(|o| o * self.rest) } else { o }
    }
}

/// Rows of the output in registers.
pub(crate) trait OutputRows {
    /// Stores them, by [`store_neighbours`].
    unsafe fn store<E: Element, const WHOLE: bool>(&self);
}

/// Stores rows in the type that is wanted. One branch, in front of everything: one for each store, and an address, cost as
/// much as two blocks of keys. A type as a const parameter of the kernel would triple what the driver compiles.
#[inline(always)]
pub(crate) unsafe fn store(params: &AttentionParams, rows: &impl OutputRows) {
    let Strided { data, stride_b, stride_h, stride_n } = params.o;
    // Whether eight neighbouring 16-bit elements of every row are 16-byte aligned.
    let whole = (stride_b | stride_h | stride_n) % 8 == 0 && data.address().is_multiple_of(16);
    unsafe {
        match (params.o_dtype, whole) {
            (dtype::F16, true) => rows.store::<F16, true>(),
            (dtype::BF16, true) => rows.store::<Bf16, true>(),
            (dtype::F16, false) => rows.store::<F16, false>(),
            (dtype::BF16, false) => rows.store::<Bf16, false>(),
            _ => rows.store::<F32, false>(),
        }
    }
}

/// Whether the output has [`NEIGHBOURS`] dims from `dim` on: all of them or none, as it has multiples of eight.
#[inline(always)]
pub(crate) fn has_dim(params: &AttentionParams, dim: usize) -> bool {
    (dim as u32) < params.o_dims
}

/// Stores neighbouring elements where `inside`: zeros in a row that sees no key. `WHOLE` says that 16 bytes are aligned.
///
/// # Safety
/// Where `inside`, `address` is that of the elements in the output.
#[inline(always)]
pub(crate) unsafe fn store_neighbours<E: Element, const WHOLE: bool>(
    inside: bool,
    address: *mut u8,
    o: &[f32; NEIGHBOURS],
    seen: u32,
) {
    unroll!(0..NEIGHBOURS / E::LANES, |piece| {
        let mut values = [0.0; NEIGHBOURS];
        unroll!(0..E::LANES, |i| {
            values[i] = o[E::LANES * piece + i];
        });
        let vector = E::pack_finite(&values).map(|word| word & seen);
        let address = address.wrapping_add(16 * piece);
        unsafe {
            if WHOLE {
                st_global_v4_u32(inside, address, vector);
            } else {
                store_elements::<E>(inside, address, &vector);
            }
        }
    });
}

/// The log-sum-exp of a row, of which `lse` is the part in base 2, where the host wants it.
#[inline(always)]
pub(crate) unsafe fn store_lse(params: &AttentionParams, sequence: &Sequence, row: u32, lse: f32) {
    if !params.lse.is_null() {
        let bias =
            if params.q_bias.is_null() { 0.0 } else { unsafe { ld_global_nc_f32(sequence.q_bias(params, row)) } };
        unsafe { store_lse_of(params, sequence, row, lse, bias) };
    }
}

/// [`store_lse`] where it is wanted, of a row with this `q_bias`.
#[inline(always)]
pub(crate) unsafe fn store_lse_of(params: &AttentionParams, sequence: &Sequence, row: u32, lse: f32, bias: f32) {
    let lse = fma_rn_f32(lse, core::f32::consts::LN_2, bias * params.softmax_scale);
    unsafe { st_global_f32(true, sequence.lse(params, row), [lse]) };
}
