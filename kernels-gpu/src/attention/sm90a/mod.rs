//! The forward pass on `wgmma` and bulk copies: compute capability 9.0 (Hopper).
//!
//! A CTA is `WGS` consumer warpgroups of 64 query rows each and a warpgroup of producers, and works through query tiles of
//! `64 * WGS` rows until none is left (`tile_order`). The producers bring tiles of Q, blocks of K and V and the keys' factors
//! into rings in shared memory (`producers`, `ring`); the consumers run the loop of the paper on what has landed (`consumers`):
//!
//! ```text
//! Front::exponents         S, m              of the products started a block ago, both operands in shared memory; hidden where the window
//!                                            says so. In float16 as on sm_80, or in 16 bits (`front`): a warp of a warpgroup has 16 rows in
//!                                            the fragments of mma.sync
//! Front::step              P                 32 keys at a time, when it is the warp's turn (`scheduler_barrier`)
//! output::step             P V               wgmma, P from registers, as soon as a step of P is there
//! softmax.add_block        w, l              while that is under way
//! output::add              O += w * (P V)
//! scores::start            the next Q K^T    in the registers of P V
//! ```

mod consumers;
mod entry;
mod epilogue;
mod front;
mod output;
mod producers;
mod ring;
mod rows;
mod scheduler_barrier;
mod scores;
mod special;
mod tile_order;

use super::softmax::Softmax;
use crate::config::sm90a;
use crate::params::AttentionParams;
use crate::ptx::barrier::bar_sync;
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use crate::ptx::wgmma::Products;
use crate::ptx::{mbarrier, warpgroup};
use crate::smem;
use ring::Rings;

/// A row of the table `sm90a_rows`.
pub(crate) trait Kernel {
    type Softmax: Softmax<1>;
    /// The sums of a part of the dims of P V.
    type Part: Products;
    const HEAD_DIM: usize;
    /// Consumer warpgroups.
    const WGS: usize;
    /// Slots of each ring of K or V blocks.
    const SLOTS: usize;
    /// The step of a block's P after which a warp leaves the special function unit to the next.
    const HANDOVER: usize;
    /// Whether it leaves it in front of that step's products, for which it may have to wait.
    const EARLY: bool;
    /// Whether special and narrow blocks have loop bodies of their own, for which there are not always registers: branches within a body keep its
    /// loads and exponentials from overlapping, which costs a fifth of the speed.
    const APART: bool;
    /// Whether the steps of a tile's last block that no row sees are left out. The branches cost those that are seen some of their overlap.
    const TRIMMED: bool;
    /// Parts of P V.
    const PARTS: usize = Self::HEAD_DIM / (8 * Self::Part::TILES);
    /// Query rows of a tile.
    const TILE_M: u32 = sm90a::tile_m(Self::WGS) as u32;
    /// Where steps are left out, a turn that ends with one of them might not.
    const SOUND: () = assert!(!(Self::EARLY && Self::TRIMMED && Self::HANDOVER > 0));
}

/// One CTA of the attention kernel.
#[inline(always)]
pub(crate) unsafe fn attention<K: Kernel>(params: &AttentionParams) {
    const { K::SOUND }
    unsafe {
        let rings = Rings::<K>::new(smem::base());
        // Opaque: rust-cuda's code generator would follow thread 0 past the barrier, apart from its warp.
        if opaque(tid_x()) == 0 {
            rings.init();
            mbarrier::fence_init();
        }
        bar_sync();
        let group = tid_x() / 128;
        if group == K::WGS as u32 {
            match K::WGS {
                2 => warpgroup::shrink::<{ sm90a::producer_registers(2) }>(),
                _ => warpgroup::shrink::<{ sm90a::producer_registers(3) }>(),
            }
            producers::run(params, &rings);
        } else {
            match K::WGS {
                2 => warpgroup::grow::<{ sm90a::consumer_registers(2) }>(),
                _ => warpgroup::grow::<{ sm90a::consumer_registers(3) }>(),
            }
            consumers::run(params, &rings);
        }
    }
}
