//! O = acc / l, rotated back, and the log-sum-exp. A sink joins a row here, where all its keys are in.

use super::sequence::Sequence;
use crate::element::{Bf16, Element, F16, F32, store_elements};
use crate::layout::{V_ROTATION, rotate_v_back};
use crate::params::{AttentionParams, Strided, dtype};
use crate::ptx::global::{ld_global_nc_f32, st_global_f32, st_global_v4_u32};
use crate::ptx::math::{add_rn_f32, fma_rn_f32, mul_rn_f32};

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
    /// A power of two beyond what `factor` holds; 1 but for values that float16 has not.
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
    pub(crate) fn output(&self, sums: [f32; NEIGHBOURS]) -> [f32; NEIGHBOURS] {
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
        // Float16 too: what a sink, or a quiet key, has left of a loud head's values may be any of its numbers.
        o.map(|o| o * self.rest)
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

/// The log-sum-exp of a row, where the host wants it. `biased`: its scores have the share of K's offset.
#[inline(always)]
pub(crate) unsafe fn store_lse(
    params: &AttentionParams,
    sequence: &Sequence,
    row: u32,
    finished: &Finished,
    biased: bool,
) {
    if !params.lse.is_null() {
        let mut lse = unsafe { sink(params, sequence) };
        if finished.seen != 0 {
            let bias = unsafe { missing_bias(params, sequence, row, biased) };
            lse = fma_rn_f32(finished.lse, core::f32::consts::LN_2, bias * params.softmax_scale);
        }
        unsafe { st_global_f32(true, sequence.lse(params, row), [lse]) };
    }
}

/// [`store_lse`] where it is wanted, of a row with this `q_bias` and without a sink.
#[cfg(kernels = "short")]
#[inline(always)]
pub(crate) unsafe fn store_lse_of(params: &AttentionParams, sequence: &Sequence, row: u32, lse: f32, bias: f32) {
    let lse = fma_rn_f32(lse, core::f32::consts::LN_2, bias * params.softmax_scale);
    unsafe { st_global_f32(true, sequence.lse(params, row), [lse]) };
}

/// The sink of the head: a logit in natural units, minus infinity where there is none.
#[inline(always)]
unsafe fn sink(params: &AttentionParams, sequence: &Sequence) -> f32 {
    let sinks = params.score.sinks;
    if sinks.is_null() {
        return f32::NEG_INFINITY;
    }
    unsafe { ld_global_nc_f32(sinks.ptr().wrapping_add(sequence.head_q as usize)) }
}

/// The sink of a row in powers of two, in the unit of its scores, which are without the share of K's offset unless `biased`.
#[inline(always)]
pub(crate) unsafe fn sink_exponent(params: &AttentionParams, sequence: &Sequence, row: u32, biased: bool) -> f32 {
    if params.score.sinks.is_null() {
        return f32::NEG_INFINITY;
    }
    unsafe {
        let bias = mul_rn_f32(missing_bias(params, sequence, row, biased), params.softmax_scale);
        mul_rn_f32(add_rn_f32(sink(params, sequence), -bias), core::f32::consts::LOG2_E)
    }
}

/// The product of a query with K's offset, 0 where K has none, where its scores have it already, and past the last query.
#[inline(always)]
unsafe fn missing_bias(params: &AttentionParams, sequence: &Sequence, row: u32, biased: bool) -> f32 {
    if biased || params.q_bias.is_null() || row >= sequence.seqlen_q {
        return 0.0;
    }
    unsafe { ld_global_nc_f32(sequence.q_bias(params, row)) }
}
