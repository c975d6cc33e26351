//! The decode kernels, and the kernels that merge states.

use super::rows::decode_rows;
use crate::layout::{KV_BLOCK, block_bytes};
use crate::params::SplitParams;
use crate::quantize::launch::Bounds;

/// Rows of a tile of the decode kernels: query heads of a group times new tokens.
pub const TILE_ROWS: usize = 16;
/// Blocks of K or V in a CTA's shared memory: all are on their way while one is waited for, two while it is in use.
pub const SLOTS: usize = 3;
/// Most new tokens of a sequence.
pub const MAX_NEW_TOKENS: usize = 8;

/// The scales of a block, K's and behind them V's, as a page has them.
pub const SCALE_BYTES: usize = 2 * size_of::<f32>() * KV_BLOCK;

/// Where the scales begin in shared memory, of two blocks in turn: behind the slots.
#[must_use]
pub const fn scales_offset(head_dim: usize) -> usize {
    SLOTS * block_bytes(head_dim)
}

/// Shared memory of a CTA of the decode kernels.
#[must_use]
pub const fn shared_bytes(head_dim: usize) -> usize {
    scales_offset(head_dim) + 2 * SCALE_BYTES
}

/// One decode kernel and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeVariant {
    /// Its PTX module and its entry point there.
    pub name: &'static str,
    /// Head dimension.
    pub head_dim: usize,
    /// Threads of one CTA.
    pub threads: usize,
    /// Dynamic shared memory of one CTA.
    pub shared_bytes: usize,
    /// CTAs an SM should hold; written into the PTX as `.minnctapersm`.
    pub min_ctas: usize,
    /// Whether pages may have V in 4 bits.
    pub v4: bool,
    /// Whether the merge behind it may start before it ends.
    pub overlaps: bool,
}

macro_rules! decode_variants {
    ($($name:ident { head_dim: $d:literal, team: $team:literal, min_ctas: $ctas:literal, v4: $v4:literal, overlaps: $overlaps:literal })*) => {
        &[$(DecodeVariant {
            name: stringify!($name), head_dim: $d, threads: 32 * $team, shared_bytes: shared_bytes($d), min_ctas: $ctas, v4: $v4, overlaps: $overlaps,
        }),*]
    };
}

/// All decode kernels.
pub const DECODE: &[DecodeVariant] = decode_rows!(decode_variants);

/// The decode kernel for a head dim, of pools without or with pages whose V has 4 bits; where launches may overlap the one that does, if there is one.
#[must_use]
pub fn decode(head_dim: usize, v4: bool, overlaps: bool) -> Option<&'static DecodeVariant> {
    let of = |overlaps| DECODE.iter().find(move |of| (of.head_dim, of.v4, of.overlaps) == (head_dim, v4, overlaps));
    of(overlaps).or_else(|| of(false))
}

/// What modules of kernels whose launches overlap are compiled for.
pub const OVERLAPPING_TARGET: &str = "sm_90";

/// Whether launches may overlap on a GPU of this compute capability, with a driver for this CUDA version (`1000 * major + 10 * minor`): from
/// 12.3 on it records them into graphs.
#[must_use]
pub const fn overlaps_on((major, _): (u32, u32), cuda: u32) -> bool {
    major >= 9 && cuda >= 12030
}

impl DecodeVariant {
    /// CTAs that a multiprocessor with so many bytes of shared memory holds.
    #[must_use]
    pub const fn ctas(&self, shared_bytes_of_multiprocessor: usize) -> usize {
        /// What the system takes of each CTA's (CUDA programming guide, compute capability 8.0 and later).
        const RESERVED: usize = 1 << 10;
        /// Threads that its registers have room for, of 255 each.
        const THREADS: usize = 256;
        let most = THREADS / self.threads;
        match shared_bytes_of_multiprocessor / (self.shared_bytes + RESERVED) {
            0 => 1,
            ctas if ctas > most => most,
            ctas => ctas,
        }
    }
}

/// Pieces of work that leave a partial result, at most: as many floats for each row, and `head_dim` times as many.
///
/// With equal shares a piece is a worker's part of a tile of rows, and its place is the sum of their numbers
/// (`attention::decode::schedule`).
#[must_use]
pub const fn partials(split: &SplitParams) -> usize {
    let tiles = split.batch as usize * split.heads_kv as usize * split.row_tiles as usize;
    if split.split_blocks == 0 { tiles + split.workers as usize } else { tiles * split.max_splits as usize }
}

/// Rows of a piece of work.
#[inline(always)]
#[must_use]
pub const fn rows_of_piece(split: &SplitParams) -> u32 {
    let rows = split.group * split.seqlen_q;
    if rows < TILE_ROWS as u32 { rows } else { TILE_ROWS as u32 }
}

/// The module of the merging kernels.
pub const MERGE: &str = "merge";
/// The module of those that may start before the decode ends.
pub const OVERLAPPING_MERGE: &str = "merge_sm90";
/// Groups of threads of a CTA of these, which have all of the CTA's dims and share the states.
pub const MERGE_GROUPS: usize = 8;
/// Dims of a thread of these, so that a CTA has as many threads as dims.
pub const MERGE_DIMS: usize = 8;
/// Most threads of a CTA of these.
const MERGE_THREADS: usize = 256;
/// Dims of the narrowest CTA of these: a warp.
pub const MERGE_LEAST_DIMS: usize = 32;
/// Its entry points: of states that the caller has, and of what a decode kernel leaves.
pub const MERGE_BOUNDS: &[Bounds] = &[
    Bounds { module: MERGE, entry: "merge_states", threads: MERGE_THREADS, min_ctas: 2 },
    Bounds { module: MERGE, entry: "merge_splits", threads: MERGE_THREADS, min_ctas: 2 },
];

/// Up to so many states of the caller's a thread takes all of them: groups would have one each, or none.
pub const MERGE_FEW: usize = MERGE_GROUPS;

/// Rows of a CTA of `merge_states`, and its threads.
#[must_use]
pub const fn merge_states_cta(states: usize, head_dim: usize) -> [usize; 2] {
    if states > MERGE_FEW {
        return [1, head_dim];
    }
    let vectors = head_dim / MERGE_DIMS;
    let rows = MERGE_THREADS / vectors;
    [rows, rows * vectors]
}

/// Where the groups' largest log-sum-exps and sums of weights are in the shared memory of a CTA of these: behind the threads' dims.
#[inline(always)]
#[must_use]
pub const fn merge_sums_offset(cta_dims: usize) -> usize {
    cta_dims * MERGE_DIMS * size_of::<f32>()
}

/// Shared memory of a CTA of these.
#[must_use]
pub const fn merge_shared_bytes(cta_dims: usize) -> usize {
    merge_sums_offset(cta_dims) + MERGE_GROUPS * 2 * size_of::<f32>()
}

/// Floats of what a decode leaves for the merge, and where each array begins among them: outputs, log-sum-exps, all.
#[must_use]
pub const fn workspace(split: &SplitParams, head_dim: usize) -> Option<[usize; 3]> {
    let Some(rows) = partials(split).checked_mul(rows_of_piece(split) as usize) else { return None };
    match rows.checked_mul(head_dim + 1) {
        Some(floats) => Some([0, rows * head_dim, floats]),
        None => None,
    }
}
