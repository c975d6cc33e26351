//! The attention forward pass.

use super::kernel::Kernel;
use super::launch::Launch;
use super::memory::Checked;
use super::operands::{Addresses, ViewOperands, check_q, check_scheme};
use super::{AnySliceMut, DeviceSeqLens, DeviceSliceMut, Gpu, ScoreViews, StreamRef};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, SeqLens};
use crate::quantized::Lengths;
use crate::shape::TensorLayout;
use int_flash_attention_kernels::config::{self, ATTENTION, AttentionVariant, Family, Kind, shared_memory};
use int_flash_attention_kernels::params::{AttentionParams, Global, Strided};

/// What an [`AttentionPlan`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionOutput {
    /// Where the elements of the output go; its shape is that of Q, but for V's head dim.
    pub layout: TensorLayout,
    /// Element type of the output.
    pub dtype: DType,
    /// Whether the log-sum-exp of each row is written as well.
    pub lse: bool,
}

/// An attention, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    gpu: Gpu,
    kernel: Kernel,
    family: Family,
    problem: AttentionProblem,
    output: AttentionOutput,
    q_lengths: Lengths,
    /// Of K and of V.
    kv_lengths: [Lengths; 2],
    /// All but the addresses.
    params: AttentionParams,
}

/// Which kernels a plan may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Of several the one that was measured to be faster.
    Fastest,
    /// Any that fits.
    Any,
    /// The general one, also where a plain one would do.
    General,
}

impl Gpu {
    /// The forward pass of a problem on quantized operands, with the kernel that was made for this GPU where there is one that
    /// is faster (on Hopper, with a driver for CUDA 12.4 or later, for the head dims and from the numbers of keys that the table
    /// of kernels has for it), else with the one for all.
    ///
    /// # Errors
    /// A wrong problem; an output of another shape, or one in which elements overlap; no kernel that fits this GPU; more tiles of
    /// query rows than a kernel counts; [`Error::SlowInt8`] on a GPU that is faster in float16 ([`int8_rate`](Self::int8_rate)).
    pub fn plan_attention(&self, problem: &AttentionProblem, output: &AttentionOutput) -> Result<AttentionPlan> {
        self.check_int8_rate()?;
        self.plan_attention_anyway(problem, output)
    }

    /// That float16 is not faster.
    pub(super) fn check_int8_rate(&self) -> Result<()> {
        if let (Some(rate), (major, minor)) = (self.int8_rate().filter(|&rate| rate < 1.0), self.compute_capability()) {
            return Err(Error::SlowInt8 { device: self.name().to_owned(), major, minor, rate });
        }
        Ok(())
    }

    /// [`plan_attention`](Self::plan_attention) also where float16 would be faster.
    pub(crate) fn plan_attention_anyway(
        &self,
        problem: &AttentionProblem,
        output: &AttentionOutput,
    ) -> Result<AttentionPlan> {
        self.plan_with(&self.families(), problem, output, Choice::Fastest, self.0.shared_bytes)
    }

    /// [`plan_attention`](Self::plan_attention) with a kernel of this family, for comparisons.
    ///
    /// # Errors
    /// As there; a GPU that does not run the family; a head dim that it does not have.
    pub fn plan_attention_of(
        &self,
        family: Family,
        problem: &AttentionProblem,
        output: &AttentionOutput,
    ) -> Result<AttentionPlan> {
        if !self.families().contains(&family) {
            let (major, minor) = self.compute_capability();
            return Err(Error::Family { device: self.name().to_owned(), major, minor, cuda: self.0.cuda, family });
        }
        if family != Family::Sm80 && problem.score_mod.kind() == Kind::General {
            return Err(Error::PlainKernels { kernels: "the kernels for sm_90a" });
        }
        self.plan_with(&[family], problem, output, Choice::Any, self.0.shared_bytes)
    }

    /// [`plan_attention_of`](Self::plan_attention_of) [`Family::Sm80`] as on a GPU on which a CTA may have so many bytes of shared
    /// memory, for tests and comparisons: with the kernel for such GPUs, and no more CTAs an SM than there.
    ///
    /// # Errors
    /// As there.
    pub fn plan_attention_as_with(
        &self,
        shared_bytes: usize,
        problem: &AttentionProblem,
        output: &AttentionOutput,
    ) -> Result<AttentionPlan> {
        self.plan_with(&[Family::Sm80], problem, output, Choice::Any, shared_bytes)
    }

    /// The general kernel of sm_80 also where a plain one would do: for benchmarks, which hold its speed against the plain one's.
    #[doc(hidden)]
    pub fn plan_attention_general(
        &self,
        problem: &AttentionProblem,
        output: &AttentionOutput,
    ) -> Result<AttentionPlan> {
        self.plan_with(&[Family::Sm80], problem, output, Choice::General, self.0.shared_bytes)
    }

    /// The families of attention kernels that are built in and that this GPU and its driver run, the one for it in particular first.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let runs = |family: &Family| family.runs_on(self.0.capability, self.0.cuda) && self.0.modules.has(*family);
        Family::ALL.into_iter().rev().filter(runs).collect()
    }

    /// With the first kernel of the first of these families that fits.
    fn plan_with(
        &self,
        families: &[Family],
        problem: &AttentionProblem,
        output: &AttentionOutput,
        choice: Choice,
        shared_bytes: usize,
    ) -> Result<AttentionPlan> {
        problem.check()?;
        AttentionProblem::check_shape("o", output.layout.shape(), problem.o_shape())?;
        output.layout.check_disjoint()?;
        let multiprocessors = self.multiprocessors()? as u32;
        let params = problem.params(&output.layout, output.dtype);
        let variant = self.variant(families, problem, &params, choice, shared_bytes)?;
        let grid = variant.grid(&params, multiprocessors);
        let too_many = || Error::Tiles { kernel: variant.name, shape: problem.q_shape().to_string() };
        let grid = grid.ok_or_else(too_many)?;
        let kv_lengths = [Lengths::of_kv(problem)?, Lengths::of_v(problem)?];
        kv_lengths[0].check_blocks(problem)?;
        let asked = shared_memory::asked(variant.shared_bytes, shared_bytes, self.0.shared_bytes);
        let kernel = self.kernel(variant.name, variant.name, grid, variant.threads, asked)?;
        Ok(AttentionPlan {
            gpu: self.clone(),
            kernel,
            family: variant.family,
            problem: *problem,
            output: *output,
            q_lengths: Lengths::of(problem.q_shape())?,
            kv_lengths,
            params,
        })
    }

    /// Whether the kernel that [`plan_attention`](Self::plan_attention) takes for a problem is one that takes narrow blocks
    /// (docs/kernel-abi.md). Then the quantization plans of the problem give the tokens of a block of K one scale where they are about as large.
    /// Operands are right in every kernel, with shared scales or without. No kernel attends a wrong problem.
    #[must_use]
    pub fn takes_narrow(&self, problem: &AttentionProblem) -> bool {
        self.attention_variant(problem).is_ok_and(AttentionVariant::takes_narrow)
    }

    /// The variant that [`plan_attention`](Self::plan_attention) takes for a problem.
    pub(super) fn attention_variant(&self, problem: &AttentionProblem) -> Result<&'static AttentionVariant> {
        problem.check()?;
        // Any output: the kernel does not depend on it.
        let params = problem.params(&TensorLayout::bhnd(problem.o_shape()), DType::F16);
        self.variant(&self.families(), problem, &params, Choice::Fastest, self.0.shared_bytes)
    }

    /// The variant of the first of these families that is of this choice and for GPUs with so much shared memory.
    fn variant(
        &self,
        families: &[Family],
        p: &AttentionProblem,
        params: &AttentionParams,
        choice: Choice,
        shared_bytes: usize,
    ) -> Result<&'static AttentionVariant> {
        let multiprocessors = self.multiprocessors()? as u32;
        let pays = |v: &AttentionVariant| {
            let grid = v.grid(params, multiprocessors);
            choice != Choice::Fastest || v.family == Family::Sm80 || (p.seqlen_kv >= v.from_keys && grid.is_some())
        };
        let kind = if choice == Choice::General { Kind::General } else { p.score_mod.kind() };
        let serves = |v: &&AttentionVariant| {
            v.has([p.head_dim, p.value_dim()]) && (v.scheme, v.kind) == (p.scheme, kind) && pays(v)
        };
        let fits = |v: &&AttentionVariant| v.is_for(shared_bytes);
        let of_family = |&family| ATTENTION.iter().filter(move |v| v.family == family);
        let candidates = families.iter().flat_map(of_family).filter(serves);
        if let Some(variant) = candidates.clone().find(fits) {
            return Ok(variant);
        }
        Err(match candidates.min_by_key(|v| v.shared_bytes) {
            Some(variant) => Error::SharedMemory {
                kernel: variant.name,
                needed: variant.shared_bytes,
                available: shared_bytes,
                device: self.name().to_owned(),
            },
            None => {
                Error::HeadDim { given: p.head_dim, most: config::head_dims(families, p.scheme).max().unwrap_or(0) }
            }
        })
    }
}

impl AttentionPlan {
    /// The kernel's name.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel.entry
    }

    /// The family that the kernel is of.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Gives the kernel to the stream: no allocation, no waiting, capturable. `o` in the plan's layout; `lse`
    /// `[batch][heads_q][seqlen_q]`, exactly where the plan was made with it. For sequences of the problem's lengths;
    /// [`launch_with`](Self::launch_with) is for others.
    ///
    /// # Errors
    /// Operands of other shapes; a buffer of another type, too short, or not aligned (16 bytes, `o` by its element);
    /// `lse` there or not, against the plan; a problem with tensors of the scores; the driver's.
    #[inline]
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        operands: &ViewOperands<'_>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        self.launch_with(stream, operands, &SeqLens::Equal, o, lse)
    }

    /// [`launch`](Self::launch) with the lengths of the sequences, of the kind that the problem has. Packed, `lse` is
    /// `[heads_q][total_q]`; rows of `o` and `lse` that belong to no sequence are not written.
    ///
    /// # Errors
    /// As there; lengths of another kind than the problem's, too few, or not aligned to 4 bytes.
    #[inline]
    pub fn launch_with<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        operands: &ViewOperands<'_>,
        lengths: &DeviceSeqLens<'_>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        self.launch_scored(stream, operands, &ScoreViews::default(), lengths, o, lse)
    }

    /// [`launch_with`](Self::launch_with) with the tensors that change scores, each exactly where the problem has it.
    ///
    /// # Errors
    /// As there; a tensor of the scores that is there or not, against the plan, of another type, too short, or not aligned by its element.
    #[inline]
    pub fn launch_scored<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        operands: &ViewOperands<'_>,
        scores: &ScoreViews<'_>,
        lengths: &DeviceSeqLens<'_>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let p = &self.problem;
        let seqlens = lengths.addresses(launch, p, self.params.seqlens)?;
        check_q(p.scheme, &operands.q)?;
        check_scheme("k", p.scheme, operands.k.scheme)?;
        check_scheme("v", p.scheme, operands.v.scheme)?;
        let [q, q_scale, q_bias] = operands.q.addresses(launch, p.q_shape(), &self.q_lengths)?;
        let [k, k_scale, k_block_scale, _] = operands.k.addresses(launch, p.kv_shape(), &self.kv_lengths[0])?;
        let [v, v_scale, v_block_scale, v_unit] = operands.v.addresses(launch, p.v_shape(), &self.kv_lengths[1])?;
        let o = o.checked(launch, "o", self.output.dtype, self.output.layout.span())?;
        let lse = self.output.checked_lse(launch, lse, self.q_lengths.q_scale)?;
        let score = scores.params(launch, p, &self.params.score)?;
        let [q, k, v] = [q, k, v].map(Global::new);
        let [q_scale, q_bias, k_scale, k_block_scale] = [q_scale, q_bias, k_scale, k_block_scale].map(Global::new);
        let [v_scale, v_block_scale, v_unit, lse] = [v_scale, v_block_scale, v_unit, lse].map(Global::new);
        let o = Strided { data: Global::new(o), ..self.params.o };
        let params = AttentionParams {
            q,
            k,
            v,
            q_scale,
            q_bias,
            k_scale,
            k_block_scale,
            v_scale,
            v_block_scale,
            v_unit,
            o,
            lse,
            score,
            seqlens,
            ..self.params
        };
        // SAFETY: all lengths have been checked.
        unsafe { self.launch_params(launch, &params) }
    }

    /// What it writes.
    #[inline]
    pub(super) const fn output(&self) -> &AttentionOutput {
        &self.output
    }

    /// What it launches.
    pub(super) const fn launched(&self) -> &Kernel {
        &self.kernel
    }

    /// The parameter, all but the addresses.
    #[inline]
    pub(super) fn params(&self) -> &AttentionParams {
        &self.params
    }

    /// # Safety
    /// [`params`](Self::params) with the addresses of arrays of the problem's lengths.
    #[inline]
    pub(super) unsafe fn launch_params(&self, launch: &Launch<'_>, params: &AttentionParams) -> Result<()> {
        // SAFETY: the parameter of all INT8 attention kernels, with all addresses; grid, block and shared memory are those of the
        // kernel's variant.
        unsafe { launch.kernel_with(&self.kernel, params) }
    }
}

impl AttentionOutput {
    /// The address of the log-sum-exp, or 0 where it is not wanted.
    #[inline]
    pub(super) fn checked_lse(
        &self,
        launch: &Launch<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
        rows: usize,
    ) -> Result<u64> {
        match (lse, self.lse) {
            (Some(lse), true) => lse.checked(launch, "lse", rows),
            (None, false) => Ok(0),
            (Some(_), false) => Err(Error::Optional { name: "lse", given: "given", planned: "without" }),
            (None, true) => Err(Error::Optional { name: "lse", given: "not given", planned: "with" }),
        }
    }
}
