//! Q and K: one scale a token (arXiv 2409.16997, section 3.2: token-level quantization of Q and K).
//!
//! A row is shared by as many lanes as it has eights of dims; it is read once and stays in their registers between its
//! maximum and its bytes.

use super::pack::quantize4;
use super::place::ByToken;
use super::scale::{reciprocal, round_up, scale};
use crate::element::{self, BATCH, Element, Rows, Vector};
use crate::layout::{KV_BLOCK, k_offset};
use crate::ptx::global::{ld_global_nc_v4_f32, st_global_f32, st_global_u32, st_global_v2_u32};
use crate::ptx::math::{fma_rn_f32, rcp_approx_ftz_f32};
use crate::ptx::select::selp_b32;

/// One block of 128 tokens of a head.
pub(crate) struct Block {
    /// The head's rows.
    pub rows: Rows,
    /// First token of the block.
    pub first: u32,
    /// Tokens of the block that exist, 1 to 128.
    pub count: u32,
    /// `k_mean` of the head that K has, or that Q meets.
    pub mean: *const f32,
    /// The block's bytes.
    pub out: *mut u8,
    /// The block's scales.
    pub scale: *mut f32,
    /// The block's `q_bias`, or null.
    pub bias: *mut f32,
    /// Dims of a row.
    pub head_dim: u32,
    /// Low bits that no scale has.
    pub scale_beyond: u32,
}

/// Quantizes a block: of K (centred, packed, padded) where `KEYS`, else of Q (row-major).
#[inline(always)]
pub(crate) unsafe fn quantize<E: Element, const KEYS: bool>(block: &Block) {
    unsafe {
        let mean = lane_mean::<E, KEYS>(&ByToken::<E>::of_lane(block.head_dim), block.mean);
        let mut batch = 0;
        while batch < ByToken::<E>::batches(block.head_dim) {
            let place = ByToken::<E>::of_lane(block.head_dim);
            let vectors = load_batch(&place, block, batch);
            quantize_batch::<E, KEYS>(&place, block, batch, &vectors, &mean);
            batch += 1;
        }
    }
}

/// The means of the lane's dims; for Q, 0 where the lane is idle, so that it adds nothing to the row's `q_bias`.
#[inline(always)]
unsafe fn lane_mean<E: Element, const KEYS: bool>(place: &ByToken<E>, mean: *const f32) -> [f32; 8] {
    let mut out = [0.0; 8];
    let mut quad = 0;
    while quad < 2 {
        let dim = place.dim(4 * quad / E::LANES) + 4 * quad % E::LANES;
        let four = unsafe { ld_global_nc_v4_f32(mean.wrapping_add(dim)) };
        let mut i = 0;
        while i < 4 {
            out[4 * quad + i] = f32::from_bits(selp_b32(KEYS || place.has(4 * quad / E::LANES), four[i].to_bits(), 0));
            i += 1;
        }
        quad += 1;
    }
    out
}

/// All loads of a batch; a row past the end is read as the last one, and its result dropped.
#[inline(always)]
unsafe fn load_batch<E: Element>(place: &ByToken<E>, block: &Block, batch: u32) -> [Vector; BATCH] {
    let pieces = ByToken::<E>::PIECES;
    let at = |i: usize| {
        let row = place.row(batch, (i / pieces) as u32).min(block.count - 1);
        (block.first + row, place.vector(i % pieces))
    };
    unsafe { element::load_batch::<E>(&block.rows, at) }
}

#[inline(always)]
unsafe fn quantize_batch<E: Element, const KEYS: bool>(
    place: &ByToken<E>,
    block: &Block,
    batch: u32,
    vectors: &[Vector; BATCH],
    mean: &[f32; 8],
) {
    unsafe {
        let (mut scales, mut biases) = (Kept::new(), Kept::new());
        let mut step = 0;
        while step < ByToken::<E>::STEPS {
            let row = place.row(batch, step as u32);
            let inside = row < block.count;
            let x = centred_row::<E, KEYS>(vectors, step, mean);

            let scale = round_up(scale(row_max(place, &x), fma_rn_f32), block.scale_beyond);
            scales.keep(place.lane_in_row(), step, f32::from_bits(selp_b32(inside, scale.to_bits(), 0)));
            if !KEYS {
                biases.keep(place.lane_in_row(), step, row_dot(place, &x, mean));
            }
            store_row::<E, KEYS>(place, block, row, inside, &x, reciprocal(scale, rcp_approx_ftz_f32, fma_rn_f32));
            step += 1;
        }
        let count = if KEYS { KV_BLOCK as u32 } else { block.count };
        scales.store(place, batch, block.scale, count, true);
        if !KEYS {
            biases.store(place, batch, block.bias, count, !block.bias.is_null());
        }
    }
}

/// The lane's values of a row, K's less their means.
#[inline(always)]
fn centred_row<E: Element, const KEYS: bool>(vectors: &[Vector; BATCH], step: usize, mean: &[f32; 8]) -> [f32; 8] {
    let pieces = ByToken::<E>::PIECES;
    let mut x = [0.0; 8];
    let mut i = 0;
    while i < 8 {
        let value = E::get(&vectors[step * pieces + i / E::LANES], i % E::LANES);
        x[i] = if KEYS { value - mean[i] } else { value };
        i += 1;
    }
    x
}

/// `max |x|` over the lanes that share the row.
#[inline(always)]
unsafe fn row_max<E: Element>(place: &ByToken<E>, x: &[f32; 8]) -> f32 {
    let mut largest = 0.0_f32;
    let mut i = 0;
    while i < 8 {
        largest = largest.max(x[i].abs());
        i += 1;
    }
    unsafe { place.max_of_row(largest) }
}

/// `sum x * mean` over the lanes that share the row.
#[inline(always)]
unsafe fn row_dot<E: Element>(place: &ByToken<E>, x: &[f32; 8], mean: &[f32; 8]) -> f32 {
    let mut sum = 0.0_f32;
    let mut i = 0;
    while i < 8 {
        sum = fma_rn_f32(x[i], mean[i], sum);
        i += 1;
    }
    unsafe { place.sum_of_row(sum) }
}

/// The lane's bytes of a row: K's rows past the end are zero, Q's are not there.
#[inline(always)]
unsafe fn store_row<E: Element, const KEYS: bool>(
    place: &ByToken<E>,
    block: &Block,
    row: u32,
    inside: bool,
    x: &[f32; 8],
    inverse: f32,
) {
    let mut piece = 0;
    while piece < ByToken::<E>::PIECES {
        let word = |i: usize| {
            let at = piece * E::LANES + 4 * i;
            let word = quantize4([x[at], x[at + 1], x[at + 2], x[at + 3]], [inverse; 4]);
            if KEYS { selp_b32(inside, word, 0) } else { word }
        };
        let dim = place.dim(piece);
        let offset = if KEYS { k_offset(row as usize, dim) } else { (row * block.head_dim) as usize + dim };
        let (to, here) = (block.out.wrapping_add(offset), place.has(piece) & (KEYS | inside));
        unsafe {
            if E::LANES == 8 {
                st_global_v2_u32(here, to, [word(0), word(1)]);
            } else {
                st_global_u32(here, to, [word(0)]);
            }
        }
        piece += 1;
    }
}

/// One float a row, gathered over the steps of a batch, so that a warp stores those of neighbouring rows together.
struct Kept([f32; BATCH / Kept::LANES]);

impl Kept {
    /// Lanes that take turns; no row has fewer.
    const LANES: usize = 4;

    #[inline(always)]
    fn new() -> Self {
        Self([0.0; BATCH / Self::LANES])
    }

    /// All lanes of a row have `value`; the one whose turn `step` is keeps it.
    #[inline(always)]
    fn keep(&mut self, lane_in_row: u32, step: usize, value: f32) {
        let kept = &mut self.0[step / Self::LANES];
        *kept = f32::from_bits(selp_b32(lane_in_row == (step % Self::LANES) as u32, value.to_bits(), kept.to_bits()));
    }

    /// Stores the floats of the rows before `count`.
    #[inline(always)]
    unsafe fn store<E: Element>(&self, place: &ByToken<E>, batch: u32, to: *mut f32, count: u32, wanted: bool) {
        let mut turn = 0;
        while turn < ByToken::<E>::STEPS / Self::LANES {
            let row = place.row(batch, (turn * Self::LANES) as u32 + place.lane_in_row());
            let here = wanted & (place.lane_in_row() < Self::LANES as u32) & (row < count);
            unsafe { st_global_f32(here, to.wrapping_add(row as usize), [self.0[turn]]) }
            turn += 1;
        }
    }
}
