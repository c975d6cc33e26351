//! The row of a CTA.

use crate::attention::epilogue::store_neighbours;
use crate::attention::sequence::token;
use crate::config::decode::{MERGE_DIMS, MERGE_THREADS};
use crate::division::div_rem;
use crate::element::{Bf16, Element, F16, F32};
use crate::params::{MergedParams, Strided, dtype};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_f32, ld_global_nc_f32, ld_global_v4_f32, st_global_f32};
use crate::ptx::math::{
    ex2_approx_ftz_f32, fma_rn_f32, lg2_approx_ftz_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32,
};
use crate::ptx::shared::{ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::shuffle::shfl_sync_bfly_b32;
use crate::ptx::special::tid_x;
use crate::smem;
use core::f32::consts::{LN_2, LOG2_E};

/// The states of a row.
pub(crate) trait States {
    fn count(&self) -> u32;
    /// The row's output in a state.
    fn o(&self, state: u32) -> *const f32;
    /// The row's log-sum-exp in a state.
    fn lse(&self, state: u32) -> *const f32;
}

/// Where a row is in the output.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub batch: u32,
    pub head: u32,
    pub token: u32,
}

impl Place {
    /// Of row number `row` in `[batch][heads_q][seqlen_q]`.
    #[inline(always)]
    pub(crate) fn of(out: &MergedParams, row: u32) -> Self {
        // SAFETY: a row has a head and a token.
        let ((rest, token), heads) = unsafe { (div_rem(row, out.seqlen_q), out.heads_q) };
        let (batch, head) = unsafe { div_rem(rest, heads) };
        Self { batch, head, token }
    }
}

/// States whose outputs a thread has on their way at once.
const BATCH: usize = 4;

/// All log-sum-exps of a row together, by a warp.
#[inline(always)]
unsafe fn over_all(
    states: &impl States,
    mut value: f32,
    take: impl Fn(f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut state = tid_x() % 32;
    while state < states.count() {
        value = take(value, unsafe { ld_global_f32(states.lse(state)) });
        state += 32;
    }
    let mut distance = 16;
    while distance > 0 {
        value = join(value, f32::from_bits(unsafe { shfl_sync_bfly_b32(value.to_bits(), distance) }));
        distance /= 2;
    }
    value
}

/// The weight of a state against the largest log-sum-exp.
#[inline(always)]
fn weight(lse: f32, base: f32) -> f32 {
    ex2_approx_ftz_f32(mul_rn_f32(lse - base, LOG2_E))
}

/// Merges the states of a row.
///
/// # Safety
/// By a whole CTA; the addresses are those of rows.
#[inline(always)]
pub(crate) unsafe fn merge(states: &impl States, out: &MergedParams, place: Place) {
    let (count, thread) = (states.count(), tid_x());
    // Every warp for itself: the largest log-sum-exp, and the sum of the weights.
    let largest = unsafe { over_all(states, f32::NEG_INFINITY, max_nan_f32, max_nan_f32) };
    let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
    let total = unsafe { over_all(states, 0.0, |sum, lse| sum + weight(lse, base), |a, b| a + b) };

    // A sink is a weight more, without a value.
    let sink = if out.sinks.is_null() {
        f32::NEG_INFINITY
    } else {
        unsafe { ld_global_nc_f32(out.sinks.ptr().wrapping_add(place.head as usize)) }
    };
    let top = max_nan_f32(largest, sink);
    let top = if top == f32::NEG_INFINITY { 0.0 } else { top };
    let share = weight(base, top);
    let all = fma_rn_f32(total, share, weight(sink, top));
    let factor = if total == 0.0 { 0.0 } else { share * rcp_approx_ftz_f32(all) };

    // SAFETY: a head has dims.
    let vectors = unsafe { div_rem(out.head_dim, MERGE_DIMS as u32) }.0;
    let ((group, vector), groups) = unsafe { (div_rem(thread, vectors), div_rem(MERGE_THREADS as u32, vectors).0) };
    let mut o = [0.0; MERGE_DIMS];
    if group < groups {
        let mut first = group;
        while first < count {
            let mut weights = [0.0; BATCH];
            let mut values = [[[0.0; 4]; 2]; BATCH];
            unroll!(0..BATCH, |i| {
                let state = first + i as u32 * groups;
                if state < count {
                    let lse = unsafe { ld_global_f32(states.lse(state)) };
                    let from = states.o(state).wrapping_add(MERGE_DIMS * vector as usize);
                    values[i] = unsafe { [ld_global_v4_f32(from), ld_global_v4_f32(from.wrapping_add(4))] };
                    weights[i] = weight(lse, base);
                    // What a state without keys has is not looked at.
                    if lse == f32::NEG_INFINITY {
                        values[i] = [[0.0; 4]; 2];
                    }
                }
            });
            unroll!(0..BATCH, |i| {
                unroll!(0..MERGE_DIMS, |dim| {
                    o[dim] = fma_rn_f32(weights[i], values[i][dim / 4][dim % 4], o[dim]);
                });
            });
            first += BATCH as u32 * groups;
        }
    }
    let slot = |group: u32, vector: u32| smem::base() + 4 * MERGE_DIMS as u32 * (group * vectors + vector);
    unsafe {
        let bits = o.map(f32::to_bits);
        st_shared_v4_u32(group < groups, slot(group, vector), [bits[0], bits[1], bits[2], bits[3]]);
        st_shared_v4_u32(group < groups, slot(group, vector) + 16, [bits[4], bits[5], bits[6], bits[7]]);
        // Also: all reads of states are done before a row is written, which may be one of them.
        bar_sync();
    }
    if group > 0 {
        return;
    }
    o = [0.0; MERGE_DIMS];
    let mut other = 0;
    while other < groups && other < count {
        let [low, high] = unsafe {
            [ld_shared_v4_u32(slot(other, vector)), ld_shared_v4_u32(slot(other, vector) + 16)]
                .map(|words| words.map(f32::from_bits))
        };
        unroll!(0..4, |i| {
            o[i] += low[i];
            o[4 + i] += high[i];
        });
        other += 1;
    }
    let seen = if factor == 0.0 { 0 } else { u32::MAX };
    let o = o.map(|o| o * factor);
    unsafe {
        store(out, place, MERGE_DIMS * vector as usize, &o, seen);
        if vector == 0 && !out.lse.is_null() {
            let row = (u64::from(place.batch) * u64::from(out.heads_q) + u64::from(place.head))
                * u64::from(out.seqlen_q)
                + u64::from(place.token);
            let lse = if all == 0.0 { f32::NEG_INFINITY } else { fma_rn_f32(lg2_approx_ftz_f32(all), LN_2, top) };
            st_global_f32(true, out.lse.ptr().cast_mut().wrapping_add(row as usize), [lse]);
        }
    }
}

/// Stores neighbouring dims of a row in the type that is wanted.
#[inline(always)]
unsafe fn store(out: &MergedParams, place: Place, dim: usize, o: &[f32; MERGE_DIMS], seen: u32) {
    let Strided { data, stride_b, stride_h, stride_n } = out.o;
    // Whether eight neighbouring 16-bit elements of every row are 16-byte aligned.
    let whole = (stride_b | stride_h | stride_n) % 8 == 0 && data.address().is_multiple_of(16);
    let Place { batch, head, token: row } = place;
    let at = |bytes: usize| token(&out.o, bytes, [batch, head, row], dim).cast_mut();
    unsafe {
        match (out.o_dtype, whole) {
            (dtype::F16, true) => store_neighbours::<F16, true>(true, at(F16::BYTES), o, seen),
            (dtype::BF16, true) => store_neighbours::<Bf16, true>(true, at(Bf16::BYTES), o, seen),
            (dtype::F16, false) => store_neighbours::<F16, false>(true, at(F16::BYTES), o, seen),
            (dtype::BF16, false) => store_neighbours::<Bf16, false>(true, at(Bf16::BYTES), o, seen),
            (_, true) => store_neighbours::<F32, true>(true, at(F32::BYTES), o, seen),
            (_, false) => store_neighbours::<F32, false>(true, at(F32::BYTES), o, seen),
        }
    }
}
