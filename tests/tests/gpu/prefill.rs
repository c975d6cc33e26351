//! Chunks of new tokens on the pages of a cache.

use super::device::OnGpu;
use anyhow::{Context, Result, ensure};
use int_flash_attention::{
    AttentionOutput, DType, DecodeResult, DeviceBuffer, DeviceQ, Family, HostTensor, PagedKv, PrefillPlan,
    PrefillQueries, ScoreMod, ScoreViews, Stream, TensorLayout, Window,
};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_tests::case::variant_of;
use int_flash_attention_tests::prefill::{CHANGES, LONG, PrefillCase, PrefillKernels, case, runs_as_contiguous};
use int_flash_attention_tests::values::Noise;

/// What a launch reads and writes.
struct OnDevice {
    q: DeviceQ,
    pool: DeviceBuffer<u8>,
    table: DeviceBuffer<u32>,
    lengths: DeviceBuffer<u32>,
    offsets: Option<DeviceBuffer<u32>>,
    slopes: Option<DeviceBuffer<f32>>,
    sinks: Option<DeviceBuffer<f32>>,
    workspace: DeviceBuffer<f32>,
    o: DeviceBuffer<f32>,
    lse: DeviceBuffer<f32>,
    stride: usize,
}

impl OnDevice {
    fn new(on: &OnGpu, case: &PrefillCase, plan: &PrefillPlan) -> Result<Self> {
        let (gpu, tensors, shape) = (&on.gpu, case.tensors(), case.problem.q_shape());
        Ok(Self {
            q: case.q.to_device(gpu)?,
            pool: gpu.upload(&case.cache.pool)?,
            table: gpu.upload(case.table())?,
            lengths: gpu.upload(&case.tables.seqlens_kv)?,
            offsets: case.cu_seqlens_q.as_ref().map(|offsets| gpu.upload(offsets)).transpose()?,
            slopes: tensors.alibi_slopes.map(|slopes| gpu.upload(slopes)).transpose()?,
            sinks: tensors.sinks.map(|sinks| gpu.upload(sinks)).transpose()?,
            workspace: gpu.alloc(plan.workspace_len())?,
            // Rows of no sequence are not written.
            o: gpu.upload(&vec![0.0; shape.elements()])?,
            lse: gpu.upload(&vec![f32::NEG_INFINITY; shape.rows()])?,
            stride: case.tables.max_blocks,
        })
    }

    fn launch(&mut self, plan: &PrefillPlan, stream: &Stream) -> int_flash_attention::Result<()> {
        let queries = PrefillQueries { q: self.q.view(), cu_seqlens_q: self.offsets.as_ref().map(DeviceBuffer::slice) };
        let cache = PagedKv {
            pages: self.pool.slice(),
            v4_pages: 0,
            block_table: self.table.slice(),
            table_stride: self.stride,
            seqlens_kv: self.lengths.slice(),
        };
        let scores = ScoreViews {
            alibi_slopes: self.slopes.as_ref().map(DeviceBuffer::slice),
            sinks: self.sinks.as_ref().map(DeviceBuffer::slice),
            ..ScoreViews::default()
        };
        let result = DecodeResult { o: (&mut self.o).into(), lse: Some(self.lse.slice_mut()) };
        plan.launch(stream, &queries, &cache, &scores, self.workspace.slice_mut(), result)
    }

    fn results(&self, case: &PrefillCase) -> Result<(HostTensor, Vec<f32>)> {
        let layout = TensorLayout::bhnd(case.problem.q_shape());
        Ok((HostTensor::new(self.o.to_vec()?, layout)?, self.lse.to_vec()?))
    }
}

fn plan(on: &OnGpu, case: &PrefillCase) -> Result<PrefillPlan> {
    let layout = TensorLayout::bhnd(case.problem.q_shape());
    let output = AttentionOutput { layout, dtype: DType::F32, lse: true };
    let has = variant_of(on.family, &case.problem.attention).is_some();
    let family = if has { on.family } else { Family::Sm80 };
    Ok(on.gpu.plan_prefill_of(family, &case.problem, &output)?)
}

impl PrefillKernels for OnGpu {
    fn prefill(&self, case: &PrefillCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)> {
        ensure!(dtype == DType::F32, "outputs in float32 alone");
        let (plan, stream) = (plan(self, case)?, self.gpu.stream()?);
        let mut device = OnDevice::new(self, case, &plan)?;
        device.launch(&plan, &stream)?;
        stream.synchronize()?;
        device.results(case)
    }
}

/// Every change of the scores and head dim, packed and not: the bits of the same kernels on operands that are gathered.
pub fn as_operands(on: &OnGpu) -> Result<()> {
    for (i, &change) in CHANGES.iter().enumerate() {
        for (seed, head_dim) in CACHE_HEAD_DIMS.into_iter().enumerate() {
            for packed in [true, false] {
                let case = case(&LONG, head_dim, packed, change, (5 * i + seed) as u64)?;
                let what = || format!("{head_dim} {change:?} {packed}");
                runs_as_contiguous(&case, on, &[]).with_context(what)?;
            }
        }
    }
    Ok(())
}

/// A prefill of such sequences, bit for bit as on operands that are gathered.
pub fn runs(
    on: &OnGpu,
    lengths: &[(u32, u32)],
    head_dim: usize,
    packed: bool,
    change: (ScoreMod, Window),
    seed: u64,
) -> Result<()> {
    runs_as_contiguous(&case(lengths, head_dim, packed, change, seed)?, on, &[])
}

/// Hands what launches a prefill and gives its bits to `all`.
pub fn repeats(
    on: &OnGpu,
    seed: u64,
    all: impl FnOnce(&mut dyn FnMut(&Stream) -> Result<Vec<u8>>) -> Result<()>,
) -> Result<()> {
    let case = case(&LONG, 64, true, CHANGES[0], seed)?;
    let plan = plan(on, &case)?;
    let mut device = OnDevice::new(on, &case, &plan)?;
    all(&mut |stream| {
        device.launch(&plan, stream)?;
        stream.synchronize()?;
        let (o, lse) = device.results(&case)?;
        Ok([o.bytes(), bytemuck::cast_slice(&lse)].concat())
    })
}

/// One graph, replayed with other tables, lengths and offsets, hostile ones among them, and then as at first.
pub fn graph(on: &OnGpu) -> Result<()> {
    let case = case(&LONG, 128, true, CHANGES[0], 3)?;
    let (plan, stream) = (plan(on, &case)?, on.gpu.stream()?);
    let mut device = OnDevice::new(on, &case, &plan)?;
    let graph = on.gpu.capture(&stream, || device.launch(&plan, &stream))?;
    graph.launch(&stream)?;
    stream.synchronize()?;
    let (want, want_lse) = device.results(&case)?;
    let mut noise = Noise::new(7, [1; 4]);
    for _ in 0..20 {
        let mut any = |len: usize, below: u32| {
            let one = |noise: &mut Noise| if noise.word().is_multiple_of(4) { u32::MAX } else { noise.word() % below };
            (0..len).map(|_| one(&mut noise)).collect::<Vec<u32>>()
        };
        device.table.copy_from(&any(case.table().len(), 40))?;
        device.lengths.copy_from(&any(LONG.len(), 600))?;
        if let Some(offsets) = &mut device.offsets {
            offsets.copy_from(&any(LONG.len() + 1, 300))?;
        }
        graph.launch(&stream)?;
        stream.synchronize()?;
    }
    device.table.copy_from(case.table())?;
    device.lengths.copy_from(&case.tables.seqlens_kv)?;
    if let (Some(to), Some(offsets)) = (&mut device.offsets, &case.cu_seqlens_q) {
        to.copy_from(offsets)?;
    }
    device.o.copy_from(&vec![0.0; want.shape().elements()])?;
    device.lse.copy_from(&vec![f32::NEG_INFINITY; want_lse.len()])?;
    graph.launch(&stream)?;
    stream.synchronize()?;
    let (got, lse) = device.results(&case)?;
    ensure!(got.bytes() == want.bytes() && bits(&lse) == bits(&want_lse), "a replay after others");
    device.stride = case.problem.max_blocks() - 1;
    ensure!(device.launch(&plan, &stream).is_err(), "a table without room for the longest sequence");
    device.stride = case.tables.max_blocks;
    device.offsets = None;
    ensure!(device.launch(&plan, &stream).is_err(), "packed queries without offsets");
    Ok(())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
