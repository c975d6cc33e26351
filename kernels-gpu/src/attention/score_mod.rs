//! What changes a score before the softmax: a softcap, ALiBi, a bias and a mask, in this order (docs/kernel-abi.md, "What changes a
//! score"). Each is a branch that is the same for the whole grid, around a pass over the scores in registers.

use super::KEY_TILES;
use super::lane::Lane;
use super::sequence::Sequence;
use super::softmax::FloatScores;
use crate::layout::BIAS_HIDES;
use crate::params::{AttentionParams, ScoreParams, dtype, mask_kind};
use crate::ptx::global::{
    ld_global_nc_f32, ld_global_nc_u8_if, ld_global_nc_u16, ld_global_nc_u16_if, ld_global_nc_u32, ld_global_nc_u32_if,
};
use crate::ptx::math::{
    add_rn_f32, cvt_f32_f16_low, cvt_rn_f32_s32, ex2_approx_ftz_f32, fma_rn_f32, mul_rn_f32, rcp_approx_ftz_f32,
};
use crate::ptx::select::selp_b32;

/// Which scores of a block a lane has: of each n8 tile the first key and the next of each of its rows.
pub(crate) struct Scored<'a> {
    pub params: &'a AttentionParams,
    pub sequence: Sequence,
    pub lane: Lane,
    /// The first of its keys, from the sequence's first.
    pub first_key: u32,
    /// Its n8 tiles.
    pub tiles: usize,
}

/// A kind of kernel, as far as its scores go.
pub(crate) trait ScoreMod<Scores> {
    /// Whether there may be changes, which want registers.
    const CHANGES: bool;

    /// Changes the scores of a block; those of rows, and of keys, that are not there become anything.
    ///
    /// # Safety
    /// The tensors of the parameters have the elements of all rows and keys.
    unsafe fn apply<'a>(scores: &mut Scores, scored: impl Fn() -> Scored<'a>);
}

/// [`Kind::Plain`](crate::config::Kind): nothing changes a score.
pub(crate) struct Plain;

impl<Scores> ScoreMod<Scores> for Plain {
    const CHANGES: bool = false;

    #[inline(always)]
    unsafe fn apply<'a>(_: &mut Scores, _: impl Fn() -> Scored<'a>) {}
}

/// [`Kind::General`](crate::config::Kind): whatever the parameters say.
pub(crate) struct General;

impl<const MT: usize> ScoreMod<FloatScores<MT>> for General {
    const CHANGES: bool = true;

    #[inline(always)]
    unsafe fn apply<'a>(scores: &mut FloatScores<MT>, scored: impl Fn() -> Scored<'a>) {
        let scored = scored();
        let score = &scored.params.score;
        if score.softcap != 0.0 {
            each(scores, scored.tiles, |y| softcap(score, y));
        }
        unsafe {
            if !score.alibi_slopes.is_null() {
                scored.alibi(scores);
            }
            if !score.bias.is_null() {
                let whole = scored.whole() && is_aligned(score.bias.address(), &score.bias_strides, 4, 2);
                let bf16 = |bits: u32| f32::from_bits(bits << 16);
                match (score.bias_dtype, whole) {
                    (dtype::F16, true) => scored.bias(scores, 2, |at, _| {
                        let both = ld_global_nc_u32(at);
                        [cvt_f32_f16_low(both), cvt_f32_f16_low(both >> 16)]
                    }),
                    (dtype::BF16, true) => scored.bias(scores, 2, |at, _| {
                        let both = ld_global_nc_u32(at);
                        [bf16(both), f32::from_bits(both & 0xffff_0000)]
                    }),
                    (dtype::F16, false) => scored.bias(scores, 2, |at, is| {
                        [0, 1].map(|i| cvt_f32_f16_low(ld_global_nc_u16_if(is[i], at.wrapping_add(2 * i))))
                    }),
                    (dtype::BF16, false) => scored.bias(scores, 2, |at, is| {
                        [0, 1].map(|i| bf16(ld_global_nc_u16_if(is[i], at.wrapping_add(2 * i))))
                    }),
                    _ => scored.bias(scores, 4, |at, is| {
                        [0, 1].map(|i| f32::from_bits(ld_global_nc_u32_if(is[i], at.wrapping_add(4 * i))))
                    }),
                }
            }
            if !score.mask.is_null() {
                let aligned = |bytes: u64| is_aligned(score.mask.address(), &score.mask_strides, bytes, bytes as i64);
                match score.mask_kind {
                    mask_kind::BITS if scored.whole() && aligned(4) => scored.mask_of_words(scores),
                    mask_kind::BITS => scored.mask_of_bits(scores),
                    _ if scored.whole() && aligned(2) => scored.mask_of_bytes(scores, |at, _| {
                        let both = ld_global_nc_u16(at);
                        [both & 0xff, both >> 8]
                    }),
                    _ => scored
                        .mask_of_bytes(scores, |at, is| [0, 1].map(|i| ld_global_nc_u8_if(is[i], at.wrapping_add(i)))),
                }
            }
        }
    }
}

/// A new value for each score.
#[inline(always)]
fn each<const MT: usize>(scores: &mut FloatScores<MT>, tiles: usize, change: impl Fn(f32) -> f32) {
    unroll!(0..MT, |mt| {
        unroll!(0..2, |half| {
            unroll!(0..KEY_TILES, |tile| {
                if tile < tiles {
                    scores[mt][half][tile] = scores[mt][half][tile].map(&change);
                }
            });
        });
    });
}

/// `cap * tanh(score / cap)`, with `tanh(x) = 1 - 2 / (1 + e^2x)`: `tanh.approx` errs by 2^-11 of the cap, which is more than the
/// quantization does.
#[inline(always)]
fn softcap(score: &ScoreParams, y: f32) -> f32 {
    let e = ex2_approx_ftz_f32(mul_rn_f32(y, score.softcap_argument));
    mul_rn_f32(score.softcap, fma_rn_f32(-2.0, rcp_approx_ftz_f32(add_rn_f32(1.0, e)), 1.0))
}

#[inline(always)]
fn hidden_unless(seen: bool, y: f32) -> f32 {
    f32::from_bits(selp_b32(seen, y.to_bits(), f32::NEG_INFINITY.to_bits()))
}

/// Whether all rows of a tensor begin at multiples of so many bytes, which are so many elements.
#[inline(always)]
fn is_aligned(address: u64, strides: &[i64; 3], bytes: u64, elements: i64) -> bool {
    address % bytes == 0 && (strides[0] | strides[1] | strides[2]) % elements == 0
}

#[inline(always)]
const fn least(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}

impl Scored<'_> {
    /// Whether a tile is the lane's.
    #[inline(always)]
    fn has(&self, tile: usize) -> bool {
        tile < self.tiles
    }

    /// Whether all keys of the warp's tiles are there: the same for the whole warp.
    #[inline(always)]
    fn whole(&self) -> bool {
        self.first_key / 8 * 8 + 8 * self.tiles as u32 <= self.sequence.seqlen_kv
    }

    /// Keys from the lane's first one to the last that there is; none where that is before it.
    #[inline(always)]
    fn keys(&self) -> i32 {
        self.sequence.seqlen_kv as i32 - self.first_key as i32
    }

    /// Where a row begins in a tensor of these strides, or the last that there is.
    #[inline(always)]
    fn row(&self, strides: &[i64; 3], mt: usize, half: usize) -> i64 {
        let row = least(self.lane.query(mt, half), self.sequence.seqlen_q - 1);
        let Sequence { batch, head_q, .. } = self.sequence;
        i64::from(batch) * strides[0] + i64::from(head_q) * strides[1] + i64::from(row) * strides[2]
    }

    #[inline(always)]
    unsafe fn alibi<const MT: usize>(&self, scores: &mut FloatScores<MT>) {
        let (params, sequence) = (self.params, &self.sequence);
        let head = u64::from(sequence.batch) * u64::from(params.score.alibi_stride_b) + u64::from(sequence.head_q);
        let slope = unsafe { ld_global_nc_f32(params.score.alibi_slopes.ptr().wrapping_add(head as usize)) };
        let slope = mul_rn_f32(slope, core::f32::consts::LOG2_E);
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                // The host keeps both lengths together below 2^31.
                let beside = (self.lane.query(mt, half) + sequence.seqlen_kv) as i32 - sequence.seqlen_q as i32;
                let distance = beside - self.first_key as i32;
                unroll!(0..KEY_TILES, |tile| {
                    if self.has(tile) {
                        unroll!(0..2, |i| {
                            let distance = cvt_rn_f32_s32(distance - (8 * tile + i) as i32).abs();
                            let y = &mut scores[mt][half][tile][i];
                            *y = fma_rn_f32(-slope, distance, *y);
                        });
                    }
                });
            });
        });
    }

    /// The bias, of elements of `bytes` bytes: `read` reads two neighbours, given the first one's address and which of them are there.
    #[inline(always)]
    unsafe fn bias<const MT: usize>(
        &self,
        scores: &mut FloatScores<MT>,
        bytes: i64,
        read: impl Fn(*const u8, [bool; 2]) -> [f32; 2],
    ) {
        let ScoreParams { bias, bias_strides, .. } = &self.params.score;
        let (first, keys) = (self.first_key as usize * bytes as usize, self.keys());
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let row = bias.ptr().wrapping_offset((self.row(bias_strides, mt, half) * bytes) as isize);
                let own = row.wrapping_add(first);
                unroll!(0..KEY_TILES, |tile| {
                    if self.has(tile) {
                        let at = own.wrapping_add(8 * tile * bytes as usize);
                        let both = read(at, [0, 1].map(|i| 8 * tile as i32 + i < keys));
                        unroll!(0..2, |i| {
                            let bias = both[i];
                            let y = &mut scores[mt][half][tile][i];
                            let biased = fma_rn_f32(bias, core::f32::consts::LOG2_E, *y);
                            // Not `bias >= BIAS_HIDES`: one that is no number makes the score none.
                            *y = hidden_unless(!(bias < BIAS_HIDES), biased);
                        });
                    }
                });
            });
        });
    }

    #[inline(always)]
    unsafe fn mask_of_bytes<const MT: usize>(
        &self,
        scores: &mut FloatScores<MT>,
        read: impl Fn(*const u8, [bool; 2]) -> [u32; 2],
    ) {
        let ScoreParams { mask, mask_strides, .. } = &self.params.score;
        let (first, keys) = (self.first_key as usize, self.keys());
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let row = mask.ptr().wrapping_offset(self.row(mask_strides, mt, half) as isize);
                let own = row.wrapping_add(first);
                unroll!(0..KEY_TILES, |tile| {
                    if self.has(tile) {
                        let keep = read(own.wrapping_add(8 * tile), [0, 1].map(|i| 8 * tile as i32 + i < keys));
                        unroll!(0..2, |i| {
                            let y = &mut scores[mt][half][tile][i];
                            *y = hidden_unless(keep[i] != 0, *y);
                        });
                    }
                });
            });
        });
    }

    /// Packed bits, four n8 tiles a word.
    #[inline(always)]
    unsafe fn mask_of_words<const MT: usize>(&self, scores: &mut FloatScores<MT>) {
        let ScoreParams { mask, mask_strides, .. } = &self.params.score;
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let row = mask.ptr().wrapping_offset(self.row(mask_strides, mt, half) as isize);
                let own = row.wrapping_add(self.first_key as usize / 8);
                unroll!(0..KEY_TILES / 4, |word| {
                    if self.has(4 * word) {
                        let bits = unsafe { ld_global_nc_u32(own.wrapping_add(4 * word)) } >> (self.first_key % 8);
                        unroll!(0..4, |tile| {
                            unroll!(0..2, |i| {
                                let y = &mut scores[mt][half][4 * word + tile][i];
                                *y = hidden_unless(bits & (1 << (8 * tile + i)) != 0, *y);
                            });
                        });
                    }
                });
            });
        });
    }

    #[inline(always)]
    unsafe fn mask_of_bits<const MT: usize>(&self, scores: &mut FloatScores<MT>) {
        let ScoreParams { mask, mask_strides, .. } = &self.params.score;
        // An n8 tile is a byte, of which the lane's keys are two bits.
        let (bit, keys) = (self.first_key % 8, self.keys());
        unroll!(0..MT, |mt| {
            unroll!(0..2, |half| {
                let row = mask.ptr().wrapping_offset(self.row(mask_strides, mt, half) as isize);
                let own = row.wrapping_add(self.first_key as usize / 8);
                unroll!(0..KEY_TILES, |tile| {
                    if self.has(tile) {
                        let at = own.wrapping_add(tile);
                        let bits = unsafe { ld_global_nc_u8_if(8 * (tile as i32) < keys, at) } >> bit;
                        unroll!(0..2, |i| {
                            let y = &mut scores[mt][half][tile][i];
                            *y = hidden_unless(bits & (1 << i) != 0, *y);
                        });
                    }
                });
            });
        });
    }
}
