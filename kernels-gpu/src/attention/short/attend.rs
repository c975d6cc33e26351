//! A warp's tile of query rows against all blocks of keys that it sees: `super::super::sm80`, with everything in shared memory.

use super::queries::{Query, TileRows};
use super::tile::{Scheme, Tile};
use super::{Kernel, epilogue};
use crate::attention::lane::panel_row;
use crate::attention::output::{Accumulator, MAX_TILES};
use crate::attention::softmax::{
    Alone, BlockScales, CodeSums, MAGIC, MAGIC_BITS, NEG_INFINITY, Notes, Softmax, SpecialBlock, value_weight,
    warp_reach,
};
use crate::attention::window::{Blocks, Window};
use crate::attention::{KEY_STEPS, KEY_TILES};
use crate::layout::{KV_BLOCK, ROW_BYTES};
use crate::params::{AttentionParams, ShortParams, UNLIMITED};
use crate::ptx::barrier::warp_sync;
use crate::ptx::ldmatrix::ldmatrix_x4;
use crate::ptx::math::{max_f32, max_nan_f16x2, mul_rn_f32};
use crate::ptx::mma::{mma_m16n8k32_s32_s8_s8, mma_m16n8k32_s32_u8_u8};
use crate::ptx::opaque::{opaque, rolled};
use crate::ptx::shared::{ld_shared_f32, ld_shared_v2_u32, ld_shared_v4_f32, ld_shared_v4_u32, st_shared_v4_u32};
use crate::ptx::special::tid_x;

type Scores<const MT: usize> = <Scheme<MT> as Softmax<MT>>::Scores;

/// n8 tiles of a panel of keys.
const PANEL_TILES: usize = KEY_TILES / KEY_STEPS;

/// The tile from its codes to the output.
///
/// # Safety
/// In whole warps, a barrier after the codes of its list.
#[inline(always)]
pub(crate) unsafe fn attend<K: Kernel<MT>, const MT: usize>(rows: &TileRows<K, MT>) {
    unsafe {
        let TileRows { params: ShortParams { attention: params, .. }, shared, sequence, row, warp } = rows;
        let head_q = sequence.head_q;
        let (row, warp) = (*row, *warp);
        let mut panels = Blocks::all::<ROW_BYTES>(sequence.seqlen_kv);
        if (params.window_left & params.window_right) != UNLIMITED {
            let Window { seqlen_q, seqlen_kv, left, right } = sequence.window(params);
            panels = Window::<ROW_BYTES> { seqlen_q, seqlen_kv, left, right }.blocks(opaque(row), K::TILE_M);
        }
        let mut tile = Tile::<K, MT> { params, head_q, shared, warp, row, panels, reach: 0.0 };
        let mut q_scales = [[1.0; 2]; MT];
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                q_scales[mt][half] = tile.of_row(false, mt, half);
            });
            tile.reach = max_f32(tile.reach, warp_reach(params, K::HEAD_DIM, q_scales[mt]));
        });
        let query = Query::<MT>::load(rows);
        warp_sync();
        let mut softmax = <Scheme<MT> as Softmax<MT>>::new(params, q_scales, || [[0.0; 2]; MT], || tile.notes());
        let mut acc = Accumulator::<MT>::zero();
        let mut block = tile.first_block();
        while block * (KEY_STEPS as u32) < tile.panels.end {
            rolled();
            let panels = (tile.panels.end - block * KEY_STEPS as u32).min(KEY_STEPS as u32);
            step::<K, MT>(&tile, block, panels, &query, &mut softmax, &mut acc);
            block += 1;
        }
        epilogue::store::<K, MT>(&tile, &softmax, &acc);
    }
}

/// The first `panels` panels of 32 of a block of keys: twice through them, as the rows' maxima have to be known before there is a P. Between, the scores
/// are in shared memory. A body for each panel, or one for whole blocks, would be fetched from L2, which costs more than the loops do.
#[inline(always)]
unsafe fn step<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    block: u32,
    panels: u32,
    query: &Query<MT>,
    softmax: &mut Scheme<MT>,
    acc: &mut Accumulator<MT>,
) {
    unsafe {
        let scales = block_scales(tile, block);
        let mut maxima = [NEG_INFINITY; MT];
        let mut panel = 0;
        while panel < panels {
            rolled();
            let mut s = scores::<K, MT>(tile, block, panel, query, softmax);
            let of_all = block * KEY_STEPS as u32 + panel;
            if of_all >= tile.panels.full_to {
                mask::<K, MT, false>(tile, block, panel, &mut s);
            }
            if of_all < tile.panels.full_from {
                mask::<K, MT, true>(tile, block, panel, &mut s);
            }
            let largest = Scheme::<MT>::lane_maxima(&s, PANEL_TILES);
            unroll!(0..MT, |mt| {
                maxima[mt] = max_nan_f16x2(maxima[mt], largest[mt]);
            });
            put_scores(tile, panel, &s);
            panel += 1;
        }
        let mut row_scales = Scheme::<MT>::row_scales(|| tile.notes());
        let mut maxima = Scheme::<MT>::quad_maxima(maxima);
        let special = Scheme::<MT>::is_special(&scales);
        if special {
            maxima = make_special(tile, block, panels, scales, &mut row_scales);
        }
        let exponents = Scheme::<MT>::exponents_of(&maxima, row_scales);
        if special {
            Scheme::<MT>::note_exponents(&exponents, || tile.notes());
        }
        let mut sums = [CodeSums::ZERO; MT];
        let mut pv = [[[0; 4]; MAX_TILES]; MT];
        let mut panel = 0;
        while panel < panels {
            rolled();
            let s = get_scores(tile, panel);
            let p = softmax.step(&s, &exponents, 0);
            unroll!(0..MT, |mt| {
                sums[mt].add(p[mt]);
            });
            let v = panel_row(tile.shared.v()) + (block * KEY_STEPS as u32 + panel) * (ROW_BYTES * K::HEAD_DIM) as u32;
            unroll!(0..K::HEAD_DIM / 16, |pair| {
                let b = ldmatrix_x4(v + (pair * 16 * ROW_BYTES) as u32);
                unroll!(0..MT, |mt| {
                    pv[mt][2 * pair] = mma_m16n8k32_s32_u8_u8(p[mt], [b[0], b[1]], pv[mt][2 * pair]);
                    pv[mt][2 * pair + 1] = mma_m16n8k32_s32_u8_u8(p[mt], [b[2], b[3]], pv[mt][2 * pair + 1]);
                });
            });
            panel += 1;
        }
        let (tiles, codes) = (K::HEAD_DIM / 8, sums.map(|sums| sums.get()));
        let exponents = Scheme::<MT>::of_rows(&exponents);
        if (block == tile.first_block()) & !special {
            softmax.begin(exponents);
        }
        let row = softmax.add_codes::<Alone>(exponents, codes, acc, tiles, special, || scales, || tile.notes());
        unroll!(0..MT, |mt| {
            unroll!(0..K::HEAD_DIM / 8, |tile| {
                unroll!(0..4, |j| {
                    let o = &mut acc.o[mt][tile][j];
                    *o = Scheme::<MT>::accumulate(*o, pv[mt][tile][j], &row, mt, j / 2);
                });
            });
        });
    }
}

/// Where the lane's scores of a panel are, of a half of a fragment's rows.
#[inline(always)]
fn scores_at<K: Kernel<MT>, const MT: usize>(tile: &Tile<K, MT>, panel: u32, mt: usize, half: usize) -> u32 {
    let of_block = 512 * (KEY_STEPS * (2 * mt + half)) as u32;
    tile.shared.warp(tile.warp) + 16 * (opaque(tid_x()) % 32) + of_block + 512 * panel
}

/// The scores of a panel, its four n8 tiles the first of a block's, to shared memory.
#[inline(always)]
pub(super) unsafe fn put_scores<K: Kernel<MT>, const MT: usize>(tile: &Tile<K, MT>, panel: u32, s: &Scores<MT>) {
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let [a, b, c, d] = [s[mt][half][0], s[mt][half][1], s[mt][half][2], s[mt][half][3]];
            unsafe { st_shared_v4_u32(true, scores_at(tile, panel, mt, half), [a, b, c, d]) };
        });
    });
}

/// And back.
#[inline(always)]
pub(super) unsafe fn get_scores<K: Kernel<MT>, const MT: usize>(tile: &Tile<K, MT>, panel: u32) -> Scores<MT> {
    let mut s = Scheme::<MT>::empty();
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let four = unsafe { ld_shared_v4_u32(scores_at(tile, panel, mt, half)) };
            unroll!(0..PANEL_TILES, |i| {
                s[mt][half][i] = four[i];
            });
        });
    });
    s
}

/// What a special block makes of its scores, and the maxima of that.
#[inline(always)]
unsafe fn make_special<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    block: u32,
    panels: u32,
    scales: BlockScales,
    row_scales: &mut [[u32; 2]; MT],
) -> [u32; MT] {
    unsafe {
        let mut s: Scores<MT> = [[[NEG_INFINITY; KEY_TILES]; 2]; MT];
        unroll!(0..KEY_STEPS, |panel| {
            if (panel as u32) < panels {
                let of_panel = get_scores(tile, panel as u32);
                unroll!(0..MT, |mt| {
                    unroll!(0..2, |half| {
                        unroll!(0..PANEL_TILES, |i| {
                            s[mt][half][PANEL_TILES * panel + i] = of_panel[mt][half][i];
                        });
                    });
                });
            }
        });
        // Its scratch is where the scores were.
        warp_sync();
        Scheme::<MT>::special(&mut s, row_scales, &Alone, &Special { tile, block, scales });
        warp_sync();
        unroll!(0..KEY_STEPS, |panel| {
            let mut of_panel = Scheme::<MT>::empty();
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    unroll!(0..PANEL_TILES, |i| {
                        of_panel[mt][half][i] = s[mt][half][PANEL_TILES * panel + i];
                    });
                });
            });
            put_scores(tile, panel as u32, &of_panel);
        });
        Scheme::<MT>::quad_maxima(Scheme::<MT>::lane_maxima(&s, KEY_TILES))
    }
}

/// The scales of a block, in the unit of the head's values, and the reach of the rows.
#[inline(always)]
unsafe fn block_scales<K: Kernel<MT>, const MT: usize>(tile: &Tile<K, MT>, block: u32) -> BlockScales {
    let ([k, v], unit) = unsafe { (ld_shared_v2_u32(tile.shared.block(block)), ld_shared_f32(tile.shared.unit())) };
    BlockScales { k: f32::from_bits(k), v: value_weight(f32::from_bits(v), unit), reach: tile.reach }
}

/// S = Q K^T of a panel: its four n8 tiles are the first of a block's.
#[inline(always)]
unsafe fn scores<K: Kernel<MT>, const MT: usize>(
    tile: &Tile<K, MT>,
    block: u32,
    panel: u32,
    query: &Query<MT>,
    softmax: &Scheme<MT>,
) -> Scores<MT> {
    let mut scores = Scheme::<MT>::empty();
    let first = block * KEY_STEPS as u32 + panel;
    let row = panel_row(tile.shared.k()) + first * (ROW_BYTES * ROW_BYTES) as u32;
    let factors = tile.shared.factors(0) + 4 * ROW_BYTES as u32 * first + 16 * (opaque(tid_x()) % 4);
    unroll!(0..PANEL_TILES / 2, |pair| {
        let mut acc = [[[MAGIC_BITS; 4]; 2]; MT];
        unroll!(0..K::HEAD_DIM / ROW_BYTES, |step| {
            let at = row + step as u32 * tile.shared.k_panel() + (pair * 16 * ROW_BYTES) as u32;
            let b = unsafe { ldmatrix_x4(at) };
            unroll!(0..MT, |mt| {
                let a = query.fragment[mt][step];
                acc[mt][0] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[0], b[1]], acc[mt][0]) };
                acc[mt][1] = unsafe { mma_m16n8k32_s32_s8_s8(a, [b[2], b[3]], acc[mt][1]) };
            });
        });
        let factors = unsafe { ld_shared_v4_f32(factors + 64 * pair as u32) };
        let bias = factors.map(|factor| mul_rn_f32(-MAGIC, factor));
        unroll!(0..2, |n| {
            let key = [factors[2 * n], bias[2 * n], factors[2 * n + 1], bias[2 * n + 1]];
            unroll!(0..MT, |mt| {
                unroll!(0..2, |half| {
                    let acc = &acc[mt][n];
                    let sums = [acc[2 * half], acc[2 * half + 1]].map(|sum| f32::from_bits(sum as u32));
                    softmax.scores_of_magic(&mut scores, mt, half, 2 * pair + n, sums, key);
                });
            });
        });
    });
    scores
}

/// Hides the scores of a panel that lie before (`LEFT`) or behind the window of their row.
#[inline(always)]
unsafe fn mask<K: Kernel<MT>, const MT: usize, const LEFT: bool>(
    tile: &Tile<K, MT>,
    block: u32,
    panel: u32,
    scores: &mut Scores<MT>,
) {
    let (lane, window, block) = (tile.lane(), unsafe { tile.window() }, opaque(block));
    let first = (ROW_BYTES as u32 * panel + 2 * lane.quad) as i32;
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            let row = lane.query(mt, half);
            if LEFT {
                let keys = window.first_in_block(row, block) - first;
                Scheme::<MT>::hide_before(scores, mt, half, keys, PANEL_TILES);
            } else {
                // Where the window has no right end, the sequence has.
                let mut keys = window.seqlen_kv.saturating_sub(block * KV_BLOCK as u32).min(KV_BLOCK as u32) as i32;
                if window.right != UNLIMITED {
                    keys = window.end_in_block(row, block);
                }
                Scheme::<MT>::hide_from(scores, mt, half, keys - first, PANEL_TILES);
            }
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
        let (lane, window, block) = (self.tile.lane(), unsafe { self.tile.window() }, opaque(self.block));
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
