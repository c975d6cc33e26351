//! Decode and merge on the PTX machine.

use super::{Grid, Simulator, global, structure};
use crate::decode::{DecodeCase, DecodeKernels, MergeCase};
use anyhow::{Context, Result};
use int_flash_attention::{DType, HostTensor, TensorLayout, merged_params};
use int_flash_attention_kernels::config::decode::{
    self, MERGE, MERGE_LEAST_DIMS, OVERLAPPING_MERGE, merge_shared_bytes, merge_states_cta, partials, rows_of_piece,
};
use int_flash_attention_kernels::params::{
    DecodeParams, MergeSplitsParams, MergeStatesParams, MergedParams, SplitParams, Strided,
};
use ptx_machine::{DevPtr, Memory};

impl DecodeKernels for Simulator {
    fn decode(&self, case: &DecodeCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)> {
        let (problem, heads) = (&case.problem, case.heads());
        problem.check()?;
        let mut memory = Memory::new();
        let variant = decode::decode(problem.head_dim, problem.v4_pages > 0, case.overlaps).context("no kernel")?;
        let (workers, min_blocks) = case.workers.unwrap_or((self.multiprocessors as usize, 1));
        let split = problem.split_params(workers, min_blocks);
        let split = SplitParams { seqlens_kv: global(memory.alloc_from(&case.lengths)), ..split };
        let optional = |memory: &mut Memory, x: Option<&[f32]>| x.map_or(DevPtr::NULL, |x| memory.alloc_from(x));
        let rows = partials(&split) * rows_of_piece(&split) as usize;
        let partial_o = global(memory.alloc(4 * (rows * problem.head_dim) as u64, 256));
        let partial_lse = global(memory.alloc(4 * rows as u64, 256));
        let (pages, page_count) = pool(&mut memory, case);
        let (table, stride) = table(&mut memory, case);
        let params = DecodeParams {
            q: global(memory.alloc_from(&case.q.data)),
            q_scale: global(memory.alloc_from(&case.q.scale)),
            q_bias: global(optional(&mut memory, case.q.bias.as_deref())),
            pages: global(pages),
            block_table: global(table),
            alibi_slopes: global(optional(&mut memory, heads.alibi_slopes)),
            partial_o,
            partial_lse,
            ..problem.params(split, stride, page_count)
        };
        let at = Grid {
            kernel: variant.name,
            grid: [workers as u32, 1, 1],
            threads: variant.threads,
            shared: variant.shared_bytes,
        };
        self.launch(variant.name, &at, &[structure(&params)], &memory)?;
        let sinks = optional(&mut memory, heads.sinks);
        let (shape, places) = (problem.q_shape(), self.places);
        let o = places.output(&mut memory, &TensorLayout::bhnd(shape), dtype)?;
        let lse = memory.alloc(4 * shape.rows() as u64, 256);
        // Whole rows, and parts of them, in turn.
        let cta_dims = if workers % 2 == 1 { MERGE_LEAST_DIMS } else { problem.head_dim };
        let out = merged_params(o.layout(), dtype, partials(&split), cta_dims);
        let out = MergedParams {
            o: Strided { data: global(o.data), ..out.o },
            lse: global(lse),
            sinks: global(sinks),
            ..out
        };
        let params = MergeSplitsParams { split, partial_o, partial_lse, out };
        let at = merge_grid("merge_splits", shape.rows() * (problem.head_dim / cta_dims), cta_dims);
        let module = if case.overlaps { OVERLAPPING_MERGE } else { MERGE };
        self.launch(module, &at, &[structure(&params)], &memory)?;
        Ok((o.read(&memory).context("o")?, memory.read(lse, shape.rows()).context("lse")?))
    }

    fn merge(&self, case: &MergeCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)> {
        let (shape, layout) = (case.shape, TensorLayout::bhnd(case.shape));
        let mut memory = Memory::new();
        let [states, lses] = [&case.o, &case.lse].map(|x| memory.alloc_from(x));
        let sinks = case.sinks.as_ref().map_or(DevPtr::NULL, |sinks| memory.alloc_from(sinks));
        let own = self.places.output(&mut memory, &layout, dtype)?;
        let own_lse = memory.alloc(4 * shape.rows() as u64, 256);
        let (data, lse) = if case.in_place { (states, lses) } else { (own.data, own_lse) };
        let out = merged_params(if case.in_place { &layout } else { own.layout() }, dtype, case.states, shape.head_dim);
        let out =
            MergedParams { o: Strided { data: global(data), ..out.o }, lse: global(lse), sinks: global(sinks), ..out };
        let params = MergeStatesParams {
            o: global(states),
            lse: global(lses),
            o_stride: 4 * shape.elements() as i64,
            lse_stride: 4 * shape.rows() as i64,
            out,
        };
        let [of_cta, threads] = merge_states_cta(case.states, shape.head_dim);
        let grid = merge_grid("merge_states", shape.rows().div_ceil(of_cta), shape.head_dim);
        self.launch(MERGE, &Grid { threads, ..grid }, &[structure(&params)], &memory)?;
        let o = if case.in_place {
            let o: Vec<f32> = memory.read(states, shape.elements())?;
            HostTensor::from_bytes(DType::F32, bytemuck::cast_slice(&o), layout)?
        } else {
            own.read(&memory).context("o")?
        };
        Ok((o, memory.read(lse, shape.rows()).context("lse")?))
    }
}

/// So many pages are in front of the case's own, and entries between rows of its table, where it is far.
const FAR: usize = (1 << 30) + 64;

/// Bytes of a page with V in 8 bits, and how many are in front of a case's own where it is far.
fn ahead(case: &DecodeCase) -> (usize, usize) {
    let page = case.shape().page_bytes();
    (page, FAR.div_ceil(page) * 5)
}

/// The pool, and how many pages it has.
fn pool(memory: &mut Memory, case: &DecodeCase) -> (DevPtr, usize) {
    if !case.far {
        return (memory.alloc_from(&case.pages), case.page_count());
    }
    let (page, ahead) = ahead(case);
    let pool = memory.alloc((ahead * page + case.pages.len()) as u64, 256);
    memory.write(pool.offset((ahead * page) as u64), &case.pages).expect("the end of the pool is inside");
    (pool, ahead + case.page_count())
}

/// The block table and its stride.
fn table(memory: &mut Memory, case: &DecodeCase) -> (DevPtr, usize) {
    if !case.far {
        return (memory.alloc_from(&case.table), case.stride);
    }
    let (ahead, stride) = (ahead(case).1, case.stride + FAR);
    let table = memory.alloc((4 * stride * case.lengths.len()) as u64, 256);
    for (sequence, row) in case.table.chunks_exact(case.stride).enumerate() {
        let known = |&entry: &u32| if entry < case.page_count() as u32 { entry + ahead as u32 } else { u32::MAX };
        let row: Vec<u32> = row.iter().map(known).collect();
        memory.write(table.offset((4 * stride * sequence) as u64), &row).expect("a row of the table is inside");
    }
    (table, stride)
}

fn merge_grid(kernel: &str, ctas: usize, cta_dims: usize) -> Grid<'_> {
    Grid { kernel, grid: [ctas as u32, 1, 1], threads: cta_dims, shared: merge_shared_bytes(cta_dims) }
}
