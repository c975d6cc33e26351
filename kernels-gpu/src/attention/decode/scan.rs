//! Sums over the lengths of all sequences, by a warp.

use super::schedule::{Units, clamp, tiles};
use crate::params::SplitParams;
use crate::ptx::global::ld_global_nc_u32;
use crate::ptx::shuffle::{ballot, shfl_idx, shfl_sync_bfly_b32, shfl_up};

/// Lanes.
const WARP: u32 = 32;

/// The keys of a sequence; 0 where there is no such sequence.
#[inline(always)]
pub(crate) unsafe fn length(split: &SplitParams, sequence: u32) -> u32 {
    if sequence >= split.batch {
        return 0;
    }
    let address = split.seqlens_kv.ptr().wrapping_add(sequence as usize);
    clamp(split, unsafe { ld_global_nc_u32(address.cast()) })
}

/// Units of all tiles of a sequence.
#[inline(always)]
unsafe fn units(split: &SplitParams, sequence: u32) -> u32 {
    Units::of(split, unsafe { length(split, sequence) }).count * tiles(split)
}

/// Units of all sequences, and of those before `sequence`.
///
/// # Safety
/// By a whole warp, whose lane this is.
#[inline(always)]
pub(crate) unsafe fn totals(split: &SplitParams, lane: u32, sequence: u32) -> (u32, u32) {
    let (mut total, mut before) = (0, 0);
    let mut first = 0;
    while first < split.batch {
        let units = unsafe { units(split, first + lane) };
        total += units;
        before += if first + lane < sequence { units } else { 0 };
        first += WARP;
    }
    let mut distance = WARP / 2;
    while distance > 0 {
        unsafe {
            total += shfl_sync_bfly_b32(total, distance);
            before += shfl_sync_bfly_b32(before, distance);
        }
        distance /= 2;
    }
    (total, before)
}

/// The sequence that has unit `unit` of all, which there is, and how many units are before the sequence.
///
/// # Safety
/// As [`totals`].
#[inline(always)]
pub(crate) unsafe fn find(split: &SplitParams, lane: u32, unit: u32) -> (u32, u32) {
    let (mut first, mut before) = (0, 0);
    loop {
        unsafe {
            let units = units(split, first + lane);
            let mut end = units;
            let mut distance = 1;
            while distance < WARP {
                let lower = shfl_up(end, distance);
                end += if lane >= distance { lower } else { 0 };
                distance *= 2;
            }
            let behind = ballot(before + end > unit);
            if behind != 0 || first + WARP >= split.batch {
                let found = behind.trailing_zeros().min(WARP - 1);
                return (first + found, before + shfl_idx(end - units, found));
            }
            before += shfl_idx(end, WARP - 1);
        }
        first += WARP;
    }
}
