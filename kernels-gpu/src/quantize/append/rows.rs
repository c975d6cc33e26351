//! Tokens with scales of their own, each in the registers of a few lanes (`crate::rotation`).

use super::pages::slot;
use super::work::FEW_PARTS;
use crate::division::div_rem;
use crate::element::{Element, Rows, Vector, load};
use crate::layout::page::{
    NO_SLOT, PAGE_TOKENS, page_head_offset, page_k_scale_offset, page_v_offset, page_v_scale_offset,
};
use crate::layout::{MAX_SCALE, MIN_SCALE, ROW_BYTES, V_OFFSETS, V_ROTATION, k_offset, rotate_v, v_offset};
use crate::params::AppendParams;
use crate::ptx::global::{ld_global_nc_v4_f32, st_global_f32, st_global_u8, st_global_u32, st_global_v2_u32};
use crate::ptx::math::{add_rn_f32, fma_rn_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::select::selp_b32;
use crate::ptx::shared::{ld_shared_u32, st_shared_u32};
use crate::ptx::special::{ntid_x, tid_x_again};
use crate::quantize::pack::codes4;
use crate::quantize::scale::{BEYOND_10_BITS, round_up, round_up_to_step, scale, token_scale};
use crate::quantize::tokens::quotients;
use crate::quantize::values::FURTHER;
use crate::rotation::{DIMS, Place, signs_from, vectors};
use crate::smem;

/// Of Q.
pub(super) const QUERIES: u8 = 0;
/// Of K.
pub(super) const KEYS: u8 = 1;
/// Of V.
pub(super) const VALUES: u8 = 2;
/// Of V, with the codes left in shared memory for [`store_staged`].
pub(super) const STAGED_VALUES: u8 = 3;

/// Quantizes what a CTA's lanes hold of a head's tokens from `first` to before `end`; of V it stores part number `part` of the dims.
///
/// # Safety
/// Every thread of the CTA calls it; the launch has the tokens and the head.
#[inline(always)]
pub(super) unsafe fn quantize<E: Element, const OF: u8>(p: &AppendParams, head: u32, first: u32, end: u32, part: u32) {
    let place = Place::new(p.head_dim, p.head_dim.next_power_of_two());
    let of_warp = first + tid_x_again() / 32 * place.tokens();
    // The same for the whole warp.
    if of_warp < end {
        unsafe { of_one_warp::<E, OF>(p, &place, head, of_warp + place.token, [first, end], part) }
    }
}

#[inline(always)]
unsafe fn of_one_warp<E: Element, const OF: u8>(
    p: &AppendParams,
    place: &Place,
    head: u32,
    token: u32,
    [first, end]: [u32; 2],
    part: u32,
) {
    unsafe {
        let inside = token < end;
        let token = token.min(end - 1);
        // On its way together with the token; floats leave no register for it.
        let late = E::BYTES == 4;
        let early_slot = if OF == QUERIES || late { 0 } else { slot(p, token) };
        let mut x = rotated::<E, OF>(p, place, head, token, inside);
        let (scale, number) = match OF {
            VALUES | STAGED_VALUES => {
                quotients::<E>(place, &mut x, |amax| round_up_to_step(scale(amax, fma_rn_f32)), 1.0 / MIN_SCALE)
            }
            _ => {
                let beyond = if OF == QUERIES { BEYOND_10_BITS } else { 0 };
                quotients::<E>(place, &mut x, |amax| round_up(token_scale(amax, fma_rn_f32), beyond), MAX_SCALE)
            }
        };
        let mask = selp_b32(number, u32::MAX, 0);
        let scale = f32::from_bits(selp_b32(number, scale.to_bits(), f32::NAN.to_bits()));
        let quad = |at: usize| codes4([x[at], x[at + 1], x[at + 2], x[at + 3]]) & mask;

        let slot = if OF != QUERIES && late { slot(p, opaque(token)) } else { early_slot };
        let d = p.head_dim as usize;
        let write = inside & (slot != NO_SLOT);
        let (page, key) = (slot as usize / PAGE_TOKENS, slot as usize % PAGE_TOKENS);
        let of_page = page_head_offset(page, opaque(head) as usize, p.heads_kv as usize, d);
        let pool = p.pool.ptr().cast_mut().wrapping_add(of_page);
        let (codes, scales) = match OF {
            QUERIES => {
                let row = query_row(p, head, opaque(token));
                (p.q_out.ptr().cast_mut().wrapping_add(row * d), p.q_scale.ptr().cast_mut().wrapping_add(row))
            }
            KEYS => (pool, pool.wrapping_add(page_k_scale_offset(d)).cast::<f32>().wrapping_add(key)),
            _ => (
                pool.wrapping_add(page_v_offset(d)),
                pool.wrapping_add(page_v_scale_offset(d)).cast::<f32>().wrapping_add(key),
            ),
        };
        st_global_f32(write & (place.lane == 0) & (part == 0), scales, [scale]);
        unroll!(0..vectors::<E>(), |i| {
            let (write, dim) = (write & place.has::<E>(i), place.vector(i) as usize * E::LANES);
            if OF == STAGED_VALUES {
                let to = staged(p.head_dim, token - first) + dim as u32;
                unroll!(0..E::LANES / 4, |four| {
                    let bytes = quad(i * E::LANES + 4 * four) ^ V_OFFSETS;
                    st_shared_u32(inside & place.has::<E>(i), to + 4 * four as u32, bytes);
                });
            } else if OF == VALUES {
                let write = write & (i as u32 % FEW_PARTS == part);
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
}

/// Shared address of the bytes of V of a token of those that a CTA holds. Tokens are an odd number of words apart, so that a warp's lie in different banks.
#[inline(always)]
fn staged(head_dim: u32, token: u32) -> u32 {
    smem::base() + token * (head_dim + 4)
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
            let write = slot != NO_SLOT;
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
unsafe fn rotated<E: Element, const OF: u8>(
    p: &AppendParams,
    place: &Place,
    head: u32,
    token: u32,
    inside: bool,
) -> [f32; DIMS] {
    unsafe {
        let tensor = match OF {
            QUERIES => &p.q,
            KEYS => &p.k,
            _ => &p.v,
        };
        let rows = Rows::new::<E>(tensor, 0, head);
        let raw = vectors_of::<E>(&rows, |i| (token, place.vector_or_first::<E>(i)));
        let mut x = [0.0; DIMS];
        unroll!(0..vectors::<E>(), |i| {
            unroll!(0..E::LANES, |j| {
                let value = E::get(&raw[i], j);
                // What is not there is zero.
                x[i * E::LANES + j] = f32::from_bits(selp_b32(place.has::<E>(i), value.to_bits(), 0));
            });
        });
        if OF == VALUES || OF == STAGED_VALUES {
            unroll!(0..DIMS / V_ROTATION, |i| {
                let four = rotate_v([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]);
                (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]) = (four[0], four[1], four[2], four[3]);
            });
            return x;
        }
        let mut bias = 0.0;
        if !p.k_offset.is_null() {
            let place = Place::new(p.head_dim, p.head_dim.next_power_of_two());
            let head_kv = if OF == KEYS { head } else { div_rem(head, div_rem(p.heads_q, p.heads_kv).0).0 };
            let offsets = p.k_offset.ptr().wrapping_add(head_kv as usize * p.head_dim as usize);
            unroll!(0..vectors::<E>(), |i| {
                let dim = place.vector_or_first::<E>(i) as usize * E::LANES;
                unroll!(0..E::LANES / 4, |four| {
                    let offset = ld_global_nc_v4_f32(offsets.wrapping_add(dim + 4 * four));
                    unroll!(0..4, |j| {
                        let at = i * E::LANES + 4 * four + j;
                        let offset = f32::from_bits(selp_b32(place.has::<E>(i), offset[j].to_bits(), 0));
                        if OF == KEYS {
                            x[at] -= offset;
                        } else {
                            bias = fma_rn_f32(x[at], offset, bias);
                        }
                    });
                });
            });
        }
        if OF == QUERIES {
            let bias = place.over_lanes(bias, add_rn_f32);
            // Made anew below: it takes no registers meanwhile.
            let to = p.q_bias.ptr().cast_mut().wrapping_add(query_row(p, head, opaque(token)));
            st_global_f32(inside & (place.lane == 0), to, [bias]);
        }
        unroll!(0..vectors::<E>(), |i| {
            let signs = signs_from(place.vector(i) * E::LANES as u32);
            unroll!(0..E::LANES, |j| {
                let x = &mut x[i * E::LANES + j];
                *x = f32::from_bits(x.to_bits() ^ signs << (31 - j) & 1 << 31);
            });
        });
        place.butterflies::<E>(&mut x);
        x
    }
}

/// The lane's vectors of a row; all of them are under way at once.
///
/// # Safety
/// They are in the tensor, which the grid does not write.
#[inline(always)]
unsafe fn vectors_of<E: Element>(rows: &Rows, place: impl Fn(usize) -> (u32, u32)) -> [Vector; DIMS / 4] {
    unsafe {
        if vectors::<E>() == DIMS / 4 {
            return load::<E, { DIMS / 4 }>(rows, place);
        }
        let half = load::<E, { DIMS / 8 }>(rows, place);
        let mut all = [[0; 4]; DIMS / 4];
        unroll!(0..DIMS / 8, |i| {
            all[i] = half[i];
        });
        all
    }
}
