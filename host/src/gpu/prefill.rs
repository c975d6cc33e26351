//! Attention of chunks of new tokens on a paged cache: the attention kernels read its pages.

use super::attention::AttentionPlan;
use super::kernel::Kernel;
use super::memory::{Checked, Words};
use super::modules::Wanted;
use super::operands::{Addresses, ViewQ, check_q};
use super::{AttentionOutput, DeviceSlice, DeviceSliceMut, Family, Gpu, ScoreViews, StreamRef};
use crate::decode::{DecodeResult, ViewPagedKv};
use crate::error::{Error, Result};
use crate::prefill::PrefillProblem;
use crate::problem::{AttentionProblem, Scheme};
use crate::quantized::Lengths;
use int_flash_attention_kernels::params::{AttentionParams, BlockParams, GatherParams, Global, SeqLens, Strided};
use int_flash_attention_kernels::quantize::launch::{PAGE_SCALES, PAGE_SCALES_THREADS, page_scales_grid};

/// A prefill, checked and ready to be launched, of any lengths up to the problem's.
#[derive(Clone, Debug)]
pub struct PrefillPlan {
    gpu: Gpu,
    attention: AttentionPlan,
    page_scales: Kernel,
    problem: PrefillProblem,
    output: AttentionOutput,
    q_lengths: Lengths,
    /// Where the workspace's arrays begin: scales of blocks of K, of V, units of V, and its end.
    workspace: [usize; 4],
}

/// The queries of a prefill.
#[derive(Clone, Debug)]
pub struct PrefillQueries<'a> {
    /// Quantized in the default scheme with the cache's `k_offset`, as an append does with its tokens.
    pub q: ViewQ<'a>,
    /// Where the problem packs queries: where those of each sequence begin, and behind the last where they end, one more than sequences. Read on the
    /// device; offsets that decrease or go too far give results without meaning, and no access outside of the tensors.
    pub cu_seqlens_q: Option<DeviceSlice<'a, u32>>,
}

/// Floats of an array of the workspace, in whole 16 bytes.
const fn whole(len: usize) -> usize {
    len.next_multiple_of(4)
}

impl Gpu {
    /// The attention of new tokens on what a paged cache has of their sequences, whose pages the kernels read where they are. Lengths, block tables and offsets
    /// are read on the device, so that a graph that has recorded a launch serves every step:
    ///
    /// ```no_run
    /// use int_flash_attention::{
    ///     AttentionOutput, DType, DecodeResult, Gpu, PrefillProblem, PrefillQueries, ScoreViews, TensorLayout, ViewPagedKv,
    /// };
    /// # fn step(gpu: &Gpu, queries: &PrefillQueries<'_>, cache: &ViewPagedKv<'_>, o: &mut int_flash_attention::DeviceBuffer<half::f16>) -> int_flash_attention::Result<()> {
    /// // chunks of up to 16 prompts and single tokens of decoding sequences, 2048 tokens in all
    /// let problem = PrefillProblem::new(16, 32, 8, 512, 32768, 128).with_packed_queries(2048);
    /// let layout = TensorLayout::bnhd(problem.q_shape()); // [1, 32 heads, 2048 tokens, 128], token by token
    /// let plan = gpu.plan_prefill(&problem, &AttentionOutput { layout, dtype: DType::F16, lse: false })?;
    /// let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
    /// let stream = gpu.stream()?;
    /// // after an append, which has quantized the queries too
    /// let result = DecodeResult { o: o.into(), lse: None };
    /// plan.launch(&stream, queries, cache, &ScoreViews::default(), workspace.slice_mut(), result)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A wrong problem; an output of another shape, or one in which elements overlap; no kernel that fits this GPU; more heads or sequences than a grid has;
    /// [`Error::SlowInt8`] as of [`plan_attention`](Self::plan_attention).
    pub fn plan_prefill(&self, problem: &PrefillProblem, output: &AttentionOutput) -> Result<PrefillPlan> {
        problem.check()?;
        self.check_int8_rate()?;
        let whole = problem.whole();
        self.load(&[Wanted::alone(self.attention_variant(&whole)?.name), Wanted::from(&PAGE_SCALES)])?;
        self.prefill_with(problem, self.plan_attention(&whole, output)?)
    }

    /// [`plan_prefill`](Self::plan_prefill) with a kernel of this family, for comparisons.
    ///
    /// # Errors
    /// As there; a GPU that does not run the family; a head dim that it does not have.
    pub fn plan_prefill_of(
        &self,
        family: Family,
        problem: &PrefillProblem,
        output: &AttentionOutput,
    ) -> Result<PrefillPlan> {
        problem.check()?;
        self.prefill_with(problem, self.plan_attention_of(family, &problem.whole(), output)?)
    }

    fn prefill_with(&self, problem: &PrefillProblem, attention: AttentionPlan) -> Result<PrefillPlan> {
        let AttentionProblem { batch, heads_kv, seqlen_kv, .. } = problem.attention;
        let too_many = || Error::Grid { kernel: PAGE_SCALES.entry, shape: problem.attention.kv_shape().to_string() };
        let grid = page_scales_grid(batch, heads_kv, seqlen_kv).ok_or_else(too_many)?;
        let page_scales = self.kernel(PAGE_SCALES.module, PAGE_SCALES.entry, grid, PAGE_SCALES_THREADS, 0)?;
        let blocks = whole(problem.blocks()?);
        Ok(PrefillPlan {
            gpu: self.clone(),
            output: *attention.output(),
            attention,
            page_scales,
            problem: *problem,
            q_lengths: Lengths::of(problem.q_shape())?,
            workspace: [0, blocks, 2 * blocks, 2 * blocks + whole(batch * heads_kv)],
        })
    }
}

impl PrefillPlan {
    /// Floats that the launch needs for itself, whatever they hold; launches that may run at one time need one each.
    #[must_use]
    pub const fn workspace_len(&self) -> usize {
        self.workspace[3]
    }

    /// The attention kernel's name.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.attention.kernel()
    }

    /// The family that it is of.
    #[must_use]
    pub fn family(&self) -> Family {
        self.attention.family()
    }

    /// Gives the kernels to the stream: no allocation, no waiting, capturable. The cache has the new tokens; sequences have at most the problem's lengths, and count
    /// as cut there. `lse` of packed queries is `[heads_q][total_q]`; rows of `o` and `lse` that belong to no sequence are not written.
    ///
    /// # Errors
    /// Queries of another shape; a pool that is not of whole pages, or of none; a block table without room for the longest sequence; a buffer of another type,
    /// too short, or not aligned (16 bytes for the pool, the operand of Q and the workspace, the others by their elements); offsets, tensors of the scores or
    /// `lse` there or not, against the plan; the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        queries: &PrefillQueries<'_>,
        cache: &ViewPagedKv<'_>,
        scores: &ScoreViews<'_>,
        workspace: DeviceSliceMut<'_, f32>,
        result: DecodeResult<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let AttentionProblem { batch, heads_kv, head_dim, seqlen_kv, .. } = self.problem.attention;
        check_q(Scheme::Default, &queries.q)?;
        self.problem.check_offsets(queries.cu_seqlens_q.as_ref())?;
        let [q, q_scale, q_bias] = queries.q.addresses(launch, self.problem.q_shape(), &self.q_lengths)?;
        let offsets = queries.cu_seqlens_q.map_or(Ok(0), |offsets| offsets.words(launch, "cu_seqlens_q", batch + 1))?;
        let pages = self.problem.check_pages(cache.pages.len(), cache.v4_pages, cache.table_stride)?;
        let pool = cache.pages.checked(launch, "pages", cache.pages.len())?;
        let entries = self.problem.table_len(cache.table_stride);
        let block_table = Global::new(cache.block_table.checked_elements(launch, "block_table", entries)?);
        let seqlens_kv = Global::new(cache.seqlens_kv.checked_elements(launch, "seqlens_kv", batch)?);
        let workspace = workspace.checked(launch, "workspace", self.workspace_len())?;
        let o = result.o.checked(launch, "o", self.output.dtype, self.output.layout.span())?;
        let lse = self.output.checked_lse(launch, result.lse, self.q_lengths.q_scale)?;
        let planned = self.problem.paged(*self.attention.params(), pages, cache.table_stride);
        let score = scores.params(launch, &self.problem.whole(), &planned.score)?;
        let [k_block_scale, v_block_scale, v_unit, _] =
            self.workspace.map(|at| Global::new(workspace + (at * size_of::<f32>()) as u64));
        let of_blocks = GatherParams {
            pool: Global::new(pool),
            block_table,
            seqlens_kv,
            k_block_scale,
            v_block_scale,
            v_unit,
            pages: pages as u32,
            table_stride: cache.table_stride as u32,
            seqlen_kv: seqlen_kv as u32,
            heads_kv: heads_kv as u32,
            head_dim: head_dim as u32,
            ..GatherParams::NONE
        };
        let [v, k_scale, v_scale] = self.problem.page_parts().map(|at| pool + at as u64);
        let params = AttentionParams {
            q: Global::new(q),
            k: Global::new(pool),
            v: Global::new(v),
            q_scale: Global::new(q_scale),
            q_bias: Global::new(q_bias),
            k_scale: Global::new(k_scale),
            k_block_scale,
            v_scale: Global::new(v_scale),
            v_block_scale,
            v_unit,
            o: Strided { data: Global::new(o), ..planned.o },
            lse: Global::new(lse),
            score,
            seqlens: SeqLens { cu_seqlens_q: Global::new(offsets), seqlens_kv, ..planned.seqlens },
            blocks: BlockParams { block_table, ..planned.blocks },
            ..planned
        };
        // SAFETY: the parameters of these kernels; all lengths have been checked, and pages, lengths and offsets, which the device has, are cut there to what
        // the pool, the block table and Q have; grid and block are the kernels'.
        unsafe {
            launch.kernel_with(&self.page_scales, &of_blocks)?;
            self.attention.launch_params(launch, &params)
        }
    }
}
