//! Where a worker's share begins, by sums over the lengths of all sequences. A warp does so.

use super::schedule::{Units, clamp, pieces, share, tiles};
use crate::division::div_rem;
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

/// A sequence a lane.
struct Sequences {
    length: u32,
    /// Units of all its tiles.
    units: u32,
}

impl Sequences {
    /// Those from `first` on.
    #[inline(always)]
    unsafe fn load(split: &SplitParams, first: u32, lane: u32) -> Self {
        let length = unsafe { length(split, first + lane) };
        Self { length, units: Units::of(split, length).count * tiles(split) }
    }

    /// Units of these up to the lane's sequence, with it.
    #[inline(always)]
    unsafe fn ends(&self, lane: u32) -> u32 {
        let mut end = self.units;
        let mut distance = 1;
        while distance < WARP {
            let lower = unsafe { shfl_up(end, distance) };
            end += if lane >= distance { lower } else { 0 };
            distance *= 2;
        }
        end
    }
}

/// Where a worker begins.
pub(crate) struct Beginning {
    pub sequence: u32,
    /// Its keys.
    pub length: u32,
    /// The unit among those of the sequence.
    pub unit: u32,
    /// Units of the worker.
    pub count: u32,
}

/// The beginning of a worker's share, where it has one.
///
/// # Safety
/// By a whole warp, whose lane this is.
#[inline(always)]
pub(crate) unsafe fn beginning(split: &SplitParams, lane: u32, worker: u32) -> Option<Beginning> {
    unsafe {
        let mut sequences = Sequences::load(split, 0, lane);
        let mut ends = sequences.ends(lane);
        let mut total = shfl_idx(ends, WARP - 1);
        if split.batch > WARP {
            total += behind(split, lane);
        }
        let share = share(split, total);
        let begin = worker * share;
        if begin >= total {
            return None;
        }
        let (mut first, mut before) = (0, 0);
        loop {
            let later = ballot(before + ends > begin);
            if later != 0 || first + WARP >= split.batch {
                let found = later.trailing_zeros().min(WARP - 1);
                let before = before + shfl_idx(ends - sequences.units, found);
                return Some(Beginning {
                    sequence: first + found,
                    length: shfl_idx(sequences.length, found),
                    unit: begin - before,
                    count: share.min(total - begin),
                });
            }
            before += shfl_idx(ends, WARP - 1);
            first += WARP;
            sequences = Sequences::load(split, first, lane);
            ends = sequences.ends(lane);
        }
    }
}

/// The pieces of tile `tile` of a sequence: the first one's place, and how many there are.
///
/// # Safety
/// By a whole warp, whose lane this is; there are the sequence and the tile.
#[inline(always)]
pub(crate) unsafe fn pieces_of(split: &SplitParams, lane: u32, sequence: u32, tile: u32) -> (u32, u32) {
    unsafe {
        let Units { count, .. } = Units::of(split, length(split, sequence));
        let of_all = sequence * tiles(split) + tile;
        if count == 0 || split.split_blocks != 0 {
            return pieces(split, 0, of_all, count, 0, 1);
        }
        // Units of all sequences, and of those in front.
        let (mut total, mut begin, mut first) = (0, 0, 0);
        while first < split.batch {
            let units = Sequences::load(split, first, lane).units;
            total += units;
            begin += if first + lane < sequence { units } else { 0 };
            first += WARP;
        }
        let share = share(split, sum(total));
        let (worker, before) = div_rem(sum(begin) + tile * count, share);
        pieces(split, worker, of_all, count, share - before, share)
    }
}

/// Units of the sequences that are behind the first [`WARP`].
#[inline(always)]
unsafe fn behind(split: &SplitParams, lane: u32) -> u32 {
    let (mut units, mut first) = (0, WARP);
    while first < split.batch {
        units += unsafe { Sequences::load(split, first, lane) }.units;
        first += WARP;
    }
    unsafe { sum(units) }
}

/// The sum over a warp's lanes.
#[inline(always)]
unsafe fn sum(mut value: u32) -> u32 {
    let mut distance = WARP / 2;
    while distance > 0 {
        value += unsafe { shfl_sync_bfly_b32(value, distance) };
        distance /= 2;
    }
    value
}
