//! A row: what a group of threads has of its states, and what the groups of a CTA come to.

use crate::attention::epilogue::store_neighbours;
use crate::attention::sequence::token;
use crate::config::decode::{MERGE_DIMS, MERGE_GROUPS, merge_sums_offset};
use crate::division::div_rem;
use crate::element::{Bf16, Element, F16, F32};
use crate::params::{MergedParams, Strided, dtype};
use crate::ptx::barrier::bar_sync;
use crate::ptx::global::{ld_global_f32, ld_global_nc_f32, ld_global_v4_f32, st_global_f32};
use crate::ptx::math::{
    ex2_approx_ftz_f32, fma_rn_f32, lg2_approx_ftz_f32, max_nan_f32, mul_rn_f32, rcp_approx_ftz_f32,
};
use crate::ptx::shared::{ld_shared_v2_u32, ld_shared_v4_u32, st_shared_v2_u32, st_shared_v4_u32};
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};
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

/// Where a CTA's part of a row is in the output.
#[derive(Clone, Copy)]
pub(crate) struct RowPart {
    /// In `[batch][heads_q][seqlen_q]`.
    pub row: u32,
    pub batch: u32,
    pub head: u32,
    pub token: u32,
    /// The first of the dims.
    pub dim: u32,
}

impl RowPart {
    /// Of a CTA that has a row, or some dims of one.
    #[inline(always)]
    pub(crate) fn of(out: &MergedParams, cta: u32) -> Self {
        let (row, part) = if out.cta_dims == out.head_dim {
            (cta, 0)
        } else {
            // SAFETY: a row has dims.
            unsafe { div_rem(cta, div_rem(out.head_dim, out.cta_dims).0) }
        };
        Self::of_row(out, row, part * out.cta_dims)
    }

    /// From this dim of a row on.
    #[inline(always)]
    pub(crate) fn of_row(out: &MergedParams, row: u32, dim: u32) -> Self {
        // SAFETY: a row has a head and a token.
        unsafe {
            let (rest, token) = if out.seqlen_q == 1 { (row, 0) } else { div_rem(row, out.seqlen_q) };
            let (batch, head) = div_rem(rest, out.heads_q);
            Self { row, batch, head, token, dim }
        }
    }
}

/// States that a thread has on their way at once.
const BATCH: usize = 8;
/// Groups of threads.
const GROUPS: u32 = MERGE_GROUPS as u32;

/// The weight of a state against a log-sum-exp.
#[inline(always)]
fn weight(lse: f32, base: f32) -> f32 {
    ex2_approx_ftz_f32(mul_rn_f32(lse - base, LOG2_E))
}

/// What weights are taken against, where the largest log-sum-exp is this one.
#[inline(always)]
fn base(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// What some states of a row come to: their largest log-sum-exp, the sum of the weights against that, and of the weighted outputs.
struct Sums {
    largest: f32,
    sum: f32,
    o: [f32; MERGE_DIMS],
}

/// The states `first`, `first + step`, .. of `count`, in dims from `dim` on.
///
/// # Safety
/// The addresses are those of rows.
#[inline(always)]
unsafe fn sums(states: &impl States, [first, step, count]: [u32; 3], dim: usize) -> Sums {
    let (mut largest, mut sum, mut o) = (f32::NEG_INFINITY, 0.0, [0.0; MERGE_DIMS]);
    let mut first = first;
    while first < count {
        let mut lse = [f32::NEG_INFINITY; BATCH];
        let mut values = [[[0.0; 4]; 2]; BATCH];
        unroll!(0..BATCH, |i| {
            let state = first + i as u32 * step;
            if state < count {
                let from = states.o(state).wrapping_add(dim);
                lse[i] = unsafe { ld_global_f32(states.lse(state)) };
                values[i] = unsafe { [ld_global_v4_f32(from), ld_global_v4_f32(from.wrapping_add(4))] };
            }
        });
        let before = largest;
        unroll!(0..BATCH, |i| {
            largest = max_nan_f32(largest, lse[i]);
        });
        let base = base(largest);
        let rescale = weight(before, base);
        sum *= rescale;
        o = o.map(|o| o * rescale);
        unroll!(0..BATCH, |i| {
            let weight = weight(lse[i], base);
            sum += weight;
            unroll!(0..MERGE_DIMS, |dim| {
                // What a state without keys has is not looked at.
                let value = if lse[i] == f32::NEG_INFINITY { 0.0 } else { values[i][dim / 4][dim % 4] };
                o[dim] = fma_rn_f32(weight, value, o[dim]);
            });
        });
        first += BATCH as u32 * step;
    }
    Sums { largest, sum, o }
}

/// Merges few states: a thread has eight dims of a row and all states, a CTA as many whole rows as its threads have dims of.
///
/// # Safety
/// By a whole CTA, of `MERGE_DIMS * ntid_x / head_dim` rows; the addresses are those of rows.
#[inline(always)]
pub(crate) unsafe fn merge_rows<S: States>(out: &MergedParams, of_row: impl Fn(u32) -> S) {
    // SAFETY: a row has dims.
    let (rows, row, vector) = unsafe {
        let vectors = out.head_dim / MERGE_DIMS as u32;
        let (row, vector) = div_rem(tid_x(), vectors);
        (div_rem(ntid_x(), vectors).0, row, vector)
    };
    let row = ctaid_x() * rows + row;
    let there = u64::from(row) < out.rows;
    let dim = MERGE_DIMS as u32 * vector;
    let states = of_row(row);
    let count = if there { states.count() } else { 0 };
    unsafe {
        let Sums { largest, sum, o } = sums(&states, [0, 1, count], dim as usize);
        // All reads of states are done before a row is written, which may be one of them: other threads read its log-sum-exp too.
        bar_sync();
        if there {
            let part = RowPart::of_row(out, row, dim);
            let sink = sink(out, part.head);
            let base = base(max_nan_f32(largest, sink));
            let of_states = weight(largest, base);
            let total = fma_rn_f32(of_states, sum, weight(sink, base));
            let seen = largest != f32::NEG_INFINITY;
            finish(out, part, [total, base], o.map(|o| o * of_states), seen);
        }
    }
}

/// Merges the states of a CTA's part of a row.
///
/// # Safety
/// By a whole CTA; the addresses are those of rows.
#[inline(always)]
pub(crate) unsafe fn merge(states: &impl States, out: &MergedParams, part: RowPart) {
    let vectors = out.cta_dims / MERGE_DIMS as u32;
    // SAFETY: a CTA has dims.
    let (group, vector) = unsafe { div_rem(tid_x(), vectors) };
    let dim = part.dim + MERGE_DIMS as u32 * vector;
    let Sums { largest, sum, o } = unsafe { sums(states, [group, GROUPS, states.count()], dim as usize) };
    let slot = |group: u32| smem::base() + 4 * MERGE_DIMS as u32 * (group * vectors + vector);
    let of_group = |group: u32| smem::base() + merge_sums_offset(out.cta_dims as usize) as u32 + 8 * group;
    unsafe {
        let bits = o.map(f32::to_bits);
        st_shared_v4_u32(true, slot(group), [bits[0], bits[1], bits[2], bits[3]]);
        st_shared_v4_u32(true, slot(group) + 16, [bits[4], bits[5], bits[6], bits[7]]);
        st_shared_v2_u32(vector == 0, of_group(group), [largest.to_bits(), sum.to_bits()]);
        // Also: all reads of states are done before a row is written, which may be one of them.
        bar_sync();
    }
    if group > 0 {
        return;
    }
    // The groups, and a sink, which is a weight more without a value.
    let sink = unsafe { sink(out, part.head) };
    let mut groups = [[0.0; 2]; MERGE_GROUPS];
    let mut all = sink;
    unroll!(0..MERGE_GROUPS, |group| {
        groups[group] = unsafe { ld_shared_v2_u32(of_group(group as u32)) }.map(f32::from_bits);
        all = max_nan_f32(all, groups[group][0]);
    });
    let base = base(all);
    let mut total = weight(sink, base);
    let mut seen = false;
    let mut o = [0.0; MERGE_DIMS];
    unroll!(0..MERGE_GROUPS, |group| {
        let [largest, sum] = groups[group];
        let weight = weight(largest, base);
        total = fma_rn_f32(weight, sum, total);
        seen |= largest != f32::NEG_INFINITY;
        let at = slot(group as u32);
        let [low, high] =
            unsafe { [ld_shared_v4_u32(at), ld_shared_v4_u32(at + 16)].map(|words| words.map(f32::from_bits)) };
        unroll!(0..4, |i| {
            o[i] = fma_rn_f32(weight, low[i], o[i]);
            o[4 + i] = fma_rn_f32(weight, high[i], o[4 + i]);
        });
    });
    unsafe { finish(out, RowPart { dim, ..part }, [total, base], o, seen) }
}

/// The logit of a head that has no value, or minus infinity.
#[inline(always)]
unsafe fn sink(out: &MergedParams, head: u32) -> f32 {
    if out.sinks.is_null() {
        f32::NEG_INFINITY
    } else {
        unsafe { ld_global_nc_f32(out.sinks.ptr().wrapping_add(head as usize)) }
    }
}

/// Stores what the weighted outputs and the sum of all weights against `base` come to, and the log-sum-exp once a row.
#[inline(always)]
unsafe fn finish(out: &MergedParams, part: RowPart, [total, base]: [f32; 2], o: [f32; MERGE_DIMS], seen: bool) {
    let factor = rcp_approx_ftz_f32(total);
    let o = o.map(|o| o * factor);
    unsafe {
        store(out, part, part.dim as usize, &o, if seen { u32::MAX } else { 0 });
        if part.dim == 0 && !out.lse.is_null() {
            let lse = if total == 0.0 { f32::NEG_INFINITY } else { fma_rn_f32(lg2_approx_ftz_f32(total), LN_2, base) };
            st_global_f32(true, out.lse.ptr().cast_mut().wrapping_add(part.row as usize), [lse]);
        }
    }
}

/// Stores neighbouring dims of a row in the type that is wanted.
#[inline(always)]
unsafe fn store(out: &MergedParams, part: RowPart, dim: usize, o: &[f32; MERGE_DIMS], seen: u32) {
    let Strided { data, stride_b, stride_h, stride_n } = out.o;
    // Whether eight neighbouring 16-bit elements of every row are 16-byte aligned.
    let whole = (stride_b | stride_h | stride_n) % 8 == 0 && data.address().is_multiple_of(16);
    let RowPart { batch, head, token: row, .. } = part;
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
