//! Quantization (arXiv 2409.16997, section 3.2) of all three operands, in one launch; the paper's scheme has one more before it.

mod pass;

pub(super) use pass::Pass;

use super::memory::Checked;
use super::operands::{ViewMutK, ViewMutOperands, ViewMutQ, ViewMutV};
use super::{AnySlice, DeviceSeqLens, DeviceSlice, DeviceSliceMut, Gpu, StreamRef};
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::{AttentionProblem, Scheme, SeqLens};
use crate::ranks::RanksError;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::params::Global;

/// The tensors that a [`QuantizePlan`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeLayouts {
    /// Where the elements of Q lie.
    pub q: TensorLayout,
    /// Where the elements of K lie.
    pub k: TensorLayout,
    /// Where the elements of V lie.
    pub v: TensorLayout,
    /// Element type of all three.
    pub dtype: DType,
}

impl Gpu {
    /// Quantization of all three operands of a problem, as suits the kernel that attends ([`takes_narrow`](Self::takes_narrow)).
    ///
    /// # Errors
    /// A wrong problem, layouts of other shapes, or more blocks than a grid has.
    pub fn plan_quantize(&self, problem: &AttentionProblem, layouts: &QuantizeLayouts) -> Result<QuantizePlan> {
        let pass = Pass::new(self, problem, layouts.dtype, Some(layouts.q), Some((layouts.k, layouts.v)))?;
        Ok(QuantizePlan { gpu: self.clone(), pass: pass.with_shared_k(self.takes_narrow(problem)) })
    }

    /// Quantization of K and V alone, for instance of a cache that several queries will use. Only `batch`, `heads_kv`,
    /// `seqlen_kv`, `head_dim` and `scheme` of the problem matter, and what decides which kernel attends ([`takes_narrow`](Self::takes_narrow)).
    ///
    /// # Errors
    /// As [`plan_quantize`](Self::plan_quantize).
    pub fn plan_quantize_kv(
        &self,
        problem: &AttentionProblem,
        k: TensorLayout,
        v: TensorLayout,
        dtype: DType,
    ) -> Result<QuantizeKvPlan> {
        let pass = Pass::new(self, problem, dtype, None, Some((k, v)))?;
        Ok(QuantizeKvPlan { gpu: self.clone(), pass: pass.with_shared_k(self.takes_narrow(problem)) })
    }

    /// [`plan_quantize_kv`](Self::plan_quantize_kv) of later tokens, from a multiple of 128 on, of heads whose first tokens were quantized
    /// elsewhere, in the default scheme. A launch reads `offset` of the keys that it writes and leaves `unit` of the values: with those of the
    /// first tokens the bytes are those of one quantization of the whole, as far as tokens share scales in all of them or in none
    /// ([`with_shared_k`](QuantizeKvPlan::with_shared_k)).
    ///
    /// # Errors
    /// As there; the paper's scheme; packed sequences.
    pub fn plan_quantize_kv_on(
        &self,
        problem: &AttentionProblem,
        k: TensorLayout,
        v: TensorLayout,
        dtype: DType,
    ) -> Result<QuantizeKvPlan> {
        if problem.scheme != Scheme::Default || problem.packed().is_some() {
            return Err(RanksError::LaterTokens.into());
        }
        let mut plan = self.plan_quantize_kv(problem, k, v, dtype)?;
        plan.pass.params.goes_on = 1;
        Ok(plan)
    }

    /// Quantization of Q alone, with K already quantized.
    ///
    /// # Errors
    /// As [`plan_quantize`](Self::plan_quantize).
    pub fn plan_quantize_q(&self, problem: &AttentionProblem, q: TensorLayout, dtype: DType) -> Result<QuantizeQPlan> {
        Ok(QuantizeQPlan { gpu: self.clone(), pass: Pass::new(self, problem, dtype, Some(q), None)? })
    }
}

/// Quantization of Q, K and V, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct QuantizePlan {
    gpu: Gpu,
    pass: Pass,
}

impl QuantizePlan {
    /// Whether the tokens of a block of K get one scale where they are about as large ([`Gpu::takes_narrow`]).
    #[must_use]
    pub fn shares_k(&self) -> bool {
        self.pass.params.share_k != 0
    }

    /// Elements of the workspace: none in the default scheme, a few in the paper's. It may be used for something else as soon as the
    /// launch is done.
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        self.pass.workspace_len()
    }

    /// Gives the kernel to the stream, in the paper's scheme two: no allocation, no waiting, capturable.
    ///
    /// # Errors
    /// A buffer of another type, too short, or not aligned (16 bytes for the operands and the workspace); the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        q: AnySlice<'_>,
        k: AnySlice<'_>,
        v: AnySlice<'_>,
        workspace: DeviceSliceMut<'_, f32>,
        out: &mut ViewMutOperands<'_>,
    ) -> Result<()> {
        self.launch_with(stream, [q, k, v], &SeqLens::Equal, workspace, out)
    }

    /// [`launch`](Self::launch) with the lengths of the sequences, of the kind that the problem has. Tokens of no sequence, and keys
    /// behind a sequence's own, are not read; what would be made of them is not written.
    ///
    /// # Errors
    /// As there; lengths of another kind than the problem's, too few, or not aligned to 4 bytes.
    pub fn launch_with<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        [q, k, v]: [AnySlice<'_>; 3],
        lengths: &DeviceSeqLens<'_>,
        workspace: DeviceSliceMut<'_, f32>,
        out: &mut ViewMutOperands<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let mut params = self.pass.with(launch, lengths)?;
        self.pass.add_q(launch, &mut params, q, &out.q)?;
        self.pass.add_kv(launch, &mut params, [k, v], workspace, &out.k, &out.v)?;
        // SAFETY: both have been added.
        unsafe { self.pass.launch(&self.gpu, launch, &params) }
    }
}

/// Quantization of K and V, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct QuantizeKvPlan {
    gpu: Gpu,
    pass: Pass,
}

impl QuantizeKvPlan {
    /// As of [`QuantizePlan::shares_k`].
    #[must_use]
    pub fn shares_k(&self) -> bool {
        self.pass.params.share_k != 0
    }

    /// The same where the tokens of a block of K share a scale if they are about as large, or where each has its own, whatever kernel would attend
    /// to the plan's problem: for tokens that are a part of another problem's. In the paper's scheme each has its own, and in heads of more than 256 dims.
    #[must_use]
    pub fn with_shared_k(self, shared: bool) -> Self {
        Self { pass: self.pass.with_shared_k(shared), ..self }
    }

    /// As of [`QuantizePlan::workspace_len`].
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        self.pass.workspace_len()
    }

    /// Gives the kernel to the stream, in the paper's scheme two: no allocation, no waiting, capturable.
    ///
    /// # Errors
    /// As [`QuantizePlan::launch`].
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        k: AnySlice<'_>,
        v: AnySlice<'_>,
        workspace: DeviceSliceMut<'_, f32>,
        k_out: &mut ViewMutK<'_>,
        v_out: &mut ViewMutV<'_>,
    ) -> Result<()> {
        self.launch_with(stream, [k, v], &SeqLens::Equal, workspace, k_out, v_out)
    }

    /// [`launch`](Self::launch) with the lengths of the sequences, as [`QuantizePlan::launch_with`].
    ///
    /// # Errors
    /// As there.
    pub fn launch_with<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        [k, v]: [AnySlice<'_>; 2],
        lengths: &DeviceSeqLens<'_>,
        workspace: DeviceSliceMut<'_, f32>,
        k_out: &mut ViewMutK<'_>,
        v_out: &mut ViewMutV<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let mut params = self.pass.with(launch, lengths)?;
        self.pass.add_kv(launch, &mut params, [k, v], workspace, k_out, v_out)?;
        // SAFETY: K and V have been added, and the launch is of nothing else.
        unsafe { self.pass.launch(&self.gpu, launch, &params) }
    }
}

/// Quantization of Q, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct QuantizeQPlan {
    gpu: Gpu,
    pass: Pass,
}

impl QuantizeQPlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable. `k_offset` is that of the quantized keys.
    ///
    /// # Errors
    /// As [`QuantizePlan::launch`].
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        q: AnySlice<'_>,
        k_offset: DeviceSlice<'_, f32>,
        out: &mut ViewMutQ<'_>,
    ) -> Result<()> {
        self.launch_with(stream, q, &SeqLens::Equal, k_offset, out)
    }

    /// [`launch`](Self::launch) with the lengths of the sequences, as [`QuantizePlan::launch_with`].
    ///
    /// # Errors
    /// As there.
    pub fn launch_with<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        q: AnySlice<'_>,
        lengths: &DeviceSeqLens<'_>,
        k_offset: DeviceSlice<'_, f32>,
        out: &mut ViewMutQ<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let mut params = self.pass.with(launch, lengths)?;
        self.pass.add_q(launch, &mut params, q, out)?;
        params.k_offset = Global::new(k_offset.checked(launch, "k_offset", self.pass.kv_lengths.channels)?);
        // SAFETY: Q has been added, and the launch is of nothing else.
        unsafe { self.pass.launch(&self.gpu, launch, &params) }
    }
}
