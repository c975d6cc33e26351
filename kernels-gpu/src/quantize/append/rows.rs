//! Tokens with scales of their own, each in the registers of a few lanes (`crate::rotation`).

use super::pages::slot;
use super::work::{FEW_LANE_DIMS, LANE_DIMS};
use crate::division::div_rem;
use crate::element::{Rows, load_dims};
use crate::layout::page::{NO_SLOT, PAGE_TOKENS, page_head, page_head_offset, page_v_offset};
use crate::layout::v4::{v4_nibble_by, v4_offset, v4_range, v4_reciprocal, v4_step_offset};
use crate::layout::{MAX_SCALE, MIN_SCALE, ROW_BYTES, V_GROUP, V_OFFSETS, k_offset, loud, v_offset};
use crate::params::AppendParams;
use crate::ptx::barrier::warp_sync;
use crate::ptx::global::{
    ld_global_nc_v4_f32, st_global_f32, st_global_u8, st_global_u16, st_global_u32, st_global_v2_u32,
};
use crate::ptx::math::{add_rn_f32, fma_rn_f32, max_nan_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_u32, st_shared_u32};
use crate::ptx::shuffle::{shfl_idx, vote_any};
use crate::ptx::special::{ntid_x, tid_x_again};
use crate::quantize::arithmetic::{Rotated, Token, Unit};
use crate::quantize::scale::{BEYOND_10_BITS, round_up, round_up_to_step, scale, token_scale};
use crate::quantize::values::FURTHER;
use crate::rotation::{DIMS, MANY_LANES_DIMS, TokenLane, signs_from};
use crate::smem;

const _: () = assert!(LANE_DIMS as usize == DIMS && FEW_LANE_DIMS as usize == MANY_LANES_DIMS);

/// Of Q.
pub(super) const QUERIES: u8 = 0;
/// Of K.
pub(super) const KEYS: u8 = 1;
/// Of V.
pub(super) const VALUES: u8 = 2;
/// Of V, with the codes left in shared memory for [`store_staged`].
pub(super) const STAGED_VALUES: u8 = 3;

/// Quantizes what a CTA's lanes hold of a head's tokens from `first` to before `end`, `N` dims each: [`DIMS`], or [`MANY_LANES_DIMS`] in a launch of few tokens, whose
/// lanes would have nothing else to do while one of them goes through more.
///
/// # Safety
/// Every thread of the CTA calls it; the launch has the tokens and the head.
#[inline(always)]
pub(super) unsafe fn quantize<E: Rotated, const OF: u8, const N: usize>(
    p: &AppendParams,
    head: u32,
    first: u32,
    end: u32,
) {
    let place = TokenLane::of_lanes_with::<N>(p.head_dim, p.head_dim.next_power_of_two());
    let of_warp = first + tid_x_again() / 32 * place.tokens();
    // The same for the whole warp.
    if of_warp < end {
        unsafe { of_one_warp::<E, OF, N>(p, &place, head, of_warp + place.token, [first, end]) }
    }
}

#[inline(always)]
unsafe fn of_one_warp<E: Rotated, const OF: u8, const N: usize>(
    p: &AppendParams,
    place: &TokenLane,
    head: u32,
    token: u32,
    [first, end]: [u32; 2],
) {
    unsafe {
        let inside = token < end;
        let token = token.min(end - 1);
        // On its way together with the token; floats leave no register for it.
        let late = E::BYTES == 4 && N == DIMS;
        let early_slot = if OF == QUERIES || late { 0 } else { slot(p, token) };
        let (mut x, unit) = rotated::<E, OF, N>(p, place, head, token, inside);
        let amax = over_lanes::<N>(place, x.largest(), max_nan_f32) * unit.unit;
        let (scale, largest) = match OF {
            VALUES | STAGED_VALUES => (round_up_to_step(scale(amax, fma_rn_f32)), 1.0 / MIN_SCALE),
            _ => (round_up(token_scale(amax, fma_rn_f32), if OF == QUERIES { BEYOND_10_BITS } else { 0 }), MAX_SCALE),
        };
        x.encode(scale, unit, largest);
        let number = amax < f32::INFINITY;
        let mask = selp_b32(number, u32::MAX, 0);
        let scale = f32::from_bits(selp_b32(number, scale.to_bits(), f32::NAN.to_bits()));
        let quad = |at: usize| x.codes4(at / 4) & mask;

        let slot = if OF != QUERIES && late { slot(p, opaque(token)) } else { early_slot };
        let d = p.head_dim as usize;
        let write = inside & (slot != NO_SLOT);
        let key = slot as usize % PAGE_TOKENS;
        // Made anew where it is needed: it takes no registers meanwhile.
        let of_slot = |slot: u32| {
            let (page, head) = (slot as usize / PAGE_TOKENS, opaque(head) as usize);
            let at = page_head(page, head, p.heads_kv as usize, d, p.v8_pages as usize);
            (p.pool.ptr().cast_mut().wrapping_add(at.offset), at.scales)
        };
        let scales = match OF {
            QUERIES => p.q_scale.ptr().cast_mut().wrapping_add(query_row(p, head, opaque(token))),
            _ => {
                let (pool, scales) = of_slot(slot);
                let behind = if OF == KEYS { 0 } else { PAGE_TOKENS };
                pool.wrapping_add(scales).cast::<f32>().wrapping_add(behind + key)
            }
        };
        st_global_f32(write & (place.lane == 0), scales, [scale]);
        // Of V in 4 bits, whose nibbles are of all of a group's dims, codes wait in shared memory too.
        let v4 = write & (slot >= p.v8_pages * PAGE_TOKENS as u32);
        let any_v4 = (OF == VALUES || OF == STAGED_VALUES) && vote_any(v4);
        if OF == STAGED_VALUES || any_v4 {
            unroll!(0..N / E::LANES, |i| {
                let to = staged(p.head_dim, token - first) + place.vector(i) * E::LANES as u32;
                unroll!(0..E::LANES / 4, |four| {
                    let bytes = quad(i * E::LANES + 4 * four) ^ V_OFFSETS;
                    st_shared_u32(inside & has::<E, N>(place, i), to + 4 * four as u32, bytes);
                });
            });
        }
        if OF != STAGED_VALUES {
            let codes = match OF {
                QUERIES => p.q_out.ptr().cast_mut().wrapping_add(query_row(p, head, opaque(token)) * d),
                KEYS => of_slot(opaque(slot)).0,
                _ => of_slot(opaque(slot)).0.wrapping_add(page_v_offset(d)),
            };
            unroll!(0..N / E::LANES, |i| {
                let (write, dim) = (write & has::<E, N>(place, i), place.vector(i) as usize * E::LANES);
                if OF == VALUES {
                    let write = write & !v4;
                    // Of eight neighbouring dims the rows are as far apart as `FURTHER` says, and swizzled alike.
                    let to = codes.wrapping_add(v_offset(key, dim, d));
                    unroll!(0..E::LANES / 4, |four| {
                        let bytes = quad(i * E::LANES + 4 * four) ^ V_OFFSETS;
                        unroll!(0..4, |j| {
                            let to = to.wrapping_add(FURTHER[4 * four + j] * ROW_BYTES);
                            st_global_u8(write, to, [bytes >> (8 * j)]);
                        });
                    });
                } else {
                    let to = codes.wrapping_add(if OF == KEYS { k_offset(key, dim) } else { dim });
                    if E::LANES == 8 {
                        st_global_v2_u32(write, to, [quad(8 * i), quad(8 * i + 4)]);
                    } else {
                        st_global_u32(write, to, [quad(4 * i)]);
                    }
                }
            });
        }
        if any_v4 {
            warp_sync();
            store_nibbles::<N>(p, opaque(head), opaque(first), opaque(end));
        }
    }
}

/// Shared address of the bytes of V of a token of those that a CTA holds. Tokens are an odd number of words apart, so that a warp's lie in different banks.
#[inline(always)]
fn staged(head_dim: u32, token: u32) -> u32 {
    smem::base() + token * (head_dim + 4)
}

/// Stores those of the calling warp's tokens whose pages have V in 4 bits, from their bytes in shared memory: a lane has a group of dims of a token.
///
/// # Safety
/// A converged warp calls it.
#[inline(always)]
unsafe fn store_nibbles<const N: usize>(p: &AppendParams, head: u32, first: u32, end: u32) {
    unsafe {
        let (d, lane) = (p.head_dim as usize, tid_x_again() % 32);
        let tokens = TokenLane::of_lanes_with::<N>(p.head_dim, p.head_dim).tokens();
        let of_warp = first + tid_x_again() / 32 * tokens;
        let (token, group) = (of_warp + (lane & (tokens - 1)), lane >> tokens.trailing_zeros());
        let slot = if token < end { slot(p, token) } else { NO_SLOT };
        let (page, key) = (slot as usize / PAGE_TOKENS, slot as usize % PAGE_TOKENS);
        let at = page_head(page, head as usize, p.heads_kv as usize, d, p.v8_pages as usize);
        // A token has as many lanes as groups, or more.
        let groups = p.head_dim / V_GROUP as u32;
        let write = (slot != NO_SLOT) & at.v4 & (group < groups);
        let group = group.min(groups - 1);
        let to = p.pool.ptr().cast_mut().wrapping_add(at.offset + page_v_offset(d));
        let from = staged(p.head_dim, token.min(end - 1) - first) + group * V_GROUP as u32;
        let (mut bytes, mut low, mut high) = ([0; V_GROUP / 4], 255, 0);
        unroll!(0..V_GROUP / 4, |word| {
            bytes[word] = ld_shared_u32(from + 4 * word as u32);
            unroll!(0..4, |i| {
                let byte = bytes[word] >> (8 * i) & 0xff;
                (low, high) = (byte.min(low), byte.max(high));
            });
        });
        let range = v4_range(low, high);
        // SAFETY: a step is not zero.
        let reciprocal = div_rem(v4_reciprocal(1) - 1, range.1).0 + 1;
        let nibble = |dim: usize| v4_nibble_by(reciprocal, bytes[dim / 4] >> (8 * (dim % 4)) & 0xff, range);
        let step = to.wrapping_add(v4_step_offset(key, group as usize, d));
        st_global_u16(write, step, [(range.0 | range.1 << 8) as u16]);
        let to = to.wrapping_add(v4_offset(key, V_GROUP * group as usize).0);
        unroll!(0..V_GROUP / 4, |lane| {
            // The four dims that are a lane's in `layout::v4`, two bytes.
            let dim = lane / 2 * 8 + lane % 2;
            let nibbles = nibble(dim) | nibble(dim + 2) << 4 | nibble(dim + 4) << 8 | nibble(dim + 6) << 12;
            st_global_u16(write, to.wrapping_add(v4_offset(0, dim).0), [nibbles as u16]);
        });
    }
}

/// Stores what [`STAGED_VALUES`] left of a head's tokens from `first` to before `end`, a lane each: those whose slots follow one another fill sectors, of which
/// memory takes parts more slowly.
///
/// # Safety
/// Every thread of the CTA calls it, with a barrier in front of it.
#[inline(always)]
pub(super) unsafe fn store_staged(p: &AppendParams, head: u32, first: u32, end: u32) {
    unsafe {
        let d = p.head_dim as usize;
        let mut token = first + tid_x_again() % 32;
        let mut of_group = first;
        while of_group < end {
            let slot = if token < end { slot(p, token) } else { NO_SLOT };
            let write = slot < p.v8_pages * PAGE_TOKENS as u32;
            let (page, key) = (slot as usize / PAGE_TOKENS, slot as usize % PAGE_TOKENS);
            let to = page_head_offset(page, head as usize, p.heads_kv as usize, d) + page_v_offset(d);
            let to = p.pool.ptr().cast_mut().wrapping_add(to);
            let from = staged(p.head_dim, token.min(end - 1) - first);
            let mut dim = 4 * (tid_x_again() / 32);
            while dim < p.head_dim {
                let bytes = ld_shared_u32(from + dim);
                unroll!(0..4, |i| {
                    st_global_u8(write, to.wrapping_add(v_offset(key, dim as usize + i, d)), [bytes >> (8 * i)]);
                });
                dim += 4 * (ntid_x() / 32);
            }
            of_group += 32;
            token += 32;
        }
    }
}

/// A query's row of the operand.
#[inline(always)]
fn query_row(p: &AppendParams, head: u32, token: u32) -> usize {
    // SAFETY: a sequence has tokens.
    let (sequence, row) = unsafe { div_rem(token, p.seqlen_q) };
    (sequence as usize * p.heads_q as usize + head as usize) * p.seqlen_q as usize + row as usize
}

/// The lane's part of a token, rotated; of Q, its `q_bias` is written meanwhile.
#[inline(always)]
unsafe fn rotated<E: Rotated, const OF: u8, const N: usize>(
    p: &AppendParams,
    place: &TokenLane,
    head: u32,
    token: u32,
    inside: bool,
) -> (E::Token<N>, Unit) {
    unsafe {
        let tensor = match OF {
            QUERIES => &p.q,
            KEYS => &p.k,
            _ => &p.v,
        };
        let rows = Rows::new::<E>(tensor, 0, head);
        let raw = load_dims::<E, N>(&rows, |i| (token, vector_or_other::<E, N>(place, i)));
        let mut x = E::Token::<N>::none();
        unroll!(0..N / E::LANES, |i| {
            // What is not there is zero.
            E::put(&mut x, i, &raw[i].map(|word| selp_b32(has::<E, N>(place, i), word, 0)));
        });
        if OF == VALUES || OF == STAGED_VALUES {
            let unit = x.rotate_v();
            return (x, unit);
        }
        let (mut bias, mut offset) = (0.0, [0.0; N]);
        if !p.k_offset.is_null() {
            let place = TokenLane::of_lanes_with::<N>(p.head_dim, p.head_dim.next_power_of_two());
            let head_kv = if OF == KEYS { head } else { div_rem(head, div_rem(p.heads_q, p.heads_kv).0).0 };
            let offsets = p.k_offset.ptr().wrapping_add(head_kv as usize * p.head_dim as usize);
            unroll!(0..N / E::LANES, |i| {
                let dim = vector_or_other::<E, N>(&place, i) as usize * E::LANES;
                unroll!(0..E::LANES / 4, |four| {
                    let loaded = ld_global_nc_v4_f32(offsets.wrapping_add(dim + 4 * four));
                    unroll!(0..4, |j| {
                        let there = selp_b32(has::<E, N>(&place, i), loaded[j].to_bits(), 0);
                        offset[i * E::LANES + 4 * four + j] = f32::from_bits(there);
                    });
                });
                if OF == QUERIES {
                    let product = |bias: f32| {
                        let mut bias = bias;
                        unroll!(0..E::LANES, |j| {
                            bias = fma_rn_f32(x.get(i * E::LANES + j), offset[i * E::LANES + j], bias);
                        });
                        bias
                    };
                    bias = if N == DIMS { product(bias) } else { in_order(&place, bias, product) };
                }
            });
        }
        let offset = E::Token::<N>::of(&offset);
        let limit = loud(p.head_dim as usize);
        let unit = x.quieten(place, limit, (OF == KEYS) & (offset.largest() >= limit));
        if OF == KEYS {
            x.take_out(&offset, unit);
        }
        if OF == QUERIES {
            // Of lanes with fewer dims the last ones have the sums.
            let lanes = TokenLane::new(p.head_dim, p.head_dim.next_power_of_two());
            let bias = lanes.over_lanes(bias, add_rn_f32);
            // Made anew below: it takes no registers meanwhile.
            let to = p.q_bias.ptr().cast_mut().wrapping_add(query_row(p, head, opaque(token)));
            st_global_f32(inside & (place.lane == place.lanes() - lanes.lanes()), to, [bias]);
        }
        let mut signs = 0;
        unroll!(0..N / E::LANES, |i| {
            let of_vector = signs_from(place.vector(i) * E::LANES as u32) & ((1 << E::LANES) - 1);
            signs |= of_vector << (i * E::LANES);
        });
        x.negate(signs);
        if N == DIMS {
            place.butterflies_of::<E, N>(&mut x);
        } else {
            place.butterflies_of_many_lanes::<E, N>(&mut x);
        }
        (x, unit)
    }
}

/// Whether the token has the lane's vector number `i`.
#[inline(always)]
fn has<E: Rotated, const N: usize>(place: &TokenLane, i: usize) -> bool {
    if N == DIMS { place.has::<E>(i) } else { place.is_of::<E>(i, place.head_dim()) }
}

/// The number in the token of the lane's vector number `i`, or of another where the token has no such.
#[inline(always)]
fn vector_or_other<E: Rotated, const N: usize>(place: &TokenLane, i: usize) -> u32 {
    if N == DIMS { place.vector_or_first::<E>(i) } else { place.vector_of::<E>(i, place.head_dim()) }
}

/// `join` over the lanes that share a token.
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
unsafe fn over_lanes<const N: usize>(place: &TokenLane, value: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    unsafe { if N == DIMS { place.over_lanes(value, join) } else { place.over_many_lanes(value, join) } }
}

/// Of many lanes those whose vectors a lane with [`DIMS`] dims would have go on with one another's sum, `each` in turn, so that it is rounded alike.
///
/// # Safety
/// All 32 lanes of a converged warp call it.
#[inline(always)]
unsafe fn in_order(place: &TokenLane, mut sum: f32, each: impl Fn(f32) -> f32) -> f32 {
    let turns = (DIMS / MANY_LANES_DIMS) as u32;
    let log_lanes = place.log_lanes - turns.trailing_zeros();
    let (lanes, own) = (1 << log_lanes, place.lane >> log_lanes);
    let mut turn = 0;
    while turn < turns {
        let before = tid_x_again() % 32 - place.lane + (place.lane.wrapping_sub(lanes) & (place.lanes() - 1));
        let before = f32::from_bits(unsafe { shfl_idx(sum.to_bits(), before) });
        sum = if own == turn { each(before) } else { sum };
        turn += 1;
    }
    sum
}
