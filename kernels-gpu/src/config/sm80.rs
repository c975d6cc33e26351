//! Shared memory of the INT8 kernels for every GPU.

use super::{NOTE_BYTES, SCRATCH_BYTES};
use crate::layout::{KV_BLOCK, block_bytes};

/// Most warps of a CTA.
pub const MAX_WARPS: usize = 8;

/// Whether the plain kernel of the default scheme for this head dim takes narrow blocks as such (docs/kernel-abi.md): where 32 rows a warp make it
/// pay, and the sums of 16 bits fit positive float16.
#[must_use]
pub const fn takes_narrow(head_dim: usize) -> bool {
    matches!(head_dim, 64 | 128)
}

/// Bytes of the variables that a CTA keeps in shared memory instead of in registers (`attention/sm80/shared_vars.rs`).
pub const VARS_BYTES: usize = 144 + 12 * MAX_WARPS;

/// Dims of a block that a slot of the ring has room for, at most.
pub const PIECE_DIMS: usize = 256;

/// Pieces that a block comes in: as many dims of all its keys each.
#[must_use]
pub const fn pieces(head_dim: usize) -> usize {
    head_dim.div_ceil(PIECE_DIMS)
}

/// Bytes of the ring, and where two blocks' key factors begin: `slots` pieces of K or V blocks.
#[must_use]
pub const fn ring_bytes(head_dim: usize, slots: usize) -> usize {
    slots * (block_bytes(head_dim) / pieces(head_dim))
}

/// Where the variables are: behind the ring and the key factors.
#[must_use]
pub const fn vars_offset(head_dim: usize, slots: usize) -> usize {
    ring_bytes(head_dim, slots) + 2 * KV_BLOCK * 4
}

/// Where what the teams share begins: behind that.
#[must_use]
pub const fn team_offset(head_dim: usize, slots: usize) -> usize {
    vars_offset(head_dim, slots) + VARS_BYTES
}

/// Shared memory in which the `team` warps of `16 * mt` query rows exchange row maxima and P.
#[must_use]
pub const fn team_bytes(mt: usize, team: usize) -> usize {
    if team == 1 { 0 } else { team * MAXIMA_BYTES + 16 * mt * KV_BLOCK }
}

/// Row maxima of a warp among it: two words a row of eight.
pub const MAXIMA_BYTES: usize = 8 * 8;

/// Where the warps' notes of special blocks begin: behind that.
#[must_use]
pub const fn notes_offset(head_dim: usize, slots: usize, mt: usize, warps: usize, team: usize) -> usize {
    team_offset(head_dim, slots) + warps / team * team_bytes(mt, team)
}

/// Where the warps' words for special blocks begin, [`SCRATCH_BYTES`] a warp: behind the notes. Warps that share rows have P of a block
/// there only later, so theirs are where that goes.
#[must_use]
pub const fn scratch_offset(head_dim: usize, slots: usize, mt: usize, warps: usize, team: usize) -> usize {
    notes_offset(head_dim, slots, mt, warps, team) + warps * 16 * mt * NOTE_BYTES
}

/// Where the threads' sums begin, 16 bytes for each m16 tile.
#[must_use]
pub const fn sums_offset(head_dim: usize, slots: usize, mt: usize, warps: usize, team: usize) -> usize {
    scratch_offset(head_dim, slots, mt, warps, team) + if team == 1 { warps * SCRATCH_BYTES } else { 0 }
}

/// Shared memory of an attention CTA.
#[must_use]
pub const fn shared_bytes(head_dim: usize, slots: usize, mt: usize, warps: usize, team: usize) -> usize {
    parked_offset(head_dim, slots, mt, warps, team) + parked_bytes(head_dim, mt, warps, team)
}

/// Where the threads' parts of Q begin, behind their sums.
#[must_use]
pub const fn parked_offset(head_dim: usize, slots: usize, mt: usize, warps: usize, team: usize) -> usize {
    sums_offset(head_dim, slots, mt, warps, team) + 32 * warps * 16 * mt
}

/// Bytes of Q that a CTA keeps in shared memory: where a warp has 32 rows and all of their output, nothing else has registers for it.
#[must_use]
pub const fn parked_bytes(head_dim: usize, mt: usize, warps: usize, team: usize) -> usize {
    if mt == 2 && team == 1 { 16 * mt * warps * head_dim } else { 0 }
}
