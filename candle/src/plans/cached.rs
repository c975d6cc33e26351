//! Attention on a cache: the launches of a step, and of one that makes operands of pages first.

use crate::cache::OnPages;
use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, AttentionProblem, DType, DecodeHeads, DecodePlan,
    DecodeResult, DeviceOperands, DeviceQ, DeviceSlice, DeviceSliceMut, GatherPlan, GatherProblem, Gpu, PrefillPlan,
    PrefillQueries, QuantizeQPlan, Result, ScoreViews, SeqLens, Shape, StreamRef, TensorLayout, ViewCache,
    ViewMutOperands, ViewMutQ, ViewQ, ViewTables,
};

/// What the plans of a step depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    pub on: OnPages,
    /// Where Q lies.
    pub q: TensorLayout,
    /// The type of Q and of the output.
    pub dtype: DType,
}

/// The quantization of queries, and their attention on the pages.
pub struct StepPlans {
    /// Of the queries: sizes alone.
    queries: AttentionProblem,
    quantize: QuantizeQPlan,
    attend: Attend,
    q_bytes: usize,
}

enum Attend {
    Decode(Box<DecodePlan>),
    Prefill(Box<PrefillPlan>),
}

impl StepPlans {
    pub fn new(gpu: &Gpu, key: &StepKey) -> Result<Self> {
        let StepKey { on, q, dtype } = *key;
        let output = |shape| AttentionOutput { layout: TensorLayout::bnhd(shape), dtype, lse: false };
        let (shape, heads_kv, seqlen_kv, attend) = match on {
            OnPages::Decode(problem) => {
                let shape = problem.q_shape();
                let plan = gpu.plan_decode(&problem, &output(shape))?;
                (shape, problem.heads_kv, problem.max_seqlen_kv, Attend::Decode(Box::new(plan)))
            }
            OnPages::Prefill(problem) => {
                let (shape, AttentionProblem { heads_kv, seqlen_kv, .. }) = (problem.q_shape(), problem.attention);
                let plan = gpu.plan_prefill(&problem, &output(shape))?;
                (shape, heads_kv, seqlen_kv, Attend::Prefill(Box::new(plan)))
            }
        };
        // Packed queries are those of one sequence: all sequences of a cache have one offset.
        let Shape { batch, heads, seqlen, head_dim } = shape;
        let queries = AttentionProblem::new(batch, heads, heads_kv, seqlen, seqlen_kv, head_dim);
        Ok(Self {
            queries,
            quantize: gpu.plan_quantize_q(&queries, q, dtype)?,
            attend,
            q_bytes: DeviceQ::bytes(&queries)?,
        })
    }

    /// Bytes of the quantized queries, a multiple of 16.
    pub const fn q_bytes(&self) -> usize {
        self.q_bytes
    }

    /// Floats that the attention has for itself.
    pub fn workspace_len(&self) -> usize {
        match &self.attend {
            Attend::Decode(plan) => plan.workspace_len(),
            Attend::Prefill(plan) => plan.workspace_len(),
        }
    }

    /// Floats of the offsets that [`quantize`](Self::quantize) asks for.
    pub const fn offsets_len(&self) -> usize {
        self.queries.batch * self.queries.heads_kv * self.queries.head_dim
    }

    /// Where the quantized queries lie in memory of so many bytes, for an append that makes them.
    pub fn queries<'a>(&self, memory: DeviceSliceMut<'a, u8>) -> Result<ViewMutQ<'a>> {
        ViewMutQ::in_buffer(&self.queries, memory)
    }

    /// Quantizes queries; `k_offset` is what the cache takes out of its keys, for each sequence.
    pub fn quantize<'a>(
        &self,
        stream: StreamRef<'_>,
        q: AnySlice<'_>,
        k_offset: DeviceSlice<'_, f32>,
        memory: DeviceSliceMut<'a, u8>,
    ) -> Result<ViewMutQ<'a>> {
        let mut out = self.queries(memory)?;
        self.quantize.launch(stream, q, k_offset, &mut out)?;
        Ok(out)
    }

    /// `seqlens_q` are the offsets of packed queries.
    pub fn attend(
        &self,
        stream: StreamRef<'_>,
        (q, seqlens_q): (ViewQ<'_>, Option<DeviceSlice<'_, u32>>),
        (cache, tables): (&ViewCache<'_>, &ViewTables<'_>),
        scores: &ScoreViews<'_>,
        workspace: DeviceSliceMut<'_, f32>,
        o: AnySliceMut<'_>,
    ) -> Result<()> {
        let (pages, result) = (cache.sequences(tables), DecodeResult { o, lse: None });
        match &self.attend {
            Attend::Decode(plan) => {
                let heads = DecodeHeads { alibi_slopes: scores.alibi_slopes, sinks: scores.sinks };
                plan.launch(stream, &q, &pages, &heads, workspace, result)
            }
            Attend::Prefill(plan) => {
                let queries = PrefillQueries { q, cu_seqlens_q: seqlens_q };
                plan.launch(stream, &queries, &pages, scores, workspace, result)
            }
        }
    }
}

/// What the plans of attention on gathered pages depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GatheredKey {
    pub gather: GatherProblem,
    pub problem: AttentionProblem,
    /// Where Q lies.
    pub q: TensorLayout,
    /// The type of Q and of the output.
    pub dtype: DType,
}

/// Pages to operands, the quantization of the queries, and attention.
pub struct GatheredPlans {
    problem: AttentionProblem,
    gather: GatherPlan,
    quantize: QuantizeQPlan,
    attention: AttentionPlan,
    bytes: usize,
}

impl GatheredPlans {
    pub fn new(gpu: &Gpu, key: &GatheredKey) -> Result<Self> {
        let GatheredKey { gather, problem, q, dtype } = *key;
        let layout = TensorLayout::bnhd(problem.o_shape());
        Ok(Self {
            problem,
            gather: gpu.plan_gather(&gather)?,
            quantize: gpu.plan_quantize_q(&problem, q, dtype)?,
            attention: gpu.plan_attention(&problem, &AttentionOutput { layout, dtype, lse: false })?,
            bytes: DeviceOperands::bytes(&problem)?,
        })
    }

    /// Bytes of the operands, which nothing reads before they are written.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn launch(
        &self,
        stream: StreamRef<'_>,
        q: AnySlice<'_>,
        (cache, tables): (&ViewCache<'_>, &ViewTables<'_>),
        scores: &ScoreViews<'_>,
        memory: DeviceSliceMut<'_, u8>,
        o: AnySliceMut<'_>,
    ) -> Result<()> {
        let mut operands = ViewMutOperands::in_buffer(&self.problem, memory)?;
        self.gather.launch(stream, cache, tables, &mut operands.k, &mut operands.v)?;
        let lengths = SeqLens::KeyLengths { seqlens_kv: tables.seqlens_kv };
        let offset = operands.k.offset.as_slice();
        self.quantize.launch_with(stream, q, &lengths, offset, &mut operands.q)?;
        self.attention.launch_scored(stream, &operands.as_view(), scores, &lengths, o, None)
    }
}
