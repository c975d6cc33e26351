//! Pages as the operands that attention reads.

use super::{CacheShape, HeadPlace, HostCache, HostTables, check_stride};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, check_seqlen};
use crate::quantized::{HostK, HostV, Lengths, PackedFormat, QuantizedK, QuantizedV};
use crate::resources::{filled, zeroed};
use crate::shape::Shape;
use int_flash_attention_kernels::layout::page::page_bytes;
use int_flash_attention_kernels::layout::{KV_BLOCK, MIN_SCALE, block_bytes, k_offset, kv_blocks, v_byte, v_offset};
use int_flash_attention_kernels::params::GatherParams;
use int_flash_attention_kernels::quantize::launch::gather_ctas;

/// A gather as numbers: the first `seqlen_kv` tokens of each sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GatherProblem {
    /// The cache.
    pub cache: CacheShape,
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence in the operands. One that has fewer has padding behind them, which is for attention that knows its length.
    pub seqlen_kv: usize,
}

impl GatherProblem {
    /// Shape of the operands.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        let CacheShape { heads_kv, head_dim, .. } = self.cache;
        Shape { batch: self.batch, heads: heads_kv, seqlen: self.seqlen_kv, head_dim }
    }

    /// Whether there is a kernel for it: its grid, and the lengths of the operands' arrays.
    pub(crate) fn check(&self) -> Result<(u32, Lengths)> {
        self.cache.check()?;
        check_seqlen("seqlen_kv", self.seqlen_kv)?;
        let lengths = Lengths::of(self.shape())?;
        let grid = gather_ctas(self.batch, self.cache.heads_kv, self.seqlen_kv);
        let ctas = grid.ok_or_else(|| Error::Grid { kernel: "gather_pages", shape: self.shape().to_string() })?;
        Ok((ctas, lengths))
    }

    /// What the kernel is handed, all but the addresses.
    ///
    /// # Errors
    /// Tables of other sequences, or with fewer blocks.
    #[doc(hidden)]
    pub fn params(&self, batch: usize, max_blocks: usize) -> Result<GatherParams> {
        crate::quantized::check_len("the tables' batch", batch, self.batch)?;
        let expected = kv_blocks(self.seqlen_kv);
        if max_blocks < expected {
            return Err(Error::Length { name: "a row of block_table", given: max_blocks, expected });
        }
        check_stride(max_blocks)?;
        Ok(GatherParams {
            pages: self.cache.pages as u32,
            v8_pages: self.cache.v8_pages() as u32,
            table_stride: max_blocks as u32,
            seqlen_kv: self.seqlen_kv as u32,
            heads_kv: self.cache.heads_kv as u32,
            head_dim: self.cache.head_dim as u32,
            ..GatherParams::NONE
        })
    }
}

impl HostCache {
    /// The first `seqlen_kv` tokens of each sequence as operands of the default scheme, which attention of any number of queries reads: for a prompt that
    /// has a part of its tokens in the cache already. A sequence that has fewer has padding behind them.
    ///
    /// # Errors
    /// Wrong arrays or tables; fewer blocks than so many tokens have.
    pub fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
        self.check()?;
        tables.check(&self.shape)?;
        let problem = GatherProblem { cache: self.shape, batch: tables.batch, seqlen_kv };
        problem.params(tables.batch, tables.max_blocks)?;
        let (mut k, v) = gather(&self.pool, &problem, (&tables.block_table, tables.max_blocks), &tables.seqlens_kv)?;
        if let Some(offset) = &self.k_offset {
            k.offset = offset.repeat(tables.batch);
        }
        Ok((k, v))
    }
}

/// The first `len` tokens of the sequence of `problem` whose row of the block table this is, which has pages of the pool, as operands of a cache that takes nothing
/// out of K.
pub(crate) fn gather_sequence(
    pool: &[u8],
    problem: &AttentionProblem,
    row: &[u32],
    len: usize,
) -> Result<(HostK, HostV)> {
    let AttentionProblem { heads_kv, head_dim, .. } = *problem;
    let cache = CacheShape { pages: pool.len() / page_bytes(heads_kv, head_dim), v4_pages: 0, heads_kv, head_dim };
    gather(pool, &GatherProblem { cache, batch: 1, seqlen_kv: len }, (row, row.len()), &[len as u32])
}

/// What a problem says of a pool and its block table, of which the stride is given, all pages in use being of the pool.
fn gather(
    pool: &[u8],
    problem: &GatherProblem,
    (block_table, stride): (&[u32], usize),
    seqlens_kv: &[u32],
) -> Result<(HostK, HostV)> {
    let CacheShape { heads_kv, head_dim: d, .. } = problem.cache;
    let (_, lengths) = problem.check()?;
    let seqlen_kv = problem.seqlen_kv;
    let (shape, scheme, format) = (problem.shape(), Scheme::Default, PackedFormat::CURRENT);
    let mut k = QuantizedK {
        packed: None,
        shape,
        scheme,
        format,
        data: zeroed("the gathered keys", lengths.kv_data)?,
        scale: zeroed("the scales of gathered keys", lengths.kv_scale)?,
        block_scale: vec![0.0; lengths.blocks],
        offset: vec![0.0; lengths.channels],
    };
    let mut v = QuantizedV {
        packed: None,
        shape,
        scheme,
        format,
        data: filled("the gathered values", v_byte(0), lengths.kv_data)?,
        scale: zeroed("the scales of gathered values", lengths.kv_scale)?,
        block_scale: vec![MIN_SCALE; lengths.blocks],
        unit: vec![1.0; lengths.heads],
    };
    let blocks = kv_blocks(seqlen_kv);
    for to in 0..lengths.blocks {
        let (head, block) = (to / blocks, to % blocks);
        let (sequence, head) = (head / heads_kv, head % heads_kv);
        let len = (seqlens_kv[sequence] as usize).min(seqlen_kv);
        let count = len.saturating_sub(block * KV_BLOCK).min(KV_BLOCK);
        if count == 0 {
            continue;
        }
        let page = block_table[sequence * stride + block] as usize;
        let place = HeadPlace::new(&problem.cache, page, head);
        let page = &pool[place.range()];
        for key in 0..count {
            for dim in 0..d {
                k.data[to * block_bytes(d) + k_offset(key, dim)] = place.k(page, key, dim);
                v.data[to * block_bytes(d) + v_offset(key, dim, d)] = v_byte(place.v(page, key, dim));
            }
            k.scale[to * KV_BLOCK + key] = place.k_scale(page, key);
            v.scale[to * KV_BLOCK + key] = place.v_scale(page, key);
        }
        let [of_k, of_v] = [&k.scale, &v.scale].map(|scales| &scales[to * KV_BLOCK..][..count]);
        // Of those that are numbers.
        k.block_scale[to] = of_k.iter().copied().fold(0.0, f32::max);
        v.block_scale[to] = if of_v.iter().all(|&scale| scale == of_v[0]) { of_v[0] } else { f32::NAN };
    }
    Ok((k, v))
}
