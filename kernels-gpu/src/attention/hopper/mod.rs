//! The forward pass of INT-FlashAttention on `wgmma` (sm_90a).
//!
//! A CTA is `WGS` consumer warpgroups of 64 query rows each and a warpgroup of producers, and works through query tiles of
//! `64 * WGS` rows until none is left (`work`). The producers bring tiles of Q, blocks of K and V and the keys' factors
//! into rings in shared memory (`load`, `ring`); the consumers run the loop of the paper on what has landed (`consume`):
//!
//! ```text
//! scores::take             S                 of the products started a block ago, both operands in shared memory
//! softmax.exponents        m                 as on sm_80: a warp of a warpgroup has 16 rows in the fragments of mma.sync
//! softmax.step             P                 32 keys at a time, when it is the warp's turn (`baton`)
//! output::step             P V               wgmma, P from registers, as soon as a step of P is there
//! softmax.weigh            w, l              while that is under way
//! output::add              O += w * (P V)
//! scores::start            the next Q K^T    in the registers of P V
//! ```

mod baton;
mod consume;
#[cfg(any(kernels = "hopper_d64", kernels = "hopper_d128"))]
mod entry;
mod epilogue;
mod load;
mod output;
mod ring;
mod scores;
mod work;

use super::{Args, Softmax};
use crate::config::hopper;
use crate::ptx::opaque::opaque;
use crate::ptx::special::{bar_sync, tid_x};
use crate::ptx::{mbarrier, warpgroup};
use crate::smem;
use ring::Rings;

/// What the host passes beyond [`Args`].
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub heads_q: u32,
    pub batch: u32,
}

/// One CTA of the attention kernel.
#[inline(always)]
pub(crate) unsafe fn attention<
    S: Softmax<D, 1>,
    const D: usize,
    const WGS: usize,
    const SLOTS: usize,
    const TURN: usize,
    const CAUSAL: bool,
>(
    args: Args,
    heads: Heads,
) {
    unsafe {
        let rings = Rings::<D, WGS, SLOTS>::new(smem::base());
        // Opaque: rust-cuda's code generator would follow thread 0 past the barrier, apart from its warp.
        if opaque(tid_x()) == 0 {
            rings.init();
            mbarrier::fence_init();
        }
        bar_sync();
        let group = tid_x() / 128;
        if group == WGS as u32 {
            match WGS {
                2 => warpgroup::shrink::<{ hopper::producer_registers(2) }>(),
                _ => warpgroup::shrink::<{ hopper::producer_registers(3) }>(),
            }
            match tid_x() / 32 % 4 {
                0 => load::blocks::<D, WGS, SLOTS, CAUSAL>(&args, heads, &rings),
                1 => load::factors::<S, D, WGS, SLOTS, CAUSAL>(&args, heads, &rings),
                2 => load::tiles::<S, D, WGS, SLOTS, CAUSAL>(&args, heads, &rings),
                _ => {}
            }
        } else {
            match WGS {
                2 => warpgroup::grow::<{ hopper::consumer_registers(2) }>(),
                _ => warpgroup::grow::<{ hopper::consumer_registers(3) }>(),
            }
            consume::run::<S, D, WGS, SLOTS, TURN, CAUSAL>(&args, heads, &rings);
        }
    }
}
