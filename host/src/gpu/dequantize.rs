//! INT8 and scales back to floats.

use super::kernel::Kernel;
use super::memory::Checked;
use super::{AnySliceMut, DeviceSeqLens, DeviceSlice, Gpu, StreamRef};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, SeqLens};
use crate::quantized::Lengths;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::dequantize::launch;
use int_flash_attention_kernels::layout::packed_dim;
use int_flash_attention_kernels::params::{DequantizeParams, Global, Strided, operand};

/// Which operand is dequantized: they differ in layout, and in the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Queries: row-major, one scale a token.
    Q,
    /// Keys: packed, one scale a token.
    K,
    /// Values: packed and transposed, one scale a token.
    V,
}

/// A dequantization, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct DequantizePlan {
    gpu: Gpu,
    kernel: Kernel,
    dtype: DType,
    span: usize,
    /// Elements of the codes, of the scales and of the offset.
    lengths: [usize; 3],
    problem: AttentionProblem,
    /// All but the addresses.
    params: DequantizeParams,
}

impl Gpu {
    /// The way back of one operand of a problem, quantized in its scheme, into a tensor of this layout and type.
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
        let shape = match operand {
            Operand::Q => problem.q_shape(),
            Operand::K => problem.kv_shape(),
            Operand::V => problem.v_shape(),
        };
        AttentionProblem::check_shape("the output", out.shape(), shape)?;
        out.check_disjoint()?;
        let lengths = Lengths::of_packed(shape, problem.packed())?;
        let bounds = &launch::BOUNDS[dtype.code() as usize];
        let (data, scale, number) = match operand {
            Operand::Q => (lengths.q_data, lengths.q_scale, operand::Q),
            Operand::K => (lengths.kv_data, lengths.kv_scale, operand::K),
            Operand::V => (lengths.kv_data, lengths.kv_scale, operand::V),
        };
        let params = problem.dequantize_params(number, out);
        let ctas =
            launch::ctas(&params).ok_or_else(|| Error::Grid { kernel: bounds.entry, shape: shape.to_string() })?;
        let d = packed_dim(shape.head_dim);
        let kernel =
            self.kernel(bounds.module, bounds.entry, [ctas, 1, 1], launch::threads(d), launch::shared_bytes(d))?;
        Ok(DequantizePlan {
            gpu: self.clone(),
            kernel,
            dtype,
            span: out.span(),
            lengths: [data, scale, lengths.channels],
            problem: *problem,
            params,
        })
    }
}

impl DequantizePlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable. `offset` (of K; `None` adds nothing) is added to every token.
    ///
    /// # Errors
    /// A buffer of another type, too short, or not aligned (16 bytes, `out` by its element); the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        data: DeviceSlice<'_, i8>,
        scale: DeviceSlice<'_, f32>,
        offset: Option<DeviceSlice<'_, f32>>,
        out: AnySliceMut<'_>,
    ) -> Result<()> {
        self.launch_with(stream, data, scale, &SeqLens::Equal, offset, out)
    }

    /// [`launch`](Self::launch) with the lengths of the sequences, of the kind that the problem has. Rows that belong to no sequence are
    /// not written.
    ///
    /// # Errors
    /// As there; lengths of another kind than the problem's, too few, or not aligned to 4 bytes.
    pub fn launch_with<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        data: DeviceSlice<'_, i8>,
        scale: DeviceSlice<'_, f32>,
        lengths: &DeviceSeqLens<'_>,
        offset: Option<DeviceSlice<'_, f32>>,
        out: AnySliceMut<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let seqlens = lengths.addresses(launch, &self.problem, self.params.seqlens)?;
        let data = data.checked(launch, "the codes", self.lengths[0])?;
        let scale = scale.checked(launch, "the scales", self.lengths[1])?;
        let offset = offset.map_or(Ok(0), |offset| offset.checked(launch, "the offset", self.lengths[2]))?;
        let out = out.checked(launch, "the output", self.dtype, self.span)?;
        let params = DequantizeParams {
            data: Global::new(data),
            scale: Global::new(scale),
            offset: Global::new(offset),
            out: Strided { data: Global::new(out), ..self.params.out },
            seqlens,
            ..self.params
        };
        // SAFETY: the parameter of all dequantization kernels; all lengths have been checked; grid, block and shared memory are those of
        // the shape.
        unsafe { launch.kernel_with(&self.kernel, &params) }
    }
}
