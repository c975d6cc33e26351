//! From a block's sums to what its P is made with: in float16, or in 16 bits where the block is narrow (docs/kernel-abi.md).

use super::Kernel;
use super::place::{Place, notes};
use super::scores::{KeyFactors, PairSums, first_pair};
use super::shared_vars::SharedVars;
use super::special::{Special, narrow_unit};
use super::team::SharingTeam;
use crate::attention::KEY_TILES;
use crate::attention::output::Accumulator;
use crate::attention::softmax::{BlockMax, BlockScales, MAGIC, Softmax, narrow_magic};
use crate::layout::narrow_polynomials;
use crate::params::AttentionParams;
use crate::ptx::math::mul_rn_f32;
use crate::ptx::opaque::opaque;
use crate::ptx::special::tid_x;
use core::marker::PhantomData;

/// A block on its way to P, and where what it needs is.
pub(crate) struct Block<'a, K: Kernel<MT>, const MT: usize> {
    pub params: &'a AttentionParams,
    pub place: &'a Place,
    pub vars: &'a SharedVars,
    pub factors: &'a KeyFactors<K, MT>,
    pub team: &'a SharingTeam<K, MT>,
    pub index: u32,
    /// Where they are not in shared memory.
    pub scales: BlockScales,
}

type Scores<K, const MT: usize> = <<K as Kernel<MT>>::Softmax as Softmax<MT>>::Scores;

/// What the loop asks of it.
pub(crate) trait Front<K: Kernel<MT>, const MT: usize> {
    const NARROW: bool;
    /// What P is made with.
    type Exponents;

    /// Takes the sums of a pair of n8 tiles.
    unsafe fn take(
        block: &Block<K, MT>,
        softmax: &K::Softmax,
        scores: &mut Scores<K, MT>,
        pair: usize,
        sums: &PairSums<MT>,
    );

    fn hide_from(scores: &mut Scores<K, MT>, mt: usize, half: usize, keys: i32);

    fn hide_before(scores: &mut Scores<K, MT>, mt: usize, half: usize, keys: i32);

    /// The exponents of a block whose scores are complete, `special` for some row of the warp or for none.
    unsafe fn exponents(
        block: &Block<K, MT>,
        softmax: &mut K::Softmax,
        scores: &mut Scores<K, MT>,
        special: bool,
    ) -> Self::Exponents;

    /// P of the keys of step `step`, as A fragments.
    fn step(
        softmax: &mut K::Softmax,
        scores: &Scores<K, MT>,
        exponents: &Self::Exponents,
        step: usize,
    ) -> [[u32; 4]; MT];

    /// The exponents of the block's rows.
    fn of_rows(exponents: &Self::Exponents) -> <K::Softmax as Softmax<MT>>::OfRows;

    /// Adds a block with these sums of P ([`Softmax::add_block`]).
    unsafe fn add_codes(
        softmax: &mut K::Softmax,
        exponents: &Self::Exponents,
        codes: [[f32; 2]; MT],
        acc: &mut Accumulator<MT>,
        tiles: usize,
        scales: impl Fn() -> BlockScales,
    ) -> <K::Softmax as Softmax<MT>>::Row;
}

/// The front of a kernel's narrow blocks.
pub(crate) struct Pick<const TAKES_NARROW: bool>;

pub(crate) trait Picked {
    type Front;
}

impl Picked for Pick<true> {
    type Front = Narrow;
}

impl Picked for Pick<false> {
    type Front = Wide;
}

/// In float16, as in every kernel.
pub(crate) struct Wide;

impl<K: Kernel<MT>, const MT: usize> Front<K, MT> for Wide {
    const NARROW: bool = false;
    type Exponents = <K::Softmax as Softmax<MT>>::Exponents;

    #[inline(always)]
    unsafe fn take(
        block: &Block<K, MT>,
        softmax: &K::Softmax,
        scores: &mut Scores<K, MT>,
        pair: usize,
        sums: &PairSums<MT>,
    ) {
        let at = first_pair::<K, MT>(block.place) + pair as u32;
        let factors = unsafe { block.factors.factors(block.index, at, block.place) };
        let bias = factors.map(|factor| mul_rn_f32(-MAGIC, factor));
        unroll!(0..2, |n| {
            let key = [factors[2 * n], bias[2 * n], factors[2 * n + 1], bias[2 * n + 1]];
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let both = [2 * half, 2 * half + 1].map(|i| f32::from_bits(sums[mt][n][i] as u32));
                    softmax.scores_of_magic(scores, mt, half, 2 * pair + n, both, key);
                });
            });
        });
    }

    #[inline(always)]
    fn hide_from(scores: &mut Scores<K, MT>, mt: usize, half: usize, keys: i32) {
        K::Softmax::hide_from(scores, mt, half, keys, K::KEY_TILES);
    }

    #[inline(always)]
    fn hide_before(scores: &mut Scores<K, MT>, mt: usize, half: usize, keys: i32) {
        K::Softmax::hide_before(scores, mt, half, keys, K::KEY_TILES);
    }

    #[inline(always)]
    unsafe fn exponents(
        block: &Block<K, MT>,
        softmax: &mut K::Softmax,
        scores: &mut Scores<K, MT>,
        special: bool,
    ) -> Self::Exponents {
        let Block { params, vars, team, index, scales, .. } = *block;
        unsafe {
            let mut row_scales = K::Softmax::row_scales(|| notes::<K, MT>(opaque(tid_x())));
            if special {
                let block = Special::<K, MT> { params, block: index, scales, vars, kernel: PhantomData };
                K::Softmax::special(scores, &mut row_scales, team, &block);
            }
            let exponents = softmax.exponents(scores, row_scales, team);
            if special {
                K::Softmax::note_exponents(&exponents, || notes::<K, MT>(opaque(tid_x())));
            }
            exponents
        }
    }

    #[inline(always)]
    fn step(
        softmax: &mut K::Softmax,
        scores: &Scores<K, MT>,
        exponents: &Self::Exponents,
        step: usize,
    ) -> [[u32; 4]; MT] {
        softmax.step(scores, exponents, step)
    }

    #[inline(always)]
    fn of_rows(exponents: &Self::Exponents) -> <K::Softmax as Softmax<MT>>::OfRows {
        K::Softmax::of_rows(exponents)
    }

    unsafe fn add_codes(
        _: &mut K::Softmax,
        _: &Self::Exponents,
        _: [[f32; 2]; MT],
        _: &mut Accumulator<MT>,
        _: usize,
        _: impl Fn() -> BlockScales,
    ) -> <K::Softmax as Softmax<MT>>::Row {
        unreachable!("all of a block's P at once")
    }
}

/// In 16 bits.
pub(crate) struct Narrow;

impl<K: Kernel<MT, Softmax = BlockMax<MT, false>>, const MT: usize> Front<K, MT> for Narrow {
    const NARROW: bool = true;
    type Exponents = narrow_magic::Exponents<MT>;

    #[inline(always)]
    unsafe fn take(_: &Block<K, MT>, _: &K::Softmax, scores: &mut Scores<K, MT>, pair: usize, sums: &PairSums<MT>) {
        unroll!(0..2, |n| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let [low, high] = [sums[mt][n][2 * half], sums[mt][n][2 * half + 1]];
                    scores[mt][half][2 * pair + n] = narrow_magic::score(low, high);
                });
            });
        });
    }

    #[inline(always)]
    fn hide_from(scores: &mut Scores<K, MT>, mt: usize, half: usize, keys: i32) {
        narrow_magic::hide_from(&mut scores[mt][half], K::KEY_TILES, keys);
    }

    #[inline(always)]
    fn hide_before(scores: &mut Scores<K, MT>, mt: usize, half: usize, keys: i32) {
        narrow_magic::hide_before(&mut scores[mt][half], K::KEY_TILES, keys);
    }

    #[inline(always)]
    unsafe fn exponents(
        block: &Block<K, MT>,
        _: &mut K::Softmax,
        scores: &mut Scores<K, MT>,
        _: bool,
    ) -> Self::Exponents {
        unsafe {
            let row_scales = K::Softmax::row_scales(|| notes::<K, MT>(opaque(tid_x())));
            let unit = narrow_unit::<K, MT>(block.params, block.vars.k_block_scale(block.index));
            narrow_magic::Exponents::new(scores, row_scales, unit, block.team)
        }
    }

    #[inline(always)]
    fn step(_: &mut K::Softmax, scores: &Scores<K, MT>, exponents: &Self::Exponents, step: usize) -> [[u32; 4]; MT] {
        const { assert!(K::KEY_TILES == KEY_TILES || narrow_polynomials(K::HEAD_DIM) == 0) }
        exponents.step(scores, narrow_polynomials(K::HEAD_DIM), step)
    }

    #[inline(always)]
    fn of_rows(exponents: &Self::Exponents) -> [[f32; 2]; MT] {
        exponents.of_rows()
    }

    #[inline(always)]
    unsafe fn add_codes(
        softmax: &mut K::Softmax,
        exponents: &Self::Exponents,
        codes: [[f32; 2]; MT],
        acc: &mut Accumulator<MT>,
        tiles: usize,
        scales: impl Fn() -> BlockScales,
    ) -> [[f32; 2]; MT] {
        let notes = || notes::<K, MT>(opaque(tid_x()));
        unsafe { softmax.add_codes::<SharingTeam<K, MT>>(exponents.of_rows(), codes, acc, tiles, false, scales, notes) }
    }
}
