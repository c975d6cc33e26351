//! A warp's tile of query rows against all blocks of keys that it sees: `super::super::sm80`, with everything in shared memory.

use super::queries::{Query, TileRows};
use super::shared::Shared;
use super::{Kernel, epilogue};
use crate::attention::lane::{Lane, panel_row};
use crate::attention::output::{Accumulator, Probabilities};
use crate::attention::sequence::Sequence;
use crate::attention::sm80::{MAX_PAIRS, pairs};
use crate::attention::softmax::{
    Alone, BlockMax, BlockScales, MAGIC, MAGIC_BITS, NEG_INFINITY, Notes, Softmax, SpecialBlock, value_weight,
    warp_reach,
};
use crate::attention::window::{Blocks, Window};
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::layout::{KV_BLOCK, ROW_BYTES};
use crate::params::{AttentionParams, ShortParams};
use crate::ptx::barrier::warp_sync;
use crate::ptx::cp_async::wait_group;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::{max_f32, mul_rn_f32};
use crate::ptx::mma::{mma_m16n8k32_s32_s8_s8, mma_m16n8k32_s32_u8_u8};
use crate::ptx::opaque::opaque;
use crate::ptx::shared::{ld_shared_f32, ld_shared_v2_u32, ld_shared_v4_f32};
use crate::ptx::special::tid_x;

/// The scheme: the tensor cores add up P.
pub(crate) type Scheme<const MT: usize> = BlockMax<MT, false>;
type Scores<const MT: usize> = <Scheme<MT> as Softmax<MT>>::Scores;

/// n8 tiles of a panel of keys.
const PANEL_TILES: usize = KEY_TILES / KEY_STEPS;

/// What the steps of a tile have in common.
pub(crate) struct Tile<'a, K, const MT: usize> {
    pub params: &'a AttentionParams,
    head_q: u32,
    pub shared: &'a Shared<K, MT>,
    pub warp: u32,
    /// First row.
    pub row: u32,
    /// Which blocks the rows see.
    blocks: Blocks,
    /// The largest reach of the rows.
    reach: f32,
}

impl<K: Kernel<MT>, const MT: usize> Tile<'_, K, MT> {
    /// The lane in the fragments; anew, so that it takes no registers between its uses.
    #[inline(always)]
    pub(crate) fn lane(&self) -> Lane {
        Lane::new(opaque(tid_x()), self.row)
    }

    /// The head of Q; anew as well.
    #[inline(always)]
    pub(crate) unsafe fn sequence(&self) -> Sequence {
        unsafe { Sequence::new(self.params, self.shared.cta().batch, opaque(self.head_q)) }
    }

    #[inline(always)]
    pub(crate) fn notes(&self) -> Notes {
        self.shared.notes(self.warp, opaque(tid_x()) % 32)
    }

    /// The scale, or the bias, of the lane's query.
    #[inline(always)]
    pub(crate) unsafe fn of_row(&self, biases: bool, mt: usize, half: usize) -> f32 {
        let row = (16 * mt + 8 * half) as u32 + opaque(tid_x()) % 32 / 4;
        unsafe { ld_shared_f32(self.shared.rows(self.warp, biases) + 4 * row) }
    }
}

/// The tile from its codes to the output. `request` starts bringing the next tile, to where this one's codes were; a special block, which has its
/// scratch there, asks for it once more.
///
/// # Safety
/// In whole warps, after `TileRows::quantize`.
#[inline(always)]
pub(crate) unsafe fn attend<K: Kernel<MT>, const MT: usize>(rows: &TileRows<K, MT>, request: impl Fn()) {
    unsafe {
        let TileRows { params: ShortParams { attention: params, .. }, shared, sequence, row, warp } = rows;
        let head_q = sequence.head_q;
        let (row, warp) = (*row, *warp);
        let blocks = Window::of(params).blocks(row, K::TILE_M);
        let mut tile = Tile::<K, MT> { params, head_q, shared, warp, row, blocks, reach: 0.0 };
        let mut q_scales = [[1.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                q_scales[mt][half] = tile.of_row(false, mt, half);
            });
            tile.reach = max_f32(tile.reach, warp_reach(params, K::HEAD_DIM, q_scales[mt]));
        });
        let query = Query::<MT>::load(shared, warp);
        warp_sync();
        request();
        let mut softmax = <Scheme<MT> as Softmax<MT>>::new(params, q_scales, || [[0.0; 2]; MT], || tile.notes());
        let mut acc = Accumulator::<MT>::zero();
        let mut block = tile.blocks.first;
        while block < tile.blocks.end {
            let panels = (shared.keys / ROW_BYTES as u32 - block * KEY_STEPS as u32).min(KEY_STEPS as u32);
            step::<K, MT>(&tile, block, panels, &query, &mut softmax, &mut acc, &request);
            block += 1;
        }
        epilogue::store::<K, MT>(&tile, &softmax, &acc);
    }
}

/// The first `panels` panels of 32 of a block of keys. One body for whole and partial blocks: a second one would be fetched from L2 as well, which
/// costs more than the branches do.
#[inline(always)]
unsafe fn step<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    block: u32,
    panels: u32,
    query: &Query<MT>,
    softmax: &mut Scheme<MT>,
    acc: &mut Accumulator<MT>,
    request: &impl Fn(),
) {
    unsafe {
        let has = |panel: usize| (panel as u32) < panels;
        let scales = block_scales(tile, block);
        let mut s = scores::<K, MT>(tile, block, has, query, softmax);
        if block >= tile.blocks.full_to {
            mask::<K, MT, false>(tile, block, &mut s, panels);
        }
        if block < tile.blocks.full_from {
            mask::<K, MT, true>(tile, block, &mut s, panels);
        }
        let mut row_scales = Scheme::<MT>::row_scales(|| tile.notes());
        let special = Scheme::<MT>::is_special(&scales);
        if special {
            wait_group::<0>();
            Scheme::<MT>::special(&mut s, &mut row_scales, &Alone, &Special { tile, block, scales });
            warp_sync();
            request();
        }
        let exponents = softmax.exponents(&s, row_scales, &Alone);
        if special {
            Scheme::<MT>::note_exponents(&exponents, || tile.notes());
        }
        let mut p: Probabilities<MT> = [[[0; 4]; KEY_STEPS]; MT];
        unroll!(0..KEY_STEPS, |panel| {
            if has(panel) {
                let codes = softmax.step(&s, &exponents, panel);
                unroll!(0..MT, |mt| {
                    p[mt][panel] = codes[mt];
                });
            }
        });
        let tiles = K::HEAD_DIM / 8;
        let exponents = Scheme::<MT>::of_rows(&exponents);
        let row = softmax.add_block::<Alone>(exponents, &p, acc, tiles, special, || scales, || tile.notes());
        update::<K, MT>(tile, block, has, &p, &row, acc);
    }
}

/// The scales of a block, in the unit of the head's values, and the reach of the rows.
#[inline(always)]
unsafe fn block_scales<K: Kernel<MT>, const MT: usize>(tile: &Tile<K, MT>, block: u32) -> BlockScales {
    let ([k, v], unit) = unsafe { (ld_shared_v2_u32(tile.shared.block(block)), ld_shared_f32(tile.shared.unit())) };
    BlockScales { k: f32::from_bits(k), v: value_weight(f32::from_bits(v), unit), reach: tile.reach }
}

/// S = Q K^T; minus infinity for panels that are not there.
#[inline(always)]
unsafe fn scores<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    block: u32,
    has: impl Fn(usize) -> bool,
    query: &Query<MT>,
    softmax: &Scheme<MT>,
) -> Scores<MT> {
    let mut scores: Scores<MT> = [[[NEG_INFINITY; KEY_TILES]; 2]; MT];
    let row = opaque(panel_row(tile.shared.k())) + block * (KV_BLOCK * ROW_BYTES) as u32;
    let factors = tile.shared.factors(block) + 16 * (opaque(tid_x()) % 4);
    unroll!(0..KEY_STEPS, |panel| {
        if has(panel) {
            unroll!(0..PANEL_TILES / 2 / pairs(MT), |group| {
                let first = panel * PANEL_TILES / 2 + group * pairs(MT);
                let mut acc = [[[[MAGIC_BITS; 4]; 2]; MT]; MAX_PAIRS];
                unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
                    unroll!(0..pairs(MT), |i| {
                        let at = row + step as u32 * tile.shared.k_panel() + ((first + i) * 16 * ROW_BYTES) as u32;
                        let b = unsafe { ldmatrix_x4(at) };
                        unroll!(0..MT, |mt| {
                            let a = query.fragment[mt][step];
                            acc[i][mt][0] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[0], b[1]], acc[i][mt][0]) };
                            acc[i][mt][1] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[2], b[3]], acc[i][mt][1]) };
                        });
                    });
                });
                unroll!(0..pairs(MT), |i| {
                    let factors = unsafe { ld_shared_v4_f32(factors + 64 * (first + i) as u32) };
                    let bias = factors.map(|factor| mul_rn_f32(-MAGIC, factor));
                    unroll!(0..2, |n| {
                        let key = [factors[2 * n], bias[2 * n], factors[2 * n + 1], bias[2 * n + 1]];
                        unroll!(0..MT, |mt| {
                            unroll!(0..2, |half| {
                                let acc = &acc[i][mt][n];
                                let sums = [acc[2 * half], acc[2 * half + 1]].map(|sum| f32::from_bits(sum as u32));
                                softmax.scores_of_magic(&mut scores, mt, half, 2 * (first + i) + n, sums, key);
                            });
                        });
                    });
                });
            });
        }
    });
    scores
}

/// Hides the scores of a block's first `panels` panels that lie before (`LEFT`) or behind the window of their row.
#[inline(always)]
unsafe fn mask<K: Kernel<MT>, const MT: usize, const LEFT: bool>(
    tile: &Tile<K, MT>,
    block: u32,
    scores: &mut Scores<MT>,
    panels: u32,
) {
    let (lane, window, block) = (tile.lane(), Window::of(tile.params).anew(), opaque(block));
    let first = 2 * lane.quad as i32;
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = lane.query(mt, half);
            let end = if LEFT { window.first_in_block(row, block) } else { window.end_in_block(row, block) };
            // One branch, and each tile's registers by number behind it.
            unroll!(1..KEY_STEPS + 1, |n| {
                if panels == n as u32 {
                    if LEFT {
                        Scheme::<MT>::hide_before(scores, mt, half, end - first, n * PANEL_TILES);
                    } else {
                        Scheme::<MT>::hide_from(scores, mt, half, end - first, n * PANEL_TILES);
                    }
                }
            });
        });
    });
}

/// O += w (P V).
#[inline(always)]
unsafe fn update<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    block: u32,
    has: impl Fn(usize) -> bool,
    p: &Probabilities<MT>,
    row: &<Scheme<MT> as Softmax<MT>>::Row,
    acc: &mut Accumulator<MT>,
) {
    let v = panel_row(tile.shared.v()) + block * (KV_BLOCK * K::HEAD_DIM) as u32;
    unroll!(0..K::HEAD_DIM / 16 / pairs(MT), |group| {
        let mut pv = [[[[0; 4]; 2]; MT]; MAX_PAIRS];
        unroll!(0..KEY_STEPS, |panel| {
            if has(panel) {
                unroll!(0..pairs(MT), |i| {
                    let at = (panel * K::HEAD_DIM + (group * pairs(MT) + i) * 16) * ROW_BYTES;
                    let b = unsafe { ldmatrix_x4(v + at as u32) };
                    unroll!(0..MT, |mt| {
                        pv[i][mt][0] = unsafe { mma_m16n8k32_s32_u8_u8(p[mt][panel], [b[0], b[1]], pv[i][mt][0]) };
                        pv[i][mt][1] = unsafe { mma_m16n8k32_s32_u8_u8(p[mt][panel], [b[2], b[3]], pv[i][mt][1]) };
                    });
                });
            }
        });
        unroll!(0..pairs(MT), |i| {
            unroll!(0..MT, |mt| {
                unroll!(0..2, |n| {
                    unroll!(0..4, |j| {
                        let o = &mut acc.o[mt][2 * (group * pairs(MT) + i) + n][j];
                        *o = Scheme::<MT>::accumulate(*o, pv[i][mt][n][j], row, mt, j / 2);
                    });
                });
            });
        });
    });
}

/// What a special block needs.
struct Special<'a, K, const MT: usize> {
    tile: &'a Tile<'a, K, MT>,
    block: u32,
    scales: BlockScales,
}

impl<K: Kernel<MT>, const MT: usize> SpecialBlock for Special<'_, K, MT> {
    #[inline(always)]
    fn params(&self) -> &AttentionParams {
        self.tile.params
    }

    #[inline(always)]
    fn head_dim(&self) -> usize {
        K::HEAD_DIM
    }

    #[inline(always)]
    unsafe fn scales(&self) -> BlockScales {
        self.scales
    }

    #[inline(always)]
    unsafe fn q_scale(&self, mt: usize, half: usize) -> f32 {
        unsafe { self.tile.of_row(false, mt, half) }
    }

    #[inline(always)]
    unsafe fn has_keys(&self) -> bool {
        true
    }

    #[inline(always)]
    fn keys(&self, mt: usize, half: usize) -> [i32; 2] {
        let (lane, window, block) = (self.tile.lane(), Window::of(self.tile.params).anew(), opaque(self.block));
        let (row, first) = (lane.query(mt, half), 2 * lane.quad as i32);
        [window.first_in_block(row, block) - first, window.end_in_block(row, block) - first]
    }

    #[inline(always)]
    fn first_own(&self) -> i32 {
        0
    }

    #[inline(always)]
    fn v_scale(&self) -> impl Fn(i32) -> f32 {
        let first = self.tile.shared.v_scales(self.block) + 8 * (opaque(tid_x()) % 4);
        // SAFETY: one of the block's keys.
        move |key| unsafe { ld_shared_f32(first + 4 * key as u32) }
    }

    #[inline(always)]
    unsafe fn v_unit(&self) -> f32 {
        unsafe { ld_shared_f32(self.tile.shared.unit()) }
    }

    #[inline(always)]
    fn notes(&self) -> Notes {
        self.tile.notes()
    }
}
