//! Quantization of Q, K and V, or of a part.

use super::parts::Parts;
use super::{Grid, Simulator, global, structure};
use anyhow::{Context, Result};
use int_flash_attention::{
    HostK, HostQ, HostQuantized, HostTensor, HostV, PackedFormat, QuantizedK, QuantizedQ, QuantizedV, Scored, Sequences,
};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks, packed_dim, v_byte};
use int_flash_attention_kernels::params::{QuantizeParams, Strided};
use int_flash_attention_kernels::quantize::launch as quantization;
use ptx_machine::{DevPtr, Memory};

/// What a launch makes where it does not make all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Queries, for keys that are there.
    Q,
    /// Keys and values.
    Kv,
}

impl Simulator {
    /// Quantization of all three operands, or of a part, with those that stand in for the others; K for kernels that take narrow blocks where the
    /// problem comes with that ([`Scored::narrow`]).
    ///
    /// # Errors
    ///
    /// When the machine finds fault with a kernel.
    pub fn quantize_part<'a>(
        &self,
        problem: impl Into<Scored<'a>>,
        [q, k, v]: [&HostTensor; 3],
        part: Option<(Part, &HostQuantized)>,
    ) -> Result<HostQuantized> {
        let Scored { problem, narrow, .. } = problem.into();
        let is_made = |of| part.is_none_or(|(part, _)| part == of);
        let [makes_q, makes_kv] = [Part::Q, Part::Kv].map(is_made);
        let (d, packed, dtype) = (problem.head_dim, packed_dim(problem.head_dim), q.dtype());
        let (q_shape, kv_shape) = (problem.q_shape(), problem.kv_shape());
        let (v_shape, packed_v) = (problem.v_shape(), packed_dim(problem.value_dim()));
        let heads = problem.batch * kv_shape.heads;
        let sequences = matches!(problem.sequences, Sequences::Packed { .. }).then_some(problem.batch);
        let of_head =
            sequences.map_or_else(|| kv_blocks(kv_shape.seqlen), |sequences| kv_shape.seqlen / KV_BLOCK + sequences);
        let blocks = kv_shape.batch * kv_shape.heads * of_head;
        let scheme = problem.scheme;

        let mut memory = Memory::new();
        let [q_in, k_in, v_in] = [q, k, v].map(|tensor| self.places.upload(&mut memory, tensor));
        let (q_in, k_in, v_in) = (q_in?, k_in?, v_in?);
        let mut floats = |len: usize| memory.alloc(4 * len as u64, 256);
        let [q_scale, q_bias] = [floats(q_shape.rows()), floats(q_shape.rows())];
        let [k_scale, v_scale] = [floats(blocks * KV_BLOCK), floats(blocks * KV_BLOCK)];
        let [k_block_scale, v_block_scale] = [floats(blocks), floats(blocks)];
        let v_unit = floats(heads);
        let v_amax = if scheme.rotates() { DevPtr::NULL } else { memory.alloc_from(&vec![0_u32; heads]) };
        let k_offset = match part {
            Some((Part::Q, others)) => memory.alloc_from(&others.k.offset),
            _ => memory.alloc(4 * (heads * d) as u64, 256),
        };
        let mut bytes = |len: usize| memory.alloc(len as u64, 256);
        let [q_out, k_out, v_out] =
            [q_shape.rows() * packed, blocks * block_bytes(packed), blocks * block_bytes(packed_v)].map(&mut bytes);

        let params = problem
            .quantize_params(makes_q.then_some(q_in.layout()), makes_kv.then_some([k_in.layout(), v_in.layout()]));
        let params = QuantizeParams {
            q: Strided { data: global(q_in.data), ..params.q },
            k: Strided { data: global(k_in.data), ..params.k },
            v: Strided { data: global(v_in.data), ..params.v },
            k_offset: global(k_offset),
            q_out: global(q_out),
            q_scale: global(q_scale),
            q_bias: global(if scheme.rotates() { q_bias } else { DevPtr::NULL }),
            k_out: global(k_out),
            k_scale: global(k_scale),
            k_block_scale: global(k_block_scale),
            v_out: global(v_out),
            v_scale: global(v_scale),
            v_block_scale: global(v_block_scale),
            v_unit: global(v_unit),
            v_amax: global(v_amax),
            seqlens: self.seqlens(&mut memory, params.seqlens),
            share_k: u32::from(makes_kv && narrow),
            ..params
        };
        let overflow = || format!("the grid overflows for {problem:?}");
        let threads = quantization::threads(packed, dtype.size());
        let quantize = quantization::quantize(packed, dtype.code(), scheme);
        if !scheme.rotates() && makes_kv {
            let ctas = quantization::v_amax_ctas(&params);
            let grid = [ctas.with_context(overflow)?, 1, 1];
            let at = Grid { kernel: &format!("v_amax_{dtype}"), grid, threads, shared: 0 };
            self.launch("v_amax", &at, &[structure(&params)], &memory)?;
        }
        let at = Grid {
            kernel: quantize.entry,
            grid: [quantization::quantize_ctas(&params).with_context(overflow)?, 1, 1],
            threads,
            shared: quantization::shared_bytes(packed, dtype.size()),
        };
        self.launch(quantize.module, &at, &[structure(&params)], &memory)?;

        let spans = self.spans(problem);
        let of_q = |unit: usize| Parts::new(&spans, problem.heads_q, unit, |span, head| span.rows(problem, head));
        let of_kv = |unit: usize| Parts::new(&spans, problem.heads_kv, unit, |span, head| span.blocks(problem, head));
        // Lengths that are none may leave out heads.
        let floats = |name, ptr, len| {
            if spans.is_empty() { Ok(vec![0.0; len]) } else { memory.read::<f32>(ptr, len).context(name) }
        };
        let bias = || of_q(1).read(&memory, q_bias, q_shape.rows(), 0.0).context("q_bias");
        let format = PackedFormat::CURRENT;
        let [bytes, bytes_v] = [packed, packed_v].map(block_bytes);
        let made_q = || -> Result<HostQ> {
            Ok(QuantizedQ {
                shape: q_shape,
                scheme,
                data: of_q(packed).read(&memory, q_out, q_shape.rows() * packed, 0).context("q")?,
                scale: of_q(1).read(&memory, q_scale, q_shape.rows(), 0.0).context("q_scale")?,
                bias: scheme.rotates().then(bias).transpose()?,
            })
        };
        let made_kv = || -> Result<(HostK, HostV)> {
            let k = QuantizedK {
                shape: kv_shape,
                packed: sequences,
                scheme,
                format,
                data: of_kv(bytes).read(&memory, k_out, blocks * bytes, 0).context("k")?,
                scale: of_kv(KV_BLOCK).read(&memory, k_scale, blocks * KV_BLOCK, 0.0).context("k_scale")?,
                block_scale: of_kv(1).read(&memory, k_block_scale, blocks, 0.0).context("k_block_scale")?,
                offset: floats("k_offset", k_offset, heads * d)?,
            };
            let v = QuantizedV {
                shape: v_shape,
                packed: sequences,
                scheme,
                format,
                data: of_kv(bytes_v).read(&memory, v_out, blocks * bytes_v, v_byte(0)).context("v")?,
                scale: of_kv(KV_BLOCK).read(&memory, v_scale, blocks * KV_BLOCK, 0.0).context("v_scale")?,
                block_scale: of_kv(1).read(&memory, v_block_scale, blocks, 0.0).context("v_block_scale")?,
                unit: floats("v_unit", v_unit, heads)?,
            };
            Ok((k, v))
        };
        Ok(match part {
            None => {
                let (k, v) = made_kv()?;
                HostQuantized { q: made_q()?, k, v }
            }
            Some((Part::Q, others)) => HostQuantized { q: made_q()?, ..others.clone() },
            Some((Part::Kv, others)) => {
                let (k, v) = made_kv()?;
                HostQuantized { q: others.q.clone(), k, v }
            }
        })
    }
}
