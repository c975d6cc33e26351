//! A cache in the machine's memory.

use super::tensors::last;
use super::{Grid, Simulator, global, structure};
use crate::cache::{Cache, New};
use crate::prefill::{PrefillCase, PrefillKernels};
use anyhow::{Context, Result};
use int_flash_attention::{
    AppendProblem, CacheShape, DType, GatherProblem, HostCache, HostK, HostQ, HostTables, HostV, PackedFormat,
    PageCopy, QuantizedK, QuantizedQ, QuantizedV, Scheme, Shape,
};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks};
use int_flash_attention_kernels::params::{AppendParams, ConvertParams, GatherParams, Strided};
use int_flash_attention_kernels::quantize::launch::{
    CONVERT, CONVERT_THREADS, GATHER, GATHER_SHARED_BYTES, GATHER_THREADS, gather_ctas,
};
use ptx_machine::{DevPtr, Memory};

/// A cache that the machine's kernels append to.
pub struct SimulatedCache<'a> {
    simulator: &'a Simulator,
    cache: HostCache,
    /// Pages in front of its pool that are not there.
    ahead: usize,
}

impl<'a> SimulatedCache<'a> {
    /// With these bytes.
    #[must_use]
    pub const fn new(simulator: &'a Simulator, cache: HostCache) -> Self {
        Self { simulator, cache, ahead: 0 }
    }

    /// The same as the last pages of a pool of so many more, of which the others are not there.
    #[must_use]
    pub fn behind(self, ahead: usize) -> Self {
        Self { ahead, ..self }
    }
}

impl Cache for SimulatedCache<'_> {
    fn host(&self) -> Result<HostCache> {
        Ok(self.cache.clone())
    }

    fn append(&mut self, new: &New<'_>) -> Result<Option<HostQ>> {
        let (cache, places) = (&mut self.cache, self.simulator.places);
        let tokens = new.k.shape().seqlen;
        let heads_q = new.q.map_or(0, |(q, _)| q.shape().heads);
        let shape = CacheShape { pages: cache.shape.pages + self.ahead, ..cache.shape };
        let problem = AppendProblem { cache: shape, heads_q, max_tokens: tokens, dtype: new.k.dtype() };
        problem.check()?;
        let mut memory = Memory::new();
        let (k, v) = (places.upload(&mut memory, new.k)?, places.upload(&mut memory, new.v)?);
        let q =
            new.q.map(|(q, seqlen)| Ok::<_, anyhow::Error>((places.upload(&mut memory, q)?, seqlen))).transpose()?;
        let out = |seqlen| Shape { batch: tokens / seqlen, heads: heads_q, seqlen, head_dim: cache.shape.head_dim };
        let of_q = q.as_ref().map(|(q, seqlen)| (q.layout(), out(*seqlen)));
        let params = problem.params(of_q, [k.layout(), v.layout()], if new.wide { 8 } else { 4 })?;
        let slot = |&slot: &i64| if slot >= 0 { slot + (self.ahead * CacheShape::PAGE_TOKENS) as i64 } else { slot };
        let slots = if new.wide {
            memory.alloc_from(&new.slots.iter().map(slot).collect::<Vec<_>>())
        } else {
            memory.alloc_from(&new.slots.iter().map(|at| slot(at) as u32).collect::<Vec<_>>())
        };
        let pool = memory.alloc(shape.bytes() as u64, 256);
        let own = last(pool, cache.pool.len() as u64, shape.bytes() as u64);
        memory.write(own, &cache.pool)?;
        let offset = cache.k_offset.as_ref().map_or(DevPtr::NULL, |offset| memory.alloc_from(offset));
        let mut room = |there: bool, bytes: usize| if there { memory.alloc(bytes as u64, 256) } else { DevPtr::NULL };
        let rows = tokens * heads_q;
        let [codes, scale, bias] =
            [rows * cache.shape.head_dim, 4 * rows, 4 * rows].map(|bytes| room(heads_q > 0, bytes));
        let params = AppendParams {
            q: Strided { data: global(q.as_ref().map_or(DevPtr::NULL, |(q, _)| q.data)), ..params.q },
            k: Strided { data: global(k.data), ..params.k },
            v: Strided { data: global(v.data), ..params.v },
            slot: global(slots),
            pool: global(pool),
            k_offset: global(offset),
            q_out: global(codes),
            q_scale: global(scale),
            q_bias: global(bias),
            ..params
        };
        let grid = problem.grid(tokens)?;
        let few = self.simulator.overlaps && tokens < CacheShape::PAGE_TOKENS;
        let kernel = format!("append_{}{}", if few { "few_" } else { "" }, problem.dtype);
        let at = Grid { kernel: &kernel, grid: [grid.ctas, 1, 1], threads: grid.threads, shared: grid.shared_bytes };
        self.simulator.launch(at.kernel, &at, &[structure(&params)], &memory)?;
        cache.pool = memory.read(own, cache.pool.len()).context("the pool")?;
        let Some((_, shape)) = of_q else { return Ok(None) };
        Ok(Some(QuantizedQ {
            shape,
            scheme: Scheme::Default,
            data: memory.read(codes, rows * shape.head_dim).context("q")?,
            scale: memory.read(scale, rows).context("q_scale")?,
            bias: Some(memory.read(bias, rows).context("q_bias")?),
        }))
    }

    fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
        let whole = CacheShape { pages: self.cache.shape.pages + self.ahead, ..self.cache.shape };
        let problem = GatherProblem { cache: whole, batch: tables.batch, seqlen_kv };
        let shape = problem.shape();
        let blocks = shape.batch * shape.heads * kv_blocks(seqlen_kv);
        let (bytes, heads) = (blocks * block_bytes(shape.head_dim), shape.batch * shape.heads);
        let mut memory = Memory::new();
        let pool = memory.alloc(whole.bytes() as u64, 256);
        // A block that no sequence has is read from the pool's first page.
        memory.write(pool, &vec![0_u8; whole.page_bytes()])?;
        memory.write(last(pool, self.cache.pool.len() as u64, whole.bytes() as u64), &self.cache.pool)?;
        let page = |&page: &u32| if page < u32::MAX { page + self.ahead as u32 } else { page };
        let block_table: Vec<u32> = tables.block_table.iter().map(page).collect();
        let offset = self.cache.k_offset.as_ref().map_or(DevPtr::NULL, |offset| memory.alloc_from(offset));
        let (table, lengths) = (memory.alloc_from(&block_table), memory.alloc_from(&tables.seqlens_kv));
        let [k, v] = [(); 2].map(|()| memory.alloc(bytes as u64, 256));
        let [k_scale, v_scale] = [(); 2].map(|()| memory.alloc(4 * (blocks * KV_BLOCK) as u64, 256));
        let [k_block_scale, v_block_scale] = [(); 2].map(|()| memory.alloc(4 * blocks as u64, 256));
        let k_offset = memory.alloc(4 * (heads * shape.head_dim) as u64, 256);
        let v_unit = memory.alloc(4 * heads as u64, 256);
        let params = GatherParams {
            pool: global(pool),
            block_table: global(table),
            seqlens_kv: global(lengths),
            cache_k_offset: global(offset),
            k_out: global(k),
            k_scale: global(k_scale),
            k_block_scale: global(k_block_scale),
            k_offset: global(k_offset),
            v_out: global(v),
            v_scale: global(v_scale),
            v_block_scale: global(v_block_scale),
            v_unit: global(v_unit),
            ..problem.params(tables.batch, tables.max_blocks)?
        };
        let ctas = gather_ctas(shape.batch, shape.heads, seqlen_kv).context("too many blocks")?;
        let at =
            Grid { kernel: GATHER.entry, grid: [ctas, 1, 1], threads: GATHER_THREADS, shared: GATHER_SHARED_BYTES };
        self.simulator.launch(GATHER.module, &at, &[structure(&params)], &memory)?;
        let (scheme, format) = (Scheme::Default, PackedFormat::CURRENT);
        let k = QuantizedK {
            packed: None,
            shape,
            scheme,
            format,
            data: memory.read(k, bytes).context("k")?,
            scale: memory.read(k_scale, blocks * KV_BLOCK).context("k_scale")?,
            block_scale: memory.read(k_block_scale, blocks).context("k_block_scale")?,
            offset: memory.read(k_offset, heads * shape.head_dim).context("k_offset")?,
        };
        let v = QuantizedV {
            packed: None,
            shape,
            scheme,
            format,
            data: memory.read(v, bytes).context("v")?,
            scale: memory.read(v_scale, blocks * KV_BLOCK).context("v_scale")?,
            block_scale: memory.read(v_block_scale, blocks).context("v_block_scale")?,
            unit: memory.read(v_unit, heads).context("v_unit")?,
        };
        Ok((k, v))
    }

    fn prefill(&self, case: &PrefillCase) -> Result<Vec<f64>> {
        Ok(self.simulator.prefill(case, DType::F32)?.0.dense_f64())
    }

    fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        let whole = CacheShape { pages: self.cache.shape.pages + self.ahead, ..self.cache.shape };
        let mut memory = Memory::new();
        let pool = memory.alloc(whole.bytes() as u64, 256);
        let own = last(pool, self.cache.pool.len() as u64, whole.bytes() as u64);
        memory.write(own, &self.cache.pool)?;
        let page = |page: u32| page + self.ahead as u32;
        let pairs: Vec<_> = pairs.iter().map(|&(from, to)| (page(from), page(to))).collect();
        for step in whole.page_copies(&pairs) {
            match step {
                PageCopy::Bytes(from, to) => {
                    let bytes: Vec<u8> = memory.read(pool.offset(from.start as u64), from.len())?;
                    memory.write(pool.offset(to as u64), &bytes)?;
                }
                PageCopy::Converted(params, count) => {
                    let params = ConvertParams { pool: global(pool), ..params };
                    let grid = [(count * whole.heads_kv) as u32, 1, 1];
                    let at = Grid { kernel: CONVERT.entry, grid, threads: CONVERT_THREADS, shared: 0 };
                    self.simulator.launch(CONVERT.module, &at, &[structure(&params)], &memory)?;
                }
            }
        }
        self.cache.pool = memory.read(own, self.cache.pool.len()).context("the pool")?;
        Ok(())
    }

    fn swap_out(&self, pages: &[u32]) -> Result<Vec<u8>> {
        self.cache.swap_out(pages)
    }

    fn swap_in(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        self.cache.swap_in(pages, bytes)
    }
}
