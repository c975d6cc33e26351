//! The decode kernels, and the kernels that merge states.

use super::rows::decode_rows;
use crate::layout::{KV_BLOCK, block_bytes};
use crate::params::SplitParams;
use crate::quantize::launch::Bounds;

/// Rows of a tile of the decode kernels: query heads of a group times new tokens.
pub const TILE_ROWS: usize = 16;
/// Blocks of K or V in a CTA's shared memory: two are on their way while one is in use.
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
}

macro_rules! decode_variants {
    ($($name:ident { head_dim: $d:literal, team: $team:literal, min_ctas: $ctas:literal })*) => {
        &[$(DecodeVariant {
            name: stringify!($name), head_dim: $d, threads: 32 * $team, shared_bytes: shared_bytes($d), min_ctas: $ctas,
        }),*]
    };
}

/// All decode kernels.
pub const DECODE: &[DecodeVariant] = decode_rows!(decode_variants);

/// The decode kernel for a head dim.
#[must_use]
pub fn decode(head_dim: usize) -> Option<&'static DecodeVariant> {
    DECODE.iter().find(|variant| variant.head_dim == head_dim)
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
/// Threads of a CTA of these: a row.
pub const MERGE_THREADS: usize = 128;
/// Dims of a thread of these.
pub const MERGE_DIMS: usize = 8;
/// Its entry points: of states that the caller has, and of what a decode kernel leaves.
pub const MERGE_BOUNDS: &[Bounds] = &[
    Bounds { entry: "merge_states", threads: MERGE_THREADS, min_ctas: 8 },
    Bounds { entry: "merge_splits", threads: MERGE_THREADS, min_ctas: 8 },
];
/// Shared memory of a CTA of these: what each thread has of the row.
pub const MERGE_SHARED_BYTES: usize = MERGE_THREADS * MERGE_DIMS * size_of::<f32>();
