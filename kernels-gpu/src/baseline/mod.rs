//! The float16 yardstick: FlashAttention-2's forward pass (arXiv 2307.08691) on `mma.sync` (sm_80 and newer).
//!
//! One CTA owns `16 * MT * WARPS` query rows of one head, each warp `16 * MT` of them. Per tile of `KEYS` keys:
//!
//! ```text
//! ring.next           K and V tile land in shared memory, a later pair is requested
//! scores::tile        S = Q K^T            float16 tensor cores, float32 sums
//! softmax.observe     m                    the rows' reference exponents move only when they must
//! output::update      P = 2^(S - m)        float32 exponentials, P to float16 in registers
//!                     O += P V             float16 tensor cores, float32 sums
//! ```

mod accumulator;
mod entry;
mod epilogue;
mod load;
mod output;
mod scores;
mod softmax;
mod tile;

use crate::attention::lane::Lane;
use crate::attention::window::Window;
use crate::division::div_rem;
use crate::params::BaselineParams;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, tid_x};
use accumulator::Accumulator;
use load::Ring;
use scores::Query;
use softmax::Softmax;

/// A row of the table `baseline_rows`; `MT` is its `m16_tiles`.
pub(crate) trait Kernel<const MT: usize> {
    const HEAD_DIM: usize;
    const WARPS: usize;
    /// Keys of a K or V tile.
    const KEYS: usize;
    const STAGES: usize;
    const Q_IN_REGISTERS: bool;
    /// Query rows of a CTA.
    const TILE_M: u32 = (16 * MT * Self::WARPS) as u32;
}

/// Where a lane is: in its warp's fragments, and which head it works on.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub lane: Lane,
    /// First query row of the CTA.
    pub cta_row: u32,
    pub batch: u32,
    pub head_q: u32,
    pub head_kv: u32,
}

/// One CTA, whose kernel has K and V tiles of `KEYS` keys.
#[inline(always)]
pub(crate) unsafe fn attention<K: Kernel<MT>, const MT: usize, const KEYS: usize>(params: &BaselineParams) {
    unsafe {
        let window = Window::<KEYS> {
            seqlen_q: params.seqlen_q,
            seqlen_kv: params.seqlen_kv,
            left: params.window_left,
            right: params.window_right,
        };
        // The longest rows first, so that the last CTAs of the grid are the short ones.
        let m_block = if window.grows() { nctaid_x() - 1 - ctaid_x() } else { ctaid_x() };
        let place = place::<K, MT>(params, m_block * K::TILE_M);
        let blocks = window.blocks(place.cta_row, K::TILE_M);
        let scale = mul_rn_f32(params.softmax_scale, core::f32::consts::LOG2_E);
        // The fast step takes the maximum before the scale, which holds for positive scales only.
        let fast_to = if scale > 0.0 { blocks.full_to } else { 0 };

        load::query::<K, MT>(params, &place);
        let mut ring = Ring::<K, MT>::new(params, &place, blocks.first, blocks.end);
        let query = Query::<K, MT>::new(load::query_address::<K, MT>());
        let mut softmax = Softmax::<MT>::new();
        let mut acc = Accumulator::<MT>::zero();

        let mut block = blocks.first;
        while block < blocks.end {
            while block >= blocks.full_from && block < fast_to {
                step::<K, MT, KEYS, false>(block, scale, &window, &place, &query, &mut ring, &mut softmax, &mut acc);
                block += 1;
            }
            if block < blocks.end {
                step::<K, MT, KEYS, true>(block, scale, &window, &place, &query, &mut ring, &mut softmax, &mut acc);
                block += 1;
            }
        }
        epilogue::store::<K, MT>(params, &place, &softmax, &acc);
    }
}

/// One tile of keys.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn step<K: Kernel<MT>, const MT: usize, const KEYS: usize, const MASKED: bool>(
    block: u32,
    scale: f32,
    window: &Window<KEYS>,
    place: &Place,
    query: &Query<K, MT>,
    ring: &mut Ring<K, MT>,
    softmax: &mut Softmax<MT>,
    acc: &mut Accumulator<MT>,
) {
    unsafe {
        let (k, v) = ring.next();
        let mut s = scores::tile(query, k);
        let scale = if MASKED {
            scores::scale_and_hide(&mut s, scale, window, block, place);
            1.0
        } else {
            scale
        };
        softmax.observe::<K>(&s, scale, acc);
        output::update::<K, MT>(acc, softmax, &s, scale, v);
    }
}

#[inline(always)]
fn place<K: Kernel<MT>, const MT: usize>(params: &BaselineParams, cta_row: u32) -> Place {
    let head_q = ctaid_y();
    // SAFETY: the host's plan rejects a group of zero.
    let (head_kv, _) = unsafe { div_rem(head_q, params.group) };
    let row = cta_row + tid_x() / 32 * (16 * MT) as u32;
    Place { lane: Lane::new(tid_x(), row), cta_row, batch: ctaid_z(), head_q, head_kv }
}
