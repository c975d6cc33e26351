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

mod entry;
mod epilogue;
mod load;
mod mask;
mod output;
mod scores;
mod softmax;
mod tile;

use crate::mask::Mask;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, tid_x};
use load::Ring;
use output::Accumulator;
use scores::Query;
use softmax::Softmax;

/// A `[batch][head][token][head_dim]` tensor of float16 with strides in elements; the last dim is contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Tensor {
    pub data: *const u8,
    pub stride_b: i64,
    pub stride_h: i64,
    pub stride_n: i64,
}

impl Tensor {
    /// Where token `row` of a head starts.
    #[inline(always)]
    unsafe fn row(&self, batch: u32, head: u32, row: u32) -> *const u8 {
        let element =
            i64::from(batch) * self.stride_b + i64::from(head) * self.stride_h + i64::from(row) * self.stride_n;
        unsafe { self.data.offset(2 * element as isize) }
    }
}

/// What the host passes; docs/kernel-abi.md has the shapes.
#[derive(Clone, Copy)]
pub(crate) struct Args {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub o: Tensor,
    pub lse: *mut f32,
    pub seqlen_q: u32,
    pub seqlen_kv: u32,
    pub group: u32,
    pub softmax_scale: f32,
}

/// The place of a lane in its warp's fragments, and of the warp in the grid.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// `lane / 4`: the row of a fragment.
    pub group: u32,
    /// `lane % 4`: the column pair of a fragment.
    pub quad: u32,
    /// First query row of the CTA, and of the warp.
    pub cta_row: u32,
    pub row: u32,
    pub batch: u32,
    pub head_q: u32,
    pub head_kv: u32,
}

/// One CTA.
#[inline(always)]
pub(crate) unsafe fn attention<
    const D: usize,
    const MT: usize,
    const WARPS: usize,
    const KEYS: usize,
    const STAGES: usize,
    const RESIDENT: bool,
    const CAUSAL: bool,
>(
    args: Args,
) {
    unsafe {
        let tile_m = (16 * MT * WARPS) as u32;
        // The longest rows first, so that the last CTAs of a causal grid are the short ones.
        let m_block = if CAUSAL { nctaid_x() - 1 - ctaid_x() } else { ctaid_x() };
        let place = place(&args, m_block * tile_m, (16 * MT) as u32);
        let mask = Mask::<CAUSAL, KEYS>::of_rows(args.seqlen_q, args.seqlen_kv, place.cta_row, tile_m);
        let scale = mul_rn_f32(args.softmax_scale, core::f32::consts::LOG2_E);
        // The fast step takes the maximum before the scale, which holds for positive scales only.
        let fast_blocks = if scale > 0.0 { mask.full_blocks } else { 0 };

        load::query::<D, MT, WARPS>(&args, &place);
        let mut ring =
            Ring::<D, KEYS, WARPS, STAGES>::new(&args, &place, load::query_bytes::<D, MT, WARPS>(), mask.blocks);
        let query = Query::<MT, RESIDENT>::new::<D, STAGES>(load::query_address::<D, MT>());
        let mut softmax = Softmax::<MT>::new();
        let mut acc = Accumulator::<MT>::zero();

        let mut block = 0;
        while block < fast_blocks {
            step::<D, MT, WARPS, KEYS, STAGES, RESIDENT, CAUSAL, false>(
                block,
                scale,
                &place,
                &mask,
                &query,
                &mut ring,
                &mut softmax,
                &mut acc,
            );
            block += 1;
        }
        while block < mask.blocks {
            step::<D, MT, WARPS, KEYS, STAGES, RESIDENT, CAUSAL, true>(
                block,
                scale,
                &place,
                &mask,
                &query,
                &mut ring,
                &mut softmax,
                &mut acc,
            );
            block += 1;
        }
        epilogue::store::<D, MT>(&args, &place, &softmax, &acc);
    }
}

/// One tile of keys.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn step<
    const D: usize,
    const MT: usize,
    const WARPS: usize,
    const KEYS: usize,
    const STAGES: usize,
    const RESIDENT: bool,
    const CAUSAL: bool,
    const MASKED: bool,
>(
    block: u32,
    scale: f32,
    place: &Place,
    mask: &Mask<CAUSAL, KEYS>,
    query: &Query<MT, RESIDENT>,
    ring: &mut Ring<D, KEYS, WARPS, STAGES>,
    softmax: &mut Softmax<MT>,
    acc: &mut Accumulator<MT>,
) {
    unsafe {
        let (k, v) = ring.next();
        let mut s = scores::tile::<D, MT, KEYS, RESIDENT>(query, k);
        let scale = if MASKED {
            mask::scale_and_hide::<CAUSAL, MT, KEYS>(mask, &mut s, scale, block, place);
            1.0
        } else {
            scale
        };
        softmax.observe::<D, KEYS>(&s, scale, acc);
        output::update::<D, MT, KEYS>(acc, softmax, &s, scale, v);
    }
}

#[inline(always)]
fn place(args: &Args, cta_row: u32, warp_rows: u32) -> Place {
    let (lane, warp) = (tid_x() % 32, tid_x() / 32);
    let (head_q, batch) = (ctaid_y(), ctaid_z());
    // SAFETY: the host's plan rejects a group of zero; the panic of a checked division has no place on the device.
    unsafe { core::hint::assert_unchecked(args.group != 0) };
    Place {
        group: lane / 4,
        quad: lane % 4,
        cta_row,
        row: cta_row + warp * warp_rows,
        batch,
        head_q,
        head_kv: head_q / args.group,
    }
}
