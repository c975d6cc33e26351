//! Quantization of later tokens on the PTX machine.

use super::{Grid, Simulator, global, structure};
use anyhow::{Context, Result};
use int_flash_attention::{HostK, HostTensor, HostV, PackedFormat, QuantizedK, QuantizedV, Scored};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks, packed_dim};
use int_flash_attention_kernels::params::{QuantizeParams, Strided};
use int_flash_attention_kernels::quantize::launch;
use ptx_machine::Memory;

impl Simulator {
    /// `quantize` of K and V that go on heads with these constants, of a dense problem.
    ///
    /// # Errors
    ///
    /// When the launch fails.
    pub fn quantize_later<'a>(
        &self,
        problem: impl Into<Scored<'a>>,
        [k, v]: [&HostTensor; 2],
        offset: &[f32],
        unit: &[f32],
    ) -> Result<(HostK, HostV)> {
        let Scored { problem, narrow, .. } = problem.into();
        let [d, dv] = [problem.head_dim, problem.value_dim()].map(packed_dim);
        let blocks = problem.batch * problem.heads_kv * kv_blocks(problem.seqlen_kv);
        let mut memory = Memory::new();
        let [k_in, v_in] = [k, v].map(|tensor| self.places.upload(&mut memory, tensor));
        let (k_in, v_in) = (k_in?, v_in?);
        let [k_out, v_out] = [d, dv].map(|d| memory.alloc((blocks * block_bytes(d)) as u64, 256));
        let [k_scale, v_scale] = [KV_BLOCK; 2].map(|unit| memory.alloc((4 * blocks * unit) as u64, 256));
        let [k_block_scale, v_block_scale] = [1; 2].map(|unit| memory.alloc((4 * blocks * unit) as u64, 256));
        let [k_offset, v_unit] = [offset, unit].map(|values| memory.alloc_from(values));
        let params = problem.quantize_params(None, Some([k_in.layout(), v_in.layout()]));
        let params = QuantizeParams {
            k: Strided { data: global(k_in.data), ..params.k },
            v: Strided { data: global(v_in.data), ..params.v },
            k_offset: global(k_offset),
            k_out: global(k_out),
            k_scale: global(k_scale),
            k_block_scale: global(k_block_scale),
            v_out: global(v_out),
            v_scale: global(v_scale),
            v_block_scale: global(v_block_scale),
            v_unit: global(v_unit),
            goes_on: 1,
            share_k: u32::from(narrow),
            ..params
        };
        let quantize = launch::quantize(d, k.dtype().code(), problem.scheme);
        let at = Grid {
            kernel: quantize.entry,
            grid: [launch::quantize_ctas(&params).context("the grid overflows")?, 1, 1],
            threads: launch::threads(d, k.dtype().size()),
            shared: launch::shared_bytes(d, k.dtype().size()),
        };
        self.launch(quantize.module, &at, &[structure(&params)], &memory)?;
        let (scheme, packed, format) = (problem.scheme, None, PackedFormat::CURRENT);
        let k = QuantizedK {
            shape: problem.kv_shape(),
            packed,
            scheme,
            format,
            data: memory.read(k_out, blocks * block_bytes(d)).context("k")?,
            scale: memory.read(k_scale, blocks * KV_BLOCK).context("k_scale")?,
            block_scale: memory.read(k_block_scale, blocks).context("k_block_scale")?,
            offset: memory.read(k_offset, offset.len()).context("k_offset")?,
        };
        let v = QuantizedV {
            shape: problem.v_shape(),
            packed,
            scheme,
            format,
            data: memory.read(v_out, blocks * block_bytes(dv)).context("v")?,
            scale: memory.read(v_scale, blocks * KV_BLOCK).context("v_scale")?,
            block_scale: memory.read(v_block_scale, blocks).context("v_block_scale")?,
            unit: memory.read(v_unit, unit.len()).context("v_unit")?,
        };
        Ok((k, v))
    }
}
