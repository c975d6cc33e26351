//! Which scores of a block a lane has, and which of them its rows do not see.

use super::Kernel;
use super::place::lane;
use super::shared_vars::SharedVars;
use crate::attention::score_mod::Scored;
use crate::attention::window::Window;
use crate::layout::KV_BLOCK;
use crate::params::AttentionParams;
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;

/// Which scores of a block a lane has, worked out anew: in registers it would be across the loop.
#[inline(always)]
pub(crate) fn scored<'a, K: Kernel<MT>, const MT: usize>(
    params: &'a AttentionParams,
    block: u32,
    vars: &SharedVars,
) -> Scored<'a> {
    // SAFETY: in the loop.
    let (row, sequence) = unsafe { (vars.row(), vars.sequence()) };
    let (lane, member) = lane::<K, MT>(row, opaque(tid_x()));
    let first_key = opaque(block) * KV_BLOCK as u32 + member * (8 * K::KEY_TILES) as u32 + 2 * lane.quad;
    Scored { params, sequence, lane, first_key, tiles: K::KEY_TILES }
}

/// Has the scores of a block hidden that lie before (`LEFT`) or behind the window of their row: `hide` is given the row and the first key
/// that stays, or is hidden, counted from the lane's first.
#[inline(always)]
pub(crate) unsafe fn mask<K: Kernel<MT>, const MT: usize, const LEFT: bool>(
    params: &AttentionParams,
    block: u32,
    vars: &SharedVars,
    mut hide: impl FnMut(usize, usize, i32),
) {
    // Opaque, and the row from shared memory: what only this needs would be in registers across the loop.
    let (lane, member) = unsafe { lane::<K, MT>(vars.row(), opaque(tid_x())) };
    let window = Window::of_lengths(params, unsafe { vars.lengths() }).anew();
    let block = opaque(block);
    let first = (member * (8 * K::KEY_TILES) as u32 + 2 * lane.quad) as i32;
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = lane.query(mt, half);
            if LEFT {
                hide(mt, half, window.first_in_block(row, block) - first);
            } else {
                hide(mt, half, window.end_in_block(row, block) - first);
            }
        });
    });
}
