//! How the quantization kernels are launched: blocks, grids, shared memory. The host and the kernels read the same functions.

use crate::config::Scheme;
use crate::layout::{HEAD_DIMS, KV_BLOCK, kv_blocks};
use crate::params::QuantizeParams;
use crate::params::dtype::F16;

/// An entry point and what ptxas may assume of its launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Its PTX module. A driver that has to compile one compiles it as a whole: what no launch needs is in another.
    pub module: &'static str,
    /// Entry point in the module's PTX.
    pub entry: &'static str,
    /// Most threads of a block over all head dims (`.maxntid`).
    pub threads: usize,
    /// Blocks of that size which an SM should hold (`.minnctapersm`).
    pub min_ctas: usize,
}

/// Threads of a CTA that converts halves, at most. So many leave 128 registers to each, and a lane's 64 dims of a token take them: of 96, with which
/// more CTAs would fit a multiprocessor, hundreds of bytes go to local memory, at half the bandwidth.
const HALVES: usize = 512;

/// `quantize_*`, in the order of `params::dtype`.
pub const QUANTIZE: &[Bounds] = &[
    Bounds { module: "quantize_f16", entry: "quantize_f16", threads: HALVES, min_ctas: 1 },
    Bounds { module: "quantize_bf16", entry: "quantize_bf16", threads: HALVES, min_ctas: 1 },
    Bounds { module: "quantize_f32", entry: "quantize_f32", threads: 1024, min_ctas: 1 },
];

/// The same for heads of 32 dims: of halves, code of its own (`tokens`), for which no other launch waits while a driver compiles it.
pub const QUANTIZE_D32: &[Bounds] = &[
    Bounds { module: "quantize_f16_d32", entry: "quantize_f16_d32", threads: threads(32, 2), min_ctas: 8 },
    Bounds { module: "quantize_bf16_d32", entry: "quantize_bf16_d32", threads: threads(32, 2), min_ctas: 8 },
    QUANTIZE[2],
];

/// Of float16 in the paper's scheme, whose arithmetic is float32; and those of 32 dims.
pub const QUANTIZE_F16_PAPER: [Bounds; 2] = [
    Bounds { module: "quantize_f16_paper", entry: "quantize_f16_paper", ..QUANTIZE[0] },
    Bounds { module: "quantize_f16_d32_paper", entry: "quantize_f16_d32_paper", ..QUANTIZE_D32[0] },
];

/// `quantize_wide_*`, in the same order: of heads of more than [`NARROW_DIMS`].
pub const QUANTIZE_WIDE: &[Bounds] = &[
    Bounds { module: "quantize_wide", entry: "quantize_wide_f16", threads: WIDE_THREADS, min_ctas: 2 },
    Bounds { module: "quantize_wide", entry: "quantize_wide_bf16", threads: WIDE_THREADS, min_ctas: 2 },
    Bounds { module: "quantize_wide", entry: "quantize_wide_f32", threads: WIDE_THREADS, min_ctas: 1 },
];

/// Dims of a head of which a CTA has a tile of [`KV_BLOCK`] tokens in its registers and its shared memory, at most.
pub const NARROW_DIMS: usize = 256;
/// Dims of the widest head.
pub const WIDE_DIMS: usize = HEAD_DIMS[HEAD_DIMS.len() - 1];
/// Threads of a CTA of `quantize_wide_*`.
pub const WIDE_THREADS: usize = 256;

/// The entry point that quantizes heads of so many dims, of elements with this code (`params::dtype`), in this scheme.
#[must_use]
pub const fn quantize(head_dim: usize, dtype: u32, scheme: Scheme) -> &'static Bounds {
    if dtype == F16 && matches!(scheme, Scheme::Paper) && head_dim <= NARROW_DIMS {
        return &QUANTIZE_F16_PAPER[(head_dim <= 32) as usize];
    }
    let of_dtypes = match head_dim {
        0..=32 => QUANTIZE_D32,
        33..=NARROW_DIMS => QUANTIZE,
        _ => QUANTIZE_WIDE,
    };
    &of_dtypes[dtype as usize]
}

/// `v_amax_*`, in the same order: the paper's scheme launches them before `quantize_*`.
pub const V_AMAX: &[Bounds] = &[
    Bounds { module: "v_amax", entry: "v_amax_f16", threads: 512, min_ctas: 2 },
    Bounds { module: "v_amax", entry: "v_amax_bf16", threads: 512, min_ctas: 2 },
    Bounds { module: "v_amax", entry: "v_amax_f32", threads: 1024, min_ctas: 1 },
];

/// `append_*`, in the same order.
pub const APPEND: &[Bounds] = &[
    Bounds { module: "append_f16", entry: "append_f16", threads: HALVES, min_ctas: 1 },
    Bounds { module: "append_bf16", entry: "append_bf16", threads: HALVES, min_ctas: 1 },
    Bounds { module: "append_f32", entry: "append_f32", threads: 1024, min_ctas: 1 },
];

/// Threads of a CTA of an append of less than a page's tokens.
pub(crate) const FEW_THREADS: usize = 128;
/// `append_few_*`, in the same order, of less than a page's tokens, for GPUs on which launches may overlap.
pub const APPEND_FEW: &[Bounds] = &[
    Bounds { module: "append_few_f16", entry: "append_few_f16", threads: FEW_THREADS, min_ctas: 4 },
    Bounds { module: "append_few_bf16", entry: "append_few_bf16", threads: FEW_THREADS, min_ctas: 4 },
    Bounds { module: "append_few_f32", entry: "append_few_f32", threads: FEW_THREADS, min_ctas: 4 },
];

/// Registers of a thread of those of halves: with these three CTAs of 256 threads, which head dims up to 128 have, are on a multiprocessor, and more
/// bytes on their way; only those of head dim 256 have as many threads as the bounds say.
const APPEND_HALVES_REGISTERS: usize = 80;

/// Registers that the threads of an entry point are held to, or 0 where that follows from the CTAs of its bounds.
#[must_use]
pub fn max_registers(entry: &str) -> usize {
    let halves = &APPEND[..2];
    if halves.iter().any(|bounds| bounds.entry == entry) { APPEND_HALVES_REGISTERS } else { 0 }
}

/// Threads of a CTA of `gather_pages`: a key each.
pub const GATHER_THREADS: usize = KV_BLOCK;
/// `gather_pages`.
pub const GATHER: Bounds =
    Bounds { module: "gather_pages", entry: "gather_pages", threads: GATHER_THREADS, min_ctas: 8 };
/// Dynamic shared memory of a CTA of `gather_pages`: two words a warp.
pub const GATHER_SHARED_BYTES: usize = 2 * size_of::<u32>() * GATHER_THREADS / 32;

/// Grid of `gather_pages`: a CTA for each block of a head. `None` where there are more than a grid has.
#[must_use]
pub const fn gather_ctas(batch: usize, heads_kv: usize, seqlen_kv: usize) -> Option<u32> {
    grid(batch, heads_kv, kv_blocks(seqlen_kv))
}

/// Threads of a CTA of `convert_pages`, those of `gather_pages`: they share the code for V in 4 bits.
pub const CONVERT_THREADS: usize = GATHER_THREADS;
/// `convert_pages`.
pub const CONVERT: Bounds =
    Bounds { module: "convert_pages", entry: "convert_pages", threads: CONVERT_THREADS, min_ctas: 8 };

/// Threads of a CTA of `page_scales`: a block for each warp at a time.
pub const PAGE_SCALES_THREADS: usize = 128;
/// `page_scales`, which is launched beside attention as `gather_pages` is.
pub const PAGE_SCALES: Bounds =
    Bounds { module: GATHER.module, entry: "page_scales", threads: PAGE_SCALES_THREADS, min_ctas: 8 };
/// The most CTAs of `page_scales` for a head. With more blocks than their warps take at once, warps go round: most sequences are shorter than
/// the longest that is planned for, and CTAs that find nothing to do take time.
const PAGE_SCALES_CTAS: usize = 16;

/// Grid of `page_scales`. `None` where there are more heads or sequences than a grid has.
#[must_use]
pub const fn page_scales_grid(batch: usize, heads_kv: usize, seqlen_kv: usize) -> Option<[u32; 3]> {
    let ctas = kv_blocks(seqlen_kv).div_ceil(PAGE_SCALES_THREADS / 32);
    let ctas = if ctas < PAGE_SCALES_CTAS { ctas } else { PAGE_SCALES_CTAS };
    if batch > MAX_GRID_YZ || heads_kv > MAX_GRID_YZ {
        return None;
    }
    Some([ctas as u32, heads_kv as u32, batch as u32])
}

/// All entry points of quantization and of caches.
pub fn bounds() -> impl Iterator<Item = &'static Bounds> {
    let quantize = QUANTIZE.iter().chain(&QUANTIZE_D32[..2]).chain(&QUANTIZE_F16_PAPER).chain(QUANTIZE_WIDE);
    quantize.chain(V_AMAX).chain(APPEND).chain(APPEND_FEW).chain([&GATHER, &CONVERT, &PAGE_SCALES])
}

/// 16-byte vectors of a tile that a thread has.
pub const THREAD_VECTORS: usize = 8;

/// Threads of a CTA: as many as have a whole tile of [`KV_BLOCK`] tokens, whatever the head dim up to [`NARROW_DIMS`]. A multiprocessor holds 1024 of them at the
/// registers and the shared memory that they have, and so up to 128 KiB that are on their way.
#[must_use]
pub const fn threads(head_dim: usize, element_bytes: usize) -> usize {
    if head_dim > NARROW_DIMS {
        return WIDE_THREADS;
    }
    padded(head_dim) * element_bytes * KV_BLOCK / (16 * THREAD_VECTORS)
}

/// The head dim, or the next power of two: 96 dims are worked on as 128.
pub(crate) const fn padded(head_dim: usize) -> usize {
    // 32 bits: rust-cuda counts the zeros of 64 wrongly.
    (head_dim as u32).next_power_of_two() as usize
}

/// [`padded`] of a CTA of so many [`threads`].
#[cfg(any(test, target_arch = "nvptx64"))]
#[inline(always)]
pub(crate) const fn padded_of_threads(threads: u32, element_bytes: usize) -> u32 {
    threads * (16 * THREAD_VECTORS / KV_BLOCK) as u32 / element_bytes as u32
}

/// Dynamic shared memory of a CTA of `quantize_*`: the tile as it comes, and what `behind_raw` says.
#[must_use]
pub const fn shared_bytes(head_dim: usize, element_bytes: usize) -> usize {
    if head_dim > NARROW_DIMS {
        let of_tokens = wide_ends_bytes(4) + 2 * 4 * WIDE_THREADS / 32;
        let of_values = value_bytes(WIDE_DIMS, element_bytes);
        return if of_tokens > of_values { of_tokens } else { of_values };
    }
    raw_bytes(head_dim, element_bytes) + behind_raw(padded(head_dim), element_bytes)
}

/// Bytes of the tile as it comes: of halves. Floats come to registers.
pub(crate) const fn raw_bytes(head_dim: usize, element_bytes: usize) -> usize {
    if element_bytes == 2 { 16 * THREAD_VECTORS * threads(head_dim, element_bytes) } else { 0 }
}

/// What K's lanes have of each dim (`offset::Tables`), of the widest head: a float, and an element's sign.
#[inline(always)]
pub(crate) const fn table_bytes(element_bytes: usize) -> usize {
    (4 + element_bytes) * 256
}

/// Bytes behind the tile: its codes on their way out, or before them what K's offset is made of; the signs and the offset of each dim; the
/// scales of K's tokens, of two tiles.
const fn behind_raw(padded: usize, element_bytes: usize) -> usize {
    let of_tokens = KV_BLOCK * padded + table_bytes(element_bytes) + 2 * 4 * KV_BLOCK;
    let of_values = value_bytes(padded, element_bytes);
    if of_tokens > of_values { of_tokens } else { of_values }
}

/// What V needs: a number of each token for each 4 vectors of it, of two tiles, and two more.
const fn value_bytes(padded: usize, element_bytes: usize) -> usize {
    4 * KV_BLOCK * (2 * (padded * element_bytes / 64) + 2)
}

/// Bytes of what the warps of a CTA of `quantize_wide_*` make K's offset of: the least and the largest elements of each dim.
pub(crate) const fn wide_ends_bytes(element_bytes: usize) -> usize {
    2 * WIDE_DIMS * element_bytes * WIDE_THREADS / 32
}

/// Grid of `quantize_*`, by the parameters' `work`. `None` where there are more tiles than a grid has CTAs.
#[must_use]
pub fn quantize_ctas(params: &QuantizeParams) -> Option<u32> {
    params.work.ctas()
}

/// Grid of `v_amax_*`: a CTA for each block of V. `None` where there are more than a grid has.
#[must_use]
pub const fn v_amax_ctas(params: &QuantizeParams) -> Option<u32> {
    let (batch, blocks) = (params.batch, params.seqlens.kv_blocks(params.batch));
    let batches = if params.seqlens.packed_kv == 0 { batch } else { 1 };
    grid(batches as usize, params.heads_kv as usize, blocks as usize)
}

/// Largest x of a grid (CUDA programming guide, technical specifications per compute capability).
pub(crate) const MAX_GRID: usize = i32::MAX as usize;
/// Largest y and z of one.
const MAX_GRID_YZ: usize = 65535;

pub(crate) const fn grid(batch: usize, heads: usize, each: usize) -> Option<u32> {
    match batch.checked_mul(heads) {
        Some(all_heads) => match all_heads.checked_mul(each) {
            Some(blocks) if blocks <= MAX_GRID => Some(blocks as u32),
            _ => None,
        },
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SeqLens;

    #[test]
    fn threads_hold_a_tile_and_are_within_the_bounds() {
        for d in HEAD_DIMS.into_iter().filter(|d| *d <= NARROW_DIMS) {
            for (bounds, bytes) in QUANTIZE.iter().chain(V_AMAX).chain(APPEND).zip([2, 2, 4].into_iter().cycle()) {
                let threads = threads(d, bytes);
                assert!(threads <= bounds.threads && threads.is_multiple_of(32), "{} {d}", bounds.entry);
                assert!(threads * THREAD_VECTORS * 16 >= KV_BLOCK * d * bytes);
                assert_eq!(padded_of_threads(threads as u32, bytes) as usize, padded(d));
                // What compute capability 8.6 gives a CTA.
                assert!(shared_bytes(d, bytes) <= 99 << 10, "{} {d}", bounds.entry);
            }
        }
    }

    #[test]
    fn grids_that_do_not_fit_are_none() {
        let params = |batch, heads_kv, total_kv| QuantizeParams {
            batch,
            heads_kv,
            seqlens: SeqLens { total_kv, ..SeqLens::NONE },
            ..QuantizeParams::NONE
        };
        assert_eq!(v_amax_ctas(&params(2, 3, 513)), Some(2 * 3 * 5));
        assert_eq!(v_amax_ctas(&params(1 << 16, 1 << 16, 1)), None);
    }
}
