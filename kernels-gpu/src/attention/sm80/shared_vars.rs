//! Variables of a CTA that are needed now and then: in shared memory meanwhile, not in registers.
//!
//! ptxas keeps what it can compute once, special registers included, in registers from there to the last use, and the loop has none to
//! spare: what would be spilled to local memory stands here.

use crate::attention::sequence::Sequence;
use crate::attention::softmax::{BlockScales, value_weight};
use crate::attention::window::Blocks;
use crate::config::sm80::{MAX_WARPS, VARS_BYTES};
use crate::layout::{KV_BLOCK, NARROW_LEAST, NARROW_MOST};
use crate::ptx::math::{max_f32, min_f32, mul_rn_f32};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{
    ld_shared_f32, ld_shared_u32, ld_shared_v2_u32, ld_shared_v4_u32, st_shared_f32, st_shared_u32, st_shared_v2_u32,
    st_shared_v4_u32,
};
use crate::ptx::shuffle::{ballot, vote_any};
use crate::ptx::special::tid_x;

/// Where the reach of each warp's rows is, behind the first row, its head, the common factor, the blocks and the lengths.
const REACH: u32 = 32;
/// Where the sequence's first block and its first query are, and the number of the last block.
const FIRST_BLOCK: u32 = REACH + 4 * MAX_WARPS as u32;
/// Where the unit of the head's values is.
const UNIT: u32 = FIRST_BLOCK + 16;
/// Where the number of blocks is that have 128 keys for certain.
const WHOLE: u32 = UNIT + 4;
/// Where the scales of two blocks of K and of V are, each pair loaded at once.
const SCALES: u32 = UNIT + 8;
/// Where, for the numbers of [`NUMBERS`] blocks, there is how far each is from the place of its block in the sequence, and the last such place.
const NUMBER: u32 = SCALES + 2 * 8;
/// A power of two.
pub(super) const NUMBERS: u32 = 4;
/// Where the least and the largest scale of the rows of each warp, or team, are.
const ROWS: u32 = (NUMBER + 8 * NUMBERS).next_multiple_of(16);
/// Where each of the first [`KEY_WARPS`] warps says of two blocks whether its keys share the block's scale.
const SHARE: u32 = ROWS + 8 * MAX_WARPS as u32;
/// Warps whose threads have a block's keys.
const KEY_WARPS: u32 = KV_BLOCK as u32 / 32;

const _: () = assert!((SHARE + 2 * 4 * KEY_WARPS) as usize <= VARS_BYTES && SCALES.is_multiple_of(8) && KEY_WARPS == 4);
const _: () = assert!(ROWS.is_multiple_of(16) && SHARE.is_multiple_of(16));
const _: () = assert!(VARS_BYTES.is_multiple_of(16));

/// [`VARS_BYTES`](crate::config::sm80::VARS_BYTES) of shared memory.
pub(crate) struct SharedVars {
    address: u32,
}

impl SharedVars {
    #[inline(always)]
    pub(crate) fn new(address: u32) -> Self {
        Self { address }
    }

    /// Stores all, where `predicate`; visible after the next barrier.
    ///
    /// # Safety
    /// The bytes belong to nothing else.
    #[inline(always)]
    pub(crate) unsafe fn store(
        &self,
        predicate: bool,
        row: u32,
        sequence: &Sequence,
        common_factor: f32,
        blocks: &Blocks,
    ) {
        let Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv, first_block } = *sequence;
        let of_blocks = [blocks.full_from, blocks.full_to, seqlen_q, seqlen_kv];
        unsafe {
            st_shared_v4_u32(predicate, self.address, [row, head_q, batch, common_factor.to_bits()]);
            st_shared_v4_u32(predicate, self.address + 16, of_blocks);
            let last_block = blocks.end.wrapping_sub(1);
            st_shared_v4_u32(predicate, self.address + FIRST_BLOCK, [first_block, index_kv, first_q, last_block]);
        }
    }

    /// The CTA's first query row.
    ///
    /// # Safety
    /// [`Self::store`] and a barrier are behind.
    #[inline(always)]
    pub(crate) unsafe fn row(&self) -> u32 {
        unsafe { ld_shared_u32(self.address) }
    }

    /// Its sequence, see [`Self::row`]: three loads, where [`Sequence::new`] looks into lists and divides.
    #[inline(always)]
    pub(crate) unsafe fn sequence(&self) -> Sequence {
        unsafe {
            let [_, head_q, batch, _] = ld_shared_v4_u32(self.address);
            let [first_block, index_kv, first_q, _] = ld_shared_v4_u32(self.address + FIRST_BLOCK);
            let [seqlen_q, seqlen_kv] = self.lengths();
            Sequence { batch, head_q, seqlen_q, seqlen_kv, first_q, index_kv, first_block }
        }
    }

    /// `full_from` and `full_to` of the tile's blocks, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn full(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + 16) }
    }

    /// `seqlen_q` and `seqlen_kv` of the tile's sequence, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn lengths(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + 24) }
    }

    /// `first_block` and `index_kv` of the tile's sequence, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn first_block(&self) -> [u32; 2] {
        unsafe { ld_shared_v2_u32(self.address + FIRST_BLOCK) }
    }

    /// The last of the tile's blocks, if there is one, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn last_block(&self) -> u32 {
        unsafe { ld_shared_u32(self.address + FIRST_BLOCK + 12) }
    }

    /// The common factor of the keys, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn common_factor(&self) -> f32 {
        unsafe { ld_shared_f32(self.address + 12) }
    }

    /// Stores how many blocks, from the first on, have 128 keys of the sequence and nothing else in them: what a page has behind the last key may be
    /// anything, zeros are in its place elsewhere. See [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_whole(&self, predicate: bool, whole: u32) {
        unsafe { st_shared_u32(predicate, self.address + WHOLE, whole) }
    }

    /// Stores the unit of the head's values; see [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_unit(&self, predicate: bool, unit: f32) {
        unsafe { st_shared_u32(predicate, self.address + UNIT, unit.to_bits()) }
    }

    /// Stores the scales of a block of K and of V, beside those of the block before; visible after the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store_scales(&self, predicate: bool, block: u32, scales: [f32; 2]) {
        unsafe { st_shared_v2_u32(predicate, self.scales_of(block), scales.map(f32::to_bits)) }
    }

    /// Stores the number of a block, of which `last` is the last one of the tile's, beside those of the three before; visible after the next
    /// barrier. Behind the last block is the last one again.
    #[inline(always)]
    pub(crate) unsafe fn store_number(&self, predicate: bool, block: u32, last: u32, number: u32) {
        let place = if block < last { block } else { last };
        unsafe { st_shared_v2_u32(predicate, self.number_of(block), [number.wrapping_sub(place), last]) }
    }

    /// The number of a block, stored as [`Self::store_number`] does.
    #[inline(always)]
    pub(crate) unsafe fn number(&self, block: u32) -> u32 {
        let [less, last] = unsafe { ld_shared_v2_u32(self.number_of(block)) };
        less.wrapping_add(if block < last { block } else { last })
    }

    #[inline(always)]
    fn number_of(&self, block: u32) -> u32 {
        self.address + NUMBER + block % NUMBERS * 8
    }

    #[inline(always)]
    fn scales_of(&self, block: u32) -> u32 {
        self.address + SCALES + block % 2 * 8
    }

    /// The scales of a block, in the unit of the head's values, and the reach of the warp's rows; see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn scales(&self, block: u32) -> BlockScales {
        unsafe { self.scales_with(ld_shared_v2_u32(self.scales_of(block)).map(f32::from_bits)) }
    }

    /// That of K, as it is stored.
    #[inline(always)]
    pub(crate) unsafe fn k_block_scale(&self, block: u32) -> f32 {
        unsafe { ld_shared_f32(self.scales_of(block)) }
    }

    /// The same of a block with these scales.
    #[inline(always)]
    pub(crate) unsafe fn scales_with(&self, [k, v]: [f32; 2]) -> BlockScales {
        let (unit, reach) = unsafe { (ld_shared_f32(self.address + UNIT), self.reach(opaque(tid_x()) / 32)) };
        BlockScales { k, v: value_weight(v, unit), reach }
    }

    /// Stores, where `predicate`, the least and the largest scale of the rows of team `team` ([`warp_scales`](crate::attention::softmax::warp_scales)); see
    /// [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_rows(&self, predicate: bool, team: u32, [least, most]: [f32; 2]) {
        unsafe { st_shared_v2_u32(predicate, self.address + ROWS + 8 * team, [least.to_bits(), most.to_bits()]) }
    }

    /// See [`Self::store_whole`].
    #[inline(always)]
    pub(crate) unsafe fn whole(&self) -> u32 {
        unsafe { ld_shared_u32(self.address + WHOLE) }
    }

    /// Stores whether the warp's keys of a block share the scale of the block, the lane's own given, and the block is one of the `whole` ones;
    /// visible after the next barrier.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn store_share(&self, block: u32, scale: f32, k_block_scale: f32, whole: u32) {
        unsafe {
            let share = (ballot(scale == k_block_scale) == u32::MAX) & (block < whole);
            let thread = opaque(tid_x());
            let own = thread % 32 == 0 && thread < KV_BLOCK as u32;
            st_shared_u32(own, self.share_of(block) + thread / 32 * 4, u32::from(share));
        }
    }

    #[inline(always)]
    fn share_of(&self, block: u32) -> u32 {
        self.address + SHARE + block % 2 * (4 * KEY_WARPS)
    }

    /// Whether a block is narrow for the 64 rows which team `team` has with others, `TEAMS` of them, given its unit
    /// ([`Softmax::narrow_unit`](crate::attention::softmax::Softmax::narrow_unit)) and the scale of its values, behind [`Self::store_share`] and a barrier.
    ///
    /// # Safety
    /// In whole warps.
    #[inline(always)]
    pub(crate) unsafe fn is_narrow<const TEAMS: u32>(&self, block: u32, team: u32, unit: f32, v: f32) -> bool {
        unsafe {
            let [a, b, c, d] = ld_shared_v4_u32(self.share_of(block));
            let (mut least, mut most) = (f32::INFINITY, 0.0);
            unroll!(0..TEAMS as usize / 2, |two| {
                let rows = self.address + ROWS + team / TEAMS * (8 * TEAMS) + 16 * two as u32;
                let rows = ld_shared_v4_u32(rows).map(f32::from_bits);
                least = min_f32(least, min_f32(rows[0], rows[2]));
                most = max_f32(most, max_f32(rows[1], rows[3]));
            });
            // No `&&`: it would be branches.
            let within = (mul_rn_f32(unit, least) >= NARROW_LEAST) & (mul_rn_f32(unit, most) <= NARROW_MOST);
            vote_any((a & b & c & d == 1) & within & !v.is_nan())
        }
    }

    /// Stores the reach of a warp's rows, the same by all its lanes; see [`Self::store`].
    #[inline(always)]
    pub(crate) unsafe fn store_reach(&self, warp: u32, reach: f32) {
        unsafe { st_shared_f32(self.address + REACH + 4 * warp, reach) }
    }

    /// The reach of a warp's rows, see [`Self::row`].
    #[inline(always)]
    pub(crate) unsafe fn reach(&self, warp: u32) -> f32 {
        unsafe { ld_shared_f32(self.address + REACH + 4 * warp) }
    }
}
