//! Quantization (arXiv 2409.16997, section 3.2) of all three operands, in one launch; the paper's scheme has one more before it.

use super::kernel::Kernel;
use super::launch::Launch;
use super::memory::Checked;
use super::modules::Wanted;
use super::operands::{Addresses, ViewMutK, ViewMutOperands, ViewMutQ, ViewMutV, check_q, check_scheme};
use super::{AnySlice, DeviceSeqLens, DeviceSlice, DeviceSliceMut, Gpu, StreamRef};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, SeqLens};
use crate::quantized::Lengths;
use crate::ranks::RanksError;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::layout::packed_dim;
use int_flash_attention_kernels::params::{Global, QuantizeParams, Strided};
use int_flash_attention_kernels::quantize::launch::{self, Bounds};

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

/// `quantize` of Q, of K and V, or of all three.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    kernel: Kernel,
    /// What finds the largest magnitudes of V before, in the paper's scheme.
    v_amax: Option<Kernel>,
    problem: AttentionProblem,
    dtype: DType,
    q_lengths: Lengths,
    kv_lengths: Lengths,
    v_lengths: Lengths,
    /// Elements that each tensor spans.
    spans: [usize; 3],
    /// All but the addresses.
    pub(super) params: QuantizeParams,
}

impl Pass {
    pub(super) fn new(
        gpu: &Gpu,
        problem: &AttentionProblem,
        dtype: DType,
        q: Option<TensorLayout>,
        kv: Option<(TensorLayout, TensorLayout)>,
    ) -> Result<Self> {
        problem.check()?;
        if let Some(q) = &q {
            AttentionProblem::check_shape("q", q.shape(), problem.q_shape())?;
        }
        if let Some((k, v)) = &kv {
            AttentionProblem::check_shape("k", k.shape(), problem.kv_shape())?;
            AttentionProblem::check_shape("v", v.shape(), problem.v_shape())?;
        }
        let params = problem.quantize_params(q.as_ref(), kv.as_ref().map(|(k, v)| [k, v]));
        let head_dim = packed_dim(problem.head_dim);
        let (quantize, v_amax) = Self::kernels(problem, dtype, kv.is_some());
        let threads = launch::threads(head_dim, dtype.size());
        let too_many = |kernel| {
            move || Error::Grid { kernel, shape: format!("q {} with k {}", problem.q_shape(), problem.kv_shape()) }
        };
        let ctas = launch::quantize_ctas(&params).ok_or_else(too_many(quantize.entry))?;
        let shared = launch::shared_bytes(head_dim, dtype.size());
        gpu.load(&Self::wanted(problem, dtype, kv.is_some()))?;
        let kernel = gpu.kernel(quantize.module, quantize.entry, [ctas, 1, 1], threads, shared)?;
        let amax = |v_amax: &Bounds| {
            let ctas = launch::v_amax_ctas(&params).ok_or_else(too_many(v_amax.entry))?;
            gpu.kernel(v_amax.module, v_amax.entry, [ctas, 1, 1], threads, 0)
        };
        let span = |layout: Option<&TensorLayout>| layout.map_or(0, TensorLayout::span);
        let kv_spans = kv.as_ref().map(|(k, v)| (k, v)).unzip();
        Ok(Self {
            kernel,
            v_amax: v_amax.map(amax).transpose()?,
            problem: *problem,
            dtype,
            q_lengths: Lengths::of(problem.q_shape())?,
            kv_lengths: Lengths::of_kv(problem)?,
            v_lengths: Lengths::of_v(problem)?,
            spans: [span(q.as_ref()), span(kv_spans.0), span(kv_spans.1)],
            params,
        })
    }

    /// `quantize`, and where there are values to look at before it, what does so.
    fn kernels(problem: &AttentionProblem, dtype: DType, kv: bool) -> (&'static Bounds, Option<&'static Bounds>) {
        let v_amax = (kv && problem.scheme == Scheme::Paper).then(|| &launch::V_AMAX[dtype.code() as usize]);
        (launch::quantize(packed_dim(problem.head_dim), dtype.code(), problem.scheme), v_amax)
    }

    /// What a pass over Q, and over K and V, loads.
    pub(super) fn wanted(problem: &AttentionProblem, dtype: DType, kv: bool) -> Vec<Wanted> {
        let (quantize, v_amax) = Self::kernels(problem, dtype, kv);
        [quantize].into_iter().chain(v_amax).map(Wanted::from).collect()
    }

    /// With one scale for the tokens of a block of K that are about as large, or with one for each.
    pub(super) fn with_shared_k(mut self, shared: bool) -> Self {
        let wide = self.params.head_dim as usize > launch::NARROW_DIMS;
        let may = self.params.quantize_kv != 0 && self.problem.scheme.rotates() && !wide;
        self.params.share_k = u32::from(shared && may);
        self
    }

    /// Elements of the workspace: a number for each head of V, in the paper's scheme.
    pub(super) fn workspace_len(&self) -> usize {
        if self.v_amax.is_some() { self.kv_lengths.heads } else { 0 }
    }

    /// The parameter with the sequences' lengths.
    #[inline]
    pub(super) fn with(&self, launch: &Launch<'_>, lengths: &DeviceSeqLens<'_>) -> Result<QuantizeParams> {
        let seqlens = lengths.addresses(launch, &self.problem, self.params.seqlens)?;
        Ok(QuantizeParams { seqlens, ..self.params })
    }

    /// Q and what is made of it.
    #[inline]
    fn add_q(
        &self,
        launch: &Launch<'_>,
        params: &mut QuantizeParams,
        q: AnySlice<'_>,
        out: &ViewMutQ<'_>,
    ) -> Result<()> {
        check_q(self.problem.scheme, out)?;
        let q = q.checked(launch, "q", self.dtype, self.spans[0])?;
        let [q_out, q_scale, q_bias] = out.addresses(launch, self.problem.q_shape(), &self.q_lengths)?;
        *params = QuantizeParams {
            q: Strided { data: Global::new(q), ..params.q },
            q_out: Global::new(q_out),
            q_scale: Global::new(q_scale),
            q_bias: Global::new(q_bias),
            ..*params
        };
        Ok(())
    }

    /// K and V, what is made of them, and the workspace.
    #[inline]
    fn add_kv(
        &self,
        launch: &Launch<'_>,
        params: &mut QuantizeParams,
        [k, v]: [AnySlice<'_>; 2],
        workspace: DeviceSliceMut<'_, f32>,
        k_out: &ViewMutK<'_>,
        v_out: &ViewMutV<'_>,
    ) -> Result<()> {
        let (shape, scheme) = (self.problem.kv_shape(), self.problem.scheme);
        check_scheme("k", scheme, k_out.scheme)?;
        check_scheme("v", scheme, v_out.scheme)?;
        let k = k.checked(launch, "k", self.dtype, self.spans[1])?;
        let v = v.checked(launch, "v", self.dtype, self.spans[2])?;
        let v_amax = match self.v_amax {
            Some(_) => workspace.checked(launch, "the workspace", self.workspace_len())?,
            None => 0,
        };
        let [k_out, k_scale, k_block_scale, k_offset] = k_out.addresses(launch, shape, &self.kv_lengths)?;
        let [v_out, v_scale, v_block_scale, v_unit] =
            v_out.addresses(launch, self.problem.v_shape(), &self.v_lengths)?;
        *params = QuantizeParams {
            k: Strided { data: Global::new(k), ..params.k },
            v: Strided { data: Global::new(v), ..params.v },
            k_offset: Global::new(k_offset),
            k_out: Global::new(k_out),
            k_scale: Global::new(k_scale),
            k_block_scale: Global::new(k_block_scale),
            v_out: Global::new(v_out),
            v_scale: Global::new(v_scale),
            v_block_scale: Global::new(v_block_scale),
            v_unit: Global::new(v_unit),
            v_amax: Global::new(v_amax),
            ..*params
        };
        Ok(())
    }

    /// The kernel, where it is all that a launch is.
    pub(super) const fn only_kernel(&self) -> Option<&Kernel> {
        if self.v_amax.is_none() { Some(&self.kernel) } else { None }
    }

    /// # Safety
    /// The operands that the pass is of have been added to the parameters.
    pub(super) unsafe fn launch(&self, gpu: &Gpu, launch: &Launch<'_>, params: &QuantizeParams) -> Result<()> {
        // SAFETY: the parameter of all quantization kernels; what has been added has been checked, and there are no CTAs for what has not;
        // grid, block and shared memory are those of the problem. The workspace has a word for each head.
        unsafe {
            if let Some(v_amax) = &self.v_amax {
                let bytes = size_of::<f32>() * self.workspace_len();
                gpu.bind()?.fill_async(params.v_amax.address(), 0, bytes, launch.stream())?;
                launch.kernel_with(v_amax, params)?;
            }
            launch.kernel_with(&self.kernel, params)
        }
    }
}
