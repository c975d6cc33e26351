//! Decode on a paged cache and the merge of states.

use crate::device::OnGpu;
use anyhow::{Context, Result, ensure};
use int_flash_attention::gpu::AnySliceMut;
use int_flash_attention::{
    AttentionOutput, DType, DecodeHeads, DecodeProblem, DecodeResult, DeviceBuffer, DeviceQ, Gpu, HostQ, HostTensor,
    Shape, Split, States, StreamRef, TensorLayout, ViewPagedKv, Window,
};
use int_flash_attention_kernels::config::decode::DECODE;
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_tests::continuation::decode_is_prefill;
use int_flash_attention_tests::decode::{
    DecodeCase, DecodeKernels, MergeCase, Numbers, bits, cases_for, matches_the_reference, merges_as_the_reference,
};
use int_flash_attention_tests::properties::{GUARD, POISON};

/// A case on the device.
pub struct OnDevice {
    pages: DeviceBuffer<u8>,
    table: DeviceBuffer<u32>,
    lengths: DeviceBuffer<u32>,
    q: DeviceQ,
    slopes: DeviceBuffer<f32>,
    sinks: DeviceBuffer<f32>,
    workspace: DeviceBuffer<f32>,
    o: DeviceBuffer<u8>,
    lse: DeviceBuffer<f32>,
    plan: int_flash_attention::DecodePlan,
    case: DecodeCase,
    dtype: DType,
}

impl OnDevice {
    pub fn new(gpu: &Gpu, case: &DecodeCase, dtype: DType) -> Result<Self> {
        let shape = case.problem.q_shape();
        let output = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype, lse: true };
        let plan = gpu.plan_decode_with(&case.problem, &output, case.workers)?;
        Ok(Self {
            pages: gpu.upload(&case.pages)?,
            table: gpu.upload(&case.table)?,
            lengths: gpu.upload(&case.lengths)?,
            q: upload(gpu, &case.q)?,
            slopes: gpu.upload(&case.slopes)?,
            sinks: gpu.upload(&case.sinks)?,
            workspace: gpu.upload(&vec![f32::NAN; plan.workspace_len()])?,
            o: gpu.upload(&vec![POISON; shape.elements() * dtype.size() + 2 * GUARD])?,
            lse: gpu.upload(&vec![f32::NAN; shape.rows()])?,
            plan,
            case: case.clone(),
            dtype,
        })
    }

    pub fn launch<'s>(&mut self, stream: impl Into<StreamRef<'s>>) -> int_flash_attention::Result<()> {
        let problem = &self.case.problem;
        let cache = ViewPagedKv {
            pages: self.pages.slice(),
            v4_pages: problem.v4_pages,
            block_table: self.table.slice(),
            table_stride: self.case.stride,
            seqlens_kv: self.lengths.slice(),
        };
        let heads = DecodeHeads {
            alibi_slopes: problem.alibi.then(|| self.slopes.slice()),
            sinks: problem.sinks.then(|| self.sinks.slice()),
        };
        let end = self.o.len() - GUARD;
        let o = AnySliceMut::from_bytes(self.o.slice_mut().range(GUARD, end)?, self.dtype);
        let result = DecodeResult { o, lse: Some(self.lse.slice_mut()) };
        self.plan.launch(stream, &self.q.view(), &cache, &heads, self.workspace.slice_mut(), result)
    }

    pub fn result(&self) -> Result<(HostTensor, Vec<f32>)> {
        let bytes = self.o.to_vec()?;
        let (inside, end) = (&bytes[GUARD..bytes.len() - GUARD], &bytes[bytes.len() - GUARD..]);
        ensure!(bytes[..GUARD].iter().chain(end).all(|&byte| byte == POISON), "written outside the output");
        let layout = TensorLayout::bhnd(self.case.problem.q_shape());
        Ok((HostTensor::from_bytes(self.dtype, inside, layout)?, self.lse.to_vec()?))
    }
}

/// Zeros where the case has no bias: a GPU's operands have one in the default scheme.
fn upload(gpu: &Gpu, q: &HostQ) -> Result<DeviceQ> {
    let bias = q.bias.clone().or_else(|| Some(vec![0.0; q.scale.len()]));
    Ok(HostQ { bias, ..q.clone() }.to_device(gpu)?)
}

impl DecodeKernels for OnGpu {
    fn decode(&self, case: &DecodeCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)> {
        let mut job = OnDevice::new(&self.gpu, case, dtype)?;
        let stream = self.gpu.stream()?;
        job.launch(&stream)?;
        stream.synchronize()?;
        job.result()
    }

    fn merge(&self, case: &MergeCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)> {
        let (gpu, shape) = (&self.gpu, case.shape);
        let output = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype, lse: true };
        let plan = gpu.plan_merge(case.states, &output, case.sinks.is_some())?;
        let (states, lses) = (gpu.upload(&case.o)?, gpu.upload(&case.lse)?);
        let sinks = case.sinks.as_ref().map(|sinks| gpu.upload(sinks)).transpose()?;
        let mut o = gpu.alloc::<u8>(shape.elements() * dtype.size())?;
        let mut lse = gpu.alloc::<f32>(shape.rows())?;
        if case.in_place && case.states == 2 && sinks.is_none() {
            // Two buffers, the first of which takes the result.
            let (elements, rows) = (shape.elements(), shape.rows());
            let mut first = (gpu.upload(&case.o[..elements])?, gpu.upload(&case.lse[..rows])?);
            let second = (gpu.upload(&case.o[elements..])?, gpu.upload(&case.lse[rows..])?);
            let into = (first.0.slice_mut(), first.1.slice_mut());
            plan.launch_in_place(StreamRef::DEFAULT, into, (second.0.slice(), second.1.slice()))?;
            let o = first.0.to_vec()?;
            let o = HostTensor::from_bytes(DType::F32, bytemuck::cast_slice(&o), output.layout)?;
            return Ok((o, first.1.to_vec()?));
        }
        let from = States::Stacked(states.slice(), lses.slice());
        let to = AnySliceMut::from_bytes(o.slice_mut(), dtype);
        plan.launch(StreamRef::DEFAULT, &from, sinks.as_ref().map(DeviceBuffer::slice), to, Some(lse.slice_mut()))?;
        Ok((HostTensor::from_bytes(dtype, &o.to_vec()?, output.layout)?, lse.to_vec()?))
    }
}

/// The cases of the PTX machine, and larger ones with the plan's own workers.
pub fn matches(on: &OnGpu) -> Result<()> {
    for variant in DECODE {
        for (case, dtype) in cases_for(variant) {
            matches_the_reference(on, &case, dtype)?;
            matches_the_reference(on, &DecodeCase { workers: None, ..case }, dtype)?;
        }
    }
    let mut numbers = Numbers::new(1);
    for (seed, variant) in DECODE.iter().enumerate() {
        for (batch, [heads_q, heads_kv], seqlen_q, keys, window) in [
            (1, [8, 2], 1, 40_000, Window::CAUSAL),
            (9, [32, 8], 1, 3000, Window::CAUSAL),
            (40, [4, 4], 2, 900, Window { left: Some(500), right: Some(0) }),
            (3, [8, 1], 8, 5000, Window::CAUSAL),
        ] {
            let problem = DecodeProblem {
                seqlen_q,
                window,
                ..DecodeProblem::new(batch, heads_q, heads_kv, keys, variant.head_dim)
            };
            let lengths: Vec<u32> = (0..batch).map(|_| numbers.below(keys + 1) as u32).collect();
            matches_the_reference(on, &DecodeCase::new(problem, &lengths, seed as u64).of(variant), DType::F16)?;
        }
    }
    Ok(())
}

/// Softcap, ALiBi, sinks and windows over sequences of unlike lengths mean the same in both.
pub fn is_prefill(gpu: &OnGpu) -> Result<()> {
    CACHE_HEAD_DIMS.into_iter().try_for_each(|head_dim| {
        decode_is_prefill(gpu, |lengths| gpu.with_lengths(lengths), head_dim).with_context(|| head_dim.to_string())
    })
}

/// With fixed splits, a sequence has the same bits in a batch and alone.
pub fn batches(on: &OnGpu) -> Result<()> {
    let problem = DecodeProblem { split: Split::Fixed(512), ..DecodeProblem::new(12, 8, 2, 6000, 128) };
    let lengths: Vec<u32> = (0..12).map(|i| 6000 - 533 * i).collect();
    let all = DecodeCase::new(problem, &lengths, 5);
    let (o, lse) = on.decode(&all, DType::F32)?;
    let (o, rows) = (bits(&o), problem.heads_q);
    for sequence in 0..12 {
        let mut alone = all.clone();
        alone.problem.batch = 1;
        alone.lengths = vec![lengths[sequence]];
        alone.table = all.table[sequence * all.stride..][..all.stride].to_vec();
        alone.q.shape.batch = 1;
        alone.q.data = all.q.data[sequence * rows * 128..][..rows * 128].to_vec();
        alone.q.scale = all.q.scale[sequence * rows..][..rows].to_vec();
        alone.q.bias = all.q.bias.as_ref().map(|bias| bias[sequence * rows..][..rows].to_vec());
        let (own, own_lse) = on.decode(&alone, DType::F32)?;
        ensure!(bits(&own) == o[sequence * rows * 128..][..rows * 128], "sequence {sequence} differs in a batch");
        ensure!(own_lse == lse[sequence * rows..][..rows], "the log-sum-exp of sequence {sequence} differs in a batch");
    }
    Ok(())
}

/// One recorded graph serves every step, from empty sequences to full ones, and repeats bit for bit.
pub fn graph(on: &OnGpu) -> Result<()> {
    let problem = DecodeProblem::new(5, 8, 2, 4096, 128);
    let full = DecodeCase::new(problem, &[4096; 5], 9);
    let mut job = OnDevice::new(&on.gpu, &full, DType::F16)?;
    let stream = on.gpu.stream()?;
    let graph = on.gpu.capture(&stream, || job.launch(&stream))?;
    for lengths in [[0; 5], [1, 0, 128, 129, 7], [1, 4096, 0, 2000, 4095], [4096; 5], [3000, 3001, 3002, 3003, 3004]] {
        job.lengths.copy_from_on(&stream, &lengths)?;
        graph.launch(&stream)?;
        stream.synchronize()?;
        let (o, lse) = job.result()?;
        let case = DecodeCase { lengths: lengths.to_vec(), ..full.clone() };
        let (want_o, want_lse) = on.decode(&case, DType::F16)?;
        ensure!(bits(&o) == bits(&want_o) && lse == want_lse, "the replay of {lengths:?} differs from a launch");
        matches_the_reference(on, &case, DType::F16)?;
    }
    Ok(())
}

/// As on the PTX machine, with more rows.
pub fn merges(on: &OnGpu) -> Result<()> {
    for (seed, states) in [1, 2, 3, 40, 200].into_iter().enumerate() {
        for head_dim in [32, 64, 96, 128, 256] {
            let mut case = MergeCase::new(Shape::new(3, 4, 33, head_dim)?, states, seed as u64);
            let dtype = [DType::F32, DType::F16, DType::BF16][seed % 3];
            merges_as_the_reference(on, &case, dtype)?;
            case.in_place = true;
            merges_as_the_reference(on, &case, DType::F32)?;
            case.sinks = Some(vec![0.5, f32::NEG_INFINITY, 30.0, -3.0]);
            merges_as_the_reference(on, &case, DType::F32)?;
        }
    }
    Ok(())
}
