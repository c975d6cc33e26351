//! The decode: a few new tokens of each sequence on a paged cache.

use super::kernel::Kernel;
use super::memory::Checked;
use super::modules::Wanted;
use super::operands::{Addresses, ViewQ, check_q};
use super::{AttentionOutput, DeviceSlice, DeviceSliceMut, Gpu, StreamRef};
use crate::decode::{DecodeHeads, DecodeProblem, DecodeResult, Split, ViewPagedKv, merged_params};
use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::Lengths;
use int_flash_attention_driver::DeviceAttribute;
use int_flash_attention_kernels::config::decode::{
    self as config, MERGE, MERGE_BOUNDS, MERGE_LEAST_DIMS, OVERLAPPING_MERGE, merge_shared_bytes, partials, workspace,
};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_kernels::params::{Global, MergeSplitsParams, MergedParams, SplitParams, Strided};

/// The fewest blocks that a worker is given: what a piece costs, and its part in the merge, are small beside one.
const MIN_BLOCKS: usize = 1;

/// CTAs of the merge that a multiprocessor has at once before rows are given out whole.
const MERGE_CTAS: usize = 4;

/// A decode, checked and ready to be launched, of any lengths up to the problem's.
#[derive(Clone, Debug)]
pub struct DecodePlan {
    gpu: Gpu,
    attend: Kernel,
    merge: Kernel,
    problem: DecodeProblem,
    output: AttentionOutput,
    lengths: Lengths,
    /// All but the addresses.
    split: SplitParams,
    merged: MergedParams,
    /// Where the workspace's arrays begin: outputs, log-sum-exps, and its end.
    workspace: [usize; 3],
}

impl Gpu {
    /// The decode of a problem. The plan depends on what the problem says and on the GPU alone: lengths, block tables and what is in the cache
    /// are read on the device, so that a graph that has recorded a launch serves every step:
    ///
    /// ```no_run
    /// use int_flash_attention::{
    ///     AttentionOutput, DType, DecodeHeads, DecodeProblem, DecodeResult, Gpu, TensorLayout, ViewPagedKv, ViewQ,
    /// };
    /// # fn step(gpu: &Gpu, q: ViewQ<'_>, cache: ViewPagedKv<'_>, o: &mut int_flash_attention::DeviceBuffer<half::f16>) -> int_flash_attention::Result<()> {
    /// // 16 sequences of up to 8192 tokens, 32 query heads on 8 of K and V
    /// let problem = DecodeProblem::new(16, 32, 8, 8192, 128);
    /// let layout = TensorLayout::bhnd(problem.q_shape());
    /// let plan = gpu.plan_decode(&problem, &AttentionOutput { layout, dtype: DType::F16, lse: false })?;
    /// let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
    /// let stream = gpu.stream()?;
    /// let graph = gpu.capture(&stream, || {
    ///     let result = DecodeResult { o: o.into(), lse: None };
    ///     plan.launch(&stream, &q, &cache, &DecodeHeads::default(), workspace.slice_mut(), result)
    /// })?;
    /// // after each append to the cache, which also makes `q` and counts the lengths up
    /// graph.launch(&stream)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A wrong problem; an output of another shape, or one in which elements overlap; no kernel that fits this GPU.
    pub fn plan_decode(&self, problem: &DecodeProblem, output: &AttentionOutput) -> Result<DecodePlan> {
        self.plan_decode_with(problem, output, None)
    }

    /// [`plan_decode`](Self::plan_decode) with so many workers of at least so many blocks of keys, for measurements.
    ///
    /// # Errors
    /// As there.
    #[doc(hidden)]
    pub fn plan_decode_with(
        &self,
        problem: &DecodeProblem,
        output: &AttentionOutput,
        workers: Option<(usize, usize)>,
    ) -> Result<DecodePlan> {
        problem.check()?;
        AttentionProblem::check_shape("o", output.layout.shape(), problem.q_shape())?;
        output.layout.check_disjoint()?;
        let overlaps = self.overlaps();
        let variant = config::decode(problem.head_dim, problem.v4_pages > 0, overlaps)
            .ok_or_else(|| Error::CacheHeadDim { given: problem.head_dim, allowed: CACHE_HEAD_DIMS.to_vec() })?;
        let shared = self.attribute(DeviceAttribute::MaxSharedMemoryPerMultiprocessor)? as usize;
        let all = self.multiprocessors()? * variant.ctas(shared);
        let (workers, min_blocks) = workers.unwrap_or((problem.workers(all), MIN_BLOCKS));
        let split = problem.split_params(workers, min_blocks);
        let lengths = problem.q_lengths()?;
        let (entry, merge) = (MERGE_BOUNDS[1].entry, if variant.overlaps { OVERLAPPING_MERGE } else { MERGE });
        self.load(&[Wanted::alone(variant.name), Wanted { module: merge, entry }])?;
        let attend =
            self.kernel(variant.name, variant.name, [workers as u32, 1, 1], variant.threads, variant.shared_bytes)?;
        let d = problem.head_dim;
        // Few rows would leave most of the GPU idle.
        let few = lengths.q_scale * (d / MERGE_LEAST_DIMS) <= MERGE_CTAS * self.multiprocessors()?;
        let cta_dims = if few { MERGE_LEAST_DIMS } else { d };
        let ctas = i32::try_from(lengths.q_scale * (d / cta_dims))
            .map_err(|_| Error::Grid { kernel: entry, shape: problem.q_shape().to_string() })?;
        let merge = self.kernel(merge, entry, [ctas as u32, 1, 1], cta_dims, merge_shared_bytes(cta_dims))?;
        let (attend, merge) =
            if variant.overlaps { (attend.overlapping(), merge.overlapping()) } else { (attend, merge) };
        let overflow = || Error::Overflow { what: "the workspace", shape: problem.q_shape().to_string() };
        let workspace = workspace(&split, d).ok_or_else(overflow)?;
        Ok(DecodePlan {
            gpu: self.clone(),
            attend,
            merge,
            problem: *problem,
            output: *output,
            lengths,
            split,
            merged: merged_params(&output.layout, output.dtype, partials(&split), cta_dims),
            workspace,
        })
    }
}

impl Gpu {
    /// Whether launches may overlap.
    pub(super) fn overlaps(&self) -> bool {
        config::overlaps_on(self.0.capability, self.0.cuda)
    }
}

impl DecodePlan {
    /// Floats that the launch needs for itself, whatever they hold; launches that may run at one time need one each.
    #[must_use]
    pub fn workspace_len(&self) -> usize {
        self.workspace[2]
    }

    /// The kernel's name.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.attend.entry
    }

    /// How keys are split.
    #[must_use]
    pub fn split(&self) -> Split {
        self.problem.split
    }

    /// Gives the kernels to the stream: no allocation, no waiting, capturable. `q` is quantized in the default scheme, with the cache's
    /// `k_offset`.
    ///
    /// # Errors
    /// Operands of other shapes; a pool that is not of whole pages; a block table without room for the longest sequence; a buffer of another type,
    /// too short, or not aligned (16 bytes for the pool, the operand of Q and the workspace, the others by their elements); slopes, sinks or `lse` there or not, against the plan; the driver's.
    #[inline]
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        q: &ViewQ<'_>,
        cache: &ViewPagedKv<'_>,
        heads: &DecodeHeads<DeviceSlice<'_, f32>>,
        workspace: DeviceSliceMut<'_, f32>,
        result: DecodeResult<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let p = &self.problem;
        check_q(Scheme::Default, q)?;
        p.check_heads(heads)?;
        let [q, q_scale, q_bias] = q.addresses(launch, p.q_shape(), &self.lengths)?;
        let pages = p.check_pages(cache.pages.len(), cache.v4_pages, cache.table_stride)?;
        let pool = cache.pages.checked(launch, "pages", cache.pages.len())?;
        let block_table = cache.block_table.checked_elements(launch, "block_table", p.table_len(cache.table_stride))?;
        let seqlens_kv = cache.seqlens_kv.checked_elements(launch, "seqlens_kv", p.batch)?;
        let optional = |name, array: &Option<DeviceSlice<'_, f32>>| {
            array.as_ref().map_or(Ok(0), |array| array.checked_elements(launch, name, p.heads_q))
        };
        let (slopes, sinks) = (optional("alibi_slopes", &heads.alibi_slopes)?, optional("sinks", &heads.sinks)?);
        let workspace = workspace.checked(launch, "workspace", self.workspace_len())?;
        let o = result.o.checked(launch, "o", self.output.dtype, self.output.layout.span())?;
        let lse = match (result.lse, self.output.lse) {
            (Some(lse), true) => lse.checked(launch, "lse", self.lengths.q_scale)?,
            (None, false) => 0,
            (Some(_), false) => return Err(Error::Optional { name: "lse", given: "given", planned: "without" }),
            (None, true) => return Err(Error::Optional { name: "lse", given: "not given", planned: "with" }),
        };
        let split = SplitParams { seqlens_kv: Global::new(seqlens_kv), ..self.split };
        let [partial_o, partial_lse, _] = self.workspace.map(|at| workspace + (at * size_of::<f32>()) as u64);
        let (partial_o, partial_lse) = (Global::new(partial_o), Global::new(partial_lse));
        let mut params = p.params(split, cache.table_stride, pages);
        (params.q, params.q_scale, params.q_bias) = (Global::new(q), Global::new(q_scale), Global::new(q_bias));
        (params.pages, params.block_table) = (Global::new(pool), Global::new(block_table));
        params.alibi_slopes = Global::new(slopes);
        (params.partial_o, params.partial_lse) = (partial_o, partial_lse);
        let out = MergedParams {
            o: Strided { data: Global::new(o), ..self.merged.o },
            lse: Global::new(lse),
            sinks: Global::new(sinks),
            ..self.merged
        };
        let merge = MergeSplitsParams { split, partial_o, partial_lse, out };
        // SAFETY: the parameters of these kernels; all lengths have been checked, and those that the device has are cut there to what the block
        // table and the pool have room for; grid, block and shared memory are the kernels'.
        unsafe {
            launch.kernel_with(&self.attend, &params)?;
            launch.kernel_with(&self.merge, &merge)
        }
    }
}
