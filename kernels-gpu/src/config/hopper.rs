//! Shared memory and registers of the kernels for sm_90a.

use crate::layout::{KV_BLOCK, block_bytes};

/// Threads of the producers' warpgroup.
pub const PRODUCERS: usize = 128;
/// Query rows of a consumer warpgroup.
pub const WARPGROUP_ROWS: usize = 64;
/// Tiles of Q in shared memory: one in use, one on its way.
pub const Q_BUFFERS: usize = 2;

/// Bytes of a warpgroup's tile of Q: panels of 32 dims as in a K block, with 64 rows.
#[must_use]
pub const fn q_bytes(head_dim: usize) -> usize {
    WARPGROUP_ROWS * head_dim
}

/// In a buffer of Q, where the rows' scales begin, behind the tiles of all warpgroups.
#[must_use]
pub const fn q_scale_offset(head_dim: usize, warpgroups: usize) -> usize {
    warpgroups * q_bytes(head_dim)
}

/// In a buffer of Q, where the scales and then the means of V's channels begin.
#[must_use]
pub const fn v_scale_offset(head_dim: usize, warpgroups: usize) -> usize {
    q_scale_offset(head_dim, warpgroups) + warpgroups * 4 * WARPGROUP_ROWS
}

/// In a buffer of Q, where the words begin that say which tile it is.
#[must_use]
pub const fn item_offset(head_dim: usize, warpgroups: usize) -> usize {
    v_scale_offset(head_dim, warpgroups) + 2 * 4 * head_dim
}

/// Bytes of a buffer of Q with all that comes with it.
#[must_use]
pub const fn q_buffer_bytes(head_dim: usize, warpgroups: usize) -> usize {
    item_offset(head_dim, warpgroups) + 256
}

/// Where the ring of K begins.
#[must_use]
pub const fn k_offset(head_dim: usize, warpgroups: usize) -> usize {
    Q_BUFFERS * q_buffer_bytes(head_dim, warpgroups)
}

/// Where the ring of V begins.
#[must_use]
pub const fn v_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    k_offset(head_dim, warpgroups) + slots * block_bytes(head_dim)
}

/// Where the ring of key factors begins; a block of them goes with each K block.
#[must_use]
pub const fn factor_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    v_offset(head_dim, warpgroups, slots) + slots * block_bytes(head_dim)
}

/// Where the barriers begin.
#[must_use]
pub const fn barrier_offset(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    factor_offset(head_dim, warpgroups, slots) + slots * 4 * KV_BLOCK
}

/// Shared memory of a CTA: two barriers for each slot of K and of V and for each buffer of Q.
#[must_use]
pub const fn shared_bytes(head_dim: usize, warpgroups: usize, slots: usize) -> usize {
    barrier_offset(head_dim, warpgroups, slots) + 8 * 2 * (2 * slots + Q_BUFFERS)
}

/// Registers of a consumer thread: an SM has 65536, and the producers keep [`producer_registers`].
#[must_use]
pub const fn consumer_registers(warpgroups: usize) -> u32 {
    match warpgroups {
        2 => 232,
        3 => 160,
        _ => 112,
    }
}

/// Registers of a producer thread.
#[must_use]
pub const fn producer_registers(warpgroups: usize) -> u32 {
    match warpgroups {
        2 => 40,
        _ => 32,
    }
}
