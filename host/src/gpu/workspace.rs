//! The workspace of a job of two kernels: the quantized operands, which one writes and the other reads.

use crate::error::{Error, Result};
use crate::problem::AttentionProblem;
use crate::quantized::Lengths;
use int_flash_attention_kernels::params::{AttentionParams, Global, QuantizeParams};

/// Where the arrays of the quantized operands lie in the workspace: bytes from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrays {
    q: u64,
    q_scale: u64,
    /// Where the scheme has it.
    q_bias: Option<u64>,
    k: u64,
    k_scale: u64,
    k_block_scale: u64,
    k_offset: u64,
    v: u64,
    v_scale: u64,
    v_block_scale: u64,
    v_unit: u64,
    v_amax: u64,
}

/// What each array starts at a multiple of: the lines of the caches.
const ALIGN: usize = 128;

impl Arrays {
    /// One behind the other, and the bytes of all.
    pub(super) fn of(problem: &AttentionProblem, amax_len: usize) -> Result<(Self, usize)> {
        let (of_q, of_kv) = (Lengths::of(problem.q_shape())?, Lengths::of_kv(problem)?);
        let mut end = 0_usize;
        let too_large = || Error::Overflow { what: "the workspace", shape: problem.kv_shape().to_string() };
        let mut place = |len: usize, size: usize| -> Result<u64> {
            let start = end;
            let bytes = len.checked_mul(size).and_then(|bytes| bytes.checked_next_multiple_of(ALIGN));
            end = bytes.and_then(|bytes| start.checked_add(bytes)).ok_or_else(too_large)?;
            Ok(start as u64)
        };
        let float = size_of::<f32>();
        let arrays = Self {
            q: place(of_q.q_data, 1)?,
            q_scale: place(of_q.q_scale, float)?,
            q_bias: problem.scheme.rotates().then(|| place(of_q.q_scale, float)).transpose()?,
            k: place(of_kv.kv_data, 1)?,
            k_scale: place(of_kv.kv_scale, float)?,
            k_block_scale: place(of_kv.blocks, float)?,
            k_offset: place(of_kv.channels, float)?,
            v: place(of_kv.kv_data, 1)?,
            v_scale: place(of_kv.kv_scale, float)?,
            v_block_scale: place(of_kv.blocks, float)?,
            v_unit: place(of_kv.heads, float)?,
            v_amax: place(amax_len, float)?,
        };
        Ok((arrays, end))
    }

    /// To be written by the quantization.
    #[inline]
    pub(super) fn written(&self, base: u64, params: &QuantizeParams) -> QuantizeParams {
        QuantizeParams {
            k_offset: Global::new(base + self.k_offset),
            q_out: Global::new(base + self.q),
            q_scale: Global::new(base + self.q_scale),
            q_bias: Global::new(self.q_bias.map_or(0, |bias| base + bias)),
            k_out: Global::new(base + self.k),
            k_scale: Global::new(base + self.k_scale),
            k_block_scale: Global::new(base + self.k_block_scale),
            v_out: Global::new(base + self.v),
            v_scale: Global::new(base + self.v_scale),
            v_block_scale: Global::new(base + self.v_block_scale),
            v_unit: Global::new(base + self.v_unit),
            v_amax: Global::new(base + self.v_amax),
            ..*params
        }
    }

    /// To be read by the attention.
    #[inline]
    pub(super) fn read(&self, base: u64, params: &AttentionParams) -> AttentionParams {
        AttentionParams {
            q: Global::new(base + self.q),
            k: Global::new(base + self.k),
            v: Global::new(base + self.v),
            q_scale: Global::new(base + self.q_scale),
            q_bias: Global::new(self.q_bias.map_or(0, |bias| base + bias)),
            k_scale: Global::new(base + self.k_scale),
            k_block_scale: Global::new(base + self.k_block_scale),
            v_scale: Global::new(base + self.v_scale),
            v_block_scale: Global::new(base + self.v_block_scale),
            v_unit: Global::new(base + self.v_unit),
            ..*params
        }
    }
}
