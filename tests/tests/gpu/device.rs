//! The library on a GPU, as the properties want it: outputs with guards, and a problem that stays on the device.

use anyhow::{Result, ensure};
use half::f16;
use int_flash_attention::gpu::{AnySlice, AnySliceMut, BaselineLayouts, DeviceSeqLens};
use int_flash_attention::{
    AttentionOutput, AttentionPlan, AttentionProblem, DType, DeviceBuffer, DeviceOperands, DeviceSliceMut, Family, Gpu,
    HostQuantized, HostTensor, JobPlan, Operand, QuantizeLayouts, ScoreViews, Scored, SeqLens, Shape, Span,
    TensorLayout,
};
use int_flash_attention_kernels::config::AttentionVariant;
use int_flash_attention_kernels::layout::v_byte;
use int_flash_attention_tests::case::{Case, variant_of};
use int_flash_attention_tests::properties::{GUARD, Kernels, POISON, untouched};
use int_flash_attention_tests::sequences::Lengths;
use std::ops::Range;

/// The library's plans and launches, with guard bytes around every output.
#[derive(Clone)]
pub struct OnGpu {
    pub gpu: Gpu,
    /// Of the attention kernels, where it has one for the problem; else that of sm_80.
    pub family: Family,
    /// As on a GPU on which a CTA may have so many bytes of shared memory; sm_80 alone.
    pub shared_bytes: Option<usize>,
    /// Bytes by which the caller's tensors miss the next address that is aligned for everything; whole elements are taken.
    pub ahead: usize,
    /// Of the sequences, whatever they are.
    pub lengths: Lengths,
}

impl OnGpu {
    /// The plan of an attention with a kernel of the family.
    pub fn plan_attention(&self, problem: &AttentionProblem, output: &AttentionOutput) -> Result<AttentionPlan> {
        let family = if variant_of(self.family, problem).is_some() { self.family } else { Family::Sm80 };
        let plan = match self.shared_bytes {
            Some(bytes) => self.gpu.plan_attention_as_with(bytes, problem, output)?,
            None => self.gpu.plan_attention_of(family, problem, output)?,
        };
        ensure!(plan.family() == family, "{} for {family}", plan.kernel());
        Ok(plan)
    }

    /// The same for sequences of these lengths.
    pub fn with_lengths(&self, lengths: &Lengths) -> Self {
        Self { lengths: lengths.clone(), ..self.clone() }
    }

    /// The lengths on the device.
    fn device_lengths(&self) -> Result<SeqLens<DeviceBuffer<u32>>> {
        Ok(self.lengths.try_map(|array| self.gpu.upload(array))?)
    }

    /// Where the sequences are; for lengths that are none, nowhere.
    fn spans(&self, problem: &AttentionProblem) -> Vec<Span> {
        problem.spans(&self.lengths.map(Vec::as_slice)).unwrap_or_default()
    }

    /// What belongs to no sequence as the reference has it: the memory was not written, and is anything.
    fn without_gaps(&self, problem: &AttentionProblem, x: &mut HostQuantized) {
        fn clear<T: Copy>(values: &mut [T], own: &[bool], zero: T) {
            let unit = values.len() / own.len();
            for (part, _) in values.chunks_exact_mut(unit).zip(own).filter(|(_, own)| !**own) {
                part.fill(zero);
            }
        }
        let (mut rows, mut blocks) = (vec![false; x.q.scale.len()], vec![false; x.k.block_scale.len()]);
        for span in self.spans(problem) {
            (0..problem.heads_q).for_each(|head| rows[span.rows(problem, head)].fill(true));
            (0..problem.heads_kv).for_each(|head| blocks[span.blocks(problem, head)].fill(true));
        }
        clear(&mut x.q.data, &rows, 0);
        clear(&mut x.q.scale, &rows, 0.0);
        x.q.bias.iter_mut().for_each(|bias| clear(bias, &rows, 0.0));
        clear(&mut x.k.data, &blocks, 0);
        clear(&mut x.v.data, &blocks, v_byte(0));
        for scales in [&mut x.k.scale, &mut x.k.block_scale, &mut x.v.scale, &mut x.v.block_scale] {
            clear(scales, &blocks, 0.0);
        }
    }

    /// An output without the rows that belong to no sequence, which must not have been written: they are zero.
    fn own_rows(&self, o: HostTensor, own: &[(usize, Range<usize>)]) -> Result<HostTensor> {
        if self.lengths == SeqLens::Equal || own.is_empty() {
            return Ok(o);
        }
        let poison = HostTensor::from_bytes(o.dtype(), &[POISON; 4][..o.dtype().size()], single())?.get(0, 0, 0, 0);
        let mut written = 0;
        let values = |b: usize, h: usize, n: usize, d: usize| {
            let value = o.get(b, h, n, d);
            if own.iter().any(|(batch, rows)| *batch == b && rows.contains(&n)) {
                return value;
            }
            written += usize::from(value.to_bits() != poison.to_bits());
            0.0
        };
        let rows = HostTensor::from_fn(o.dtype(), TensorLayout::bhnd(o.shape()), values)?;
        ensure!(written == 0, "{written} elements of rows were written that belong to no sequence");
        Ok(rows)
    }

    /// A buffer of poison: `bytes` and a guard at each end.
    fn guarded(&self, bytes: usize) -> Result<DeviceBuffer<u8>> {
        Ok(self.gpu.upload(&vec![POISON; bytes + 2 * GUARD])?)
    }

    /// Bytes in front of a tensor.
    fn ahead_of(&self, dtype: DType) -> usize {
        self.ahead.next_multiple_of(dtype.size())
    }

    /// A buffer of poison with room for an output, which [`inside`](Self::inside) is.
    fn output(&self, layout: &TensorLayout, dtype: DType) -> Result<DeviceBuffer<u8>> {
        self.guarded(self.ahead_of(dtype) + layout.span() * dtype.size())
    }

    fn inside<'a>(&self, buffer: &'a mut DeviceBuffer<u8>, dtype: DType) -> Result<AnySliceMut<'a>> {
        let end = buffer.len() - GUARD;
        Ok(AnySliceMut::from_bytes(buffer.slice_mut().range(GUARD + self.ahead_of(dtype), end)?, dtype))
    }

    /// Reads an output back; nothing outside its rows may have changed.
    fn read_output(&self, buffer: &DeviceBuffer<u8>, layout: TensorLayout, dtype: DType) -> Result<HostTensor> {
        let all = buffer.to_vec()?;
        let (ahead, bytes) = all.split_at(self.ahead_of(dtype));
        ensure!(ahead.iter().all(|&byte| byte == POISON), "the output was written before its guard");
        untouched("the output", bytes, &layout, dtype.size())?;
        Ok(HostTensor::from_bytes(dtype, &bytes[GUARD..bytes.len() - GUARD], layout)?)
    }

    /// An input, which [`placed`](Self::placed) is in the buffer.
    fn upload(&self, tensor: &HostTensor) -> Result<DeviceBuffer<u8>> {
        let mut bytes = vec![POISON; self.ahead_of(tensor.dtype())];
        bytes.extend(tensor.bytes());
        Ok(self.gpu.upload(&bytes)?)
    }

    fn placed<'a>(&self, buffer: &'a DeviceBuffer<u8>, dtype: DType) -> Result<AnySlice<'a>> {
        Ok(AnySlice::from_bytes(buffer.slice().range(self.ahead_of(dtype), buffer.len())?, dtype))
    }
}

impl OnGpu {
    /// A job on host tensors, with guards around what it writes.
    pub fn job(
        &self,
        plan: &JobPlan,
        [q, k, v]: [&HostTensor; 3],
        output: &AttentionOutput,
        rows: usize,
    ) -> Result<(HostTensor, Option<Vec<f32>>)> {
        let gpu = &self.gpu;
        let AttentionOutput { layout, dtype, lse } = *output;
        let (q_in, k_in, v_in) = (self.upload(q)?, self.upload(k)?, self.upload(v)?);
        let placed = |buffer| self.placed(buffer, q.dtype());
        let inputs = [placed(&q_in)?, placed(&k_in)?, placed(&v_in)?];
        let mut workspace = self.guarded(plan.workspace_bytes())?;
        let mut o = self.output(&layout, dtype)?;
        let mut lse_out = if lse { Some(self.guarded(4 * rows)?) } else { None };
        let stream = gpu.stream()?;
        let inside = workspace.slice_mut().range(GUARD, GUARD + plan.workspace_bytes())?;
        let lse_view = lse_out.as_mut().map(|buffer| lse_inside(buffer, rows));
        plan.launch(&stream, inputs, inside, self.inside(&mut o, dtype)?, lse_view)?;
        stream.synchronize()?;
        let bytes = workspace.to_vec()?;
        let mut guards = bytes[..GUARD].iter().chain(&bytes[bytes.len() - GUARD..]);
        ensure!(guards.all(|&byte| byte == POISON), "the workspace was left");
        let lse = lse_out.map(|buffer| read_lse(&buffer, rows)).transpose()?;
        Ok((self.read_output(&o, layout, dtype)?, lse))
    }
}

/// The layout of one element.
fn single() -> TensorLayout {
    TensorLayout::bhnd(Shape { batch: 1, heads: 1, seqlen: 1, head_dim: 1 })
}

/// The operands made of Q, K and V that are on the device.
pub fn quantized(
    gpu: &Gpu,
    problem: &AttentionProblem,
    layouts: &QuantizeLayouts,
    inputs: [AnySlice<'_>; 3],
    lengths: &DeviceSeqLens<'_>,
) -> Result<DeviceOperands> {
    let plan = gpu.plan_quantize(problem, layouts)?;
    let mut workspace = gpu.alloc::<f32>(plan.workspace_len())?;
    let mut operands = DeviceOperands::alloc(gpu, problem)?;
    let stream = gpu.stream()?;
    plan.launch_with(&stream, inputs, lengths, workspace.slice_mut(), &mut operands.view_mut())?;
    stream.synchronize()?;
    Ok(operands)
}

impl Kernels for OnGpu {
    const EXACT_EXPONENTIALS: bool = false;

    fn narrow(&self, problem: &AttentionProblem) -> bool {
        variant_of(self.family, problem).is_some_and(AttentionVariant::takes_narrow)
    }

    fn shares_k(&self, problem: &AttentionProblem) -> bool {
        self.gpu.takes_narrow(problem)
    }

    fn quantize(
        &self,
        problem: &AttentionProblem,
        q: &HostTensor,
        k: &HostTensor,
        v: &HostTensor,
    ) -> Result<HostQuantized> {
        let gpu = &self.gpu;
        let layouts = QuantizeLayouts { q: q.layout(), k: k.layout(), v: v.layout(), dtype: q.dtype() };
        let (q_in, k_in, v_in) = (self.upload(q)?, self.upload(k)?, self.upload(v)?);
        let placed = |buffer| self.placed(buffer, layouts.dtype);
        let lengths = self.device_lengths()?;
        let lengths = lengths.map(DeviceBuffer::slice);
        let inputs = [placed(&q_in)?, placed(&k_in)?, placed(&v_in)?];
        let mut operands = quantized(gpu, problem, &layouts, inputs, &lengths)?.to_host()?;
        if self.lengths != SeqLens::Equal {
            self.without_gaps(problem, &mut operands);
        }
        Ok(operands)
    }

    fn attention(
        &self,
        scored: &Scored<'_>,
        operands: &HostQuantized,
        out: &TensorLayout,
        dtype: DType,
        lse: bool,
    ) -> Result<(HostTensor, Option<Vec<f32>>)> {
        let (gpu, Scored { problem, tensors, .. }) = (&self.gpu, *scored);
        let plan = self.plan_attention(problem, &AttentionOutput { layout: *out, dtype, lse })?;
        let operands = operands.to_device(gpu)?;
        let mut o = self.output(out, dtype)?;
        let rows = problem.q_shape().rows();
        let mut lse_out = if lse { Some(self.guarded(4 * rows)?) } else { None };
        let stream = gpu.stream()?;
        let lse_view = lse_out.as_mut().map(|buffer| lse_inside(buffer, rows));
        let slopes = tensors.alibi_slopes.map(|slopes| gpu.upload(slopes)).transpose()?;
        let sinks = tensors.sinks.map(|sinks| gpu.upload(sinks)).transpose()?;
        let mask = tensors.mask.map(|mask| gpu.upload(mask)).transpose()?;
        let bias =
            tensors.bias.map(|bias| Ok::<_, anyhow::Error>((gpu.upload(bias.bytes())?, bias.dtype()))).transpose()?;
        let scores = ScoreViews {
            alibi_slopes: slopes.as_ref().map(DeviceBuffer::slice),
            bias: bias.as_ref().map(|(bytes, dtype)| AnySlice::from_bytes(bytes.slice(), *dtype)),
            mask: mask.as_ref().map(DeviceBuffer::slice),
            sinks: sinks.as_ref().map(DeviceBuffer::slice),
        };
        let lengths = self.device_lengths()?;
        let lengths = lengths.map(DeviceBuffer::slice);
        plan.launch_scored(&stream, &operands.view(), &scores, &lengths, self.inside(&mut o, dtype)?, lse_view)?;
        stream.synchronize()?;
        let mut lse = lse_out.map(|buffer| read_lse(&buffer, rows)).transpose()?;
        let (spans, mut own) = (self.spans(problem), vec![false; rows]);
        for (span, head) in spans.iter().flat_map(|span| (0..problem.heads_q).map(move |head| (span, head))) {
            own[span.rows(problem, head)].fill(true);
        }
        let poison = f32::from_bits(u32::from_ne_bytes([POISON; 4]));
        for (lse, _) in lse.iter_mut().flatten().zip(&own).filter(|(_, own)| !**own && !spans.is_empty()) {
            ensure!(lse.to_bits() == poison.to_bits(), "a log-sum-exp was written that belongs to no sequence");
            *lse = f32::NEG_INFINITY;
        }
        let own: Vec<_> = spans.into_iter().map(|span| (span.batch, span.q)).collect();
        Ok((self.own_rows(self.read_output(&o, *out, dtype)?, &own)?, lse))
    }

    fn dequantize(
        &self,
        problem: &AttentionProblem,
        operands: &HostQuantized,
        operand: Operand,
        out: &TensorLayout,
        dtype: DType,
    ) -> Result<HostTensor> {
        let gpu = &self.gpu;
        let plan = gpu.plan_dequantize(problem, operand, out, dtype)?;
        let operands = operands.to_device(gpu)?;
        let (data, scale, offset) = match operand {
            Operand::Q => (&operands.q.data, &operands.q.scale, None),
            Operand::K => (&operands.k.data, &operands.k.scale, Some(operands.k.offset.slice())),
            Operand::V => (&operands.v.data, &operands.v.scale, None),
        };
        let mut o = self.output(out, dtype)?;
        let stream = gpu.stream()?;
        let lengths = self.device_lengths()?;
        let lengths = lengths.map(DeviceBuffer::slice);
        plan.launch_with(&stream, data.slice(), scale.slice(), &lengths, offset, self.inside(&mut o, dtype)?)?;
        stream.synchronize()?;
        let rows = |span: Span| (span.batch, if operand == Operand::Q { span.q } else { span.kv });
        let own: Vec<_> = self.spans(problem).into_iter().map(rows).collect();
        self.own_rows(self.read_output(&o, *out, dtype)?, &own)
    }

    fn attention_f16(
        &self,
        problem: &AttentionProblem,
        [q, k, v]: [&HostTensor; 3],
        out: &TensorLayout,
    ) -> Result<(HostTensor, Vec<f32>)> {
        let gpu = &self.gpu;
        let layouts = BaselineLayouts { q: q.layout(), k: k.layout(), v: v.layout(), o: *out, lse: true };
        let plan = gpu.plan_baseline(problem, &layouts)?;
        let (q_in, k_in, v_in) = (self.upload(q)?, self.upload(k)?, self.upload(v)?);
        let mut o = self.output(out, DType::F16)?;
        let rows = problem.q_shape().rows();
        let mut lse = self.guarded(4 * rows)?;
        let stream = gpu.stream()?;
        let lse_out = Some(lse_inside(&mut lse, rows));
        let [q, k, v] = [&q_in, &k_in, &v_in].map(|buffer| self.placed(buffer, DType::F16));
        plan.launch(&stream, q?, k?, v?, self.inside(&mut o, DType::F16)?, lse_out)?;
        stream.synchronize()?;
        Ok((self.read_output(&o, *out, DType::F16)?, read_lse(&lse, rows)?))
    }
}

/// The inside of a guarded buffer of a log-sum-exp.
fn lse_inside(buffer: &mut DeviceBuffer<u8>, rows: usize) -> DeviceSliceMut<'_, f32> {
    // SAFETY: the guarded buffer holds `rows` floats after its first guard, and is borrowed as long as the slice lives.
    unsafe { DeviceSliceMut::<f32>::from_raw(buffer.ptr() + GUARD as u64, rows) }
}

fn read_lse(buffer: &DeviceBuffer<u8>, rows: usize) -> Result<Vec<f32>> {
    let bytes = buffer.to_vec()?;
    let guards = bytes[..GUARD].iter().chain(&bytes[GUARD + 4 * rows..]);
    ensure!(guards.into_iter().all(|&byte| byte == POISON), "lse was written outside its elements");
    Ok(bytes[GUARD..GUARD + 4 * rows].chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())
}

/// A dense float16 problem on the device: inputs, operands, output.
pub struct OnDevice {
    pub inputs: [DeviceBuffer<f16>; 3],
    pub workspace: DeviceBuffer<f32>,
    pub operands: DeviceOperands,
    pub o: DeviceBuffer<f16>,
    pub plans: (int_flash_attention::QuantizePlan, int_flash_attention::AttentionPlan),
}

impl OnDevice {
    pub fn new(on: &OnGpu, problem: AttentionProblem, seed: u64) -> Result<Self> {
        let gpu = &on.gpu;
        let (q, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let quantize = gpu.plan_quantize(&problem, &QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 })?;
        let attention = on.plan_attention(&problem, &AttentionOutput { layout: q, dtype: DType::F16, lse: false })?;
        let [q_in, k_in, v_in] = f16_inputs(&problem, seed)?;
        Ok(Self {
            inputs: [gpu.upload(&q_in)?, gpu.upload(&k_in)?, gpu.upload(&v_in)?],
            workspace: gpu.alloc(quantize.workspace_len())?,
            operands: DeviceOperands::alloc(gpu, &problem)?,
            o: gpu.upload(&vec![f16::NAN; q.span()])?,
            plans: (quantize, attention),
        })
    }

    pub fn launch(&mut self, stream: &int_flash_attention::Stream) -> int_flash_attention::Result<()> {
        self.launch_with(stream, &SeqLens::Equal)
    }

    pub fn launch_with(
        &mut self,
        stream: &int_flash_attention::Stream,
        lengths: &DeviceSeqLens<'_>,
    ) -> int_flash_attention::Result<()> {
        let [q, k, v] = &self.inputs;
        let operands = &mut self.operands.view_mut();
        let inputs = [q.into(), k.into(), v.into()];
        self.plans.0.launch_with(stream, inputs, lengths, self.workspace.slice_mut(), operands)?;
        self.plans.1.launch_with(stream, &self.operands.view(), lengths, (&mut self.o).into(), None)
    }
}

pub fn f16_inputs(problem: &AttentionProblem, seed: u64) -> Result<[Vec<f16>; 3]> {
    let vector = |tensor: HostTensor| bytemuck::cast_slice::<u8, f16>(tensor.bytes()).to_vec();
    Ok(Case::plain(*problem, seed).tensors()?.map(vector))
}

pub fn bits(buffer: &DeviceBuffer<f16>) -> Result<Vec<u16>> {
    Ok(buffer.to_vec()?.into_iter().map(f16::to_bits).collect())
}
