//! From a block's sums to what its P is made with: in float16, or in 16 bits where the block is narrow (docs/kernel-abi.md).

use super::ring::RingState;
use super::rows::Rows;
use super::special::Special;
use super::{Kernel, scores};
use crate::attention::softmax::{Alone, Softmax, narrow};
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::layout::narrow_polynomials;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use crate::ptx::wgmma::Products;

/// A block on its way to P.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub now: RingState,
    pub index: u32,
    /// Whether it is narrow, and whether it is special for some row: never both.
    pub narrow: bool,
    pub special: bool,
    /// The steps of its keys that any row sees.
    pub steps: u32,
}

/// What the loop asks of it.
pub(crate) trait Front<K: Kernel> {
    /// The block's scores, hidden where the window says so, and what P is made with of them.
    type Exponents;

    /// Waits for the sums.
    unsafe fn exponents(
        rows: &Rows<K>,
        softmax: &mut K::Softmax,
        sums: &mut scores::Sums,
        block: Block,
    ) -> Self::Exponents;

    /// P of the keys of step `step`, as an A fragment.
    fn step(softmax: &mut K::Softmax, exponents: &Self::Exponents, step: usize) -> [u32; 4];

    /// The exponents of the block's rows.
    fn of_rows(exponents: &Self::Exponents) -> <K::Softmax as Softmax<1>>::OfRows;
}

/// In float16, as on every GPU.
pub(crate) struct Wide;

impl<K: Kernel> Front<K> for Wide {
    type Exponents = (<K::Softmax as Softmax<1>>::Scores, <K::Softmax as Softmax<1>>::Exponents);

    #[inline(always)]
    unsafe fn exponents(
        rows: &Rows<K>,
        softmax: &mut K::Softmax,
        sums: &mut scores::Sums,
        block: Block,
    ) -> Self::Exponents {
        unsafe {
            // Opaque: computed anew here, where the wait hides it, instead of kept in a register across the loop.
            let factors = rows.rings.factors(block.now) + 16 * (opaque(tid_x()) % 4);
            sums.wait::<0>();
            let upper = block.steps > KEY_STEPS as u32 / 2;
            let mut scores = scores::take(softmax, sums, factors, upper);
            // Before the branches, which no load crosses.
            let mut row_scales = K::Softmax::row_scales(|| rows.notes());
            if !rows.sees_all(block.index) {
                rows.mask::<false>(block.index, |half, keys| {
                    if upper {
                        K::Softmax::hide_from(&mut scores, 0, half, keys, KEY_TILES);
                    } else {
                        K::Softmax::hide_from(&mut scores, 0, half, keys, KEY_TILES / 2);
                    }
                });
                rows.mask::<true>(block.index, |half, keys| {
                    K::Softmax::hide_before(&mut scores, 0, half, keys, KEY_TILES);
                });
            }
            if block.special {
                let special = Special { rows, now: block.now, block: block.index };
                K::Softmax::special(&mut scores, &mut row_scales, &Alone, &special);
            }
            let exponents = softmax.exponents(&scores, row_scales, &Alone);
            if block.special {
                K::Softmax::note_exponents(&exponents, || rows.notes());
            }
            (scores, exponents)
        }
    }

    #[inline(always)]
    fn step(softmax: &mut K::Softmax, (scores, exponents): &Self::Exponents, step: usize) -> [u32; 4] {
        softmax.step(scores, exponents, step)[0]
    }

    #[inline(always)]
    fn of_rows((_, exponents): &Self::Exponents) -> <K::Softmax as Softmax<1>>::OfRows {
        K::Softmax::of_rows(exponents)
    }
}

/// In 16 bits.
pub(crate) struct Narrow;

impl<K: Kernel> Front<K> for Narrow {
    type Exponents = narrow::Exponents;

    #[inline(always)]
    unsafe fn exponents(rows: &Rows<K>, _: &mut K::Softmax, sums: &mut scores::Sums, block: Block) -> Self::Exponents {
        unsafe {
            let (q_scales, unit) = (rows.own_q_scales(), rows.narrow_unit(block.now));
            sums.wait::<0>();
            let mut scores = narrow::scores(sums);
            if !rows.sees_all(block.index) {
                rows.mask::<false>(block.index, |half, keys| narrow::hide_from(&mut scores, half, keys));
                rows.mask::<true>(block.index, |half, keys| narrow::hide_before(&mut scores, half, keys));
            }
            narrow::Exponents::new(scores, q_scales.map(|q_scale| mul_rn_f32(q_scale, unit)))
        }
    }

    #[inline(always)]
    fn step(_: &mut K::Softmax, exponents: &Self::Exponents, step: usize) -> [u32; 4] {
        exponents.step(narrow_polynomials(K::HEAD_DIM), step)
    }

    #[inline(always)]
    fn of_rows(exponents: &Self::Exponents) -> <K::Softmax as Softmax<1>>::OfRows {
        K::Softmax::of_narrow_rows(exponents.of_rows())
    }
}

/// One or the other, by a branch that ends before the exponentials: bodies of their own have no registers at d = 128.
pub(crate) struct Either;

impl<K: Kernel> Front<K> for Either {
    type Exponents = (<Wide as Front<K>>::Exponents, <K::Softmax as Softmax<1>>::OfRows);

    #[inline(always)]
    unsafe fn exponents(
        rows: &Rows<K>,
        softmax: &mut K::Softmax,
        sums: &mut scores::Sums,
        block: Block,
    ) -> Self::Exponents {
        unsafe {
            if block.narrow {
                let exponents = <Narrow as Front<K>>::exponents(rows, softmax, sums, block);
                let of_rows = <Narrow as Front<K>>::of_rows(&exponents);
                (K::Softmax::of_narrow(exponents), of_rows)
            } else {
                let exponents = <Wide as Front<K>>::exponents(rows, softmax, sums, block);
                let of_rows = <Wide as Front<K>>::of_rows(&exponents);
                (exponents, of_rows)
            }
        }
    }

    #[inline(always)]
    fn step(softmax: &mut K::Softmax, (exponents, _): &Self::Exponents, step: usize) -> [u32; 4] {
        <Wide as Front<K>>::step(softmax, exponents, step)
    }

    #[inline(always)]
    fn of_rows((_, of_rows): &Self::Exponents) -> <K::Softmax as Softmax<1>>::OfRows {
        *of_rows
    }
}
