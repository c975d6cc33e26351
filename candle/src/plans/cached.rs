//! Attention on a cache: the launches of a decode and of a prefill.

use int_flash_attention::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, AttentionProblem, DType, DecodeHeads, DecodePlan,
    DecodeProblem, DecodeResult, DeviceOperands, DeviceQ, DeviceSlice, DeviceSliceMut, GatherPlan, GatherProblem, Gpu,
    QuantizeQPlan, Result, ScoreViews, SeqLens, StreamRef, TensorLayout, ViewCache, ViewMutOperands, ViewMutQ, ViewQ,
    ViewTables,
};

/// What the plans of a decode depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecodeKey {
    pub problem: DecodeProblem,
    /// Where Q lies.
    pub q: TensorLayout,
    /// The type of Q and of the output.
    pub dtype: DType,
}

/// The quantization of a few queries, and their attention on the pages.
pub struct DecodePlans {
    /// Of the queries: sizes alone.
    queries: AttentionProblem,
    quantize: QuantizeQPlan,
    attend: DecodePlan,
    q_bytes: usize,
}

impl DecodePlans {
    pub fn new(gpu: &Gpu, key: &DecodeKey) -> Result<Self> {
        let DecodeKey { problem, q, dtype } = *key;
        let DecodeProblem { batch, heads_q, heads_kv, seqlen_q, max_seqlen_kv, head_dim, .. } = problem;
        let queries = AttentionProblem::new(batch, heads_q, heads_kv, seqlen_q, max_seqlen_kv, head_dim);
        let layout = TensorLayout::bnhd(problem.q_shape());
        Ok(Self {
            queries,
            quantize: gpu.plan_quantize_q(&queries, q, dtype)?,
            attend: gpu.plan_decode(&problem, &AttentionOutput { layout, dtype, lse: false })?,
            q_bytes: DeviceQ::bytes(&queries)?,
        })
    }

    /// Bytes of the quantized queries, a multiple of 16.
    pub const fn q_bytes(&self) -> usize {
        self.q_bytes
    }

    /// Floats that the attention has for itself.
    pub fn workspace_len(&self) -> usize {
        self.attend.workspace_len()
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

    pub fn attend(
        &self,
        stream: StreamRef<'_>,
        q: &ViewQ<'_>,
        (cache, tables): (&ViewCache<'_>, &ViewTables<'_>),
        heads: &DecodeHeads<DeviceSlice<'_, f32>>,
        workspace: DeviceSliceMut<'_, f32>,
        o: AnySliceMut<'_>,
    ) -> Result<()> {
        let result = DecodeResult { o, lse: None };
        self.attend.launch(stream, q, &cache.sequences(tables), heads, workspace, result)
    }
}

/// What the plans of a prefill depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefillKey {
    pub gather: GatherProblem,
    pub problem: AttentionProblem,
    /// Where Q lies.
    pub q: TensorLayout,
    /// The type of Q and of the output.
    pub dtype: DType,
}

/// Pages to operands, the quantization of the queries, and attention.
pub struct PrefillPlans {
    problem: AttentionProblem,
    gather: GatherPlan,
    quantize: QuantizeQPlan,
    attention: AttentionPlan,
    bytes: usize,
}

impl PrefillPlans {
    pub fn new(gpu: &Gpu, key: &PrefillKey) -> Result<Self> {
        let PrefillKey { gather, problem, q, dtype } = *key;
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
