//! Prefill on a paged cache on the PTX machine.

use super::tensors::{Placed, last};
use super::{Grid, Simulator, global, structure};
use crate::case::variant_on;
use crate::prefill::{PrefillCase, PrefillKernels};
use anyhow::{Context, Result};
use int_flash_attention::{DType, HostTensor, TensorLayout};
use int_flash_attention_kernels::config::Family;
use int_flash_attention_kernels::params::{
    AttentionParams, BlockParams, GatherParams, Global, ScoreParams, SeqLens, Strided,
};
use int_flash_attention_kernels::quantize::launch::{PAGE_SCALES, PAGE_SCALES_THREADS, page_scales_grid};
use ptx_machine::{DevPtr, Memory};

/// What a launch has left.
struct Launched {
    memory: Memory,
    o: Placed,
    lse: DevPtr,
}

/// Entries between the rows of a table that is far: behind two rows are more than 32 bits count.
const FAR_BLOCKS: usize = 1 << 31;

/// Of the longest sequence that there may be: each head has as many scales of blocks.
const FAR_TOKENS: usize = (1 << 31) - 1000;

/// The block table, row by row. Of the last row there is what a launch may read, and where rows are far there is nothing between them.
fn table(memory: &mut Memory, case: &PrefillCase, stride: usize) -> Result<DevPtr> {
    let own = case.tables.max_blocks;
    let table = memory.alloc(4 * (stride * (case.tables.batch - 1) + case.problem.max_blocks()) as u64, 256);
    for (sequence, row) in case.table().chunks(own).enumerate() {
        let row: Vec<u32> = row.iter().map(|&page| page.saturating_add(case.ahead as u32)).collect();
        memory.write(table.offset(4 * (stride * sequence) as u64), &row)?;
    }
    Ok(table)
}

impl Simulator {
    /// Launches a prefill whose offsets may be none, and makes no use of its results.
    ///
    /// # Errors
    ///
    /// When the machine finds fault with a kernel.
    pub fn launch_prefill(&self, case: &PrefillCase) -> Result<()> {
        self.launched(case, DType::F16).map(drop)
    }

    fn launched(&self, case: &PrefillCase, dtype: DType) -> Result<Launched> {
        let mut problem = case.problem;
        let mut table_stride = case.tables.max_blocks;
        if self.places.is_far(0) {
            problem.attention.seqlen_kv = FAR_TOKENS;
            table_stride += FAR_BLOCKS;
        }
        problem.check()?;
        let p = &problem.attention;
        let mut memory = Memory::new();
        let pages = case.cache.shape.pages + case.ahead;
        let (pool_bytes, own) = (pages * case.cache.shape.page_bytes(), case.cache.pool.len());
        let pool = memory.alloc(pool_bytes as u64, 256);
        // What is no page is read as the first one.
        memory.write(pool, &case.cache.pool[..case.cache.shape.page_bytes()])?;
        memory.write(last(pool, own as u64, pool_bytes as u64), &case.cache.pool)?;
        let block_table = global(table(&mut memory, case, table_stride)?);
        let seqlens_kv: Global<u32> = global(memory.alloc_from(&case.tables.seqlens_kv));
        let heads = p.batch * p.heads_kv;
        let floats = |memory: &mut Memory, len: usize| global(memory.alloc(4 * len as u64, 256));
        let [k_block_scale, v_block_scale] = [(); 2].map(|()| floats(&mut memory, heads * problem.max_blocks()));
        let v_unit = floats(&mut memory, heads);
        let of_blocks = GatherParams {
            pool: global(pool),
            block_table,
            seqlens_kv,
            k_block_scale,
            v_block_scale,
            v_unit,
            pages: pages as u32,
            table_stride: table_stride as u32,
            seqlen_kv: p.seqlen_kv as u32,
            heads_kv: p.heads_kv as u32,
            head_dim: p.head_dim as u32,
            ..GatherParams::NONE
        };
        let grid = page_scales_grid(p.batch, p.heads_kv, p.seqlen_kv).context("too many heads")?;
        let at = Grid { kernel: PAGE_SCALES.entry, grid, threads: PAGE_SCALES_THREADS, shared: 0 };
        self.launch(PAGE_SCALES.module, &at, &[structure(&of_blocks)], &memory)?;

        let on = |family| variant_on(self.shared_bytes, family, p);
        let variant = on(self.family).or_else(|| on(Family::Sm80)).context("no kernel")?;
        let rows = problem.q_shape().rows();
        let o = self.places.output(&mut memory, &TensorLayout::bnhd(problem.q_shape()), dtype)?;
        let params = problem.params(o.layout(), dtype, pages, table_stride);
        let grid = variant.grid(&params, self.multiprocessors).context("too many tiles")?;
        let [v, k_scale, v_scale] = problem.page_parts().map(|at| pool.offset(at as u64));
        let lse = memory.alloc(4 * rows as u64, 256);
        // Rows of no sequence are not written.
        memory.write(lse, &vec![f32::NEG_INFINITY; rows])?;
        let cu_seqlens_q = case.cu_seqlens_q.as_ref().map_or(DevPtr::NULL, |offsets| memory.alloc_from(offsets));
        let optional = |memory: &mut Memory, x: Option<&[f32]>| x.map_or(DevPtr::NULL, |x| memory.alloc_from(x));
        let tensors = case.tensors();
        let params = AttentionParams {
            q: global(memory.alloc_from(&case.q.data)),
            k: global(pool),
            v: global(v),
            q_scale: global(memory.alloc_from(&case.q.scale)),
            q_bias: global(optional(&mut memory, case.q.bias.as_deref())),
            k_scale: global(k_scale),
            k_block_scale,
            v_scale: global(v_scale),
            v_block_scale,
            v_unit,
            o: Strided { data: global(o.data), ..params.o },
            lse: global(lse),
            score: ScoreParams {
                alibi_slopes: global(optional(&mut memory, tensors.alibi_slopes)),
                sinks: global(optional(&mut memory, tensors.sinks)),
                ..params.score
            },
            seqlens: SeqLens { cu_seqlens_q: global(cu_seqlens_q), seqlens_kv, ..params.seqlens },
            blocks: BlockParams { block_table, ..params.blocks },
            ..params
        };
        let at = Grid { kernel: variant.name, grid, threads: variant.threads, shared: variant.shared_bytes };
        self.launch(variant.name, &at, &[structure(&params)], &memory)?;
        Ok(Launched { memory, o, lse })
    }
}

impl PrefillKernels for Simulator {
    fn prefill(&self, case: &PrefillCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)> {
        let Launched { memory, o, lse } = self.launched(case, dtype)?;
        let (problem, p) = (&case.problem, &case.problem.attention);
        let written: Vec<_> = match &case.cu_seqlens_q {
            Some(offsets) => offsets.windows(2).map(|ends| (0, ends[0] as usize..ends[1] as usize)).collect(),
            None => (0..p.batch).map(|batch| (batch, 0..p.seqlen_q)).collect(),
        };
        Ok((o.read_rows(&memory, &written).context("o")?, memory.read(lse, problem.q_shape().rows()).context("lse")?))
    }
}
