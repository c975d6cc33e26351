//! INT8 and scales back to floats.

use super::kernel::{DEQUANTIZE, Kernel};
use super::memory::Checked;
use super::quantize::strides;
use super::{AnySliceMut, DeviceSlice, Gpu, StreamRef};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::AttentionProblem;
use crate::quantized::Lengths;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::dequantize::launch;
use int_flash_attention_kernels::params::operand;

/// Which operand is dequantized: they differ in layout and in what a scale belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Queries: row-major, one scale a token.
    Q,
    /// Keys: packed, one scale a token.
    K,
    /// Values: packed and transposed, one scale a channel.
    V,
}

/// A dequantization, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct DequantizePlan {
    gpu: Gpu,
    kernel: Kernel,
    dtype: DType,
    span: usize,
    /// Elements of the codes, of the scales and of the mean.
    lengths: [usize; 3],
    strides: [u64; 3],
    /// The parameters after the addresses.
    sizes: [u64; 4],
}

impl Gpu {
    /// The way back of one operand of a problem, into a tensor of this layout and type.
    ///
    /// # Errors
    /// A wrong problem; a layout of another shape, or one in which elements overlap.
    pub fn plan_dequantize(
        &self,
        problem: &AttentionProblem,
        operand: Operand,
        out: &TensorLayout,
        dtype: DType,
    ) -> Result<DequantizePlan> {
        problem.check()?;
        let shape = if operand == Operand::Q { problem.q_shape() } else { problem.kv_shape() };
        AttentionProblem::check_shape("the output", out.shape(), shape)?;
        out.check_disjoint()?;
        let lengths = Lengths::of(shape)?;
        let entry = launch::BOUNDS[dtype.code() as usize].entry;
        let blocks = launch::token_blocks(shape.batch, shape.heads, shape.seqlen);
        let blocks = blocks.ok_or_else(|| Error::Grid { kernel: entry, shape: shape.to_string() })?;
        let d = shape.head_dim;
        let kernel = self.kernel(DEQUANTIZE, entry, [blocks, 1, 1], launch::threads(d), launch::shared_bytes(d))?;
        let (lengths, number) = match operand {
            Operand::Q => ([lengths.q_data, lengths.q_scale, lengths.channels], operand::Q),
            Operand::K => ([lengths.kv_data, lengths.k_scale, lengths.channels], operand::K),
            Operand::V => ([lengths.kv_data, lengths.channels, lengths.channels], operand::V),
        };
        Ok(DequantizePlan {
            gpu: self.clone(),
            kernel,
            dtype,
            span: out.span(),
            lengths,
            strides: strides(out),
            sizes: [shape.seqlen as u64, shape.heads as u64, d as u64, number.into()],
        })
    }
}

impl DequantizePlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable. `mean` (of K or V; `None` adds nothing) is
    /// added to every token.
    ///
    /// # Errors
    /// A buffer of another type, too short, or not aligned (16 bytes, `out` by its element); the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        data: DeviceSlice<'_, i8>,
        scale: DeviceSlice<'_, f32>,
        mean: Option<DeviceSlice<'_, f32>>,
        out: AnySliceMut<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let data = data.checked(launch, "the codes", self.lengths[0])?;
        let scale = scale.checked(launch, "the scales", self.lengths[1])?;
        let mean = mean.map_or(Ok(0), |mean| mean.checked(launch, "the mean", self.lengths[2]))?;
        let out = out.checked(launch, "the output", self.dtype, self.span)?;
        let ([sb, sh, sn], [seqlen, heads, head_dim, operand]) = (self.strides, self.sizes);
        let arguments = [data, scale, mean, out, sb, sh, sn, seqlen, heads, head_dim, operand];
        // SAFETY: parameters in the order of docs/kernel-abi.md, "Entry points"; all lengths have been checked.
        unsafe { launch.kernel(&self.kernel, arguments) }
    }
}
