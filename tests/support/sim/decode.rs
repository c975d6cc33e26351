//! Decode and merge on the PTX machine.

use super::{Grid, Simulator, global, structure};
use crate::decode::{DecodeCase, DecodeKernels, MergeCase};
use anyhow::{Context, Result};
use int_flash_attention::{DType, HostTensor, TensorLayout, merged_params};
use int_flash_attention_kernels::config::decode::{
    self, MERGE, MERGE_SHARED_BYTES, MERGE_THREADS, partials, rows_of_piece,
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
        let variant = decode::decode(problem.head_dim).context("no kernel")?;
        let (workers, min_blocks) = case.workers.unwrap_or((self.multiprocessors as usize, 1));
        let split = problem.split_params(workers, min_blocks);
        let split = SplitParams { seqlens_kv: global(memory.alloc_from(&case.lengths)), ..split };
        let optional = |memory: &mut Memory, x: Option<&[f32]>| x.map_or(DevPtr::NULL, |x| memory.alloc_from(x));
        let rows = partials(&split) * rows_of_piece(&split) as usize;
        let partial_o = global(memory.alloc(4 * (rows * problem.head_dim) as u64, 256));
        let partial_lse = global(memory.alloc(4 * rows as u64, 256));
        let params = DecodeParams {
            q: global(memory.alloc_from(&case.q.data)),
            q_scale: global(memory.alloc_from(&case.q.scale)),
            q_bias: global(optional(&mut memory, case.q.bias.as_deref())),
            pages: global(memory.alloc_from(&case.pages)),
            block_table: global(memory.alloc_from(&case.table)),
            alibi_slopes: global(optional(&mut memory, heads.alibi_slopes)),
            partial_o,
            partial_lse,
            ..problem.params(split, case.stride, case.page_count())
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
        let out = merged_params(o.layout(), dtype);
        let out = MergedParams {
            o: Strided { data: global(o.data), ..out.o },
            lse: global(lse),
            sinks: global(sinks),
            ..out
        };
        let params = MergeSplitsParams { split, partial_o, partial_lse, out };
        let at = merge_grid("merge_splits", shape.rows());
        self.launch(MERGE, &at, &[structure(&params)], &memory)?;
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
        let out = merged_params(&layout, dtype);
        let out =
            MergedParams { o: Strided { data: global(data), ..out.o }, lse: global(lse), sinks: global(sinks), ..out };
        let params = MergeStatesParams {
            o: global(states),
            lse: global(lses),
            o_stride: 4 * shape.elements() as i64,
            lse_stride: 4 * shape.rows() as i64,
            out,
            states: case.states as u32,
            reserved: 0,
        };
        self.launch(MERGE, &merge_grid("merge_states", shape.rows()), &[structure(&params)], &memory)?;
        let o = if case.in_place {
            let o: Vec<f32> = memory.read(states, shape.elements())?;
            HostTensor::from_bytes(DType::F32, bytemuck::cast_slice(&o), layout)?
        } else {
            own.read(&memory).context("o")?
        };
        Ok((o, memory.read(lse, shape.rows()).context("lse")?))
    }
}

fn merge_grid(kernel: &str, rows: usize) -> Grid<'_> {
    Grid { kernel, grid: [rows as u32, 1, 1], threads: MERGE_THREADS, shared: MERGE_SHARED_BYTES }
}
