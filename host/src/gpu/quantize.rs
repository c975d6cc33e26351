//! Quantization (arXiv 2409.16997, section 3.2): statistics of K and V and all three operands, in one launch.

use super::kernel::{Kernel, QUANTIZE};
use super::launch::Launch;
use super::memory::Checked;
use super::operands::{Addresses, ViewMutK, ViewMutOperands, ViewMutQ, ViewMutV, check_bias};
use super::{AnySlice, DeviceSlice, DeviceSliceMut, Gpu, StreamRef};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::Lengths;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::quantize::launch;
use int_flash_attention_kernels::quantize::work::{Shape as WorkShape, Work};

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
    /// Quantization of all three operands of a problem.
    ///
    /// # Errors
    /// A wrong problem, layouts of other shapes, or more blocks than a grid has.
    pub fn plan_quantize(&self, problem: &AttentionProblem, layouts: &QuantizeLayouts) -> Result<QuantizePlan> {
        let pass = Pass::new(self, problem, layouts.dtype, Some(layouts.q), Some((layouts.k, layouts.v)))?;
        Ok(QuantizePlan { gpu: self.clone(), pass })
    }

    /// Quantization of K and V alone, for instance of a cache that several queries will use. Only `batch`, `heads_kv`,
    /// `seqlen_kv`, `head_dim` and `scheme` of the problem matter.
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
        Ok(QuantizeKvPlan { gpu: self.clone(), pass })
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
    /// Elements of the workspace. It may be used for something else as soon as the launch is done.
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        self.pass.workspace
    }

    /// Gives the kernel to the stream, and the zeroing of its counters: no allocation, no waiting, capturable.
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
        let launch = &self.gpu.launching(stream.into())?;
        let [k_in, v_in] = self.pass.kv_in(launch, k, v)?;
        let kv = self.pass.kv_out(launch, &out.k, &out.v)?;
        let q_in = self.pass.q_in(launch, q)?;
        check_bias(self.pass.scheme, &out.q.bias)?;
        let q_out = out.q.addresses(launch, self.pass.problem.q_shape(), &self.pass.q_lengths)?;
        let workspace = self.pass.workspace_in(launch, workspace)?;
        self.pass.launch(&self.gpu, launch, [q_in, k_in, v_in], workspace, q_out, &kv)
    }
}

/// Quantization of K and V, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct QuantizeKvPlan {
    gpu: Gpu,
    pass: Pass,
}

impl QuantizeKvPlan {
    /// Elements of the workspace. It may be used for something else as soon as the launch is done.
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        self.pass.workspace
    }

    /// Gives the kernel to the stream, and the zeroing of its counters: no allocation, no waiting, capturable.
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
        let launch = &self.gpu.launching(stream.into())?;
        let [k_in, v_in] = self.pass.kv_in(launch, k, v)?;
        let kv = self.pass.kv_out(launch, k_out, v_out)?;
        let workspace = self.pass.workspace_in(launch, workspace)?;
        self.pass.launch(&self.gpu, launch, [0, k_in, v_in], workspace, [0; 3], &kv)
    }
}

/// Quantization of Q, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct QuantizeQPlan {
    gpu: Gpu,
    pass: Pass,
}

impl QuantizeQPlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable. `k_mean` is that of the quantized keys.
    ///
    /// # Errors
    /// As [`QuantizePlan::launch`].
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        q: AnySlice<'_>,
        k_mean: DeviceSlice<'_, f32>,
        out: &mut ViewMutQ<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let q_in = self.pass.q_in(launch, q)?;
        check_bias(self.pass.scheme, &out.bias)?;
        let q_out = out.addresses(launch, self.pass.problem.q_shape(), &self.pass.q_lengths)?;
        let kv = KvOut { k_mean: k_mean.checked(launch, "k_mean", self.pass.kv_lengths.channels)?, ..KvOut::default() };
        self.pass.launch(&self.gpu, launch, [q_in, 0, 0], 0, q_out, &kv)
    }
}

/// Addresses of K's and V's arrays.
#[derive(Clone, Copy, Debug, Default)]
struct KvOut {
    k: u64,
    k_scale: u64,
    k_mean: u64,
    k_scale_max: u64,
    v: u64,
    v_scale: u64,
    v_mean: u64,
}

/// A layout's strides as kernel parameters.
pub(super) fn strides(layout: &TensorLayout) -> [u64; 3] {
    layout.strides().map(|stride| stride as u64)
}

fn grid_error(kernel: &'static str, problem: &AttentionProblem) -> Error {
    Error::Grid { kernel, shape: format!("q {} with k {}", problem.q_shape(), problem.kv_shape()) }
}

/// `quantize` of Q, of K and V, or of all three.
#[derive(Clone, Debug)]
struct Pass {
    kernel: Kernel,
    problem: AttentionProblem,
    scheme: Scheme,
    dtype: DType,
    q_lengths: Lengths,
    kv_lengths: Lengths,
    /// Elements that each tensor spans.
    spans: [usize; 3],
    q_strides: [u64; 3],
    k_strides: [u64; 3],
    v_strides: [u64; 3],
    /// Elements of the workspace.
    workspace: usize,
    /// The parameters after the addresses.
    sizes: [u64; 5],
    work: Work,
}

impl Pass {
    fn new(
        gpu: &Gpu,
        problem: &AttentionProblem,
        dtype: DType,
        q: Option<TensorLayout>,
        kv: Option<(TensorLayout, TensorLayout)>,
    ) -> Result<Self> {
        problem.check()?;
        let AttentionProblem { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim: d, .. } = *problem;
        if let Some(q) = q {
            AttentionProblem::check_shape("q", q.shape(), problem.q_shape())?;
        }
        if let Some((k, v)) = kv {
            AttentionProblem::check_shape("k", k.shape(), problem.kv_shape())?;
            AttentionProblem::check_shape("v", v.shape(), problem.kv_shape())?;
        }
        let entry = launch::BOUNDS[dtype.code() as usize].entry;
        let overflow = || grid_error(entry, problem);
        let shape =
            WorkShape { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim: d, element_bytes: dtype.size() };
        let resident = gpu.multiprocessors()? * launch::QUANTIZE_CTAS;
        let work = Work::new(&shape, q.is_some(), kv.is_some(), resident).ok_or_else(overflow)?;
        let workspace = match kv {
            Some(_) => launch::workspace_len(batch, heads_kv, seqlen_kv, d, dtype.size()).ok_or_else(overflow)?,
            None => 0,
        };
        let (threads, shared) = (launch::QUANTIZE_THREADS, launch::quantize_shared_bytes(d));
        let kernel = gpu.kernel(QUANTIZE, entry, work.grid(), threads, shared)?;
        let sizes = [seqlen_q, seqlen_kv, heads_q, d].map(|size| size as u64);
        let unused = TensorLayout::bhnd(problem.q_shape());
        let (q, (k, v)) = (q.unwrap_or(unused), kv.unwrap_or((unused, unused)));
        Ok(Self {
            kernel,
            problem: *problem,
            scheme: problem.scheme,
            dtype,
            q_lengths: Lengths::of(problem.q_shape())?,
            kv_lengths: Lengths::of(problem.kv_shape())?,
            spans: [q.span(), k.span(), v.span()],
            q_strides: strides(&q),
            k_strides: strides(&k),
            v_strides: strides(&v),
            workspace,
            sizes: [sizes[0], sizes[1], sizes[2], sizes[3], problem.scheme.quantize_flags().into()],
            work,
        })
    }

    #[inline]
    fn q_in(&self, launch: &Launch<'_>, q: AnySlice<'_>) -> Result<u64> {
        q.checked(launch, "q", self.dtype, self.spans[0])
    }

    #[inline]
    fn kv_in(&self, launch: &Launch<'_>, k: AnySlice<'_>, v: AnySlice<'_>) -> Result<[u64; 2]> {
        Ok([k.checked(launch, "k", self.dtype, self.spans[1])?, v.checked(launch, "v", self.dtype, self.spans[2])?])
    }

    #[inline]
    fn workspace_in(&self, launch: &Launch<'_>, workspace: DeviceSliceMut<'_, f32>) -> Result<u64> {
        workspace.checked(launch, "the workspace", self.workspace)
    }

    #[inline]
    fn kv_out(&self, launch: &Launch<'_>, k: &ViewMutK<'_>, v: &ViewMutV<'_>) -> Result<KvOut> {
        let shape = self.problem.kv_shape();
        let [k, k_scale, k_mean, k_scale_max] = k.addresses(launch, shape, &self.kv_lengths)?;
        let [v, v_scale, v_mean] = v.addresses(launch, shape, &self.kv_lengths)?;
        Ok(KvOut { k, k_scale, k_mean, k_scale_max, v, v_scale, v_mean })
    }

    fn launch(
        &self,
        gpu: &Gpu,
        launch: &Launch<'_>,
        [q, k, v]: [u64; 3],
        workspace: u64,
        [q_out, q_scale, q_bias]: [u64; 3],
        kv: &KvOut,
    ) -> Result<()> {
        let ([qb, qh, qn], [kb, kh, kn], [vb, vh, vn]) = (self.q_strides, self.k_strides, self.v_strides);
        let [seqlen_q, seqlen_kv, heads_q, head_dim, flags] = self.sizes;
        let [w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14] = self.work.parameters().map(u64::from);
        #[rustfmt::skip]
        let arguments = [
            q, qb, qh, qn, k, kb, kh, kn, v, vb, vh, vn,
            kv.k_mean, kv.v_mean, kv.v_scale, kv.k_scale_max,
            q_out, q_scale, q_bias, kv.k, kv.k_scale, kv.v, workspace,
            seqlen_q, seqlen_kv, heads_q, head_dim, flags,
            w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14,
        ];
        // SAFETY: parameters in the order of docs/kernel-abi.md, "Entry points". The tensors' spans and the arrays'
        // lengths have been checked; an operand without CTAs is not touched. The workspace begins with the counters.
        unsafe {
            if self.workspace > 0 {
                let counters = launch::counters(self.work.heads() as usize, self.work.slices.value as usize);
                gpu.bind()?.fill_async(workspace, 0, size_of::<f32>() * counters, launch.stream())?;
            }
            launch.kernel(&self.kernel, arguments)
        }
    }
}
