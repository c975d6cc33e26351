//! Appends to a paged cache.

use super::Check;
use crate::cache::{New, any_cache, any_slots, append_as_reference};
use crate::case::Placement;
use crate::sim::{Places, SimulatedCache, Simulator};
use crate::values::{Noise, Values};
use anyhow::{Context, Result};
use int_flash_attention::{CacheShape, DType, HostCache, HostTensor, Shape, TensorLayout};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_kernels::layout::page::{PAGE_TOKENS, V4_HEAD_DIMS};
use ptx_machine::Module;
use std::sync::Arc;

/// A run of an append.
pub struct AppendCheck {
    cache: HostCache,
    /// Queries, keys, values.
    tensors: [HostTensor; 3],
    seqlen_q: usize,
    slots: Vec<i64>,
    wide: bool,
    places: Places,
    ahead: usize,
    /// By the kernel for few tokens alone.
    few: bool,
}

impl AppendCheck {
    pub(super) fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let simulator = Simulator::new().with_places(self.places).with_modules(name, modules);
        let simulator = if self.few { simulator.overlapping() } else { simulator };
        let [q, k, v] = &self.tensors;
        let new = New { q: Some((q, self.seqlen_q)), k, v, slots: &self.slots, wide: self.wide };
        let mut cache = SimulatedCache::new(&simulator, self.cache.clone()).behind(self.ahead);
        append_as_reference(&mut cache, &new).with_context(|| format!("{:?}, {:?}", self.places, k.shape()))
    }
}

/// From this case on, slots are beyond 32 bits.
const BEYOND: usize = 11;

/// The checks of the kernel for few tokens of this type.
pub(super) fn of_few(dtype: DType) -> Result<Vec<Check>> {
    let few = |check| match check {
        Check::Append(check) if check.slots.len() < PAGE_TOKENS => {
            Some(Check::Append(Box::new(AppendCheck { few: true, ..*check })))
        }
        _ => None,
    };
    Ok(of(dtype)?.into_iter().filter_map(few).collect())
}

/// The checks of the kernel for this type.
pub(super) fn of(dtype: DType) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let odd = Placement::Padded { token: 1, head: 3, batch: 0 };
    let even = Placement::Padded { token: 32, head: 64, batch: 0 };
    for (i, (tokens, placement, places, ahead)) in [
        (1, Placement::Bnhd, Places::Usual, 0),
        (70, even, Places::Usual, 0),
        (131, even, Places::Usual, 0),
        (300, Placement::Bhnd, Places::Usual, 0),
        (40, odd, Places::Usual, 0),
        (200, odd, Places::Usual, 0),
        (140, even, Places::Aligned(8), 0),
        (140, even, Places::Far(1), 0),
        (140, even, Places::Far(2), 0),
        // More bytes of pages than 32 bits count.
        (140, even, Places::Usual, 1 << 19),
        (20, even, Places::Usual, 1 << 19),
        // Slots whose low halves are those of the pool, one of them where a whole page would be.
        (140, even, Places::Usual, 0),
        (141, odd, Places::Usual, 0),
        (60, even, Places::Usual, 0),
    ]
    .into_iter()
    .enumerate()
    {
        for (j, head_dim) in CACHE_HEAD_DIMS.into_iter().enumerate() {
            // Each place with some of the head dims.
            if i >= 2 && (i + j) % 3 != 0 {
                continue;
            }
            let seed = (i * CACHE_HEAD_DIMS.len() + j) as u64;
            // In the last of the pages, the whole one's number is less, and in all of them.
            let v4_pages = if V4_HEAD_DIMS.contains(&head_dim) { [0, 3, 0, 5][i % 4] } else { 0 };
            let shape = CacheShape::new(5, 2, head_dim)?.with_v4_pages(v4_pages)?;
            let mut noise = Noise::new(seed, [8; 4]);
            let mut slots = any_slots(&shape, tokens, &mut noise);
            if tokens > 130 {
                // A whole page somewhere.
                let first = i % (tokens - 128);
                slots.iter_mut().for_each(|slot| *slot = if (128..256).contains(slot) { -1 } else { *slot });
                slots[first..first + 128].iter_mut().zip(128..).for_each(|(slot, page)| *slot = page);
            }
            if i >= BEYOND {
                slots.iter_mut().filter(|slot| **slot >= 0).step_by(7).for_each(|slot| *slot |= 1 << 32);
            }
            slots[0] = if tokens > 1 { 1 << 40 | 3 } else { slots[0] };
            let tensor = |heads: usize, values: Values| {
                values.tensor(dtype, placement.layout(Shape::new(1, heads, tokens, head_dim)?)?, seed + heads as u64)
            };
            let loud = if i % 2 == 0 { Values::Normal } else { Values::LoudTokens };
            // Of wider types the scales of Q and K have no room for these.
            let [query, key] =
                if seed.is_multiple_of(2) { [Values::Normal, Values::OutlierChannels] } else { [Values::Huge; 2] };
            checks.push(Check::Append(Box::new(AppendCheck {
                cache: any_cache(shape, (i + j) % 2 == 0, seed),
                tensors: [tensor(4, query)?, tensor(2, key)?, tensor(2, loud)?],
                seqlen_q: if tokens % 2 == 0 { 2 } else { 1 },
                slots,
                wide: true,
                places,
                ahead,
                few: false,
            })));
        }
    }
    checks.push(nearly_pages(dtype)?);
    checks.push(pages_anywhere(dtype)?);
    for tokens in [21, 150] {
        checks.push(loudest(dtype, tokens)?);
    }
    checks.push(far_v4(dtype)?);
    Ok(checks)
}

/// One head of 32 channels, all tokens in one launch.
fn one_head(dtype: DType, slots: Vec<i64>, shape: CacheShape) -> Result<Check> {
    let tensor = |values: Values, seed| {
        values.tensor(dtype, TensorLayout::bnhd(Shape::new(1, 1, slots.len(), CACHE_HEAD_DIMS[0])?), seed)
    };
    Ok(Check::Append(Box::new(AppendCheck {
        cache: any_cache(shape, false, 0),
        tensors: [tensor(Values::Normal, 0)?, tensor(Values::Normal, 1)?, tensor(Values::LoudTokens, 2)?],
        seqlen_q: 1,
        slots,
        wide: true,
        places: Places::Usual,
        ahead: 0,
        few: false,
    })))
}

/// Whole pages, and runs as long that begin with another slot than a page's first, in each of the words of bits that tokens of a window are.
fn pages_anywhere(dtype: DType) -> Result<Check> {
    let mut slots = Vec::new();
    for run in 0..16 {
        // Of two pages, so that a run may leave the one.
        let (word, from) = (run / 2 % 4, [[0, 1], [0, 64], [2, 0], [127, 1]][run / 4][run % 2]);
        let gap = (32 * word + 5 + run).wrapping_sub(slots.len()) % PAGE_TOKENS;
        slots.resize(slots.len() + gap, -1);
        slots.extend((from..from + PAGE_TOKENS).map(|token| (2 * PAGE_TOKENS * run + token) as i64));
    }
    one_head(dtype, slots, CacheShape::new(32, 1, CACHE_HEAD_DIMS[0])?)
}

/// A few tokens on pages with V in 4 bits that lie more than 32 bits behind the pool's first byte, as do those with V in 8 bits in front of them.
fn far_v4(dtype: DType) -> Result<Check> {
    let shape = CacheShape::new(4, 2, V4_HEAD_DIMS[0])?.with_v4_pages(2)?;
    let tensor = |heads: usize| {
        let layout = TensorLayout::bnhd(Shape::new(1, heads, 9, V4_HEAD_DIMS[0])?);
        Values::Normal.tensor(dtype, layout, heads as u64)
    };
    Ok(Check::Append(Box::new(AppendCheck {
        cache: any_cache(shape, true, 2),
        tensors: [tensor(4)?, tensor(2)?, tensor(2)?],
        seqlen_q: 1,
        slots: vec![3, 130, 257, -1, 400, 390, 511, 4, 256],
        wide: true,
        places: Places::Usual,
        ahead: 1 << 19,
        few: false,
    })))
}

/// Tokens of a single channel that is as large as the type holds, or as small: their scales end before they do. Of K and V some are no numbers.
fn loudest(dtype: DType, tokens: usize) -> Result<Check> {
    let most = dtype.largest() as f32;
    let tensor = |heads: usize| {
        let layout = TensorLayout::bnhd(Shape::new(1, heads, tokens, 64)?);
        let value = |_, h: usize, n: usize, d: usize| {
            if heads == 2 && n % 8 == 7 {
                return if n % 16 == 7 { f32::INFINITY } else { f32::NAN };
            }
            let loudness = [most, -most / 2.0, 1e-38, 0.0, 1.0, most / 10.0][(n + h) % 6];
            if d == (5 * n + h) % 64 { loudness } else { 0.0 }
        };
        HostTensor::from_fn(dtype, layout, value)
    };
    let shape = CacheShape::new(4, 2, 64)?.with_v4_pages(1)?;
    Ok(Check::Append(Box::new(AppendCheck {
        cache: any_cache(shape, false, 1),
        tensors: [tensor(4)?, tensor(2)?, tensor(2)?],
        seqlen_q: 1,
        // Of every kind of page, and with a whole one where there are so many tokens.
        slots: (128..).take(tokens - 3).chain([384, 7, 390]).collect(),
        wide: false,
        places: Places::Usual,
        ahead: 0,
        few: false,
    })))
}

/// Runs of 128 tokens that would be a page but for one of them, which lies in each of the words of bits that tokens of a window are, before
/// and behind the bit of the run's first.
fn nearly_pages(dtype: DType) -> Result<Check> {
    let page = |number: usize, token: usize| (PAGE_TOKENS * number + token) as i64;
    let mut slots = vec![-1; 16];
    for run in 0..32 {
        // A word on from the run before it, in its middle.
        slots.extend((0..PAGE_TOKENS).map(|token| page(run, token)));
        let broken = 32 * (run / 4 % 4) + [7, 20][run / 16];
        let at = slots.len() - PAGE_TOKENS + broken;
        slots[at] = if run % 2 == 0 { -1 } else { page(32, run) };
        slots.extend([-1; 32]);
    }
    one_head(dtype, slots, CacheShape::new(33, 1, CACHE_HEAD_DIMS[0])?)
}
