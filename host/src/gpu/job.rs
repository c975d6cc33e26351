//! The whole job: from float tensors on the GPU to the output, by one kernel for short K and V or by two.

use super::ScoreViews;
use super::attention::AttentionPlan;
use super::chain::Chain;
use super::kernel::Kernel;
use super::memory::Checked;
use super::modules::Wanted;
use super::quantize::{Pass, QuantizeLayouts};
use super::workspace::Arrays;
use super::{AnySlice, AnySliceMut, AttentionOutput, DeviceSeqLens, DeviceSliceMut, Gpu, StreamRef};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, ScoreMod, SeqLens, Sequences};
use crate::quantized::Lengths;
use int_flash_attention_kernels::config::short::{FEW_WARPS, SHORT, ShortLaunch, ShortVariant, short, short_grid};
use int_flash_attention_kernels::params::{AttentionParams, Global, QuantizeParams, ShortParams, Strided};
use std::sync::Arc;

/// How a [`JobPlan`] does its job; the output is the same but for the order of float32 sums, and for narrow blocks
/// ([`Gpu::takes_narrow`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobPath {
    /// One kernel, which quantizes K and V of a head to its shared memory and attends all of the head's queries.
    Fused,
    /// Quantization to the workspace, then attention.
    Quantized,
}

/// Attention on float tensors, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct JobPlan {
    gpu: Gpu,
    problem: AttentionProblem,
    layouts: QuantizeLayouts,
    output: AttentionOutput,
    /// Elements of the log-sum-exp.
    rows: usize,
    way: Way,
}

/// What is launched.
#[derive(Clone, Debug)]
enum Way {
    Fused { kernel: Kernel, params: Box<ShortParams> },
    Quantized(Box<Quantized>),
}

#[derive(Clone, Debug)]
struct Quantized {
    pass: Pass,
    attention: AttentionPlan,
    arrays: Arrays,
    workspace_bytes: usize,
    /// Both kernels in one launch, where there are no more of them.
    chain: Option<Arc<Chain>>,
}

impl Gpu {
    /// Attention from float16, bfloat16 or float32 tensors to the output, by the way that was measured to be the faster one: a single kernel
    /// where K and V are short (`int_flash_attention_kernels::config::short`), else quantization and attention. Nothing is allocated:
    /// what the second way keeps in between is in a workspace, of which the plan tells the size.
    ///
    /// # Errors
    /// As [`plan_quantize`](Self::plan_quantize) and [`plan_attention`](Self::plan_attention).
    pub fn plan_job(
        &self,
        problem: &AttentionProblem,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<JobPlan> {
        self.check_int8_rate()?;
        self.plan_job_anyway(problem, layouts, output)
    }

    /// [`plan_job`](Self::plan_job) also where float16 would be faster.
    pub(crate) fn plan_job_anyway(
        &self,
        problem: &AttentionProblem,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<JobPlan> {
        problem.check()?;
        let (heads, lengths) = Self::fused_heads(problem);
        let pays = match self.fused(problem) {
            Ok(variant) => {
                let mean_kv = match problem.sequences {
                    Sequences::Packed { total_kv, .. } => total_kv.div_ceil(problem.batch),
                    Sequences::Equal | Sequences::KeyLengths => problem.seqlen_kv,
                };
                variant.pays(heads, lengths, mean_kv, self.multiprocessors()?, self.0.shared_bytes)
            }
            Err(_) => false,
        };
        self.plan_job_of(if pays { JobPath::Fused } else { JobPath::Quantized }, problem, layouts, output)
    }

    /// [`plan_job`](Self::plan_job) by this way, for comparisons.
    ///
    /// # Errors
    /// As there; no kernel for short K and V for the head dim or the scheme, or more keys than fit its shared memory.
    pub fn plan_job_of(
        &self,
        path: JobPath,
        problem: &AttentionProblem,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<JobPlan> {
        problem.check()?;
        for (name, layout, shape) in [
            ("q", &layouts.q, problem.q_shape()),
            ("k", &layouts.k, problem.kv_shape()),
            ("v", &layouts.v, problem.v_shape()),
            ("o", &output.layout, problem.o_shape()),
        ] {
            AttentionProblem::check_shape(name, layout.shape(), shape)?;
        }
        output.layout.check_disjoint()?;
        let way = match path {
            JobPath::Fused => self.plan_fused(problem, layouts, output)?,
            JobPath::Quantized => self.plan_quantized(problem, layouts, output)?,
        };
        let rows = Lengths::of(problem.q_shape())?.q_scale;
        Ok(JobPlan { gpu: self.clone(), problem: *problem, layouts: *layouts, output: *output, rows, way })
    }

    /// The kernel that takes K and V of a problem in one piece.
    fn fused(&self, problem: &AttentionProblem) -> Result<&'static ShortVariant> {
        // All fields by name: one that is added is refused here, or the kernel has it.
        let &AttentionProblem {
            head_dim,
            head_dim_v: _,
            scheme,
            seqlen_kv,
            batch: _,
            heads_q: _,
            heads_kv: _,
            seqlen_q: _,
            window: _,
            softmax_scale: _,
            sequences: _,
            score_mod,
        } = problem;
        let has = score_mod == ScoreMod::NONE && scheme == Scheme::Default && problem.value_dim() == head_dim;
        let variant = short(head_dim).filter(|_| has).ok_or_else(|| Error::NotShort {
            given: head_dim,
            allowed: SHORT.iter().map(|variant| variant.head_dim).collect(),
        })?;
        if seqlen_kv > variant.most_keys(self.0.shared_bytes) {
            return Err(Error::SharedMemory {
                kernel: variant.name,
                needed: variant.shared_bytes(FEW_WARPS, seqlen_kv),
                available: self.0.shared_bytes,
                device: self.name().to_owned(),
            });
        }
        Ok(variant)
    }

    /// Heads of K and V, of Q for each, and lengths.
    fn fused_heads(problem: &AttentionProblem) -> ((usize, usize), (usize, usize)) {
        let heads = problem.batch * problem.heads_kv;
        ((heads, problem.group()), (problem.seqlen_q, problem.seqlen_kv))
    }

    fn plan_fused(
        &self,
        problem: &AttentionProblem,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<Way> {
        let variant = self.fused(problem)?;
        let (of, lengths) = Self::fused_heads(problem);
        let ShortLaunch { warps, shared_bytes, parts } =
            variant.launch(of, lengths, self.multiprocessors()?, self.0.shared_bytes);
        let QuantizeLayouts { q, k, v, dtype } = layouts;
        let params = problem.short_params([q, k, v], *dtype, (&output.layout, output.dtype), parts as u32);
        let grid = short_grid(problem.heads_kv, problem.batch, parts, params.sequences_first != 0)
            .ok_or_else(|| Error::Grid { kernel: variant.name, shape: format!("k {}", problem.kv_shape()) })?;
        let kernel = self.kernel(variant.name, variant.name, grid, 32 * warps, shared_bytes)?;
        Ok(Way::Fused { kernel, params: Box::new(params) })
    }

    fn plan_quantized(
        &self,
        problem: &AttentionProblem,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<Way> {
        let mut wanted = Pass::wanted(problem, layouts.dtype, true);
        wanted.push(Wanted::alone(self.attention_variant(problem)?.name));
        self.load(&wanted)?;
        let pass = Pass::new(self, problem, layouts.dtype, Some(layouts.q), Some((layouts.k, layouts.v)))?;
        let pass = pass.with_shared_k(self.takes_narrow(problem));
        let attention = self.plan_attention_anyway(problem, output)?;
        let (arrays, workspace_bytes) = Arrays::of(problem, pass.workspace_len())?;
        let chain = |quantize| Chain::new(self, (quantize, &pass.params), (attention.launched(), attention.params()));
        let chain = pass.only_kernel().map(chain).transpose()?.map(Arc::new);
        Ok(Way::Quantized(Box::new(Quantized { pass, attention, arrays, workspace_bytes, chain })))
    }
}

impl JobPlan {
    /// Which way the job is done.
    #[must_use]
    pub fn path(&self) -> JobPath {
        match self.way {
            Way::Fused { .. } => JobPath::Fused,
            Way::Quantized(_) => JobPath::Quantized,
        }
    }

    /// The name of the kernel that attends.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        match &self.way {
            Way::Fused { kernel, .. } => kernel.entry,
            Way::Quantized(quantized) => quantized.attention.kernel(),
        }
    }

    /// Bytes of the workspace; none for the one kernel. It may be used for something else as soon as the launch is done, and jobs that
    /// follow one another on a stream may share one.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        match &self.way {
            Way::Fused { .. } => 0,
            Way::Quantized(quantized) => quantized.workspace_bytes,
        }
    }

    /// Gives the job to the stream: no allocation, no waiting, capturable. On the stream of the plan's first launch it is one call of the driver; on
    /// another, where two kernels take two, make a plan of its own. `q`, `k`, `v` and `o` in the plan's layouts; `lse`
    /// `[batch][heads_q][seqlen_q]`, exactly where the plan was made with it.
    ///
    /// # Errors
    /// A buffer of another type, too short, or not aligned (the workspace and `lse` by 16 bytes, the others by their elements); `lse`
    /// there or not, against the plan; the driver's.
    #[inline]
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        inputs: [AnySlice<'_>; 3],
        workspace: DeviceSliceMut<'_, u8>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        self.launch_scored(stream, inputs, &ScoreViews::default(), &SeqLens::Equal, workspace, o, lse)
    }

    /// [`launch`](Self::launch) with the lengths of the sequences, as [`AttentionPlan::launch_with`].
    ///
    /// # Errors
    /// As there; lengths of another kind than the problem's, too few, or not aligned to 4 bytes.
    #[inline]
    pub fn launch_with<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        inputs: [AnySlice<'_>; 3],
        lengths: &DeviceSeqLens<'_>,
        workspace: DeviceSliceMut<'_, u8>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        self.launch_scored(stream, inputs, &ScoreViews::default(), lengths, workspace, o, lse)
    }

    /// [`launch_with`](Self::launch_with) the tensors that change scores, as [`AttentionPlan::launch_scored`].
    ///
    /// # Errors
    /// As there, and as that function's.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub fn launch_scored<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        [q, k, v]: [AnySlice<'_>; 3],
        scores: &ScoreViews<'_>,
        lengths: &DeviceSeqLens<'_>,
        workspace: DeviceSliceMut<'_, u8>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let dtype = self.layouts.dtype;
        let q = Global::new(q.checked(launch, "q", dtype, self.layouts.q.span())?);
        let k = Global::new(k.checked(launch, "k", dtype, self.layouts.k.span())?);
        let v = Global::new(v.checked(launch, "v", dtype, self.layouts.v.span())?);
        let o = Global::new(o.checked(launch, "o", self.output.dtype, self.output.layout.span())?);
        let lse = Global::new(self.output.checked_lse(launch, lse, self.rows)?);
        match &self.way {
            Way::Fused { kernel, params } => {
                let of = &params.attention;
                let seqlens = lengths.addresses(launch, &self.problem, of.seqlens)?;
                let params = ShortParams {
                    attention: AttentionParams { o: Strided { data: o, ..of.o }, lse, seqlens, ..*of },
                    q: Strided { data: q, ..params.q },
                    k: Strided { data: k, ..params.k },
                    v: Strided { data: v, ..params.v },
                    ..**params
                };
                // SAFETY: the kernel's parameter; all lengths have been checked; grid, block and shared memory are those of the plan's
                // variant and lengths.
                unsafe { launch.kernel_with(kernel, &params) }
            }
            Way::Quantized(way) => {
                let base = workspace.checked(launch, "the workspace", way.workspace_bytes)?;
                let (from, to) = (&way.pass.with(launch, lengths)?, way.attention.params());
                let score = scores.params(launch, &self.problem, &to.score)?;
                let seqlens = lengths.addresses(launch, &self.problem, to.seqlens)?;
                let quantize = QuantizeParams {
                    q: Strided { data: q, ..from.q },
                    k: Strided { data: k, ..from.k },
                    v: Strided { data: v, ..from.v },
                    ..way.arrays.written(base, from)
                };
                let attention = AttentionParams {
                    o: Strided { data: o, ..to.o },
                    lse,
                    seqlens,
                    score,
                    ..way.arrays.read(base, to)
                };
                // SAFETY: both parameters are whole: the tensors have been checked, and the arrays lie in the workspace one behind the
                // other with the lengths of the problem. The attention reads what the stream has the quantization write before.
                unsafe {
                    if let Some(chain) = &way.chain {
                        return chain.launch(launch, &quantize, &attention);
                    }
                    way.pass.launch(&self.gpu, launch, &quantize)?;
                    way.attention.launch_params(launch, &attention)
                }
            }
        }
    }
}
