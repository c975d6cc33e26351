//! What a plan of quantization is, whichever operands it is of: its kernels and all of their parameter but the addresses.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gpu::kernel::Kernel;
use crate::gpu::launch::Launch;
use crate::gpu::memory::Checked;
use crate::gpu::modules::Wanted;
use crate::gpu::operands::{Addresses, ViewMutK, ViewMutQ, ViewMutV, check_q, check_scheme};
use crate::gpu::{AnySlice, DeviceSeqLens, DeviceSliceMut, Gpu};
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::Lengths;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::layout::packed_dim;
use int_flash_attention_kernels::params::{Global, QuantizeParams, Strided};
use int_flash_attention_kernels::quantize::launch::{self, Bounds};

/// `quantize` of Q, of K and V, or of all three.
#[derive(Clone, Debug)]
pub(in crate::gpu) struct Pass {
    kernel: Kernel,
    /// What finds the largest magnitudes of V before, in the paper's scheme.
    v_amax: Option<Kernel>,
    problem: AttentionProblem,
    dtype: DType,
    q_lengths: Lengths,
    pub(super) kv_lengths: Lengths,
    v_lengths: Lengths,
    /// Elements that each tensor spans.
    spans: [usize; 3],
    /// All but the addresses.
    pub(in crate::gpu) params: QuantizeParams,
}

impl Pass {
    pub(in crate::gpu) fn new(
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
    pub(in crate::gpu) fn wanted(problem: &AttentionProblem, dtype: DType, kv: bool) -> Vec<Wanted> {
        let (quantize, v_amax) = Self::kernels(problem, dtype, kv);
        [quantize].into_iter().chain(v_amax).map(Wanted::from).collect()
    }

    /// With one scale for the tokens of a block of K that are about as large, or with one for each.
    pub(in crate::gpu) fn with_shared_k(mut self, shared: bool) -> Self {
        let wide = self.params.head_dim as usize > launch::NARROW_DIMS;
        let may = self.params.quantize_kv != 0 && self.problem.scheme.rotates() && !wide;
        self.params.share_k = u32::from(shared && may);
        self
    }

    /// Elements of the workspace: a number for each head of V, in the paper's scheme.
    pub(in crate::gpu) fn workspace_len(&self) -> usize {
        if self.v_amax.is_some() { self.kv_lengths.heads } else { 0 }
    }

    /// The parameter with the sequences' lengths.
    #[inline]
    pub(in crate::gpu) fn with(&self, launch: &Launch<'_>, lengths: &DeviceSeqLens<'_>) -> Result<QuantizeParams> {
        let seqlens = lengths.addresses(launch, &self.problem, self.params.seqlens)?;
        Ok(QuantizeParams { seqlens, ..self.params })
    }

    /// Q and what is made of it.
    #[inline]
    pub(super) fn add_q(
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
    pub(super) fn add_kv(
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
    pub(in crate::gpu) const fn only_kernel(&self) -> Option<&Kernel> {
        if self.v_amax.is_none() { Some(&self.kernel) } else { None }
    }

    /// # Safety
    /// The operands that the pass is of have been added to the parameters.
    pub(in crate::gpu) unsafe fn launch(&self, gpu: &Gpu, launch: &Launch<'_>, params: &QuantizeParams) -> Result<()> {
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
