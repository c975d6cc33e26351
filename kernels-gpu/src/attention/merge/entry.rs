//! The entry points.

use super::row::{RowPart, States, merge, merge_rows};
use crate::attention::decode::scan::pieces_of;
use crate::config::decode::{MERGE_FEW, TILE_ROWS, rows_of_piece};
use crate::division::div_rem;
use crate::params::{MergeSplitsParams, MergeStatesParams};
use crate::ptx::grid_dependency::{launch_dependents, wait};
use crate::ptx::special::{ctaid_x, tid_x};

/// States that the caller has, each `[batch][heads_q][seqlen_q]` of rows.
struct OfCaller<'a> {
    params: &'a MergeStatesParams,
    row: usize,
}

impl States for OfCaller<'_> {
    #[inline(always)]
    fn count(&self) -> u32 {
        self.params.out.states
    }

    #[inline(always)]
    fn o(&self, state: u32) -> *const f32 {
        let first = self.params.o.ptr().wrapping_add(self.row * self.params.out.head_dim as usize);
        first.wrapping_byte_offset((i64::from(state) * self.params.o_stride) as isize)
    }

    #[inline(always)]
    fn lse(&self, state: u32) -> *const f32 {
        let first = self.params.lse.ptr().wrapping_add(self.row);
        first.wrapping_byte_offset((i64::from(state) * self.params.lse_stride) as isize)
    }
}

/// Merges states of the caller's. (Nothing overlaps with it.)
///
/// # Safety
/// As docs/kernel-abi.md says of `merge_states`.
#[cfg(merge)]
#[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
#[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
pub unsafe extern "ptx-kernel" fn merge_states(params: MergeStatesParams) {
    let of_row = |row: u32| OfCaller { params: &params, row: row as usize };
    unsafe {
        if params.out.states <= MERGE_FEW as u32 {
            merge_rows(&params.out, of_row);
        } else {
            let part = RowPart::of(&params.out, ctaid_x());
            merge(&of_row(part.row), &params.out, part);
        }
    }
}

/// What the workers of a decode kernel left of a row.
struct OfWorkers<'a> {
    params: &'a MergeSplitsParams,
    /// The first piece's place and how many pieces there are.
    first: u32,
    count: u32,
    /// The row in each piece.
    row: usize,
}

impl OfWorkers<'_> {
    #[inline(always)]
    fn at(&self, state: u32) -> usize {
        (self.first + state) as usize * rows_of_piece(&self.params.split) as usize + self.row
    }
}

impl States for OfWorkers<'_> {
    #[inline(always)]
    fn count(&self) -> u32 {
        self.count
    }

    #[inline(always)]
    fn o(&self, state: u32) -> *const f32 {
        self.params.partial_o.ptr().wrapping_add(self.at(state) * self.params.out.head_dim as usize)
    }

    #[inline(always)]
    fn lse(&self, state: u32) -> *const f32 {
        self.params.partial_lse.ptr().wrapping_add(self.at(state))
    }
}

/// Merges what the workers of a decode kernel left.
///
/// # Safety
/// As docs/kernel-abi.md says of `merge_splits`.
#[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
#[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
pub unsafe extern "ptx-kernel" fn merge_splits(params: MergeSplitsParams) {
    let split = &params.split;
    let part = RowPart::of(&params.out, ctaid_x());
    unsafe {
        if cfg!(merge_sm90) {
            // The next step's decode.
            launch_dependents();
        }
        // SAFETY: the host's plan has a group.
        let (head, of_group) = div_rem(part.head, split.group);
        let row = of_group * split.seqlen_q + part.token;
        let tile = head * split.row_tiles + row / TILE_ROWS as u32;
        // While the decode still runs: lengths were there before it.
        let (first, count) = pieces_of(split, tid_x() % 32, part.batch, tile);
        if cfg!(merge_sm90) {
            wait();
        }
        // What lengths that change meanwhile come to leads nowhere.
        let first = first.min(params.out.states - 1);
        let count = count.min(params.out.states - first);
        merge(&OfWorkers { params: &params, first, count, row: row as usize % TILE_ROWS }, &params.out, part);
    }
}
