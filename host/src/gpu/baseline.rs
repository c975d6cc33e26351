//! Attention in float16 (FlashAttention-2, arXiv 2307.08691): what INT8 is measured against.

use super::kernel::Kernel;
use super::memory::Checked;
use super::{AnySlice, AnySliceMut, DeviceSliceMut, Gpu, StreamRef};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, ScoreMod};
use crate::shape::TensorLayout;
use int_flash_attention_kernels::config;
use int_flash_attention_kernels::params::{BaselineParams, Global, Strided};

/// The tensors of a [`BaselinePlan`], all float16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaselineLayouts {
    /// Where the elements of Q lie.
    pub q: TensorLayout,
    /// Where the elements of K lie.
    pub k: TensorLayout,
    /// Where the elements of V lie.
    pub v: TensorLayout,
    /// Where the elements of the output go.
    pub o: TensorLayout,
    /// Whether the log-sum-exp of each row is written as well.
    pub lse: bool,
}

/// An attention in float16, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct BaselinePlan {
    gpu: Gpu,
    kernel: Kernel,
    layouts: BaselineLayouts,
    rows: usize,
    /// All but the addresses.
    params: BaselineParams,
}

/// Elements of 16 bytes, to which the kernel's rows are aligned.
const ROW_ALIGN: i64 = 8;

impl Gpu {
    /// The forward pass of a problem in float16; its scheme does not matter.
    ///
    /// # Errors
    /// A wrong problem; layouts of other shapes; strides of Q, K or V that are not multiples of 8 elements, or of the output
    /// that are not even; an output in which elements overlap.
    pub fn plan_baseline(&self, problem: &AttentionProblem, layouts: &BaselineLayouts) -> Result<BaselinePlan> {
        problem.check()?;
        if problem.score_mod != ScoreMod::NONE {
            return Err(Error::PlainKernels { kernels: "the float16 kernels" });
        }
        problem.check_equal()?;
        let BaselineLayouts { q, k, v, o, .. } = *layouts;
        for (name, layout, expected) in
            [("q", q, problem.q_shape()), ("k", k, problem.kv_shape()), ("v", v, problem.kv_shape())]
        {
            AttentionProblem::check_shape(name, layout.shape(), expected)?;
            check_strides(&layout, ROW_ALIGN, "a multiple of 8")?;
        }
        AttentionProblem::check_shape("o", o.shape(), problem.q_shape())?;
        check_strides(&o, 2, "even")?;
        o.check_disjoint()?;
        let variant = config::baseline(problem.head_dim).filter(|_| problem.value_dim() == problem.head_dim);
        let allowed = || config::BASELINE.iter().map(|variant| variant.head_dim).collect();
        let variant = variant.ok_or_else(|| Error::Float16HeadDim { given: problem.head_dim, allowed: allowed() })?;
        let tiles = problem.seqlen_q.div_ceil(variant.tile_m) as u32;
        let grid = [tiles, problem.heads_q as u32, problem.batch as u32];
        Ok(BaselinePlan {
            gpu: self.clone(),
            kernel: self.kernel(variant.name, variant.name, grid, variant.threads, variant.shared_bytes)?,
            layouts: *layouts,
            rows: problem.q_shape().rows(),
            params: problem.baseline_params([&q, &k, &v, &o]),
        })
    }
}

fn check_strides(layout: &TensorLayout, multiple: i64, allowed: &'static str) -> Result<()> {
    let strides = ["batch", "head", "token"].into_iter().zip(layout.strides());
    match strides.into_iter().find(|(_, stride)| stride % multiple != 0) {
        Some((name, given)) => Err(Error::Stride { name, given, allowed }),
        None => Ok(()),
    }
}

impl BaselinePlan {
    /// The kernel's name.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel.entry
    }

    /// Gives the kernel to the stream: no allocation, no waiting, capturable.
    ///
    /// # Errors
    /// A buffer that is not float16, too short, or not aligned (16 bytes; `o` 4); `lse` there or not, against the plan; the
    /// driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        q: AnySlice<'_>,
        k: AnySlice<'_>,
        v: AnySlice<'_>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let aligned = |name, address: u64, align: u64| {
            if address.is_multiple_of(align) { Ok(address) } else { Err(Error::Alignment { name, address, align }) }
        };
        let layouts = &self.layouts;
        let q = aligned("q", q.checked(launch, "q", DType::F16, layouts.q.span())?, 16)?;
        let k = aligned("k", k.checked(launch, "k", DType::F16, layouts.k.span())?, 16)?;
        let v = aligned("v", v.checked(launch, "v", DType::F16, layouts.v.span())?, 16)?;
        let o = aligned("o", o.checked(launch, "o", DType::F16, layouts.o.span())?, 4)?;
        let lse = match (lse, layouts.lse) {
            (Some(lse), true) => lse.checked(launch, "lse", self.rows)?,
            (None, false) => 0,
            (Some(_), false) => return Err(Error::Optional { name: "lse", given: "given", planned: "without" }),
            (None, true) => return Err(Error::Optional { name: "lse", given: "not given", planned: "with" }),
        };
        let at = |address, tensor: Strided| Strided { data: Global::new(address), ..tensor };
        let params = BaselineParams {
            q: at(q, self.params.q),
            k: at(k, self.params.k),
            v: at(v, self.params.v),
            o: at(o, self.params.o),
            lse: Global::new(lse),
            ..self.params
        };
        // SAFETY: the parameter of all float16 kernels; all spans, lengths and alignments have been checked; grid, block and shared
        // memory are those of the kernel's variant.
        unsafe { launch.kernel_with(&self.kernel, &params) }
    }
}
