//! What properties ask of kernels, answered by the machine.

use super::parts::Parts;
use super::{Grid, Places, Simulator, global, key_rows, query_rows, structure, tensors};
use crate::case::variant_on;
use crate::properties::{Kernels, Operand};
use anyhow::{Context, Result};
use int_flash_attention::{AttentionProblem, DType, HostQuantized, HostTensor, Scored, SeqLens, TensorLayout};
use int_flash_attention_kernels::config::{self, Family};
use int_flash_attention_kernels::dequantize::launch as dequantization;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, packed_dim};
use int_flash_attention_kernels::params::{AttentionParams, BaselineParams, DequantizeParams, Strided, operand};
use ptx_machine::{DevPtr, Memory};

impl Kernels for Simulator {
    const EXACT_EXPONENTIALS: bool = true;

    fn narrow(&self, problem: &AttentionProblem) -> bool {
        let variant = variant_on(self.shared_bytes, self.family, problem);
        variant.is_some_and(config::AttentionVariant::takes_narrow)
    }

    fn shares_k(&self, problem: &AttentionProblem) -> bool {
        self.narrow(problem)
    }

    fn quantize(
        &self,
        problem: &AttentionProblem,
        q: &HostTensor,
        k: &HostTensor,
        v: &HostTensor,
    ) -> Result<HostQuantized> {
        let scored = Scored::from(problem).with_narrow(self.shares_k(problem));
        self.quantize_part(scored, [q, k, v], None)
    }

    fn attention(
        &self,
        scored: &Scored<'_>,
        operands: &HostQuantized,
        out: &TensorLayout,
        dtype: DType,
        lse: bool,
    ) -> Result<(HostTensor, Option<Vec<f32>>)> {
        let problem = scored.problem;
        let AttentionProblem { head_dim, scheme, .. } = *problem;
        let none = || {
            let has: Vec<usize> = config::head_dims(&Family::ALL, scheme).collect();
            format!("head_dim is {head_dim}; the kernels of the {scheme} scheme have {has:?}")
        };
        let on = |family| variant_on(self.shared_bytes, family, problem);
        let variant = on(self.family).or_else(|| on(Family::Sm80)).with_context(none)?;
        let mut memory = Memory::new();
        let HostQuantized { q, k, v } = operands;
        let (places, whole) = (self.places, self.places.whole(problem));
        let heads = |p: &AttentionProblem| [p.batch * p.heads_q, p.batch * p.heads_kv];
        let ([own_q, own_kv], [all_q, all_kv]) = (heads(problem), heads(&whole));
        let (of_q, of_kv) = ([own_q, all_q], [own_kv, all_kv]);
        let spans = self.spans(problem);
        let rows_of = |unit| Parts::new(&spans, problem.heads_q, unit, |span, head| span.rows(problem, head));
        let blocks_of = |unit| Parts::new(&spans, problem.heads_kv, unit, |span, head| span.blocks(problem, head));
        // What belongs to no sequence is not there.
        let unlike = self.lengths != SeqLens::Equal && !spans.is_empty();
        let q_floats = |memory: &mut Memory, values: &[f32]| {
            if unlike { rows_of(1).upload(memory, values) } else { places.operand(memory, values, of_q) }
        };
        let kv_floats = |memory: &mut Memory, values: &[f32], unit: usize| {
            if unlike { blocks_of(unit).upload(memory, values) } else { places.operand(memory, values, of_kv) }
        };
        let kv_codes = |memory: &mut Memory, values: &[i8], dims: usize| {
            let unit = block_bytes(packed_dim(dims));
            if unlike { blocks_of(unit).upload(memory, values) } else { places.operand(memory, values, of_kv) }
        };
        let q_data = if unlike {
            rows_of(packed_dim(head_dim)).upload(&mut memory, &q.data)
        } else {
            places.operand(&mut memory, &q.data, of_q)
        };
        let (k_data, v_data) =
            (kv_codes(&mut memory, &k.data, head_dim), kv_codes(&mut memory, &v.data, problem.value_dim()));
        let q_bias = q.bias.as_ref().map_or(DevPtr::NULL, |bias| q_floats(&mut memory, bias));
        let q_scale = q_floats(&mut memory, &q.scale);
        let [k_scale, v_scale] = [&k.scale, &v.scale].map(|scale| kv_floats(&mut memory, scale, KV_BLOCK));
        let [k_block_scale, v_block_scale] =
            [&k.block_scale, &v.block_scale].map(|scale| kv_floats(&mut memory, scale, 1));
        let v_unit = places.operand(&mut memory, &v.unit, of_kv);
        let o = places.output_of(&mut memory, problem, out, dtype)?;
        let [rows, all_rows] = [problem, &whole].map(|problem| problem.q_shape().rows());
        let lse_out = if lse { memory.alloc(4 * all_rows as u64, 256) } else { DevPtr::NULL };
        // in a whole that is not there, a CTA for each tile, so that none comes to another's
        let all = u32::try_from(whole.batch * whole.heads_q)?;
        let multiprocessors = if places == Places::Last { all } else { self.multiprocessors };
        let params = whole.params(o.layout(), dtype);
        let grid = variant.grid(&params, multiprocessors);
        let grid = grid.with_context(|| format!("{} has too many tiles for {problem:?}", variant.name))?;
        let at = Grid { kernel: variant.name, grid, threads: variant.threads, shared: variant.shared_bytes };
        let score = places.scores(&mut memory, scored, &whole, params.score)?;
        let params = AttentionParams {
            q: global(q_data),
            k: global(k_data),
            v: global(v_data),
            q_scale: global(q_scale),
            q_bias: global(q_bias),
            k_scale: global(k_scale),
            k_block_scale: global(k_block_scale),
            v_scale: global(v_scale),
            v_block_scale: global(v_block_scale),
            v_unit: global(v_unit),
            o: Strided { data: global(o.data), ..params.o },
            lse: global(lse_out),
            score,
            seqlens: self.seqlens(&mut memory, params.seqlens),
            ..params
        };
        let ctas = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let first = if places == Places::Last { ctas - own_q as u64 } else { 0 };
        self.launch_some(variant.name, &at, first..ctas, &[structure(&params)], &memory)?;
        let lse_out = tensors::last(lse_out, 4 * rows as u64, 4 * all_rows as u64);
        let lse = if !lse {
            None
        } else if places == Places::Last {
            Some(memory.read(lse_out, rows).context("lse")?)
        } else {
            Some(rows_of(1).read(&memory, lse_out, rows, f32::NEG_INFINITY).context("lse")?)
        };
        Ok((o.read_rows(&memory, &query_rows(&spans)).context("o")?, lse))
    }

    fn attention_f16(
        &self,
        problem: &AttentionProblem,
        [q, k, v]: [&HostTensor; 3],
        out: &TensorLayout,
    ) -> Result<(HostTensor, Vec<f32>)> {
        let variant = config::baseline(problem.head_dim).with_context(|| format!("no kernel for {problem:?}"))?;
        let mut memory = Memory::new();
        let places = self.places;
        let [q_in, k_in, v_in] = [q, k, v].map(|tensor| places.upload(&mut memory, tensor));
        let (q_in, k_in, v_in) = (q_in?, k_in?, v_in?);
        let o = places.output(&mut memory, out, DType::F16)?;
        let rows = problem.q_shape().rows();
        let lse = memory.alloc(4 * rows as u64, 256);
        let tiles = u32::try_from(problem.seqlen_q.div_ceil(variant.tile_m))?;
        let grid = [tiles, u32::try_from(problem.heads_q)?, u32::try_from(problem.batch)?];
        let at = Grid { kernel: variant.name, grid, threads: variant.threads, shared: variant.shared_bytes };
        let params = problem.baseline_params([q_in.layout(), k_in.layout(), v_in.layout(), o.layout()]);
        let params = BaselineParams {
            q: Strided { data: global(q_in.data), ..params.q },
            k: Strided { data: global(k_in.data), ..params.k },
            v: Strided { data: global(v_in.data), ..params.v },
            o: Strided { data: global(o.data), ..params.o },
            lse: global(lse),
            ..params
        };
        self.launch(variant.name, &at, &[structure(&params)], &memory)?;
        Ok((o.read(&memory).context("o")?, memory.read(lse, rows).context("lse")?))
    }

    fn dequantize(
        &self,
        problem: &AttentionProblem,
        operands: &HostQuantized,
        which: Operand,
        out: &TensorLayout,
        dtype: DType,
    ) -> Result<HostTensor> {
        let HostQuantized { q, k, v } = operands;
        let (data, scale, offset, code) = match which {
            Operand::Q => (&q.data, &q.scale, None, operand::Q),
            Operand::K => (&k.data, &k.scale, Some(&k.offset), operand::K),
            Operand::V => (&v.data, &v.scale, None, operand::V),
        };
        let mut memory = Memory::new();
        let (data, scale) = (memory.alloc_from(data), memory.alloc_from(scale));
        let offset = offset.map_or(DevPtr::NULL, |offset| memory.alloc_from(offset));
        let o = self.places.output(&mut memory, out, dtype)?;
        let head_dim = problem.head_dim;
        let params = problem.dequantize_params(code, o.layout());
        let ctas = dequantization::ctas(&params).with_context(|| format!("the grid overflows for {problem:?}"))?;
        let at = Grid {
            kernel: &format!("dequantize_{dtype}"),
            grid: [ctas, 1, 1],
            threads: dequantization::threads(packed_dim(head_dim)),
            shared: dequantization::shared_bytes(packed_dim(head_dim)),
        };
        let params = DequantizeParams {
            data: global(data),
            scale: global(scale),
            offset: global(offset),
            out: Strided { data: global(o.data), ..params.out },
            seqlens: self.seqlens(&mut memory, params.seqlens),
            ..params
        };
        let args = [structure(&params)];
        self.launch(at.kernel, &at, &args, &memory)?;
        let spans = self.spans(problem);
        let rows = if which == Operand::Q { query_rows(&spans) } else { key_rows(&spans) };
        o.read_rows(&memory, &rows).with_context(|| format!("dequantized {which:?}"))
    }
}
